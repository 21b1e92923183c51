"""Requests that decode within their blocks: nothing of theirs changes but by the clock."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Decoding(Protocol):
    """A request that takes one token a step."""

    tokens: int
    computed: int
    seat: int
    since: int | None


T = TypeVar("T", bound=Decoding)


class Steady(Generic[T]):
    """Who they are, until when each stays so. Figures of theirs are brought up to date when they leave."""

    def __init__(self) -> None:
        self.clock = self.count = 0
        self._computed = 0  # tokens computed of all of them, less one clock each
        self._ends: list[tuple[int, int, int, T]] = []  # a heap: end, seat, since; entries of those that left are stale

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV the next step reads or makes."""
        return self._computed + self.count * (self.clock + 1)

    def join(self, job: T, steps: int) -> None:
        """For ``steps`` steps nothing happens to ``job`` but a token in each."""
        job.since = self.clock
        self.count += 1
        self._computed += job.computed - self.clock
        heapq.heappush(self._ends, (self.clock + steps, job.seat, self.clock, job))

    def leave(self, job: T) -> None:
        """``job`` is looked at again."""
        assert job.since is not None
        job.tokens += self.clock - job.since
        job.computed += self.clock - job.since
        job.since = None
        self.count -= 1
        self._computed -= job.computed - self.clock

    def steps_to_end(self) -> int:
        """Steps until the next one leaves (there is one)."""
        self._forget()
        return self._ends[0][0] - self.clock

    def due(self) -> Iterator[T]:
        """Those whose steps are over."""
        self._forget()
        while self._ends and self._ends[0][0] <= self.clock:
            yield heapq.heappop(self._ends)[3]
            self._forget()

    def _forget(self) -> None:
        while self._ends and self._ends[0][3].since != self._ends[0][2]:
            heapq.heappop(self._ends)
