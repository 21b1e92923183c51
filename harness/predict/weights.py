"""Bytes of the weights on each rank, as vLLM's "Model loading took" counts them.

That figure is what PyTorch's allocator holds, so it is more than the parameters: the cos/sin cache of the
rotary embedding is in it, and a tensor of 10 MiB or more takes whole steps of 2 MiB unless more than 1 MiB
would be left over. Source: ``get_allocation_size`` and ``should_split`` of
https://github.com/pytorch/pytorch/blob/v2.10.0/c10/cuda/CUDACachingAllocator.cpp
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.architecture import Architecture, Component, stage_layers
from harness.catalog import WeightFormat
from harness.predict.estimate import Estimate
from harness.predict.settings import Settings
from harness.units import MIB

# Residuals on the 31 started dense runs of the evidence (benchmarks/evidence.py): the worst is 0.3 %.
RESIDUAL = 0.005


@dataclass(frozen=True)
class Tensor:
    """``count`` equal tensors of ``bytes`` each on one rank."""

    name: str
    bytes: int
    count: int
    in_layer: bool


def allocated(size: int) -> int:
    """Bytes that PyTorch's CUDA allocator counts for a tensor of ``size`` bytes."""
    size = -(-size // 512) * 512
    if size < 10 * MIB:
        return size
    segment = -(-size // (2 * MIB)) * 2 * MIB
    return segment if segment - size <= MIB else size


def tensors(architecture: Architecture, settings: Settings, stage: int) -> Iterator[Tensor]:
    """All tensors of one rank of pipeline stage ``stage`` (from 0), in the order vLLM makes them."""
    stages = settings.pipeline_parallel_size
    layers = stage_layers(architecture.layers, stages)[stage]
    places = {"layer": layers, "first": int(stage == 0), "last": int(stage == stages - 1)}
    order = sorted(architecture.components, key=lambda c: ("first", "layer", "last").index(c.place))
    for component in order:
        count = places[component.place]
        if component.name == "embed_tokens" and architecture.tied and stage == stages - 1:
            count = 1  # a tied lm_head needs the embedding on the last stage too
        if count:
            for name, size in _stored(component, architecture, settings):
                yield Tensor(name, size, count, component.place == "layer")
    if architecture.rotary_shape is not None:
        positions, dims = architecture.rotary_shape
        # One cache for all layers, in the model's dtype (rotary_embedding/base.py, 0.19 to 0.32).
        yield Tensor("rotary cos_sin_cache", positions * dims * settings.dtype_bytes, 1, False)


def _stored(
    component: Component, architecture: Architecture, settings: Settings
) -> Iterator[tuple[str, int]]:
    shape = architecture.rank_shape(component, settings.tensor_parallel_size)
    elements = 1
    for n in shape:
        elements *= n
    kind = settings.weight_format
    if not component.quantizable or kind.bits is None or kind.dtype is not None:
        yield component.name, elements * settings.dtype_bytes
        return
    yield component.name, -(-elements * kind.bits // 8)
    scales = _scales(kind, *shape)
    yield f"{component.name} scales", scales * kind.scale_bits // 8
    if kind.zero_point_bits:
        yield f"{component.name} zero points", -(-scales * kind.zero_point_bits // 8)


def _scales(kind: WeightFormat, outputs: int, inputs: int) -> int:
    """Scales of a layer [outputs, inputs]."""
    if kind.scale_per == "group" and kind.group_size:
        return outputs * -(-inputs // kind.group_size)
    return outputs


def weights(architecture: Architecture, settings: Settings, stage: int = 0) -> Estimate:
    """Bytes of the weights on one rank of ``stage``, scales, rotary cache and allocator rounding included."""
    total = sum(allocated(t.bytes) * t.count for t in tensors(architecture, settings, stage))
    return Estimate.within(
        total, total * RESIDUAL, total * RESIDUAL,
        f"sum over tensors ({settings.weight_format.name}), rotary cache, PyTorch allocator rounding",
    )  # fmt: skip
