"""NVML's side of a run: the lock, the quiet baseline, the samples, and who else is on the GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from harness.devices import lock
from harness.devices.nvml import Gpu, Nvml, Process, in_wsl
from harness.errors import MachineError
from harness.sampler import DeviceSampler
from harness.store import TableWriter
from harness.units import human

BASELINE_S = 1.0  # of quiet before the engine starts
BASELINE = "baseline"  # a mark beside the phases: who was there before the engine


class GpuWatch:
    """Holds the GPUs of a run from before the engine starts until it has ended.

    ``isolation``: "fail" ends a run with strangers on its GPUs, "warn" reports them. Raises MachineError where
    another bench holds a GPU, where a GPU is lost, and where strangers are there already and isolation is "fail".
    ``attached``: the engine was there before us, so nobody can be told from it.
    """

    def __init__(self, gpus: Iterable[Gpu], isolation: str, *, attached: bool = False) -> None:
        self._isolation = isolation
        self._attached = attached
        self._nvml = Nvml()
        self._locks = lock.hold(gpu.uuid for gpu in gpus)
        self.sampler: DeviceSampler | None = None
        try:
            self._versions = self._nvml.versions()
            self.gpus = self._nvml.visible(",".join(gpu.visible_as for gpu in gpus))
            self._rows: dict[str, dict[str, Any]] = {gpu.uuid: _facts(gpu) for gpu in self.gpus}
            self.look(BASELINE, set())
            if self.disturbed:
                raise MachineError(f"--isolation fail: {self.disturbed}")
        except BaseException:
            self.end()
            raise

    def sample(self, table: TableWriter, interval_s: float) -> None:
        """Begin to sample."""
        self.sampler = DeviceSampler(self._nvml, self.gpus, table, interval_s)
        if self.sampler.xid_missing:
            for row in self._rows.values():
                row["missing"]["xid"] = self.sampler.xid_missing
        self.sampler.start()

    @property
    def lost(self) -> str | None:
        """Which GPU can't be read any more and why; None while all can."""
        lost = self.sampler.lost if self.sampler else {}
        return next((f"{uuid}: {why}" for uuid, why in lost.items()), None)

    @property
    def disturbed(self) -> str | None:
        """Who came onto the GPUs, where that is to end the run."""
        if self._isolation != "fail":
            return None
        return next((s for row in self._rows.values() for s in row["strangers"]), None)

    def look(self, phase: str, ours: set[int]) -> None:
        """Note the processes on each GPU; those that are neither there from the start nor ``ours`` are strangers."""
        for gpu in self.gpus:
            row = self._rows[gpu.uuid]
            if self.sampler and gpu.uuid in self.sampler.lost:
                continue
            found, why = self._ask(lambda gpu=gpu: self._nvml.processes(gpu.handle))  # type: ignore[misc]
            if found is None:
                row["missing"]["processes"] = why
                continue
            row["processes"][phase] = [{"pid": p.pid, "bytes": p.bytes, "ours": int(p.pid in ours)} for p in found]
            if found and all(p.bytes is None for p in found):
                row["missing"]["bytes by process"] = (
                    "the Windows Subsystem for Linux tells none" if in_wsl() else "NVML tells none here"
                )
            for stranger in () if self._attached else self._strangers(row, phase, found, ours):
                if stranger not in row["strangers"]:
                    row["strangers"].append(stranger)

    def _strangers(self, row: dict[str, Any], phase: str, found: list[Process], ours: set[int]) -> list[str]:
        name = row["name"]
        if phase == BASELINE:
            return [f"{_who(p)} is on {name} before the engine starts" for p in found]
        before = {p["pid"] for p in row["processes"].get(BASELINE, ())}
        new = [p for p in found if p.pid not in before]
        if any(p.pid in ours for p in new):
            return [f"{_who(p)} came onto {name} while the engine ran" for p in new if p.pid not in ours]
        if new:
            row["missing"]["processes by name"] = "process ids are the host's, not this container's"
        if len(new) > 1:  # one is the engine's worker under another number
            return [f"{len(new)} processes came onto {name} where the engine has one"]
        return []

    def read_accounting(self, ours: set[int]) -> None:
        """The driver's own peak of our processes, where accounting mode is on."""
        for gpu in self.gpus:
            row = self._rows[gpu.uuid]
            for process in row["processes"].get("stop", ()):
                if process["pid"] in ours:
                    peak, why = self._ask(
                        lambda gpu=gpu, pid=process["pid"]: self._nvml.peak_by_accounting(gpu.handle, pid)  # type: ignore[misc]
                    )
                    row["accounting_peak_bytes"] = peak
                    if peak is None:
                        row["missing"]["accounting_peak_bytes"] = why

    @staticmethod
    def _ask(question: Callable[[], tuple[Any, str | None]]) -> tuple[Any, str | None]:
        try:
            return question()
        except MachineError as error:  # lost between two samples
            return None, str(error)

    def facts(self) -> dict[str, Any]:
        """For the manifest: the GPUs in the order of the engine's ranks, and how they were sampled."""
        sampler = self.sampler
        for uuid, why in (sampler.lost if sampler else {}).items():
            self._rows[uuid]["lost"] = why
        sampling = {**sampler.facts(), "discrepancy_bytes": sampler.discrepancy} if sampler else None
        return {"gpus": list(self._rows.values()), "nvml": self._versions, "device_sampling": sampling}

    def end(self) -> None:
        """Stop sampling and let the GPUs go."""
        if self.sampler:
            self.sampler.end()
        self._nvml.close()
        lock.release(self._locks)


def _facts(gpu: Gpu) -> dict[str, Any]:
    return {
        "uuid": gpu.uuid,
        "name": gpu.name,
        "total_bytes": gpu.total_bytes,
        "memory_version": gpu.memory_version,
        "mig": int(gpu.mig),
        "missing": dict(gpu.missing),
        "processes": {},
        "strangers": [],
        "accounting_peak_bytes": None,
        "lost": None,
    }


def _who(process: Process) -> str:
    size = "memory not told" if process.bytes is None else human(process.bytes)
    return f"process {process.pid} ({size})"
