"""The queue in front of the scheduler, and when requests come to it.

Requests are drawn when they reach the head, so that a long queue takes no memory. Times are whole
picoseconds: a sum of steps is exact, whether they are taken one by one or at once.
"""

from __future__ import annotations

from collections import deque

from harness.scenario import Load
from harness.simulate.lockstep import Sequence
from harness.traffic import arrivals_s, stream

PS = 10**12  # picoseconds in a second


class Waiting:
    """Preempted requests, then those that came and never ran, in the order in which they came."""

    def __init__(self, load: Load) -> None:
        self._drawn = stream(load)
        self._times = arrivals_s(load)  # None: the first ones are there at the start, an end brings the next
        self._arrived = 0 if self._times else load.concurrency
        self._to_come = load.requests - self._arrived
        self._heads: deque[Sequence] = deque()  # the preempted, and the first of the others once it was drawn
        self.tokens_asked = 0  # to compute, by all that were drawn
        self.next_ps = self._next_time()  # when the next one comes by itself, or None

    def __len__(self) -> int:
        return len(self._heads) + self._arrived

    def _next_time(self) -> int | None:
        time_s = next(self._times, None) if self._times else None
        return None if time_s is None else round(time_s * PS)

    def until(self, now_ps: int) -> None:
        """Those that come by themselves up to ``now_ps`` are there."""
        while self.next_ps is not None and self.next_ps <= now_ps:
            self._to_come -= 1
            self._arrived += 1
            self.next_ps = self._next_time()

    def head(self) -> Sequence:
        """The next request to run."""
        if not self._heads:
            request = next(self._drawn)
            self._arrived -= 1
            self.tokens_asked += request.prompt_tokens + request.output_tokens - 1
            self._heads.append(Sequence(request.index, request.prompt_tokens, request.output_tokens))
        return self._heads[0]

    def pop(self) -> None:
        """The head runs."""
        self._heads.popleft()

    def push_front(self, seq: Sequence) -> None:
        """``seq`` was preempted."""
        self._heads.appendleft(seq)

    def remove(self, seq: Sequence) -> None:
        """``seq``, which was preempted, has ended after all."""
        self._heads.remove(seq)

    def next_of_user(self) -> None:
        """A request has ended: its user sends the next one, if there is one."""
        if self._to_come and not self._times:
            self._to_come -= 1
            self._arrived += 1
