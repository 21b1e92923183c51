"""What the encoders of an encoder-decoder may take: of a step, and of a count of what is on its way to the decoder.

As ``EncoderDecoderCacheManager`` (vllm/v1/core/encoder_cache_manager.py) and its callers in the scheduler, 0.32: a
request gives its tokens back in each of its steps, not once, so that the count grows and holds nobody back after the
first steps.
"""

from __future__ import annotations


class Encoders:
    """Each request has ``tokens`` of an encoder, 0 where there is none; ``budget`` are there at the start of a step."""

    def __init__(self, tokens: int, budget: int) -> None:
        self.tokens, self._budget = tokens, max(budget, tokens)
        self._of_step = self._free = self._budget

    def begin_step(self) -> None:
        """No encoder runs yet."""
        self._of_step = self._budget

    def fits(self) -> bool:
        """Whether another encoder may run in this step."""
        return self.tokens <= min(self._of_step, self._free)

    def run(self) -> None:
        """One does."""
        self._of_step -= self.tokens
        self._free -= self.tokens

    def give_back(self, times: int = 1) -> None:
        """``times`` requests give theirs back, whether they still had them or not."""
        self._free += times * self.tokens
