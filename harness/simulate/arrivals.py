"""The queue in front of the scheduler, and when requests come to it.

Requests are drawn when they reach the head, so that a long queue takes no memory. Times are whole
picoseconds: a sum of steps is exact, whether they are taken one by one or at once.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Generic, TypeVar

from harness.scenario import Load
from harness.simulate.latency import PS, Come
from harness.traffic import Request, arrivals_s, stream

T = TypeVar("T", bound=Come)


class Waiting(Generic[T]):
    """Preempted requests, then those that came and never ran, in the order in which they came.

    ``make`` turns a request, when it came and the later turns of its conversation into what the scheduler keeps of it.
    """

    def __init__(self, load: Load, make: Callable[[Request, int, deque[Request]], T]) -> None:
        self._make = make
        self._turns = load.turns
        self._drawn = stream(load)
        self._times = arrivals_s(load)  # of conversations; None: the first ones are there, an end brings the next
        self._think_ps = round(load.think_s * PS)
        self._due: list[tuple[int, int, deque[Request]]] = []  # a heap: users who think, until when, what they send
        self._heads: deque[T] = deque()  # the preempted, and the first of the others once it was drawn
        # Those behind them: so many new conversations that came at a time, or the rest of one that goes on.
        self._queue: deque[tuple[int, int, deque[Request] | None]] = deque()
        self._arrived = 0
        self._to_come = 0 if self._times else load.conversations  # that wait for an end
        self.tokens_asked = 0  # to compute, by all that were drawn
        if self._times is None:
            self._to_come -= load.concurrency
            self._begin(0, load.concurrency)
        self._next_begin_ps = self._next_time()

    def __len__(self) -> int:
        return len(self._heads) + self._arrived

    @property
    def next_ps(self) -> int | None:
        """When the next request comes by itself, or None."""
        due = self._due[0][0] if self._due else None
        begin = self._next_begin_ps
        return due if begin is None else begin if due is None else min(begin, due)

    def _next_time(self) -> int | None:
        time_s = next(self._times, None) if self._times else None
        return None if time_s is None else round(time_s * PS)

    def _begin(self, now_ps: int, count: int = 1) -> None:
        """So many new conversations have come."""
        self._arrived += count
        if self._queue and self._queue[-1][2] is None and self._queue[-1][0] == now_ps:
            count += self._queue.pop()[1]
        self._queue.append((now_ps, count, None))

    def until(self, now_ps: int) -> None:
        """Those that come by themselves up to ``now_ps`` are there."""
        while (when := self.next_ps) is not None and when <= now_ps:
            if when == self._next_begin_ps:
                self._begin(when)
                self._next_begin_ps = self._next_time()
                continue
            _, _, rest = heapq.heappop(self._due)
            if rest:
                self._arrived += 1
                self._queue.append((when, 1, rest))
            else:
                self._begin(when)

    def head(self) -> T:
        """The next request to run."""
        if not self._heads:
            self._heads.append(self._draw())
        return self._heads[0]

    def _draw(self) -> T:
        """The first of those that came."""
        came_ps, count, turns = self._queue.popleft()
        if turns is None:
            turns = deque(islice(self._drawn, self._turns))
            if count > 1:
                self._queue.appendleft((came_ps, count - 1, None))
        request = turns.popleft()
        self._arrived -= 1
        self.tokens_asked += request.prompt_tokens + request.output_tokens - 1
        return self._make(request, came_ps, turns)

    def pop(self) -> None:
        """The head runs."""
        self._heads.popleft()

    def push_front(self, seq: T) -> None:
        """``seq`` was preempted."""
        self._heads.appendleft(seq)

    def remove(self, seq: T) -> None:
        """``seq``, which was preempted, has ended after all."""
        self._heads.remove(seq)

    def ended(self, seq: T, now_ps: int) -> None:
        """``seq`` has ended: its user sends the next one, if there is one, when he has thought."""
        if not seq.later:
            if not self._to_come:
                return
            self._to_come -= 1
        heapq.heappush(self._due, (now_ps + self._think_ps, seq.index, seq.later))


class ByRank(Waiting[T]):
    """Those that came by their ``rank``, the least first. All of them are drawn."""

    def __init__(
        self, load: Load, make: Callable[[Request, int, deque[Request]], T], rank: Callable[[T], Any]
    ) -> None:
        super().__init__(load, make)
        self._rank = rank
        self._heap: list[tuple[Any, T]] = []

    def __len__(self) -> int:
        return len(self._heap) + self._arrived

    def head(self) -> T:
        """The next request to run."""
        while self._arrived:
            self.push_front(self._draw())
        return self._heap[0][1]

    def pop(self) -> None:
        """The head runs."""
        heapq.heappop(self._heap)

    def push_front(self, seq: T) -> None:
        """``seq`` waits."""
        heapq.heappush(self._heap, (self._rank(seq), seq))

    def remove(self, seq: T) -> None:
        """``seq``, which was preempted, has ended after all."""
        self._heap.remove((self._rank(seq), seq))
        heapq.heapify(self._heap)
