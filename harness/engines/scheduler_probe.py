"""Runs inside vLLM's engine process: the real scheduler, with each step written down.

vLLM loads it by ``--scheduler-cls harness.engines.scheduler_probe.RecordingScheduler`` (with asynchronous scheduling
``RecordingAsyncScheduler``: vLLM takes the class as given, so it must be the right one of the two). It changes
nothing that the scheduler does: after each ``schedule()`` it appends a line to the CSV file named by
``LOADFIT_STEPS``. So peaks are exact, where polling /metrics can miss the step that matters. Blocks are
counted as ``kv_cache_manager.usage`` counts them: cached blocks that nobody holds are free.

Where ``LOADFIT_PACE`` names a JSON file with the step times of another device, a step ends no sooner than it would
there: requests that come by the clock meet as many that run. ``fixed_ps`` are the picoseconds by the tokens scheduled,
``kv_ps`` those for each token of context that a decoding request reads, ``pair_ps`` for each (query, key) pair of a
prefill. Two more columns tell what the step is held to, and by how much the one before it was longer.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

try:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
except ImportError:  # a vLLM without it is not asked for it
    AsyncScheduler = Scheduler

HEADER = "time_ns,blocks_used,running,waiting,preempted,tokens,blocked_on_kv"


HEADER_PACED = HEADER + ",paced_ns,late_ns"


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
        path = os.environ.get("LOADFIT_STEPS")
        self._loadfit_file = open(path, "a", buffering=1, encoding="ascii") if path else None  # noqa: SIM115, PTH123
        pace = os.environ.get("LOADFIT_PACE")
        self._loadfit_pace: dict[str, Any] | None = None
        if pace:
            with open(pace, encoding="ascii") as file:  # noqa: PTH123
                self._loadfit_pace = json.load(file)
        self._loadfit_decoding: set[str] = set()  # requests that had a token in their last step
        self._loadfit_due_ns = self._loadfit_paced_ns = self._loadfit_late_ns = 0
        if self._loadfit_file:
            self._loadfit_file.write((HEADER_PACED if pace else HEADER) + "\n")

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's; then the row. A fault of the recording ends the recording, never the engine."""
        began_ns = time.monotonic_ns()
        plan = super().schedule(*args, **kwargs)  # type: ignore[misc]
        if self._loadfit_pace:
            self._loadfit_paced_ns = self._loadfit_step_ps(plan, self._loadfit_pace) // 1000
            self._loadfit_due_ns = began_ns + self._loadfit_paced_ns
        if self._loadfit_file and plan.total_num_scheduled_tokens:
            try:
                self._loadfit_record(plan)
            except Exception as error:
                self._loadfit_file.write(f"# recording ended: {type(error).__name__}: {error}\n")
                self._loadfit_file = None
        return plan

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, and no sooner than the pace has it."""
        outputs = super().update_from_output(*args, **kwargs)  # type: ignore[misc]
        left_ns = self._loadfit_due_ns - time.monotonic_ns()
        self._loadfit_late_ns = max(-left_ns, 0)
        if self._loadfit_pace and left_ns > 0:
            time.sleep(left_ns / 1e9)
        return outputs

    def _loadfit_step_ps(self, plan: Any, pace: dict[str, Any]) -> int:
        """How long the step would take there."""
        decoding, kv_tokens, pairs = self._loadfit_decoding, 0, 0
        decoding -= {*(plan.preempted_req_ids or ()), *plan.finished_req_ids}
        for i, new in plan.num_scheduled_tokens.items():
            before = self.requests[i].num_computed_tokens - new
            if i in decoding:
                kv_tokens += before + 1
            else:
                pairs += new * before + new * (new + 1) // 2
            if not self.requests[i].is_prefill_chunk:
                decoding.add(i)
        fixed_ps = pace["fixed_ps"][plan.total_num_scheduled_tokens]
        return int(fixed_ps + kv_tokens * pace["kv_ps"] + pairs * pace["pair_ps"])

    def _loadfit_record(self, plan: Any) -> None:
        pool = self.kv_cache_manager.block_pool
        used = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        running, waiting = len(self.running), len(self.waiting)
        preempted = len(plan.preempted_req_ids or ())
        tokens = plan.total_num_scheduled_tokens
        # Seats and budget were left, and yet somebody waits: it was the blocks.
        blocked = bool(preempted) or (
            waiting > 0 and running < self.max_num_running_reqs and tokens < self.max_num_scheduled_tokens
        )
        assert self._loadfit_file is not None
        self._loadfit_file.write(
            f"{time.monotonic_ns()},{used},{running},{waiting},{preempted},{tokens},{int(blocked)}"
            + (f",{self._loadfit_paced_ns},{self._loadfit_late_ns}\n" if self._loadfit_pace else "\n")
        )


class RecordingScheduler(_Recording, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, recorded."""


class RecordingAsyncScheduler(_Recording, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler, recorded."""
