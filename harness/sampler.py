"""Samples of a running engine: memory by process and by GPU in a thread each, /metrics in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import psutil
from prometheus_client.parser import text_string_to_metric_families

from harness.devices import procfs
from harness.devices.nvml import ACTIVITY, Gpu, Nvml, NvmlError
from harness.errors import RecordError
from harness.store import TableWriter

if TYPE_CHECKING:
    from harness.client import Client

MEMORY_INTERVAL_S = 0.05
HOST_INTERVAL_S = 1.0  # of the host's memory where the device is a GPU: PSS of big processes is dear
DEVICE_INTERVAL_S = 0.02
ACTIVITY_INTERVAL_S = 0.5  # the driver itself renews these every 0.1 to 1 s
METRICS_INTERVAL_S = 0.25
PROCESS_LIST_INTERVAL_S = 0.5
MOST_LINES = 8192  # of ours on a page: five for each engine, and no server has a thousand

# Column -> the metric it is read from, as vLLM 0.21 to 0.33 name them.
METRICS = {
    "kv_cache_usage": "vllm:kv_cache_usage_perc",
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "preemptions": "vllm:num_preemptions_total",
    "generation_tokens": "vllm:generation_tokens_total",
}


class Sampler(threading.Thread, ABC):
    """Calls :meth:`sweep` every ``interval_s`` until :meth:`end`.

    ``sweeps``, ``longest_gap_s`` and ``cpu_s`` tell what the sampling was worth and cost; ``fault``, what ended it.
    """

    def __init__(self, name: str, table: TableWriter, interval_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self.table, self.interval_s = table, interval_s
        self._ending = threading.Event()
        self.longest_gap_s = 0.0
        self.sweeps = 0
        self.cpu_s = self.wall_s = 0.0
        self.fault: RecordError | None = None

    @abstractmethod
    def sweep(self, now: float) -> None:
        """Write the rows of ``now`` (monotonic seconds)."""

    def run(self) -> None:
        """Sample until :meth:`end`."""
        begun, last = time.monotonic(), 0.0
        try:
            while not self._ending.is_set():
                now = time.monotonic()
                self.sweep(now)
                self.longest_gap_s = max(self.longest_gap_s, now - last if last else 0.0)
                last = now
                self.sweeps += 1
                self._ending.wait(max(self.interval_s - (time.monotonic() - now), 0.001))
        except RecordError as error:
            self.fault = error
        self.cpu_s, self.wall_s = time.thread_time(), time.monotonic() - begun

    def end(self) -> None:
        """Stop sampling and wait for the last row."""
        self._ending.set()
        if self.is_alive():
            self.join(10)

    def facts(self) -> dict[str, float]:
        """For the manifest."""
        return {
            "interval_s": self.interval_s,
            "sweeps": self.sweeps,
            "longest_gap_s": round(self.longest_gap_s, 4),
            "cpu_s": round(self.cpu_s, 3),
            "wall_s": round(self.wall_s, 3),
        }


class MemorySampler(Sampler):
    """RSS and PSS of each engine process."""

    def __init__(self, guard_pid: int, table: TableWriter, interval_s: float = MEMORY_INTERVAL_S) -> None:
        super().__init__("memory-sampler", table, interval_s)
        self._guard_pid = guard_pid
        self._processes: list[tuple[psutil.Process, str]] = []
        self._names: dict[int, str] = {}  # a process that ends loses its title before it is gone
        self._listed = 0.0

    def sweep(self, now: float) -> None:
        """One row for each process."""
        if now - self._listed >= PROCESS_LIST_INTERVAL_S:
            found = procfs.engine_processes(self._guard_pid)
            first = found[0].pid if found else None
            self._names |= {p.pid: procfs.role(p, first) or self._names.get(p.pid, "starting") for p in found}
            self._processes = [(p, self._names[p.pid]) for p in found]
            self._listed = now
        for process, name in self._processes:
            reading = procfs.read(process, name)
            if reading:
                self.table.append(time.monotonic_ns(), reading.pid, name, reading.rss, reading.pss)


class DeviceSampler(Sampler):
    """Memory of each GPU in every sweep, its activity and its XID errors every ``ACTIVITY_INTERVAL_S``.

    ``lost``: UUID -> why it can't be read any more; the others go on. ``discrepancy``: the most bytes by which a
    reading's parts missed its total. ``xid_missing``: why XID errors can't be listened for.
    """

    def __init__(
        self, nvml: Nvml, gpus: Iterable[Gpu], table: TableWriter, interval_s: float = DEVICE_INTERVAL_S
    ) -> None:
        super().__init__("device-sampler", table, interval_s)
        self._nvml, self._gpus = nvml, list(gpus)
        self._active = 0.0
        self.lost: dict[str, str] = {}
        self.discrepancy = 0
        self.xid_missing = nvml.watch_xid([g.handle for g in self._gpus])

    def sweep(self, now: float) -> None:
        """One row for each GPU that answers."""
        active = now - self._active >= ACTIVITY_INTERVAL_S
        xids = dict(self._xids()) if active else {}
        if active:
            self._active = now
        for gpu in self._gpus:
            if gpu.uuid in self.lost:
                continue
            try:
                m = self._nvml.memory(gpu.handle)
                at = time.monotonic_ns()
                activity = self._nvml.activity(gpu.handle)[0] if active else {}
            except NvmlError as error:
                self.lost[gpu.uuid] = str(error)
                continue
            if abs(m.discrepancy) > abs(self.discrepancy):
                self.discrepancy = max(min(m.discrepancy, 2**62), -(2**62))  # a driver's nonsense is kept readable
            self.table.append(
                at, gpu.uuid, m.total, m.reserved, m.used, m.free, m.version,
                *(activity.get(name) for name in ACTIVITY), xids.get(gpu.uuid),
            )  # fmt: skip

    def _xids(self) -> Iterator[tuple[str, int]]:
        while (event := self._nvml.xid()) is not None:
            yield event


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


def read_cache_config(lines: Iterable[str]) -> dict[str, int]:
    """num_gpu_blocks and block_size from vLLM's ``vllm:cache_config_info``, whose labels hold them; {} where unsaid."""
    wanted = [line for line in lines if line.startswith("vllm:cache_config_info")][:MOST_LINES]
    found: dict[str, int] = {}
    with contextlib.suppress(Exception):  # as below
        for family in text_string_to_metric_families("\n".join(wanted) + "\n"):
            for sample in family.samples:
                for name in ("num_gpu_blocks", "block_size"):
                    if sample.labels.get(name, "").isdecimal():
                        found[name] = int(sample.labels[name])
    return found


def read_metrics(lines: Iterable[str]) -> dict[str, float | None]:
    """The columns of the metrics table from a Prometheus page; None for a metric that is not there.

    Values of several engines add up; a page that can't be parsed yields None throughout.
    """
    wanted = [line for line in lines if line.startswith(tuple(METRICS.values()))][:MOST_LINES]
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
