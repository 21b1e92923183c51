"""How long a step takes.

Everything is a whole number of picoseconds and, while the same requests decode, grows evenly with their
context: so any number of steps is summed exactly in one go.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepTime:
    """The time of a step in picoseconds, from what is scheduled in it: a roofline.

    ``launch_ps`` is spent in every step. The weights are read once (``dense_ps``; of the experts, which take
    ``experts_ps`` in all, those that a token is sent to) while each token is computed (``token_ps``): the longer of the
    two counts. A decoding request reads its context (``kv_ps`` a token), a prefill's attention computes (query, key)
    pairs (``pair_ps``), and the ranks exchange each token (``exchange_ps``).
    """

    launch_ps: int
    token_ps: int = 0
    kv_ps: int = 0
    pair_ps: int = 0
    dense_ps: int = 0
    experts_ps: int = 0
    idle_share: float = 0.0  # of the experts, that one token is not sent to
    exchange_ps: int = 0

    def step(self, tokens: int, kv_tokens: int, pairs: int) -> int:
        """Picoseconds of one step; one without a token takes none."""
        if not tokens:
            return 0
        return self._at(tokens) + kv_tokens * self.kv_ps + pairs * self.pair_ps

    def decoding(self, steps: int, requests: int, kv_tokens: int) -> int:
        """Picoseconds of ``steps`` steps in which ``requests`` requests decode, who read ``kv_tokens`` at the first."""
        grown = steps * kv_tokens + requests * (steps * (steps - 1) // 2)
        return steps * self._at(requests) + grown * self.kv_ps

    def _at(self, tokens: int) -> int:
        """What does not depend on the context."""
        read = self.dense_ps
        if self.experts_ps:
            read += round(self.experts_ps * (1 - self.idle_share**tokens))
        return self.launch_ps + max(read, tokens * self.token_ps) + tokens * self.exchange_ps


TIMELESS = StepTime(0)
