"""Latencies as distributions, in bounded memory: counts by logarithmic bins.

A quantile is told to within 1 % (Masson et al., "DDSketch", PVLDB 12(12), 2019, has the same bins). Picoseconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from harness.ledger import LATENCIES, QUANTILES
from harness.traffic import Request

PS = 10**12  # picoseconds in a second
_GAMMA = 1.02  # the width of a bin; its middle is within 1 % of all in it
_LOG_GAMMA = math.log(_GAMMA)


class Distribution:
    """Values added one by one or many at once."""

    def __init__(self) -> None:
        self.count = self.total = 0
        self._bins: dict[int, int] = {}
        self._zeros = 0

    def add(self, value: int, count: int = 1) -> None:
        """``count`` times ``value``."""
        self.count += count
        self.total += value * count
        if value <= 0:
            self._zeros += count
        else:
            i = math.ceil(math.log(value) / _LOG_GAMMA)
            self._bins[i] = self._bins.get(i, 0) + count

    def add_evenly(self, first: int, last: int, steps: int, each: int) -> None:
        """``each`` times every one of ``steps`` values that grow evenly from ``first`` to ``last``."""
        total, done = self.total + each * (steps * (first + last) // 2), 0
        while done < steps:
            value = first + (last - first) * done // max(steps - 1, 1)
            # All values up to the end of this one's bin.
            end = value if value <= 0 else math.floor(_GAMMA ** math.ceil(math.log(value) / _LOG_GAMMA))
            inside = steps if end >= last else max((end - first) * (steps - 1) // (last - first) + 1, done + 1)
            self.add(value, each * (inside - done))
            done = inside
        self.total = total

    @property
    def mean(self) -> float | None:
        """The mean, exactly; None where there are no values."""
        return self.total / self.count if self.count else None

    def told(self) -> dict[str, float | None]:
        """The mean and the quantiles that are reported."""
        return {"mean": self.mean, **{f"p{q}": self.quantile(q / 100) for q in QUANTILES}}

    def quantile(self, share: float) -> float | None:
        """The value that ``share`` of all do not exceed, None where there are none."""
        if not self.count:
            return None
        left = math.ceil(share * self.count) - self._zeros
        if left <= 0:
            return 0.0
        for i in sorted(self._bins):
            left -= self._bins[i]
            if left <= 0:
                return 2 * _GAMMA**i / (1 + _GAMMA)
        raise AssertionError("the bins hold all values")


class Come:
    """A request that has come: when, what its user sends after it, when it had its first token and (of one that does
    not decode in lockstep) its last."""

    __slots__ = ("came_ps", "first_ps", "index", "last_ps", "later", "output")

    def __init__(self, request: Request, came_ps: int, later: deque[Request]) -> None:
        self.index, self.output, self.came_ps, self.later = request.index, request.output_tokens, came_ps, later
        self.first_ps: int | None = None
        self.last_ps = 0


@dataclass
class Journal:
    """When the requests of a load had their tokens, by the names that vLLM's own benchmark has.

    ``ttft``: from a request's coming to its first token; ``itl``: from a token to the next; ``tpot``: the mean of a
    request's, its first token left out; ``queue``: until it first runs; ``e2e``: from its coming to its last token.
    ``targets``: the most that each of ttft, tpot and e2e may be, for a request to be ``good``.
    """

    targets: dict[str, int] = field(default_factory=dict)
    ttft: Distribution = field(default_factory=Distribution)
    itl: Distribution = field(default_factory=Distribution)
    tpot: Distribution = field(default_factory=Distribution)
    queue: Distribution = field(default_factory=Distribution)
    e2e: Distribution = field(default_factory=Distribution)
    tokens: int = 0
    good: int = 0

    def token(self, seq: Come, now_ps: int) -> None:
        """``seq`` had a token: its first, or one after a break that :attr:`Come.last_ps` began."""
        if seq.first_ps is None:
            seq.first_ps = now_ps
            self.ttft.add(now_ps - seq.came_ps)
        else:
            self.itl.add(now_ps - seq.last_ps)
        seq.last_ps = now_ps

    def ended(self, seq: Come, now_ps: int) -> None:
        """``seq`` had its last token."""
        assert seq.first_ps is not None
        self.tokens += seq.output
        took = {"ttft": seq.first_ps - seq.came_ps, "e2e": now_ps - seq.came_ps}
        self.e2e.add(took["e2e"])
        if seq.output > 1:
            took["tpot"] = (now_ps - seq.first_ps) // (seq.output - 1)
            self.tpot.add(took["tpot"])
        self.good += all(took.get(name, 0) <= most for name, most in self.targets.items())

    def figures(self, duration_ps: int) -> dict[str, float | None]:
        """The figures of a load that took ``duration_ps``, in seconds, named as in :class:`LoadFigures`."""
        seconds = duration_ps / PS
        figures: dict[str, float | None] = {
            "duration_s": seconds,
            "requests_per_s": self.e2e.count / seconds if seconds else None,
            "output_tokens_per_s": self.tokens / seconds if seconds else None,
            "goodput_per_s": self.good / seconds if seconds and self.targets else None,
        }
        for name in LATENCIES:
            values: Distribution = getattr(self, name)
            figures |= {f"{name}_{which}_s": None if v is None else v / PS for which, v in values.told().items()}
        return figures
