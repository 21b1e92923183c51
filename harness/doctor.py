"""What this machine has for a run, what can be measured on it, and what would help where something can't."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness import catalog
from harness.devices import lock, nvml
from harness.engines import arguments, probes, vllm
from harness.errors import LoadfitError, MachineError, UsageError
from harness.units import human


@dataclass(frozen=True)
class Check:
    """One line: ``ok`` is None where it is neither good nor bad; ``remedy`` is empty where nothing needs one."""

    name: str
    found: str
    ok: bool | None = None
    remedy: str = ""


def machine() -> list[Check]:
    """What is here, from the computer up to the engine."""
    return [*_host(), *_driver(), *_torch(), *_engine(), *_hub()]


def measures() -> list[Check]:
    """What a run will and won't measure here."""
    return [*_modes(), *_instruments()]


# -- what is here ------------------------------------------------------------------------------------------


def _host() -> Iterator[Check]:
    memory = psutil.virtual_memory()
    where = " (Windows Subsystem for Linux)" if nvml.in_wsl() else " (a container)" if _in_container() else ""
    system = f"{platform.system()} {platform.release()}{where}"
    found = f"{system}, {psutil.cpu_count()} cores, {human(memory.total)} of memory"
    linux = platform.system() == "Linux"
    yield Check("computer", found, linux, "" if linux else "engines run on Linux; here: --analytic-only")
    yield Check("Python", platform.python_version(), True)


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def _driver() -> Iterator[Check]:
    try:
        with nvml.Nvml() as api:
            v = api.versions()
            yield Check("NVIDIA driver", f"{v['driver']}, NVML {v['nvml']}, CUDA up to {v['cuda']}", True)
            gpus = api.visible(os.environ.get("CUDA_VISIBLE_DEVICES"))
            if not gpus:
                yield Check("GPUs", "none visible to this process", False, "see CUDA_VISIBLE_DEVICES")
            for n, gpu in enumerate(gpus):
                yield from _gpu(api, n, gpu)
    except MachineError as error:
        text, _, remedy = str(error).partition(" (")
        yield Check("NVIDIA driver", text, False, remedy.rstrip(")"))


def _gpu(api: nvml.Nvml, n: int, gpu: nvml.Gpu) -> Iterator[Check]:
    name = f"GPU {n}"
    if gpu.unmeasurable or gpu.total_bytes is None:
        yield Check(name, f"{gpu.name}: {gpu.unmeasurable}", False, "predict it: gpu: {memory: ...}, --analytic-only")
        return
    try:
        known = None if gpu.mig else catalog.gpu(gpu.name).name
    except UsageError:
        known = None
    called = f"gpu: {{name: {known}}}" if known else f"gpu: {{memory: {gpu.total_bytes >> 20} MiB}}"
    memory = api.memory(gpu.handle)
    yield Check(
        name,
        f"{gpu.name}{' (MIG instance)' if gpu.mig else ''}, {human(gpu.total_bytes)}, of it {human(memory.used)} in "
        f"use, memory reading {memory.version}; in a scenario: {called}",
        True,
    )
    processes, why = api.processes(gpu.handle)
    if processes:
        yield Check(
            f"{name} processes", ", ".join(f"{p.pid} ({human(p.bytes)})" for p in processes), False,
            "a run would measure them too: end them, or take another GPU with CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    missing = {**gpu.missing, **({"processes": why} if why else {})}
    if missing:
        words = "; ".join(f"{what}: {reason}" for what, reason in missing.items())
        yield Check(f"{name} untold", words, None)
    try:
        lock.release(lock.hold([gpu.uuid]))
    except MachineError as error:
        yield Check(f"{name} lock", str(error).split(":")[0], False, "wait for it to end")


def _torch() -> Iterator[Check]:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        yield Check("PyTorch", "not installed", None, "comes with vLLM")
        return
    yield Check("PyTorch", f"{version}, {_torch_cuda() or 'without CUDA'}", True)


def _torch_cuda() -> str | None:
    """The CUDA that PyTorch was built for, from its own version file: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    for place in spec.submodule_search_locations or () if spec else ():
        try:
            found = re.search(r"^cuda\b[^=\n]*= *'([\d.]+)'", (Path(place) / "version.py").read_text(), re.MULTILINE)
        except OSError:
            continue
        return f"CUDA {found[1]}" if found else None
    return None


def _engine() -> Iterator[Check]:
    found = vllm.installed()
    if found is None:
        yield Check("vLLM", "not installed", False, "pip install 'loadfit[gpu]', or on a CPU: make setup")
        return
    kind = "the CPU build: rehearsals, and models on this computer" if found.cpu_build else "for GPUs"
    yield Check("vLLM", f"{found.version} ({found.distribution}), {kind}", True)
    version = ".".join(re.findall(r"\d+", found.version)[:2])
    if catalog.version_key(version) > catalog.version_key(catalog.checked_version()):
        yield Check("vLLM's rules", f"predictions use those read in {catalog.rules_of(version)}", None)
    known = arguments.known()
    lacking = [name for name in probes.arguments() if known is not None and name not in known]
    if lacking:
        yield Check("vLLM's hooks", f"no --{lacking[0].replace('_', '-')}", False, "the ledger will say less")


def _hub() -> Iterator[Check]:
    token = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    found = "HF_TOKEN is set" if token else "no HF_TOKEN"
    help_ = "" if token else "gated models need it in the environment; weights: {load: dummy} needs no download"
    yield Check("Hugging Face", f"{found}{', offline' if offline else ''}", None, help_)


# -- what can be measured ----------------------------------------------------------------------------------


def _modes() -> Iterator[Check]:
    try:
        gpus = [gpu for gpu in nvml.here() if not gpu.unmeasurable]
        why = "" if gpus else "no GPU here that can be measured"
        vllm.require_gpu_build()
    except LoadfitError as error:
        why = str(error)
    yield Check("measured on its GPUs", "no" if why else "yes", not why, why)
    try:
        vllm.require_cpu_build()
        why = ""
    except LoadfitError as error:
        why = str(error)
    yield Check("rehearsed on this CPU", "no" if why else "yes", not why or None, why)
    yield Check("predicted", "yes", True)


def _instruments() -> Iterator[Check]:
    try:
        readable, none = [gpu for gpu in nvml.here() if not gpu.unmeasurable], "no GPU that can be read"
    except MachineError as error:
        readable, none = [], str(error).partition(" (")[0]
    yield _instrument("device memory, every 20 ms", bool(readable), none)
    old = next((gpu.missing["reserved_bytes"] for gpu in readable if "reserved_bytes" in gpu.missing), "")
    yield _instrument("the driver's reserve apart", bool(readable) and not old, old or none)
    by_process = "the Windows Subsystem for Linux tells none" if nvml.in_wsl() else ""
    if _in_container():
        by_process = "process ids are the host's: device use above the quiet baseline is the figure"
    yield _instrument("memory by process", bool(readable) and not by_process, by_process if readable else none)
    known, engine = arguments.known(), vllm.installed()
    for name, flag in (("the worker's own terms", "worker_extension_cls"), ("each scheduler step", "scheduler_cls")):
        lacks = f"vLLM {engine.version} has no --{flag.replace('_', '-')}" if engine else "vLLM is not installed"
        yield _instrument(name, engine is not None and (known is None or flag in known), lacks)


def _instrument(name: str, there: bool, why_not: str) -> Check:
    return Check(name, "yes" if there else "no", there, "" if there else why_not)
