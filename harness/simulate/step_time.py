"""How long a step takes.

Everything is a whole number of picoseconds and, while the same requests decode, grows evenly with their
context: so any number of steps is summed exactly in one go.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepTime:
    """The time of a step in picoseconds, from what is scheduled in it.

    ``launch_ps`` is spent in every step, ``token_ps`` for each token, ``kv_ps`` for each token of context
    that a decoding request reads, ``pair_ps`` for each (query, key) pair of a prefill's attention.
    """

    launch_ps: int
    token_ps: int = 0
    kv_ps: int = 0
    pair_ps: int = 0

    def step(self, tokens: int, kv_tokens: int, pairs: int) -> int:
        """Picoseconds of one step; one without a token takes none."""
        if not tokens:
            return 0
        return self.launch_ps + tokens * self.token_ps + kv_tokens * self.kv_ps + pairs * self.pair_ps

    def decoding(self, steps: int, requests: int, kv_tokens: int) -> int:
        """Picoseconds of ``steps`` steps in which ``requests`` requests decode, who read ``kv_tokens`` at the first."""
        grown = steps * kv_tokens + requests * (steps * (steps - 1) // 2)
        return steps * self.step(requests, 0, 0) + grown * self.kv_ps


TIMELESS = StepTime(0)
