"""Which format each part has in a checkpoint, told by the tensors that its safetensors headers list.

The published layouts: AutoAWQ and GPTQ (qweight, qzeros, scales), compressed-tensors (weight_packed, weight_scale,
weight_zero_point), fp8 (weight, weight_scale or weight_scale_inv), ModelOpt (weight, weight_scale, weight_scale_2),
bitsandbytes (weight.absmax, weight.nested_absmax, SCB), gpt-oss (_blocks, _scales), DeepSeek V4 (weight, scale).
"""

from __future__ import annotations

from math import prod

from harness import catalog
from harness.architecture import Architecture, Component
from harness.architecture.checkpoint import LAYER_ROOTS, module_names
from harness.architecture.folder import Stored
from harness.catalog import WeightFormat
from harness.errors import UsageError

_FLOATS = ("BF16", "F16", "F32")
# Experts that are one tensor a layer: part -> its name below the module of the experts.
_STACKED = {"experts.w13": "gate_up_proj", "experts.w2": "down_proj"}
# Parts whose modules hold all of them, and nothing else: their size is compared with what the config makes.
_COMPARED = ("qkv_proj.weight", "o_proj.weight", "gate_up_proj.weight", "up_proj.weight", "down_proj.weight")
Held = dict[str, Stored]  # what a module holds: "weight", "weight_scale", ...


def formats_of(
    tensors: dict[str, Stored], architecture: Architecture
) -> dict[str, tuple[WeightFormat | None, ...]]:
    """Part -> its format in every layer, or one for each layer. Raises UsageError for a layout that is not known."""
    modules = _modules(tensors)
    roots = [r for r in LAYER_ROOTS if any(m.startswith(r) for m in modules)]
    found: dict[str, tuple[WeightFormat | None, ...]] = {}
    for component in architecture.components:
        if component.place in ("tower", "projector") or not (component.quantizable or component.kind == "lm_head"):
            continue
        names = module_names(component, roots)
        layers = range(architecture.layers) if component.layers is None else component.layers
        if component.place != "layer":
            row: list[WeightFormat | None] = [_format(modules, names, component)]
        else:
            row = [None] * architecture.layers
            for i in layers:
                row[i] = _format(modules, [n.replace("{}", str(i)) for n in names], component)
        if any(row):
            same = component.place != "layer" or len({row[i] for i in layers}) == 1
            found[component.name] = (next(f for f in row if f),) if same else tuple(row)
    return found


def _modules(tensors: dict[str, Stored]) -> dict[str, Held]:
    modules: dict[str, Held] = {}
    for name, stored in tensors.items():
        module, _, suffix = name.partition(".weight.")
        if suffix:
            suffix = f"weight.{suffix}"
        else:
            module, _, suffix = name.rpartition(".")
        modules.setdefault(module, {})[suffix] = stored
    return modules


def _format(modules: dict[str, Held], names: list[str] | tuple[str, ...], component: Component) -> WeightFormat | None:
    """The format of the first of ``names`` that the checkpoint holds; None: plain numbers, or no such module."""
    if component.name in _COMPARED:
        _compare(modules, names, component)
    for name in names:
        held = modules.get(name, {})
        if component.name in _STACKED:
            stacked = _STACKED[component.name]
            held = {**held, **{f"weight{s.removeprefix(stacked)}": t for s, t in held.items() if s.startswith(stacked)}}
        told = _told(held, component.shape[-1])
        if told == "?":
            raise UsageError(f"checkpoint: {name}: a layout that is not known: {', '.join(sorted(held))[:120]}")
        if told:
            return None if told == "plain" else catalog.weight_format(told)
    return None


def _compare(modules: dict[str, Held], names: list[str] | tuple[str, ...], component: Component) -> None:
    """Raises UsageError where the checkpoint's unpacked weights of a part are not as many as the config makes."""
    there = {n: modules[n]["weight"] for n in names if "weight" in modules.get(n, ())}
    if not there or any(t.dtype not in (*_FLOATS, "F8_E4M3", "I8") for t in there.values()):
        return
    stored = sum(prod(t.shape) for t in there.values())
    if stored != component.elements:
        raise UsageError(
            f"checkpoint: {', '.join(there)}: {stored:,} weights, but the config makes {component.elements:,} of "
            f"{component.name}"
        )


def _told(held: Held, inputs: int) -> str:
    """The name of a format, "plain", "?" for a layout that isn't known, "" where there is no weight."""
    if "qweight" in held:
        return _gptq_or_awq(held, inputs)
    if "weight_blocks" in held:
        return "mxfp4"
    if "weight_packed" in held:
        return _packed(held["weight_packed"], held, inputs)
    weight = held.get("weight")
    if weight is None:
        return ""
    if weight.dtype in _FLOATS:
        return "plain"
    if weight.dtype in ("F8_E4M3", "F8_E5M2"):
        return _fp8(held, weight)
    if weight.dtype == "I8" and weight.shape[-1:] != (inputs // 2,):
        if "SCB" in held:
            return "bnb-int8"
        return "int8-tensor" if prod(held.get("weight_scale", weight).shape) == 1 else "int8"
    if weight.dtype == "U8" and "weight.absmax" in held:
        kind = "fp4" if any(s.endswith("__fp4") for s in held) else "nf4"
        return f"bnb-{kind}-double" if "weight.nested_absmax" in held else f"bnb-{kind}"
    return _packed(weight, held, inputs)


def _gptq_or_awq(held: Held, inputs: int) -> str:
    """AWQ packs along the outputs, GPTQ along the inputs; both have a row of scales for each group."""
    qweight, scales = held["qweight"], held.get("scales")
    if scales is None or qweight.dtype != "I32" or len(qweight.shape) != 2:
        return "?"
    groups = scales.shape[0]
    size = "channel" if groups == 1 else f"g{inputs // groups}"
    if qweight.shape[0] == inputs:
        return f"awq-int4-{size}" if "qzeros" in held else f"int4-{size}"
    bits = qweight.shape[0] * 32 // inputs
    return f"gptq-int{bits}-{size}" if bits in (4, 8) else "?"


def _packed(weight: Stored, held: Held, inputs: int) -> str:
    scale = held.get("weight_scale") or held.get("scale")
    if scale is None or not weight.shape:
        return "?"
    columns = weight.shape[-1]
    if weight.dtype in ("U8", "I8") and columns * 2 == inputs:
        return {"F8_E4M3": "nvfp4", "U8": "mxfp4-pack", "F8_E8M0": "mxfp4-pack"}.get(scale.dtype, "?")
    bits = columns * 32 // inputs
    if weight.dtype != "I32" or bits not in (4, 8) or len(scale.shape) != 2:
        return "?"
    size = "channel" if scale.shape[1] == 1 else f"g{inputs // scale.shape[1]}"
    if bits == 8:
        return f"int8-pack-{size}"
    return f"int4-asym-{size}" if "weight_zero_point" in held else f"int4-{size}"


def _fp8(held: Held, weight: Stored) -> str:
    scale = held.get("weight_scale_inv") or held.get("weight_scale") or held.get("scale")
    if scale is None or prod(scale.shape) == 1:
        return "fp8-tensor"
    outputs, inputs = weight.shape[-2:]
    shape = tuple(n for n in scale.shape if n != 1)
    if scale.dtype in ("U8", "F8_E8M0") and scale.shape[-1] * 32 == inputs:
        return "mxfp8"
    if prod(shape) == outputs:
        return "fp8"
    blocks = tuple(n for n in (-(-outputs // 128), -(-inputs // 128)) if n != 1)
    if shape[-len(blocks) :] != blocks:
        return "?"
    return "fp8-block-e8m0" if scale.dtype in ("U8", "F8_E8M0") else "fp8-block"
