"""vLLM V1's scheduler, step for step, skipping ahead where steps are alike.

Source: ``Scheduler.schedule`` and ``update_from_output`` of vllm/v1/core/sched/scheduler.py and
``KVCacheManager.allocate_slots`` of vllm/v1/core/kv_cache_manager.py, vLLM 0.32. tests/test_scheduler.py
drives the real scheduler on the same loads and demands equal figures.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from harness.errors import UsageError
from harness.ledger import LoadFigures
from harness.scenario import Load
from harness.simulate.pool import BlockPool
from harness.traffic import Request, requests

UNBOUNDED = 2**60


@dataclass(frozen=True)
class Limits:
    """What bounds the scheduler. ``num_blocks`` counts the null block, as vLLM does."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_prefix_caching: bool = True


@dataclass(frozen=True)
class Point:
    """The state after the schedule of ``step`` (from 1). Between two points blocks grow steadily."""

    step: int
    blocks_used: int
    running: int
    waiting: int
    preemptions: int


@dataclass(frozen=True)
class Simulation:
    """The figures of a load, whether a request ever waited for blocks, and the timeline."""

    figures: LoadFigures
    waited_for_kv: bool
    tokens_recomputed: int
    timeline: tuple[Point, ...]


class _Sequence:
    """A request under way. ``tokens``: prompt and what was generated; ``computed``: those with KV."""

    __slots__ = ("blocks", "computed", "end", "index", "prompt", "tokens")

    def __init__(self, request: Request) -> None:
        self.index = request.index
        self.prompt = request.prompt_tokens
        self.tokens = request.prompt_tokens
        self.end = request.prompt_tokens + request.output_tokens
        self.computed = 0
        self.blocks = 0


def simulate(load: Load, limits: Limits) -> Simulation:
    """What ``load`` does under ``limits``: counts equal to vLLM's own scheduler.

    All requests that may be under way at once come before the first step; a closed load's user sends the
    next request before the step after the one in which the last ended. Raises UsageError where a request
    could never be served by the pool.
    """
    work = requests(load)
    longest = max(_ceil(r.prompt_tokens + r.output_tokens - 1, limits.block_size) for r in work)
    if longest > limits.num_blocks - 1:
        raise UsageError(
            f"a request of the load needs {longest:,} blocks of {limits.block_size} tokens; "
            f"the pool has {limits.num_blocks - 1:,}"
        )
    run = _Run(work, load.concurrency, limits, limits.num_blocks)
    run.finish()
    needed = run.peak_blocks
    if run.preemptions or run.waited_for_kv:
        ample = _Run(work, load.concurrency, limits, UNBOUNDED)
        ample.finish()
        needed = ample.peak_blocks
    figures = LoadFigures(
        peak_blocks_needed=needed,
        peak_blocks_used=run.peak_blocks,
        peak_running=run.peak_running,
        peak_waiting=run.peak_waiting,
        preemptions=run.preemptions,
        steps=run.steps,
        tokens_scheduled=run.tokens_scheduled,
    )
    useful = sum(r.prompt_tokens + r.output_tokens - 1 for r in work)
    return Simulation(figures, run.waited_for_kv, run.tokens_scheduled - useful, tuple(run.timeline))


class _Run:
    def __init__(self, work: list[Request], concurrency: int, limits: Limits, num_blocks: int) -> None:
        self.limits = limits
        self.pool = BlockPool(num_blocks, caching=limits.enable_prefix_caching)
        self.waiting: deque[_Sequence] = deque(_Sequence(r) for r in work[:concurrency])
        self.later = iter(work[concurrency:])
        self.running: list[_Sequence] = []
        self.steps = self.tokens_scheduled = self.preemptions = 0
        self.peak_blocks = self.peak_running = self.peak_waiting = 0
        self.waited_for_kv = False
        self.timeline: list[Point] = []

    def finish(self) -> None:
        """Step until every request has ended."""
        while self.running or self.waiting:
            self._skip_ahead()
            self._step()

    # -- one step, as vLLM takes it -----------------------------------------------------------------

    def _step(self) -> None:
        scheduled: list[_Sequence] = []
        budget, preempted = self._schedule_running(scheduled)
        if not preempted:
            budget = self._schedule_waiting(scheduled, budget)
        self.steps += 1
        self.tokens_scheduled += self.limits.max_num_batched_tokens - budget
        self._observe()
        for seq in scheduled:
            if seq.computed == seq.tokens:  # its prefill is complete: the step yields a token
                seq.tokens += 1
                if seq.tokens == seq.end:
                    self._end(seq)

    def _schedule_running(self, scheduled: list[_Sequence]) -> tuple[int, bool]:
        budget, preempted, i = self.limits.max_num_batched_tokens, False, 0
        while i < len(self.running) and budget > 0:
            seq = self.running[i]
            new = min(seq.tokens - seq.computed, budget)
            wanted = _ceil(seq.computed + new, self.limits.block_size) - seq.blocks
            while wanted > self.pool.free:
                victim = self.running.pop()
                self._preempt(victim)
                preempted = True
                if victim is seq:
                    return budget, True
            self._grant(seq, wanted, new)
            scheduled.append(seq)
            budget -= new
            i += 1
        return budget, preempted

    def _schedule_waiting(self, scheduled: list[_Sequence], budget: int) -> int:
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            seq = self.waiting[0]
            if self._admission_blocks(seq) > self.pool.free:
                self.waited_for_kv = True
                break
            self.waiting.popleft()
            seq.blocks = self.pool.reclaim(seq.index)
            seq.computed = seq.blocks * self.limits.block_size
            new = min(seq.tokens - seq.computed, budget)
            self._grant(seq, _ceil(seq.computed + new, self.limits.block_size) - seq.blocks, new)
            self.running.append(seq)
            scheduled.append(seq)
            budget -= new
        return budget

    def _admission_blocks(self, seq: _Sequence) -> int:
        """Free blocks that must be there to admit ``seq``: its whole input, cached blocks included
        (``scheduler_reserve_full_isl``; a cached block that nobody holds counts as free)."""
        return _ceil(min(seq.tokens, self.limits.max_model_len), self.limits.block_size)

    def _grant(self, seq: _Sequence, blocks: int, tokens: int) -> None:
        self.pool.take(blocks)
        seq.blocks += blocks
        seq.computed += tokens

    def _preempt(self, seq: _Sequence) -> None:
        self._free(seq)
        seq.computed = 0
        self.preemptions += 1
        self.waiting.appendleft(seq)

    def _end(self, seq: _Sequence) -> None:
        self._free(seq)
        self.running.remove(seq)
        following = next(self.later, None)
        if following is not None:
            self.waiting.append(_Sequence(following))

    def _free(self, seq: _Sequence) -> None:
        self.pool.release(seq.index, seq.blocks, seq.computed // self.limits.block_size)
        seq.blocks = 0

    def _observe(self) -> None:
        used, running, waiting = self.pool.used, len(self.running), len(self.waiting)
        self.peak_blocks = max(self.peak_blocks, used)
        self.peak_running = max(self.peak_running, running)
        self.peak_waiting = max(self.peak_waiting, waiting)
        self.timeline.append(Point(self.steps, used, running, waiting, self.preemptions))

    # -- many steps at once -------------------------------------------------------------------------

    def _skip_ahead(self) -> None:
        """Take at once the steps in which every running request decodes one token and nothing else
        happens: none ends, none is admitted, no block is missing. The counts are those of single steps."""
        if not self.running or any(s.tokens - s.computed != 1 for s in self.running):
            return
        running = len(self.running)
        head_can_enter = (
            self.waiting
            and running < min(self.limits.max_num_seqs, self.limits.max_num_batched_tokens)
            and self._admission_blocks(self.waiting[0]) <= self.pool.free
        )
        if head_can_enter or running > self.limits.max_num_batched_tokens:
            return
        low, high = 0, min(s.end - s.tokens for s in self.running) - 1
        while low < high:  # the most steps for which the free blocks suffice
            middle = (low + high + 1) // 2
            if self._blocks_for(middle) <= self.pool.free:
                low = middle
            else:
                high = middle - 1
        if low < 1:
            return
        self.pool.take(self._blocks_for(low))
        for seq in self.running:
            seq.computed += low
            seq.tokens += low
            seq.blocks = _ceil(seq.computed, self.limits.block_size)
        self.steps += low
        self.tokens_scheduled += low * running
        self._observe()

    def _blocks_for(self, steps: int) -> int:
        """New blocks that the running requests need for ``steps`` more tokens each."""
        size = self.limits.block_size
        return sum((s.computed + steps + size - 1) // size - s.blocks for s in self.running)


def _ceil(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)
