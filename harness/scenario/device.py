"""``gpu``: what the model is to run on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from harness import catalog
from harness.errors import UsageError
from harness.scenario.fields import LARGEST_BYTES, Fault, Part, Size

if TYPE_CHECKING:
    from harness.scenario.scenario import Scenario


SMALLEST_GPU_BYTES = 2**28


def _gpu_name(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return catalog.gpu(value).name
        except UsageError as error:
            raise ValueError(str(error)) from None
    return value


GpuName = Annotated[str, BeforeValidator(_gpu_name)]
LARGEST_SHARE = 1.2
Share = Annotated[float, Field(ge=1e-6, le=LARGEST_SHARE)] | None


class Efficiency(Part):
    """What a measured run reached of the GPU's roofline, where the published shares are not to be used."""

    weights: Share = Field(None, description="of the bandwidth, reading weights")
    kv: Share = Field(None, description="of the bandwidth, reading KV")
    linear: Share = Field(None, description="of the dense peak, linear layers")
    attention: Share = Field(None, description="of the dense peak, attention of prefills")
    launch_s: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="seconds of each step besides")


class Gpu(Part):
    """One kind of GPU: by catalogue name, or by its memory."""

    name: GpuName | None = Field(None, description="a catalogue name (`bench gpus`)")
    memory: Size | None = Field(
        None, description="total memory as the driver states it, where the catalogue doesn't know the GPU"
    )
    mig: Annotated[str, Field(max_length=40)] | None = Field(
        None, description="a slice of the GPU by its profile, such as 3g.40gb"
    )
    in_use: Size = Field(0, description="what other processes hold on each GPU when the engine starts, such as 2 GiB")
    count: Annotated[int, Field(ge=1, le=1024)] = 1
    efficiency: Efficiency = Field(Efficiency(), description="of step times, such as {weights: 0.8, linear: 0.6}")


def device_faults(s: Scenario) -> Iterator[Fault]:
    """Faults that lie between keys."""
    if s.gpu is None:
        if s.device is None:
            yield ("gpu",), "missing: name a GPU (gpu: {name: h100-sxm-80gb}) or say device: cpu"
        elif not (
            s.engine.gpu_memory_utilization or s.engine.kv_cache_memory_bytes or s.engine.num_gpu_blocks_override
        ):
            yield (
                ("engine", "kv_cache_memory_bytes"),
                "missing: on this computer say how large the KV pool is (kv_cache_memory_bytes: 256 MiB)",
            )
        return
    if s.device is not None:
        yield ("device",), "given beside gpu: a scenario has one device"
    if s.gpu.name is None and s.gpu.memory is None:
        yield ("gpu", "name"), "missing: a catalogue name (`bench gpus`), or give memory: 24 GiB"
    if s.gpu.mig is not None:
        yield from _mig_faults(s.gpu)
    if s.gpu.in_use > LARGEST_BYTES:
        yield ("gpu", "in_use"), f"expected at most 1 PiB, got {s.gpu.in_use:,} bytes"
    if s.gpu.name is not None and s.gpu.memory is not None:
        yield ("gpu", "memory"), "given beside name: the catalogue knows this GPU's memory"
    elif s.gpu.memory is not None and not SMALLEST_GPU_BYTES <= s.gpu.memory <= LARGEST_BYTES:
        yield ("gpu", "memory"), f"expected 256 MiB to 1 PiB, got {s.gpu.memory:,} bytes"


def _mig_faults(gpu: Gpu) -> Iterator[Fault]:
    if gpu.name is None:
        yield ("gpu", "mig"), "a slice of which GPU? say gpu.name; of a slice known by its size alone say gpu.memory"
        return
    try:
        catalog.mig_slice(catalog.gpu(gpu.name), gpu.mig or "")
    except UsageError as error:
        yield ("gpu", "mig"), str(error)
    if gpu.count > 1:
        yield ("gpu", "count"), "slices have no way to one another: a model runs on one"
