"""Samples of a running engine: memory by process in a thread, /metrics in the event loop."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from harness.devices import procfs
from harness.errors import RecordError
from harness.store import TableWriter

if TYPE_CHECKING:
    from harness.client import Client

MEMORY_INTERVAL_S = 0.05
METRICS_INTERVAL_S = 0.25
PROCESS_LIST_INTERVAL_S = 0.5

# Column -> the metric it is read from, as vLLM 0.21 to 0.33 name them.
METRICS = {
    "kv_cache_usage": "vllm:kv_cache_usage_perc",
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "preemptions": "vllm:num_preemptions_total",
    "generation_tokens": "vllm:generation_tokens_total",
}


class MemorySampler(threading.Thread):
    """RSS and PSS of each engine process every ``MEMORY_INTERVAL_S``, streamed to a table.

    ``longest_gap_s`` and ``cpu_s`` tell what the sampling itself was worth and cost; ``fault`` what
    ended it early.
    """

    def __init__(self, guard_pid: int, table: TableWriter) -> None:
        super().__init__(name="memory-sampler", daemon=True)
        self._guard_pid, self._table = guard_pid, table
        self._ending = threading.Event()
        self.longest_gap_s = 0.0
        self.sweeps = 0
        self.cpu_s = 0.0
        self.fault: RecordError | None = None

    def run(self) -> None:
        """Sample until :meth:`end`."""
        try:
            self._sample()
        except RecordError as error:
            self.fault = error
        self.cpu_s = time.thread_time()

    def _sample(self) -> None:
        processes = []
        names: dict[int, str] = {}  # a process that ends loses its title before it is gone
        listed = last = 0.0
        while not self._ending.is_set():
            begun = time.monotonic()
            if begun - listed >= PROCESS_LIST_INTERVAL_S:
                found = procfs.engine_processes(self._guard_pid)
                first = found[0].pid if found else None
                names |= {p.pid: procfs.role(p, first) or names.get(p.pid, "starting") for p in found}
                processes = [(p, names[p.pid]) for p in found]
                listed = begun
            for process, name in processes:
                reading = procfs.read(process, name)
                if reading:
                    self._table.append(time.monotonic_ns(), reading.pid, name, reading.rss, reading.pss)
            if last:
                self.longest_gap_s = max(self.longest_gap_s, begun - last)
            last = begun
            self.sweeps += 1
            self._ending.wait(max(MEMORY_INTERVAL_S - (time.monotonic() - begun), 0.005))

    def end(self) -> None:
        """Stop sampling and wait for the last row."""
        self._ending.set()
        if self.is_alive():
            self.join(10)


async def sample_metrics(client: Client, table: TableWriter, latest: dict[str, float]) -> None:
    """/metrics every ``METRICS_INTERVAL_S`` until cancelled; ``latest`` holds the newest reading."""
    while True:
        begun = time.monotonic()
        text = await client.metrics()
        if text is not None:
            values = read_metrics(text.splitlines())
            latest.update({k: v for k, v in values.items() if v is not None})
            table.append(time.monotonic_ns(), *(values[name] for name in METRICS))
        await asyncio.sleep(max(METRICS_INTERVAL_S - (time.monotonic() - begun), 0.05))


def read_metrics(lines: Iterable[str]) -> dict[str, float | None]:
    """The columns of the metrics table from a Prometheus page; None for a metric that is not there.

    Values of several engines add up; a page that can't be parsed yields None throughout.
    """
    wanted = [line for line in lines if line.startswith(tuple(METRICS.values()))]
    by_name = {metric: column for column, metric in METRICS.items()}
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    try:
        for family in text_string_to_metric_families("\n".join(wanted) + "\n"):
            for sample in family.samples:
                column = by_name.get(sample.name)
                if column and math.isfinite(sample.value):
                    values[column] = (values[column] or 0.0) + float(sample.value)
    except Exception:  # the parser lets malformed pages out as many kinds of error
        return dict.fromkeys(METRICS)
    return values
