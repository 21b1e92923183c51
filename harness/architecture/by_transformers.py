"""A class that the table of families lacks, read from transformers' own model on the meta device.

For decoders whose layers are attention with q, k and v of their own and an MLP or experts: the parts are counted in the
model, fused and split as vLLM does it for that kind. A parameter that is none of these is refused by its name. torch
and transformers are imported here alone, and only where such a class is met.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from harness.architecture.component import Component
from harness.architecture.kv_layers import FULL, SLIDING, KvLayer
from harness.architecture.layout import Attention, Layout, by_width
from harness.architecture.parts import Mixture
from harness.architecture.positions import positions, rotary_dim
from harness.architecture.reader import Reader, show
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.architecture.model import Architecture

SOURCE = "transformers on the meta device"
Shapes = dict[str, tuple[int, ...]]
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_KINDS = {"full_attention": FULL, "sliding_attention": SLIDING}
_SHARED = ("mlp.shared_experts.", "mlp.shared_expert.", "mlp.shared_mlp.")


def known_to_transformers(name: str, kind: object) -> bool | None:
    """Whether transformers has a causal model of that class and ``model_type``; None where it is not installed."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        return None
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as MODELS

    return isinstance(kind, str) and MODELS.get(kind) == name


def read(name: str, config: dict[str, Any]) -> Architecture:
    """The architecture of ``config``, of the class ``name`` that :func:`known_to_transformers`. Raises UsageError."""
    try:
        return _read(name, json.dumps(config, sort_keys=True))
    except UsageError:
        raise
    except Exception as error:  # what a config of anybody's can raise in code of anybody's
        first = (str(error).splitlines() or [""])[0][:160]
        raise UsageError(f"config: {name} in transformers: {type(error).__name__}: {first}") from None


@lru_cache(maxsize=32)
def _read(name: str, text: str) -> Architecture:
    from harness.architecture.model import Architecture, model_dtype

    config = json.loads(text)
    values, shapes = _model(name, config)
    layers = _by_layer(shapes)
    vocab, hidden = shapes["model.embed_tokens.weight"]
    head_dim = values.get("head_dim") or hidden // values["num_attention_heads"]
    attention = [_attention(name, i, held, head_dim, values) for i, held in enumerate(layers)]
    mixture = _mixture(layers, values)
    dense = {i: held["mlp.down_proj.weight"][1] for i, held in enumerate(layers) if "mlp.down_proj.weight" in held}
    tied = "lm_head.weight" not in shapes
    full = {k: v for k, v in values.items() if v is not None} | config
    reader = Reader(full, {})
    limit, default_len, rows = positions(name, reader)
    groups = {a: tuple(i for i, b in enumerate(attention) if b == a) for a in dict.fromkeys(attention)}
    usual = attention[0]
    return Architecture(
        name=name, layers=len(layers), hidden=hidden, heads=usual.heads, kv_heads=usual.kv_heads, head_dim=head_dim,
        intermediate=max(dense.values(), default=0), vocab=vocab, max_model_len=limit, default_model_len=default_len,
        max_len_key="max_position_embeddings", tied=tied,
        gated=any("mlp.gate_proj.weight" in held for held in layers) or not dense, dtype=model_dtype(config),
        rotary_shapes=((rows, rotary_dim(reader, 1.0, head_dim)),), rotary_float32=False, mla=None,
        compressed=None, mixture=mixture,
        layout=Layout(
            tuple(_with_layers(a, held) for a, held in groups.items()), (), by_width(dense),
            mixture.layers if mixture else (),
        ),
        kv_layers=tuple((KvLayer(a.kind, a.kv_heads, 2 * head_dim, a.window),) for a in attention),
        components=tuple(_components(name, shapes, layers, attention)), source=SOURCE,
    )  # fmt: skip


def _model(name: str, config: dict[str, Any]) -> tuple[dict[str, Any], Shapes]:
    """The config as transformers completes it, and the shape of each parameter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    left_out = ("architectures", "model_type", "torch_dtype", "dtype", "quantization_config", "auto_map")
    hf = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k not in left_out})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf)
    model.tie_weights()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    if "model.embed_tokens.weight" not in shapes:
        raise _foreign(name, next(iter(shapes), "no parameter"))
    return hf.to_dict(), shapes


def _by_layer(shapes: Shapes) -> list[Shapes]:
    found: dict[int, Shapes] = {}
    for name, shape in shapes.items():
        if match := _LAYER.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = shape
    return [found[i] for i in sorted(found)]


def _foreign(name: str, parameter: str) -> UsageError:
    return UsageError(
        f"config: architectures: {name!r} is not supported yet: transformers has it, but {show(parameter)} of its "
        "model is no part of a decoder with q, k, v and an MLP or experts"
    )


def _attention(name: str, i: int, held: Shapes, head_dim: int, values: dict[str, Any]) -> Attention:
    """Of one layer; without its number, so that equal ones are equal."""
    rows = [held.get(f"self_attn.{p}_proj.weight", (0,))[0] for p in "qkv"]
    heads = values["num_attention_heads"]
    kv_heads = values.get("num_key_value_heads") or heads
    if rows != [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]:
        raise _foreign(name, f"model.layers.{i}.self_attn")
    kinds, window = values.get("layer_types"), values.get("sliding_window")
    kind = _KINDS.get(kinds[i]) if kinds else FULL
    if kind is None or (kinds is None and window is not None) or (kind == SLIDING and window is None):
        raise UsageError(f"config: layer_types: {name}: what layer {i} keeps in the cache is not told by its config")
    return Attention((), kind, heads, kv_heads, head_dim, head_dim, window if kind == SLIDING else None)


def _with_layers(attention: Attention, layers: tuple[int, ...]) -> Attention:
    a = attention
    return Attention(layers, a.kind, a.heads, a.kv_heads, a.head_dim, a.value_dim, a.window)


def _mixture(layers: list[Shapes], values: dict[str, Any]) -> Mixture | None:
    where = tuple(i for i, held in enumerate(layers) if "mlp.experts.down_proj" in held)
    if not where:
        return None
    count, taken, width = layers[where[0]]["mlp.experts.down_proj"]
    shared = next((held[f"{s}down_proj.weight"][1] for held in layers for s in _SHARED
                   if f"{s}down_proj.weight" in held), 0)  # fmt: skip
    gated = layers[where[0]]["mlp.experts.gate_up_proj"][1] == 2 * width
    return Mixture(count, values["num_experts_per_tok"], width, shared, where, taken, gated)


# -- the parts -------------------------------------------------------------------------------------


def _components(
    name: str, shapes: Shapes, layers: list[Shapes], attention: list[Attention]
) -> Iterator[Component]:  # fmt: skip
    vocab, hidden = shapes["model.embed_tokens.weight"]
    yield Component("embed_tokens", (vocab, hidden), "vocab", "first", kind="embedding")
    merged: dict[Component, list[int]] = {}
    for i, (held, a) in enumerate(zip(layers, attention, strict=True)):
        for part in _layer(name, i, dict(held), a):
            merged.setdefault(part, []).append(i)
    for part, where in merged.items():
        layers_of = None if len(where) == len(layers) else tuple(where)
        yield Component(
            part.name, part.shape, part.split, quantizable=part.quantizable, kind=part.kind, layers=layers_of,
            units=part.units,
        )  # fmt: skip
    for parameter, shape in shapes.items():
        if _LAYER.fullmatch(parameter) or parameter == "model.embed_tokens.weight":
            continue
        if parameter.startswith("lm_head."):
            yield Component(parameter, shape, "vocab", "last", kind="lm_head")
        elif len(shape) == 1:
            yield Component(parameter.replace("model.norm", "final_norm"), shape, "replicated", "last")
        else:
            raise _foreign(name, parameter)


def _layer(name: str, i: int, held: Shapes, attention: Attention) -> Iterator[Component]:
    units = attention.query_and_kv
    for tensor in ("weight", "bias"):
        made = [held.pop(f"self_attn.{p}_proj.{tensor}", None) for p in "qkv"]
        present = [s for s in made if s is not None]
        if present and len(present) < 3:
            raise _foreign(name, f"model.layers.{i}.self_attn.q_proj.{tensor}")
        if present:
            shape = (sum(s[0] for s in present), *present[0][1:])
            weight = tensor == "weight"
            yield Component(f"qkv_proj.{tensor}", shape, "heads", quantizable=weight, kind="attention", units=units)
    yield from _linear(held, "self_attn.o_proj", "o_proj", "row", "attention")
    yield from _mlp(held, "mlp.", "", "mlp")
    for shared in _SHARED:
        yield from _mlp(held, shared, "shared_experts.", "shared experts")
    yield from _experts(held)
    for rest, shape in held.items():
        if len(shape) != 1:
            raise _foreign(name, f"model.layers.{i}.{rest}")
        yield Component(rest, shape, "replicated")


def _linear(held: Shapes, source: str, target: str, split: str, kind: str) -> Iterator[Component]:
    weight, bias = held.pop(f"{source}.weight", None), held.pop(f"{source}.bias", None)
    if weight is not None:
        yield Component(f"{target}.weight", weight, split, quantizable=True, kind=kind)
    if bias is not None:
        yield Component(f"{target}.bias", bias, "replicated" if split == "row" else split, kind=kind)


def _mlp(held: Shapes, source: str, target: str, kind: str) -> Iterator[Component]:
    gated = f"{source}gate_proj.weight" in held
    for tensor in ("weight", "bias"):
        up = held.pop(f"{source}up_proj.{tensor}", None)
        gate = held.pop(f"{source}gate_proj.{tensor}", None)
        if up is not None:
            shape = (up[0] + (gate[0] if gate else 0), *up[1:])
            first = "gate_up_proj" if gated else "up_proj"
            yield Component(f"{target}{first}.{tensor}", shape, "column", quantizable=tensor == "weight", kind=kind)
    yield from _linear(held, f"{source}down_proj", f"{target}down_proj", "row", kind)


def _experts(held: Shapes) -> Iterator[Component]:
    for source, target, split in (("gate_up_proj", "w13", "expert_column"), ("down_proj", "w2", "expert_row")):
        shape = held.pop(f"mlp.experts.{source}", None)
        if shape is not None:
            yield Component(f"experts.{target}", shape, split, quantizable=True, kind="experts")
    for router in ("mlp.gate.weight", "mlp.router.weight", "mlp.shared_expert_gate.weight"):
        shape = held.pop(router, None)
        if shape is not None:
            yield Component(router.removeprefix("mlp."), shape, "replicated", kind="router")
