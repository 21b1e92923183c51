"""What every simulated run has: a clock, counts, who waits and who runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Collection
from typing import Generic, Protocol, TypeVar

from harness.simulate.arrivals import Waiting
from harness.simulate.latency import PS, Come, Journal
from harness.simulate.limits import Limits
from harness.simulate.step_time import StepTime
from harness.simulate.timeline import Point, Timeline

UNBOUNDED = 2**60
T = TypeVar("T", bound=Come)


class Pool(Protocol):
    """Blocks, counted or known one by one."""

    @property
    def used(self) -> int:
        """Blocks that requests hold."""


class Driver(ABC, Generic[T]):
    """A load on a pool, step by step or many steps at once; the counts are the same."""

    running: Collection[object]
    pool: Pool

    def __init__(self, limits: Limits, waiting: Waiting[T], num_blocks: int, step_time: StepTime) -> None:
        self.limits, self.waiting, self.step_time = limits, waiting, step_time
        self.watermark_blocks = int(limits.watermark * num_blocks)
        self.steps = self.tokens_scheduled = self.preemptions = 0
        self.tokens_found = 0  # tokens of those that ran for the first time that others had computed
        self.tokens_wasted = 0  # draft tokens that were wrong or came too late
        self.peak_blocks = self.peak_running = self.peak_waiting = 0
        self.waited_for_kv = False
        self.timeline = Timeline()
        self.journal = Journal()
        self.now_ps = self.began_ps = 0  # when the next step begins, when the last one began
        self._longest_chunk = UNBOUNDED  # of a prefill, in the next step

    @property
    def unfinished(self) -> bool:
        """Whether a request runs, waits or is still to come."""
        return bool(self.running) or len(self.waiting) > 0 or self.waiting.next_ps is not None

    @property
    def tokens_recomputed(self) -> int:
        """Tokens that were computed again after a preemption."""
        return self.tokens_scheduled + self.tokens_found - self.tokens_wasted - self.waiting.tokens_asked

    def finish(self) -> None:
        """Step until every request has ended."""
        while self.unfinished:
            self.advance()

    @property
    def blocks_used(self) -> int:
        """Blocks that requests hold."""
        return self.pool.used

    def advance(self) -> None:
        """Steps in which nothing but decoding happens, all at once, then one whole step."""
        self._arrive()
        self._skip_ahead()
        self._arrive()
        self._step()

    @abstractmethod
    def _skip_ahead(self) -> None:
        """Take at once the steps in which nothing but decoding happens."""

    @abstractmethod
    def _step(self) -> None:
        """Take one step, as vLLM does."""

    def _arrive(self) -> None:
        """Those that have come when the next step is scheduled are waiting. Asynchronously it is scheduled when
        the last one begins. Where nobody is there, time passes until somebody comes.

        A threshold for long prefills protects others; from 0.31 on, a request that is alone has the whole budget."""
        if self.waiting.next_ps is not None:
            if not self.running and not len(self.waiting):
                self.now_ps = self.began_ps = max(self.now_ps, self.waiting.next_ps)
            self.waiting.until(self.began_ps if self.limits.async_scheduling else self.now_ps)
        alone = len(self.running) + len(self.waiting) <= 1 and not self.limits.cuts_lone_prefill
        self._longest_chunk = UNBOUNDED if alone else self.limits.long_prefill_token_threshold or UNBOUNDED

    def _count_step(self, tokens: int, kv_tokens: int, pairs: int) -> None:
        """A step of ``tokens`` is scheduled: whose decoding reads ``kv_tokens``, with ``pairs`` (query, key) pairs of
        prefills."""
        self.steps += 1
        self.tokens_scheduled += tokens
        self.began_ps, self.now_ps = self.now_ps, self.now_ps + self.step_time.step(tokens, kv_tokens, pairs)
        self._observe()

    def _steps_until_somebody_comes(self, most: int, running: int, kv_tokens: int) -> int:
        """How many of the next ``most`` steps of decoding are scheduled before the next request comes."""
        if self.waiting.next_ps is None or most < 1:
            return most
        left = self.waiting.next_ps - self.now_ps
        # A step for each: how many go before it.
        return bisect_left(range(most), left, key=lambda before: self.step_time.decoding(before, running, kv_tokens))

    def _count_decoding(self, steps: int, running: int, kv_tokens: int) -> None:
        """``steps`` steps in which ``running`` requests decode, who read ``kv_tokens`` at the first."""
        self.began_ps = self.now_ps + self.step_time.decoding(steps - 1, running, kv_tokens)
        self.now_ps += self.step_time.decoding(steps, running, kv_tokens)
        self.steps += steps
        self.tokens_scheduled += steps * running
        self._observe()

    def _between_tokens(self, steps: int, running: int, kv_tokens: int) -> None:
        """The time from token to token in such steps."""
        first, last = (self.step_time.step(running, kv_tokens + n * running, 0) for n in (0, steps - 1))
        self.journal.itl.add_evenly(first, last, steps, running)

    def _observe(self) -> None:
        used, running, waiting = self.blocks_used, len(self.running), len(self.waiting)
        self.peak_blocks = max(self.peak_blocks, used)
        self.peak_running = max(self.peak_running, running)
        self.peak_waiting = max(self.peak_waiting, waiting)
        self.timeline.add(Point(self.steps, used, running, waiting, self.preemptions, self.began_ps / PS))
