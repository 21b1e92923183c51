"""Bytes of the weights on each rank, as vLLM's "Model loading took" counts them.

That figure is what PyTorch's allocator holds, so it is more than the parameters: the cos/sin cache of the
rotary embedding is in it, and a tensor of 10 MiB or more takes whole steps of 2 MiB unless more than 1 MiB
would be left over. Source: ``get_allocation_size`` and ``should_split`` of
https://github.com/pytorch/pytorch/blob/v2.10.0/c10/cuda/CUDACachingAllocator.cpp
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, prod

from harness.architecture import Architecture, Component
from harness.catalog import WeightFormat, weight_format
from harness.predict import lora
from harness.predict.estimate import Estimate
from harness.predict.settings import Settings
from harness.units import MIB, gib

# Residuals on the runs of the evidence (docs/accuracy.md): the worst is 0.33 %.
RESIDUAL = 0.005
LAYOUT = "padding of its layout"
_BYTES = {"float32": 4, "int32": 4, "int64": 8}  # of numbers that are not of the model's type


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
    layers = architecture.stage(stage, settings.stages)
    # A tower is made on every stage.
    places = {"first": stage == 0, "tower": settings.sees, "projector": settings.sees, "layer": True,
              "every": True, "last": stage == stages - 1}  # fmt: skip
    order = sorted((c for c in architecture.components if c.held), key=lambda c: [*places].index(c.place))
    for component in order:
        in_layer = component.place == "layer"
        count = architecture.copies(component, layers) if places[component.place] else 0
        if component.name == "embed_tokens" and architecture.tied and stage == stages - 1:
            count = 1  # a tied lm_head needs the embedding on the last stage too
        if not count:
            continue
        tp, ep = settings.tower_ranks if component.place == "tower" else settings.tensor_parallel_size, 1
        if component.kind == "experts":
            tp, ep = settings.expert_split
        if component.kind == "shared experts" and architecture.compressed and settings.divides_tokens:
            tp = 1
        for kind, copies in settings.quantization.of(component, layers if in_layer else ()):
            for name, size in stored(component, architecture, kind, settings.dtype_bytes, tp, ep):
                yield Tensor(name, size, copies if in_layer else count, in_layer)
        for name, size in lora.slots(component, architecture, settings):
            yield Tensor(name, size, count, in_layer)
    for positions, dims in architecture.rotary_shapes:
        # One cache for all layers of a kind, in the model's dtype (rotary_embedding/base.py, 0.19 to 0.32).
        size = 4 if architecture.rotary_float32 else settings.dtype_bytes
        yield Tensor("rotary cos_sin_cache", positions * dims * size, 1, False)


def stored(
    component: Component, architecture: Architecture, kind: WeightFormat | None, dtype_bytes: int, tp: int = 1,
    ep: int = 1,
) -> Iterator[tuple[str, int]]:
    """(name, bytes) of the tensors as which one of ``tp`` ranks holds ``component``; ``kind`` None: plain numbers."""
    if kind is not None and kind.values is not None:
        *others, values = component.units
        for units, one in ((others, replace(kind, values=None)), ([values], weight_format(kind.values))):
            rows = sum(count * width for count, width in units)
            part = replace(component, shape=(rows, component.shape[1]), units=tuple(units))
            yield from stored(part, architecture, one, dtype_bytes, tp)
        return
    shape = component.on_rank(tp, ep)
    if kind is None or kind.bits is None or kind.dtype is not None:
        yield component.name, prod(shape) * _BYTES.get(component.dtype or "", dtype_bytes)
        return
    elements = prod(shape)
    width = architecture.mixture.width // tp if architecture.mixture else 0
    if kind.only and width % kind.width_multiple:
        elements = elements // width * (-(-width // kind.width_multiple) * kind.width_multiple)
    scales = _scales(kind, *shape)
    if kind.interleaved:
        yield component.name, ceil((elements * kind.bits + scales * kind.scale_bits) / 8)
        return
    yield component.name, -(-elements * kind.bits // 8)
    if kind.layout_share:
        yield f"{component.name} {LAYOUT}", round(elements * kind.bits / 8 * kind.layout_share)
    if kind.scale_bits:
        yield f"{component.name} scales", ceil(scales * kind.scale_bits / 8)
    if kind.zero_point_bits:
        yield f"{component.name} zero points", -(-scales * kind.zero_point_bits // 8)
    if kind.input_bits:
        yield f"{component.name} order of its inputs", prod(shape[:-2]) * shape[-1] * kind.input_bits // 8


def _scales(kind: WeightFormat, *shape: int) -> int:
    """Scales of a layer [outputs, inputs], or of all experts [experts, outputs, inputs]."""
    *leading, outputs, inputs = shape
    if kind.scale_per == "tensor":
        return prod(leading)
    if kind.group_size is None:
        return prod(leading) * outputs
    if kind.scale_per == "block":
        outputs = -(-outputs // kind.group_size)
    return prod(leading) * outputs * -(-inputs // kind.group_size)


def weights_source(architecture: Architecture, settings: Settings) -> str:
    """Who told the parts, from which config, and who told their formats."""
    return f"{architecture.source} on {settings.config_source} ({settings.quantization.words})"


def draft_weights(settings: Settings) -> int:
    """Bytes of the drafter on one rank; vLLM loads it with the other and logs both together."""
    if settings.draft is None:
        return 0
    alone = replace(settings, quantization=settings.draft.quantization, draft=None, max_loras=0)
    return sum(allocated(t.bytes) * t.count for t in tensors(settings.draft.architecture, alone, 0))


def weights(architecture: Architecture, settings: Settings, stage: int = 0) -> Estimate:
    """Bytes of the weights on one rank of ``stage``, scales, rotary cache and allocator rounding included."""
    total = sum(allocated(t.bytes) * t.count for t in tensors(architecture, settings, stage))
    draft = draft_weights(settings)
    total += draft
    # How much an expert's layout pads depends on the kernel, so on the GPU: it may be nothing.
    layout = settings.weight_format.layout_share * total
    proposing = f", {settings.draft.whose} {gib(draft)} GiB" if settings.draft and draft else ""
    beside = f", LoRA slots ({settings.max_loras} of rank {settings.max_lora_rank})" if settings.max_loras else ""
    return Estimate.within(
        total, total * RESIDUAL + layout, total * RESIDUAL + layout / 2,
        f"{weights_source(architecture, settings)}{beside}{proposing}, rotary cache, PyTorch allocator rounding",
    )  # fmt: skip
