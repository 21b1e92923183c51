"""vLLM V1's scheduler, step for step, skipping ahead where steps are alike.

Source: ``Scheduler.schedule`` and ``update_from_output`` of vllm/v1/core/sched/scheduler.py and
``KVCacheManager.allocate_slots`` of vllm/v1/core/kv_cache_manager.py, vLLM 0.32. tests/test_scheduler.py
drives the real scheduler on the same loads and demands equal figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from operator import attrgetter

from harness.errors import UsageError
from harness.ledger import LoadFigures
from harness.scenario import Load, longest_request
from harness.simulate.arrivals import Waiting
from harness.simulate.driver import UNBOUNDED, Driver
from harness.simulate.latency import PS
from harness.simulate.limits import Limits
from harness.simulate.lockstep import NOT_DECODING, Lockstep, Sequence
from harness.simulate.pool import BlockPool
from harness.simulate.step_time import TIMELESS, StepTime
from harness.simulate.stepwise import Stepwise
from harness.simulate.timeline import Point
from harness.traffic import stream


@dataclass(frozen=True)
class Simulation:
    """The figures of a load, whether a request ever waited for blocks, and the timeline."""

    figures: LoadFigures
    waited_for_kv: bool
    tokens_recomputed: int
    timeline: tuple[Point, ...]

    @property
    def holds(self) -> bool:
        """Neither preempted nor waited for blocks."""
        return not self.figures.preemptions and not self.waited_for_kv


def simulate(
    load: Load, limits: Limits, step_time: StepTime = TIMELESS, targets_s: Mapping[str, float] | None = None
) -> Simulation:
    """What ``load`` does under ``limits``: counts equal to vLLM's own scheduler.

    A timed load's requests come when ``step_time`` has it that their time has come. Of others all that may be
    under way at once come before the first step; a closed load's user sends the next request before the step
    after the one in which the last ended. Memory grows with the requests
    that run or were preempted, not with those of the load. ``targets_s``: what makes a request good, see
    :class:`Journal`. Raises UsageError where a request could never
    be served by the pool.
    """
    check(load, limits)
    kind = Stepwise if by_blocks(load, limits) else Run
    run = kind(load, limits, limits.num_blocks, step_time)
    run.journal.targets = {name: round(most * PS) for name, most in (targets_s or {}).items()}
    run.finish()
    needed = run.peak_blocks
    if run.preemptions or run.waited_for_kv:
        ample = kind(load, limits, UNBOUNDED, step_time)
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
        **({} if step_time is TIMELESS else run.journal.figures(run.now_ps)),
    )
    return Simulation(figures, run.waited_for_kv, run.tokens_recomputed, run.timeline.points())


def holds(load: Load, limits: Limits, step_time: StepTime = TIMELESS) -> bool:
    """Whether ``load`` runs without preemption and without waiting for blocks; found out at the first of either.

    Raises UsageError as :func:`simulate` does.
    """
    check(load, limits)
    run = (Stepwise if by_blocks(load, limits) else Run)(load, limits, limits.num_blocks, step_time)
    while run.unfinished:
        run.advance()
        if run.preemptions or run.waited_for_kv:
            return False
    return True


def by_blocks(load: Load, limits: Limits) -> bool:
    """Whether counts do not tell what ``load`` does: it takes the scheduler that knows every block."""
    if limits.long_prefill_token_threshold and (limits.async_scheduling or load.common_tokens):
        return True
    if limits.enable_prefix_caching and _shares_pieces(load):
        return True
    return bool(limits.scheduling_policy != "fcfs" or load.adapters or limits.speculation.tokens or limits.tables)


def _shares_pieces(load: Load) -> bool:
    rows = load.trace.rows[: load.requests] if load.trace else ()
    return load.shared_prefixes > 1 or any(row.hash_ids for row in rows)


def check(load: Load, limits: Limits) -> None:
    """Raises UsageError where a request of ``load`` could never be served by the pool."""

    def blocks(tokens: int) -> int:
        computed = min(tokens - 1 + limits.speculation.lookahead, limits.max_model_len)  # never the last token
        return sum(t.held(computed, limits.in_flight_tokens, limits.max_model_len) for t in limits.block_tables)

    usable = limits.num_blocks - 1
    if blocks(longest_request(load)) <= usable:
        return
    longest = max(blocks(r.prompt_tokens + r.output_tokens) for r in stream(load))
    if longest > usable:
        raise UsageError(
            f"a request of the load needs {longest:,} blocks of {limits.block_size} tokens; the pool has {usable:,}"
        )


class Run(Driver[Sequence]):
    """A load on a counted pool."""

    pool: BlockPool

    def __init__(self, load: Load, limits: Limits, num_blocks: int, step_time: StepTime = TIMELESS) -> None:
        waiting = Waiting(load, Sequence)
        super().__init__(limits, waiting, num_blocks, step_time)
        self.pool = BlockPool(
            num_blocks, caching=limits.enable_prefix_caching,
            shared_blocks=load.common_tokens // limits.block_size,
        )  # fmt: skip
        self.running: dict[int, Sequence] = {}  # in the order of admission, as vLLM's list
        self.prefilling: dict[int, Sequence] = {}  # those of them whose input is not computed yet
        self.decoding = Lockstep(limits.block_size)  # the others, but for
        self.ending: dict[int, Sequence] = {}  # those whose last token is on its way (asynchronous scheduling only)
        self._late: dict[int, int] = {}  # decoding requests that sat out -> when they had their last token
        self._seats = count()
        self._pairs = 0  # (query, key) pairs of this step's prefills
        self._sits_out: list[Sequence] = []  # decoding requests that the budget of this step leaves out

    # -- one step, as vLLM takes it -----------------------------------------------------------------

    def _step(self) -> None:
        self._pairs, self._sits_out = 0, []
        budget, preempted = self._schedule_running()
        if not preempted:
            budget = self._schedule_waiting(budget)
        kv_tokens = self.decoding.kv_tokens - sum(seq.end - seq.finish + self.decoding.clock for seq in self._sits_out)
        self._count_step(self.limits.max_num_batched_tokens - budget, kv_tokens, self._pairs)
        self._tokens_decoded()
        self._update()

    def _tokens_decoded(self) -> None:
        """Who decoded in this step has a token at its end, and had one before it unless he sat out."""
        for seq in self._sits_out:
            self._late.setdefault(seq.index, self.began_ps)
        decoded = self.decoding.count - len(self._sits_out)
        if self._late:
            out = {seq.index for seq in self._sits_out}
            for index in [i for i in self._late if i not in out]:
                self.journal.itl.add(self.now_ps - self._late.pop(index))
                decoded -= 1
        if decoded:
            self.journal.itl.add(self.now_ps - self.began_ps, decoded)

    def _schedule_running(self) -> tuple[int, bool]:
        """(budget left, whether anyone was preempted). Where tokens and blocks suffice for all, the order
        in which the running requests are looked at does not matter."""
        budget = self.limits.max_num_batched_tokens - self.decoding.count
        blocks = blocks_to_decode = self.decoding.blocks_for(1)
        chunks = []
        for seq in self.prefilling.values():
            new = self._chunk(seq)
            if new > budget:
                if budget < 0 or seq is not next(reversed(self.running.values())):
                    return self._schedule_in_order()
                new = budget
            chunks.append((seq, new))
            budget -= new
            blocks += self._blocks_to(seq, new)
        if budget < 0 or blocks > self.pool.free:
            return self._schedule_in_order()
        self.pool.take(blocks_to_decode)
        for seq, new in chunks:
            self._grant(seq, new)
        return budget, False

    def _schedule_in_order(self) -> tuple[int, bool]:
        """As _schedule_running, request by request, as vLLM goes: who is last gives way."""
        budget, preempted, i = self.limits.max_num_batched_tokens, False, 0
        order = list(self.running.values())
        while i < len(order) and budget > 0:
            seq = order[i]
            if seq.index in self.ending:
                i += 1
                continue
            decodes = seq.finish != NOT_DECODING
            new = 1 if decodes else min(self._chunk(seq), budget)
            wanted = self.decoding.takes_block(seq) if decodes else self._blocks_to(seq, new)
            while wanted > self.pool.free:
                victim = order.pop()
                self._preempt(victim)
                preempted = True
                if victim is seq:
                    return budget, True
            if decodes:
                self.pool.take(wanted)
            else:
                self._grant(seq, new)
            budget -= new
            i += 1
        for seq in order[i:]:
            if seq.finish != NOT_DECODING:
                self.decoding.delay(seq)
                self._sits_out.append(seq)
        return budget, preempted

    def _schedule_waiting(self, budget: int) -> int:
        """The budget left when nobody more can be admitted."""
        while budget > 0 and len(self.waiting) and len(self.running) < self.limits.max_num_seqs:
            seq = self.waiting.head()
            new = self._admissible(seq, budget)
            if not new:
                break
            self.waiting.pop()
            seq.seat = next(self._seats)
            seq.blocks = self.pool.admit(seq.content)
            seq.computed = seq.blocks * self.limits.block_size
            if not seq.ran:
                seq.ran = True
                self.journal.queue.add(self.now_ps - seq.came_ps)
                self.tokens_found += seq.computed
            self._grant(seq, new)
            self.running[seq.index] = self.prefilling[seq.index] = seq
            budget -= new
        return budget

    def _admissible(self, seq: Sequence, budget: int) -> int:
        """Tokens of ``seq`` with which it can be admitted now, 0 where it has to wait.

        There must be free blocks for its whole input (``scheduler_reserve_full_isl``) or else for its first
        chunk, and beside running requests for the watermark. Cached blocks that nobody holds count as free.
        """
        cached = self.pool.cached(seq.content) * self.limits.block_size
        new = min(seq.tokens - cached, self._longest_chunk)
        if new > budget:
            if not self.limits.enable_chunked_prefill:
                return 0
            new = budget
        tokens = seq.tokens if self.limits.scheduler_reserve_full_isl else cached + new
        blocks = _ceil(min(tokens, self.limits.max_model_len), self.limits.block_size)
        blocks -= self.pool.shared_in_use
        if blocks + (self.watermark_blocks if self.running else 0) > self.pool.free:
            self.waited_for_kv = True
            return 0
        return new

    def _would_admit(self, seq: Sequence, budget: int) -> bool:
        return self._admissible(seq, budget) > 0

    def _chunk(self, seq: Sequence) -> int:
        return min(seq.tokens - seq.computed, self._longest_chunk)

    def _blocks_to(self, seq: Sequence, tokens: int) -> int:
        return _ceil(seq.computed + tokens, self.limits.block_size) - seq.blocks

    def _grant(self, seq: Sequence, tokens: int) -> None:
        blocks = self._blocks_to(seq, tokens)
        self.pool.take(blocks)
        seq.blocks += blocks
        self._pairs += tokens * seq.computed + tokens * (tokens + 1) // 2
        seq.computed += tokens
        self.pool.computed(seq.computed // self.limits.block_size)

    def _preempt(self, seq: Sequence) -> None:
        prefills = self.prefilling.pop(seq.index, None)
        if seq.finish != NOT_DECODING:
            self.decoding.leave(seq)
            seq.last_ps = self._late.pop(seq.index, self.now_ps)
        if self.limits.async_scheduling and not prefills:
            # The last token is on its way: the block that it fills has no hash yet.
            seq.computed = max(seq.prefilled, seq.computed - 1)
        self._free(seq)
        seq.computed = 0
        self.preemptions += 1
        self.waiting.push_front(seq)

    def _update(self) -> None:
        """The step's tokens are there; asynchronously, those of the step before, and this step's are on their way."""
        self.decoding.clock += 1
        for seq in self.ending.values():
            self._end(seq)
        self.ending = {}
        ended = list(self.decoding.ended())
        for seq in [s for s in self.prefilling.values() if s.computed == s.tokens]:
            del self.prefilling[seq.index]
            self.journal.token(seq, self.now_ps)
            seq.prefilled = seq.tokens
            seq.tokens += 1
            if seq.tokens == seq.end:
                ended.append(seq)
            else:
                self.decoding.join(seq)
        for seq in sorted(ended, key=attrgetter("seat")):  # whose blocks come back first is evicted first
            self._last_token(seq)

    def _last_token(self, seq: Sequence) -> None:
        self.journal.ended(seq, self.now_ps)
        if self.limits.async_scheduling:
            self.ending[seq.index] = seq
        else:
            self._end(seq)

    def _end(self, seq: Sequence) -> None:
        if seq.index in self.running:
            self._free(seq, for_good=not seq.later)
        else:  # preempted while its last token was on its way
            self.waiting.remove(seq)
        self.waiting.ended(seq, self.began_ps if self.limits.async_scheduling else self.now_ps)

    def _free(self, seq: Sequence, *, for_good: bool = False) -> None:
        del self.running[seq.index]
        self.pool.release(seq.content, seq.blocks, seq.computed // self.limits.block_size, for_good=for_good)
        seq.blocks = 0

    # -- many steps at once -------------------------------------------------------------------------

    def _skip_ahead(self) -> None:
        """Take at once the steps in which every running request decodes one token and nothing else
        happens: none ends, none is admitted, no block is missing. The counts are those of single steps."""
        running = len(self.running)
        budget = self.limits.max_num_batched_tokens - running
        if not running or self.prefilling or self.ending or self._late or budget < 0:
            return
        seat = budget > 0 and running < self.limits.max_num_seqs
        if seat and len(self.waiting) and self._would_admit(self.waiting.head(), budget):
            return
        kv_tokens = self.decoding.kv_tokens
        steps = self._steps_until_somebody_comes(self.decoding.steps_to_end() - 1, running, kv_tokens)
        steps = self.decoding.steps_within(self.pool.free, steps)
        if steps < 1:
            return
        self._between_tokens(steps, running, kv_tokens)
        self.pool.take(self.decoding.blocks_for(steps))
        self.decoding.clock += steps
        self._count_decoding(steps, running, kv_tokens)


def _ceil(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)
