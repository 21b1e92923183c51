"""Runs inside vLLM's engine process: the real scheduler, with each step written down.

vLLM loads it by ``--scheduler-cls harness.engines.scheduler_probe.RecordingScheduler``. It changes
nothing that the scheduler does: after each ``schedule()`` it appends a line to the CSV file named by
``LOADFIT_STEPS``. So peaks are exact, where polling /metrics can miss the step that matters. Blocks are
counted as ``kv_cache_manager.usage`` counts them: cached blocks that nobody holds are free.
"""

from __future__ import annotations

import os
import time
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

HEADER = "time_ns,blocks_used,running,waiting,preempted,tokens,blocked_on_kv"


class RecordingScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler; one CSV row for each step that scheduled tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        path = os.environ.get("LOADFIT_STEPS")
        self._loadfit_file = open(path, "a", buffering=1, encoding="ascii") if path else None  # noqa: SIM115, PTH123
        if self._loadfit_file:
            self._loadfit_file.write(HEADER + "\n")

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's; then the row. A fault of the recording ends the recording, never the engine."""
        plan = super().schedule(*args, **kwargs)
        if self._loadfit_file and plan.total_num_scheduled_tokens:
            try:
                self._loadfit_record(plan)
            except Exception as error:
                self._loadfit_file.write(f"# recording ended: {type(error).__name__}: {error}\n")
                self._loadfit_file = None
        return plan

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
            f"{time.monotonic_ns()},{used},{running},{waiting},{preempted},{tokens},{int(blocked)}\n"
        )
