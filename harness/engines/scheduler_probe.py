"""Runs inside vLLM's engine process: the real scheduler, with each step written down.

vLLM loads it by ``--scheduler-cls harness.engines.scheduler_probe.RecordingScheduler`` (with asynchronous scheduling
``RecordingAsyncScheduler``: vLLM takes the class as given, so it must be the right one of the two). It changes
nothing that the scheduler does: once a step has ended it appends a line to the CSV file named by
``LOADFIT_STEPS``. So peaks are exact, where polling /metrics can miss the step that matters. Blocks are
counted as ``kv_cache_manager.usage`` counts them: cached blocks that nobody holds are free. What a step had to do
(the context that its decoding requests read, the (query, key) pairs of its prefills) and how long it took tell
afterwards what the device reaches.

Where ``LOADFIT_PACE`` names a JSON file with the step times of another device, a step ends no sooner than it would
there: requests that come by the clock meet as many that run. ``fixed_ps`` are the picoseconds by the tokens scheduled,
``kv_ps`` those for each token of context, ``pair_ps`` for each pair.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from typing import Any, TextIO

from vllm.v1.core.sched.scheduler import Scheduler

try:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
except ImportError:  # a vLLM without it is not asked for it
    AsyncScheduler = Scheduler

# time_ns: when the step was scheduled. paced_ns: what it was held to, 0 where it was not.
HEADER = "time_ns,blocks_used,running,waiting,preempted,tokens,blocked_on_kv,kv_tokens,pairs,paced_ns,took_ns"


class _Recording:
    """One CSV row for each step that scheduled tokens."""

    kv_cache_manager: Any
    running: Any
    waiting: Any
    max_num_running_reqs: int
    max_num_scheduled_tokens: int
    requests: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loadfit_file: TextIO | None = None
        self._loadfit_pace: dict[str, Any] | None = None
        if os.environ.get("LOADFIT_PACE"):
            with open(os.environ["LOADFIT_PACE"], encoding="ascii") as file:  # noqa: PTH123
                self._loadfit_pace = json.load(file)
        self._loadfit_decoding: set[str] = set()  # requests that had a token in their last step
        self._loadfit_under_way: deque[list[int]] = deque()  # rows of steps that have not ended
        self._loadfit_ended_ns = 0  # when the last one did
        try:
            if path := os.environ.get("LOADFIT_STEPS"):
                self._loadfit_file = open(path, "a", buffering=1, encoding="ascii")  # noqa: SIM115, PTH123
                self._loadfit_file.write(HEADER + "\n")
        except OSError as error:  # the engine runs all the same
            self._loadfit_file = None
            print(f"loadfit: the scheduler's steps can't be written down: {error}", flush=True)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's. A fault of the recording ends the recording, never the engine."""
        began_ns = time.monotonic_ns()
        plan = super().schedule(*args, **kwargs)  # type: ignore[misc]
        if self._loadfit_file:
            try:
                if plan.total_num_scheduled_tokens:
                    self._loadfit_under_way.append([began_ns, *self._loadfit_row(plan)])
            except Exception as error:
                self._loadfit_end(error)
        return plan

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, and no sooner than the pace has it; then the row."""
        outputs = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        if self._loadfit_under_way and scheduler_output.total_num_scheduled_tokens:
            row = self._loadfit_under_way.popleft()
            # Scheduled ahead, a step begins when the one before it ends.
            began_ns, paced_ns = max(row[0], self._loadfit_ended_ns), row[-1]
            left_ns = began_ns + paced_ns - time.monotonic_ns()
            if paced_ns and left_ns > 0:
                time.sleep(left_ns / 1e9)
            self._loadfit_ended_ns = time.monotonic_ns()
            try:
                if self._loadfit_file:
                    self._loadfit_file.write(",".join(map(str, [*row, self._loadfit_ended_ns - began_ns])) + "\n")
            except OSError as error:
                self._loadfit_end(error)
        return outputs

    def _loadfit_end(self, error: Exception) -> None:
        assert self._loadfit_file is not None
        with contextlib.suppress(OSError):
            self._loadfit_file.write(f"# recording ended: {type(error).__name__}: {error}\n")
        self._loadfit_file = None

    def _loadfit_row(self, plan: Any) -> list[int]:
        """All but the first and the last of the row."""
        pool = self.kv_cache_manager.block_pool
        used = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        running, waiting = len(self.running), len(self.waiting)
        preempted = len(plan.preempted_req_ids or ())
        tokens = plan.total_num_scheduled_tokens
        # Seats and budget were left, and yet somebody waits: it was the blocks.
        blocked = bool(preempted) or (
            waiting > 0 and running < self.max_num_running_reqs and tokens < self.max_num_scheduled_tokens
        )
        kv_tokens, pairs = self._loadfit_work(plan)
        pace, paced_ps = self._loadfit_pace, 0
        if pace:
            paced_ps = pace["fixed_ps"][tokens] + kv_tokens * pace["kv_ps"] + pairs * pace["pair_ps"]
        return [used, running, waiting, preempted, tokens, int(blocked), kv_tokens, pairs, paced_ps // 1000]

    def _loadfit_work(self, plan: Any) -> tuple[int, int]:
        """(tokens of context that decoding requests read, (query, key) pairs of prefills)."""
        decoding, kv_tokens, pairs = self._loadfit_decoding, 0, 0
        decoding -= {*(plan.preempted_req_ids or ()), *plan.finished_req_ids}
        for i, new in plan.num_scheduled_tokens.items():
            before = self.requests[i].num_computed_tokens - new
            if i in decoding:
                kv_tokens += before + new
            else:
                pairs += new * before + new * (new + 1) // 2
            if not self.requests[i].is_prefill_chunk:
                decoding.add(i)
        return kv_tokens, pairs


class RecordingScheduler(_Recording, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, recorded."""


class RecordingAsyncScheduler(_Recording, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler, recorded."""
