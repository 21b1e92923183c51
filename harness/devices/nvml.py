"""GPUs through NVML: memory, activity, health, and who is on them. The only module that imports pynvml.

Nothing here changes a setting of a device. What can't be had is None, and ``Gpu.missing`` says why. Memory of the
whole device is the primary figure; memory by process is a column that is often empty, with its reason.

Sources: the NVML API reference, nvmlDeviceGetMemoryInfo (v1: total = free + used, the driver's own share in used;
v2: total = reserved + used + free) and nvmlDeviceGetMemoryInfo_v2 (drivers from 510 on).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.errors import MachineError

_UNAVAILABLE = 2**64 - 1  # NVML's "not available" of a 64-bit figure

# NVML's error codes, as what is the matter and what helps.
_WORDS = {
    "LibraryNotFound": "no NVIDIA driver here: libnvidia-ml.so.1 is not found (install the driver; start a container "
                       "with --gpus all)",
    "DriverNotLoaded": "the NVIDIA driver is not loaded (see what nvidia-smi says; load the module, or reboot after an "
                       "update)",
    "LibRmVersionMismatch": "the NVIDIA driver and its library are of different versions (reboot after an update)",
    "NoPermission": "no permission to ask the NVIDIA driver (access to /dev/nvidiactl and /dev/nvidia* is needed)",
    "GpuIsLost": "the GPU is lost: the driver can't reach it any more (reboot the node, see its kernel log)",
    "FunctionNotFound": "this NVIDIA driver is too old for it (update the driver)",
    "NotSupported": "not supported on this GPU",
    "NotFound": "not found",
    "Uninitialized": "NVML is not started",
}  # fmt: skip
# The figures beside memory, read less often: column -> how.
ACTIVITY = (
    "gpu_percent", "memory_percent", "power_mw", "temperature_c", "throttle_reasons", "ecc_uncorrected",
)  # fmt: skip


class NvmlError(MachineError):
    """NVML said no. ``lost``: because the GPU is gone."""

    def __init__(self, text: str, lost: bool = False) -> None:
        super().__init__(text)
        self.lost = lost


@dataclass(frozen=True)
class Memory:
    """One reading, in bytes. Where the driver knows version 1 only, ``reserved`` is None and part of ``used``."""

    total: int
    reserved: int | None
    used: int
    free: int
    version: str  # of nvmlDeviceGetMemoryInfo: "v1" or "v2"

    @property
    def discrepancy(self) -> int:
        """Total less the sum of the parts: 0 where NVML is at one with itself."""
        return self.total - (self.reserved or 0) - self.used - self.free


@dataclass(frozen=True)
class Process:
    """A process on a GPU; ``bytes`` is None where NVML does not tell."""

    pid: int
    bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG instance of one, that this process could use.

    ``visible_as``: its entry in CUDA_VISIBLE_DEVICES (with CUDA_DEVICE_ORDER=PCI_BUS_ID, NVML's own order).
    ``unmeasurable``: why its memory can't be read, None where it can. ``missing``: figure -> why it can't be had.
    """

    uuid: str
    name: str
    visible_as: str
    total_bytes: int | None
    memory_version: str | None
    mig: bool = False
    unmeasurable: str | None = None
    missing: dict[str, str] = field(default_factory=dict)
    handle: Any = field(default=None, compare=False, repr=False)


class Nvml:
    """NVML, opened. Raises :class:`NvmlError` where there is none that answers."""

    def __init__(self) -> None:
        if importlib.util.find_spec("pynvml") is None:
            raise NvmlError("nvidia-ml-py is not installed in this Python (pip install nvidia-ml-py)")
        import pynvml

        self._api = pynvml
        self._memory_version = ""
        self._events: Any = None
        self._call(pynvml.nvmlInit)

    def close(self) -> None:
        """Let NVML go."""
        with contextlib.suppress(NvmlError):
            self._call(self._api.nvmlShutdown)

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._api.NVMLError as error:
            kind = type(error).__name__.removeprefix("NVMLError_")
            raise NvmlError(_WORDS.get(kind, f"NVML: {error}"), lost=kind == "GpuIsLost") from None

    def _try(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
        """(answer, None), or (None, why); a lost GPU raises."""
        try:
            return self._call(function, *arguments), None
        except NvmlError as error:
            if error.lost:
                raise
            return None, str(error)

    # -- the node ------------------------------------------------------------------------------------------

    def versions(self) -> dict[str, str | None]:
        """driver, nvml, cuda (the newest that the driver serves)."""
        api = self._api
        cuda, _ = self._try(api.nvmlSystemGetCudaDriverVersion_v2)
        return {
            "driver": self._try(api.nvmlSystemGetDriverVersion)[0],
            "nvml": self._try(api.nvmlSystemGetNVMLVersion)[0],
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        }

    def visible(self, wanted: str | None = None) -> list[Gpu]:
        """The GPUs that CUDA would show to a process with CUDA_VISIBLE_DEVICES ``wanted`` (None: not set), in its
        order. As CUDA does, an entry that names nothing ends the list.

        Raises NvmlError where a GPU that it names can't be asked.
        """
        count = self._call(self._api.nvmlDeviceGetCount)
        if wanted is None:
            return [self._gpu(self._call(self._api.nvmlDeviceGetHandleByIndex, n), str(n)) for n in range(count)]
        found: list[Gpu] = []
        for entry in map(str.strip, wanted.split(",")):
            gpu = self._named(entry, count)
            if gpu is None or gpu.uuid in {g.uuid for g in found}:
                break
            found.append(gpu)
        return found

    def _named(self, entry: str, count: int) -> Gpu | None:
        api = self._api
        if entry.isdecimal():
            if int(entry) >= count:
                return None
            return self._gpu(self._call(api.nvmlDeviceGetHandleByIndex, int(entry)), entry)
        if entry.startswith("MIG-"):
            handle, _ = self._try(api.nvmlDeviceGetHandleByUUID, entry)
            return self._gpu(handle, entry) if handle else None
        if entry.startswith("GPU-"):  # CUDA takes the beginning of a UUID where it is only one's
            handles = [self._call(api.nvmlDeviceGetHandleByIndex, n) for n in range(count)]
            uuids = {self._call(api.nvmlDeviceGetUUID, handle): handle for handle in handles}
            near = [uuid for uuid in uuids if uuid.startswith(entry)]
            return self._gpu(uuids[near[0]], near[0]) if len(near) == 1 else None
        return None

    def _gpu(self, handle: Any, visible_as: str) -> Gpu:
        """What is behind ``handle``: with MIG on, CUDA takes the first instance, and so do we."""
        api = self._api
        is_instance, _ = self._try(api.nvmlDeviceIsMigDeviceHandle, handle)
        mig = bool(is_instance and is_instance.value)
        mode, _ = (None, None) if mig else self._try(api.nvmlDeviceGetMigMode, handle)
        if mode and mode[0]:
            instance = self._first_instance(handle)
            if instance is None:
                name, uuid = self._call(api.nvmlDeviceGetName, handle), self._call(api.nvmlDeviceGetUUID, handle)
                why = "MIG is on and the GPU has no instance that CUDA could use"
                return Gpu(uuid, name, visible_as, None, None, unmeasurable=why)
            handle, mig = instance, True
        uuid, name = self._call(api.nvmlDeviceGetUUID, handle), self._call(api.nvmlDeviceGetName, handle)
        try:
            memory = self.memory(handle)
        except NvmlError as error:
            if error.lost:
                raise
            unified = str(error) == _WORDS["NotSupported"]
            why = (
                "NVML reports no memory for it: it shares the computer's memory (unified memory), where a device's own "
                "use can't be told from the computer's"
                if unified
                else str(error)
            )
            return Gpu(uuid, name, uuid if mig else visible_as, None, None, mig, why, handle=handle)
        missing = self.activity(handle)[1]
        if memory.reserved is None:
            missing["reserved_bytes"] = "the driver knows version 1 of the memory reading only: it is part of used"
        return Gpu(
            uuid, name, uuid if mig else visible_as, memory.total, memory.version, mig, None, missing, handle
        )  # fmt: skip

    def _first_instance(self, handle: Any) -> Any:
        most, _ = self._try(self._api.nvmlDeviceGetMaxMigDeviceCount, handle)
        for n in range(most or 0):
            instance, _ = self._try(self._api.nvmlDeviceGetMigDeviceHandleByIndex, handle, n)
            if instance:
                return instance
        return None

    # -- one GPU -------------------------------------------------------------------------------------------

    def memory(self, handle: Any) -> Memory:
        """Its memory now, by version 2 where the driver knows it. About 12 us. Raises NvmlError."""
        api = self._api
        if self._memory_version != "v1":
            try:
                m = self._call(lambda: api.nvmlDeviceGetMemoryInfo(handle, version=api.nvmlMemory_v2))
                self._memory_version = "v2"
                return Memory(m.total, m.reserved, m.used, m.free, "v2")
            except NvmlError as error:
                if self._memory_version or error.lost or str(error) != _WORDS["FunctionNotFound"]:
                    raise
                self._memory_version = "v1"
        m = self._call(api.nvmlDeviceGetMemoryInfo, handle)
        return Memory(m.total, None, m.used, m.free, "v1")

    def activity(self, handle: Any) -> tuple[dict[str, int | None], dict[str, str]]:
        """(figure -> value or None, figure -> why not) for :data:`ACTIVITY`: percent, milliwatts, degrees Celsius, the
        bits of nvmlClocksEventReasons, uncorrected ECC errors since the driver was loaded."""
        api = self._api
        use, why_use = self._try(api.nvmlDeviceGetUtilizationRates, handle)
        throttled, why_throttled = self._try(api.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if throttled is None:  # its older name
            throttled, why_throttled = self._try(api.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        answers = {
            "gpu_percent": (use.gpu if use else None, why_use),
            "memory_percent": (use.memory if use else None, why_use),
            "power_mw": self._try(api.nvmlDeviceGetPowerUsage, handle),
            "temperature_c": self._try(api.nvmlDeviceGetTemperature, handle, api.NVML_TEMPERATURE_GPU),
            "throttle_reasons": (throttled, why_throttled),
            "ecc_uncorrected": self._try(
                api.nvmlDeviceGetTotalEccErrors, handle, api.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, api.NVML_VOLATILE_ECC
            ),
        }
        return {k: v for k, (v, _) in answers.items()}, {k: why for k, (_, why) in answers.items() if why}

    def processes(self, handle: Any) -> tuple[list[Process] | None, str | None]:
        """(the compute processes on it, None), or (None, why). Takes a lock of the driver: for phase marks only."""
        found, why = self._try(self._api.nvmlDeviceGetComputeRunningProcesses, handle)
        if found is None:
            return None, why
        told = [(p.pid, None if p.usedGpuMemory == _UNAVAILABLE else p.usedGpuMemory) for p in found]
        return [Process(*each) for each in told], None

    def peak_by_accounting(self, handle: Any, pid: int) -> tuple[int | None, str | None]:
        """(the driver's own peak of ``pid``'s memory in bytes, None), or (None, why): accounting mode is never
        switched on, only read where it is."""
        mode, why = self._try(self._api.nvmlDeviceGetAccountingMode, handle)
        if not mode:
            return None, why or "accounting mode is off"
        stats, why = self._try(self._api.nvmlDeviceGetAccountingStats, handle, pid)
        peak = stats.maxMemoryUsage if stats else None
        return (None, why or "not available") if peak in (None, _UNAVAILABLE) else (peak, None)

    # -- XID errors ----------------------------------------------------------------------------------------

    def watch_xid(self, handles: list[Any]) -> str | None:
        """Listen for critical errors of ``handles``; why it can't be done, None where it can."""
        api = self._api
        self._events, why = self._try(api.nvmlEventSetCreate)
        kind = api.nvmlEventTypeXidCriticalError
        for handle in handles:
            if why is None:
                _, why = self._try(api.nvmlDeviceRegisterEvents, handle, kind, self._events)
        if why is not None:
            self._events = None
        return why

    def xid(self) -> tuple[str, int] | None:
        """(uuid, XID) of an error that came since the last call, None where there was none."""
        if self._events is None:
            return None
        try:
            event = self._call(self._api.nvmlEventSetWait, self._events, 0)
            return self._call(self._api.nvmlDeviceGetUUID, event.device), int(event.eventData)
        except NvmlError:  # timeout: nothing came
            return None


def here() -> list[Gpu]:
    """The GPUs that an engine started by this process would see. Raises NvmlError where there are none to ask."""
    with Nvml() as nvml:
        return nvml.visible(os.environ.get("CUDA_VISIBLE_DEVICES"))


def in_wsl() -> bool:
    """Whether this is the Windows Subsystem for Linux, where NVML tells no memory by process."""
    return "microsoft" in platform.release().lower()
