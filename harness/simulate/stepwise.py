"""vLLM V1's scheduler request by request and block by block: for what :mod:`harness.simulate.scheduler` can't count.

Prompts that share arbitrary prefixes, priorities, block tables of several kinds, speculative decoding, adapters, and
the threshold for long prefills beside asynchronous scheduling. Source: ``Scheduler`` and ``AsyncScheduler`` of
vllm/v1/core/sched, vLLM 0.32.
"""

from __future__ import annotations

from collections import deque
from itertools import count

from harness.scenario import Load
from harness.simulate.arrivals import ByRank, Waiting
from harness.simulate.blocks import Blocks
from harness.simulate.driver import Driver
from harness.simulate.encoders import Encoders
from harness.simulate.job import Job, Part, UnderWay
from harness.simulate.kv_cache_manager import KvCacheManager
from harness.simulate.limits import Limits
from harness.simulate.prefixes import Pieces
from harness.simulate.steady import Steady
from harness.simulate.step_time import TIMELESS, StepTime
from harness.simulate.tables import CHUNKED, SLIDING
from harness.traffic import Request


class Stepwise(Driver[Job]):
    """A load on a pool, block by block. Requests that only decode within their blocks are left to the clock."""

    pool: Blocks

    def __init__(self, load: Load, limits: Limits, num_blocks: int, step_time: StepTime = TIMELESS) -> None:
        pieces, tables = Pieces(load.common_tokens), limits.block_tables
        self._by_priority = limits.scheduling_policy == "priority"

        numbers = count()

        def make(request: Request, came_ps: int, later: deque[Request]) -> Job:
            return Job(request, came_ps, later, next(numbers), pieces.of(request), len(tables))

        waiting = ByRank(load, make, lambda job: job.rank) if self._by_priority else Waiting(load, make)
        super().__init__(limits, waiting, num_blocks, step_time)
        self.pool = Blocks(num_blocks)
        self.spec = limits.speculation
        self.kv = KvCacheManager(limits, self.pool)
        self.encoders = Encoders(limits.encoder_tokens, limits.max_num_batched_tokens)
        self.running: list[Job] = []  # in the order of admission
        self.active: list[Job] = []  # those of them that are looked at in this step; the others are
        self.steady: Steady[Job] = Steady()
        self.under_way: deque[UnderWay] = deque()
        self._may_be_steady = not self.spec.tokens and not limits.max_loras
        self._seats = count()
        self._settled_ps = 0  # when the last step ended whose tokens are there
        self._turned_away = (-1, 0)  # the pool's changes and who waited when the first of them was last turned away
        self._parts: dict[Job, tuple[int, int, bool]] = {}  # of this step: tokens, drafts, padded
        self._budget = self._inputs = 0  # tokens left of this step; the same with the drafter's own

    def finish(self) -> None:
        """Step until every request has ended, and the steps under way with them."""
        super().finish()
        while self.under_way:
            self._settle(self.under_way.popleft())

    # -- schedule -----------------------------------------------------------------------------------

    def _step(self) -> None:
        self._parts = {}
        self.encoders.begin_step()
        self._wake(list(self.steady.due()))
        self._budget = self._inputs = self.limits.max_num_batched_tokens
        if self.steady.count and not self._suffices():
            self._wake([job for job in self.running if job.since is not None])
        self._budget -= self.steady.count
        self._inputs -= self.steady.count
        prefilling, preempted = self._schedule_running()
        if not preempted:
            self._schedule_waiting(prefilling)
        kv_tokens, pairs = self.steady.kv_tokens, 0
        parts = []
        for job, (new, drafts, padded) in self._parts.items():
            if job.decodes:
                kv_tokens += job.computed + new
            else:
                pairs += new * job.computed + new * (new + 1) // 2
            parts.append(self._begin(job, new, drafts, padded))
        self._count_step(self.limits.max_num_batched_tokens - self._budget, kv_tokens, pairs)
        self.steady.clock += 1
        self.under_way.append(UnderWay(parts, self.steady.count, self.now_ps))
        if len(self.under_way) > self.limits.async_scheduling:
            self._settle(self.under_way.popleft())
        self._rest()

    def _schedule_running(self) -> tuple[bool, bool]:
        """(whether a prompt that runs is among them, whether anybody was preempted)."""
        limits, rows = self.limits, self.spec.rows
        # Where some are steady, tokens and blocks suffice for all, and nobody is preempted.
        running = self.active if self.steady.count else self.running
        prefilling = preempted = False
        i = 0
        while i < len(running) and self._budget > 0 and self._inputs > rows:
            job = running[i]
            i += 1
            if job.placeholders and job.computed + 2 - job.placeholders >= job.end:
                continue  # its last token is on its way
            new = job.tokens + job.drafts + job.placeholders - job.computed
            new = min(
                new, self._longest_chunk, self._budget, self._inputs - rows, limits.max_model_len - job.computed - 1
            )  # fmt: skip
            if new <= 0:
                continue
            while not self.kv.grow(job, new):
                victim = max(running, key=lambda j: j.rank) if self._by_priority else running[-1]
                at = running.index(victim) if self._by_priority else len(running) - 1
                del running[at]
                i -= at < i
                self._preempt(victim)
                preempted = True
                if victim is job:
                    return prefilling, True
            drafts = min(max(new + job.computed - job.tokens - job.placeholders, 0), job.drafts)
            job.drafts = 0
            prefilling |= job.prefills
            self._schedule(job, new, drafts)
        return prefilling, preempted

    def _schedule_waiting(self, prefilling: bool) -> None:
        limits, spec, waiting = self.limits, self.spec, self.waiting
        others = bool(self._parts)
        adapters = {job.adapter for job in self._parts if job.adapter}
        passed_over: list[Job] = []
        while len(waiting) and self._budget > 0 and self._inputs > spec.rows:
            if len(self.running) >= limits.max_num_seqs:
                break
            job = waiting.head()
            if job.adapter and len(adapters) >= limits.max_loras and job.adapter not in adapters:
                waiting.pop()
                passed_over.append(job)
                continue
            rows, found = self.kv.found(job)
            budget = min(self._budget, self._inputs - spec.rows)
            new, padded = job.tokens - found, False
            if spec.tokens and new == 1 and not prefilling and (others or found):
                # With its drafts' rows it is shaped like the others.
                padded = found + 1 + spec.tokens + 1 <= limits.max_model_len
                new += spec.tokens * padded
                if padded and new > budget:
                    break
            new = min(new, self._longest_chunk)
            if new > budget and not limits.enable_chunked_prefill:
                break
            new = min(new, budget)
            if not self.encoders.fits():
                break
            if not self.kv.admit(job, rows, found, new, leave=self.watermark_blocks if self.running else 0):
                self.encoders.give_back()
                self.waited_for_kv = True
                self._turned_away = self.pool.changes, len(waiting)
                break
            waiting.pop()
            self.encoders.run()
            job.runs, job.computed, job.seat = True, found, next(self._seats)
            self.running.append(job)
            self.active.append(job)
            if not job.ran:
                job.ran = True
                self.journal.queue.add(self.now_ps - job.came_ps)
                self.tokens_found += found
            if job.adapter:
                adapters.add(job.adapter)
            self._schedule(job, new, spec.tokens * padded, padded)
        for job in reversed(passed_over):
            waiting.push_front(job)

    def _schedule(self, job: Job, new: int, drafts: int, padded: bool = False) -> None:
        self._parts[job] = new, drafts, padded
        self._budget -= new
        self._inputs -= new + self.spec.rows

    def _preempt(self, job: Job) -> None:
        if job in self._parts:  # it was to run in this very step
            new = self._parts.pop(job)[0]
            self._budget += new
            self._inputs += new + self.spec.rows
        self._leave(job)
        self.encoders.give_back()
        job.computed = job.placeholders = job.drafts = 0
        job.stale = job.in_flight
        self.preemptions += 1
        self.waiting.push_front(job)

    def _leave(self, job: Job) -> None:
        self.kv.release(job)
        job.runs = job.decodes = False

    def _begin(self, job: Job, new: int, drafts: int, padded: bool) -> Part:
        """The step is on its way."""
        job.computed += new
        job.in_flight += new
        job.prefills = job.computed < job.tokens + job.placeholders
        job.decodes = not job.prefills
        if self.limits.async_scheduling and not job.prefills:
            job.placeholders += 1 + drafts
            job.drafts = self.spec.tokens
        return Part(job, new, drafts, padded, not job.prefills)

    # -- those that are steady ----------------------------------------------------------------------

    def _suffices(self) -> bool:
        """Whether tokens and blocks are there for all: then the order in which they are looked at does not matter."""
        left, blocks = self._budget - self.steady.count, 0
        for job in self.active:
            if job.placeholders and job.computed + 2 - job.placeholders >= job.end:
                continue
            new = min(job.tokens + job.placeholders - job.computed, self._longest_chunk)
            if new > left:
                if left < 0 or job is not self.running[-1]:
                    return False
                new = left
            left -= new
            slots = min(job.computed + new, self.limits.max_model_len)
            for table, row in zip(self.kv.tables.all, job.rows, strict=True):
                blocks += max(table.blocks(slots) - len(row), 0)
        return left >= 0 and blocks <= self.pool.free

    def _wake(self, jobs: list[Job]) -> None:
        """``jobs`` are looked at again; their tokens on the way become parts of the step that is under way."""
        for job in jobs:
            self.steady.leave(job)
            job.last_ps = self._settled_ps
        if jobs:
            self.active = sorted(self.active + jobs, key=lambda job: job.seat)
        if jobs and self.under_way:
            step = self.under_way[-1]
            step.steady -= len(jobs)
            step.parts += [Part(job, 1, 0, False, True) for job in jobs]
            step.parts.sort(key=lambda part: part.job.seat)

    def _rest(self) -> None:
        """Leave to the clock who only decodes for a while."""
        self.active = [job for job in self.active if job.runs]
        if not self._may_be_steady:
            return
        ahead = int(self.limits.async_scheduling)
        resting = set()
        for job in self.active:
            if job.computed + 1 - ahead != job.tokens or not job.placeholders == job.in_flight == ahead or job.stale:
                continue
            # A token in each step, the last one included.
            if not job.decodes or job.first_ps is None or job.last_ps != self._settled_ps:
                continue
            steps = self._quiet_steps(job)
            if steps > 1:
                self.steady.join(job, steps)
                resting.add(job)
        if resting:
            self.active = [job for job in self.active if job.since is None]
            if self.under_way:
                step = self.under_way[-1]
                step.parts = [part for part in step.parts if part.job not in resting]
                step.steady += len(resting)

    def _quiet_steps(self, job: Job) -> int:
        """Steps in which ``job`` takes, fills and leaves behind no block, and does not end."""
        ahead = int(self.limits.async_scheduling)
        last = job.computed + job.end - job.tokens - 1 - ahead
        for t, (table, row) in enumerate(zip(self.kv.tables.all, job.rows, strict=True)):
            last = min(last, table.room(len(row)))
            if self.limits.enable_prefix_caching and table.kind != SLIDING:
                align = self.kv.tables.align if len(job.rows) > 1 else table.block_size
                # It is found from the step on in which it is filled; asynchronously one later, when the next is taken.
                last = min(last, (job.named[t] * table.block_size // align + 1) * align - 1 + ahead)
            if table.kind in (SLIDING, CHUNKED):
                left = table.left_behind(job.computed - job.in_flight)
                if left and row[left - 1] is not None:
                    return 0
                last = min(last, table.leaves_at(left + 1) + job.in_flight)
        return last - job.computed

    def _skip_ahead(self) -> None:
        """Take at once the steps in which all that run are steady, and nobody can be admitted."""
        count = self.steady.count
        if not count or self.active or any(step.parts for step in self.under_way):
            return
        budget = self.limits.max_num_batched_tokens - count
        seat = count < self.limits.max_num_seqs and budget > 0
        if seat and len(self.waiting) and self._turned_away != (self.pool.changes, len(self.waiting)):
            return
        kv_tokens = self.steady.kv_tokens
        steps = self._steps_until_somebody_comes(self.steady.steps_to_end(), count, kv_tokens) if budget >= 0 else 0
        if steps < 1:
            return
        if self.under_way:
            self._settle(self.under_way.popleft())
        ahead = int(self.limits.async_scheduling)
        if steps > ahead:
            self._between_tokens(steps - ahead, count, kv_tokens)
        turned_away = bool(seat and len(self.waiting))
        self.encoders.give_back((steps - ahead) * count + steps * turned_away)
        self.steady.clock += steps
        self._count_decoding(steps, count, kv_tokens)
        self._settled_ps = self.began_ps if ahead else self.now_ps
        if ahead:
            self.under_way.append(UnderWay([], count, self.now_ps))

    # -- settle -------------------------------------------------------------------------------------

    def _settle(self, step: UnderWay) -> None:
        """The step has ended: its tokens are there."""
        if step.steady:
            self.journal.itl.add(step.ended_ps - self._settled_ps, step.steady)
            self.encoders.give_back(step.steady)
        self._settled_ps = step.ended_ps
        ended = False
        for part in step.parts:
            job = part.job
            job.in_flight -= part.tokens
            stale = job.stale > 0
            if stale:
                job.stale -= part.tokens
            self.encoders.give_back(bool(job.computed) and not job.ended)
            if job.ended:
                self.tokens_wasted += part.tokens
            elif part.samples:
                ended |= self._sampled(job, part, stale, step.ended_ps)
        if ended:
            self.running = [job for job in self.running if job.runs]
        if not self.limits.async_scheduling:
            for part in step.parts:
                part.job.drafts = 0 if part.job.prefills else self.spec.tokens

    def _sampled(self, job: Job, part: Part, stale: bool, ended_ps: int) -> bool:
        """Add the tokens of a step that ended at ``ended_ps``; whether they were the last ones."""
        right = 0
        if part.drafts and not part.padded:
            right = min(self.spec.right(job.guesses), part.drafts)
            job.guesses += 1
        wrong, kept = part.drafts - right, min(1 + right, job.end - job.tokens)
        self.tokens_wasted += part.drafts + 1 - kept
        if wrong and not stale:
            job.computed -= min(wrong, job.computed)
            job.placeholders -= min(wrong, job.placeholders)
        job.tokens += kept
        self.journal.token(job, ended_ps)
        if self.limits.async_scheduling and not stale:
            job.placeholders -= kept
        if self.limits.async_scheduling and job.runs:
            self.kv.name(job, job.computed - job.placeholders)
        if job.tokens < job.end:
            return False
        job.ended = True
        self.encoders.give_back()
        self.journal.ended(job, ended_ps)
        if job.runs:
            self._leave(job)
        else:  # preempted while its last token was on its way
            self.waiting.remove(job)
        self.waiting.ended(job, self.began_ps if self.limits.async_scheduling else self.now_ps)
        return True
