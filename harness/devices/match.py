"""The GPUs of this node that a scenario means."""

from __future__ import annotations

from collections.abc import Sequence

from harness import catalog
from harness.catalog import Gpu as Meant
from harness.devices.nvml import Gpu
from harness.errors import MachineError, UsageError
from harness.units import gib

KNOWN_BY_MEMORY = "gpu"  # what the prediction calls a GPU that the scenario names by its memory alone
# The same card states other totals with ECC on or off (up to 7 %) and under other drivers (up to 1.4 %).
SAME_NAME_SHARE, NO_NAME_SHARE = 0.10, 0.03


def choose(meant: Meant, count: int, here: Sequence[Gpu]) -> tuple[tuple[Gpu, ...], list[str]]:
    """(the GPUs to use, what is to be said about them): the first ``count`` that CUDA would show, where each is what
    the scenario means.

    Raises MachineError with the reason where they are not what the scenario names.
    """
    if not here:
        raise MachineError("the driver shows no GPU to this process (CUDA_VISIBLE_DEVICES, or the container's devices)")
    chosen = tuple(here[:count])
    if len(chosen) < count:
        raise MachineError(f"the scenario has {count} GPUs, this process sees {len(here)}")
    notes = []
    for gpu in chosen:
        if gpu.unmeasurable:
            raise MachineError(f"{gpu.name} can't be measured: {gpu.unmeasurable}")
        note = _compare(meant, gpu)
        if note and note not in notes:
            notes.append(note)
    if count > 1 and any(gpu.mig for gpu in chosen):
        raise MachineError("MIG instances can't work together: a scenario on one has gpu.count 1")
    return chosen, notes


def _compare(meant: Meant, gpu: Gpu) -> str | None:
    """What differs and is to be said. Raises MachineError where it is another GPU."""
    assert gpu.total_bytes is not None
    if meant.name == KNOWN_BY_MEMORY:
        if abs(gpu.total_bytes - meant.memory_bytes) > NO_NAME_SHARE * meant.memory_bytes:
            raise MachineError(
                f"the scenario's GPU has {gib(meant.memory_bytes)} GiB, this node's is {gpu.name} with "
                f"{gib(gpu.total_bytes)} GiB{_remedy(gpu)}"
            )
        return None
    called = f"{meant.name} in a slice of {meant.mig}" if meant.mig else meant.name
    same = gpu.name.lower() == meant.title.lower() if meant.mig else _known_as(gpu) == meant.name
    if not same:
        raise MachineError(
            f"the scenario's GPU is {called}, this node's is {gpu.name} ({gib(gpu.total_bytes)} GiB){_remedy(gpu)}"
        )
    if abs(gpu.total_bytes - meant.memory_bytes) > SAME_NAME_SHARE * meant.memory_bytes:
        raise MachineError(
            f"the scenario's GPU is {called} of {gib(meant.memory_bytes)} GiB, this node's {gpu.name} has "
            f"{gib(gpu.total_bytes)} GiB: say gpu: {{memory: {gpu.total_bytes >> 20} MiB}}"
        )
    if abs(gpu.total_bytes - meant.memory_bytes) > 0.005 * meant.memory_bytes:
        return (
            f"This {gpu.name} states {gib(gpu.total_bytes)} GiB, the catalogue {gib(meant.memory_bytes)} GiB (ECC, or "
            "another driver): the prediction is for the catalogue's."
        )
    return None


def _known_as(gpu: Gpu) -> str | None:
    """The catalogue's name of ``gpu``; None where it has none, or is an instance of a GPU."""
    try:
        return None if gpu.mig else catalog.gpu(gpu.name).name
    except UsageError:
        return None


def _remedy(gpu: Gpu) -> str:
    known = _known_as(gpu)
    if known:
        return f" (to measure that one: --set gpu.name={known})"
    assert gpu.total_bytes is not None
    return f" (to measure that one: gpu: {{memory: {gpu.total_bytes >> 20} MiB}} in place of the name)"
