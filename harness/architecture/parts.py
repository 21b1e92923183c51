"""The tensors of a model, part by part, shaped as vLLM makes them: that is what its allocator sees.

q, k and v are one matrix, gate and up one, and the experts of a layer two (``w13`` and ``w2``). The counts are held
against transformers' own models by tests/test_architecture.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from harness.architecture.families import Experts, Family
from harness.architecture.reader import Reader


@dataclass(frozen=True)
class Component:
    """One tensor of the model, unsplit. ``shape`` counts elements.

    ``split``: how tensor parallelism divides it: "column" (outputs), "row" (inputs), "qkv" (outputs, by head, a KV
    head copied where ranks outnumber heads), "vocab" (rows, padded), "replicated"; of experts, whose first dimension
    is their number, "expert_column" and "expert_row".
    ``place``: "layer", "first" or "last" (pipeline stage), "tower" or "projector" (see vision.py, where it is in
    ``times`` equal blocks). ``layers``: which layers have it; None: all of them. ``kind``: what it is, for reading.
    ``dtype``: None for the model's own. ``counted``: whether transformers counts it as a parameter; ``held``: whether
    vLLM makes it.
    """

    name: str
    shape: tuple[int, ...]
    split: str
    place: str = "layer"
    quantizable: bool = False
    kind: str = "norm"
    layers: tuple[int, ...] | None = None
    dtype: str | None = None
    counted: bool = True
    held: bool = True
    times: int = 1

    @property
    def elements(self) -> int:
        """Elements of the unsplit tensor."""
        return prod(self.shape)


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention: ranks and head dims; ``q_rank`` None: the query is not compressed."""

    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True)
class Mixture:
    """The experts of a model. ``layers``: those that have them; ``shared``: width of all shared experts together."""

    count: int
    used: int
    width: int
    shared: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """The counts that the parts are made of."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    mla: Mla | None
    mixture: Mixture | None


def components(family: Family, read: Reader, size: Sizes) -> Iterator[Component]:
    """All parts of the model, in the order in which vLLM makes those of a layer."""
    yield Component("embed_tokens", (size.vocab, size.hidden), "vocab", "first", kind="embedding")
    if family.position_offset is not None:
        rows = read.positions + family.position_offset
        yield Component("embed_positions", (rows, size.hidden), "replicated", "first", kind="embedding")
    yield from _latent_attention(size, size.mla) if size.mla else _attention(family, read, size)
    yield from _feed_forward(family, read, size)
    yield from _norms(family, read, size)
    if not size.tied:
        yield Component("lm_head.weight", (size.vocab, size.hidden), "vocab", "last", kind="lm_head")
    if _flag(family, read, family.lm_head_bias):
        yield Component("lm_head.bias", (size.vocab,), "vocab", "last", kind="lm_head")


def _flag(family: Family, read: Reader, key: bool | str) -> bool:
    return key if isinstance(key, bool) else read.flag(key, dict(family.bias_defaults).get(key, False))


def _linear(name: str, out: int, inner: int, split: str, bias: bool, kind: str) -> Iterator[Component]:
    yield Component(f"{name}.weight", (out, inner), split, quantizable=True, kind=kind)
    if bias:
        # The bias of a row-split layer is added once, after the ranks are summed: each keeps it whole.
        yield Component(f"{name}.bias", (out,), "replicated" if split == "row" else split, kind=kind)


def _attention(family: Family, read: Reader, size: Sizes) -> Iterator[Component]:
    qkv = (size.heads + 2 * size.kv_heads) * size.head_dim
    out = size.heads * size.head_dim
    yield from _linear("qkv_proj", qkv, size.hidden, "qkv", _flag(family, read, family.qkv_bias), "attention")
    yield from _linear("o_proj", size.hidden, out, "row", _flag(family, read, family.o_bias), "attention")
    if family.sinks:
        yield Component("sinks", (size.heads,), "column", kind="attention")


def _latent_attention(size: Sizes, mla: Mla) -> Iterator[Component]:
    """Source: ``DeepseekV2MLAAttention``, vllm/model_executor/models/deepseek_v2.py, 0.32."""
    query = size.heads * (mla.nope + mla.rope)
    down = mla.kv_rank + mla.rope
    if mla.q_rank is None:
        yield from _linear("q_proj", query, size.hidden, "column", False, "attention")
        yield from _linear("kv_a_proj", down, size.hidden, "replicated", False, "attention")
    else:
        yield from _linear("qkv_a_proj", mla.q_rank + down, size.hidden, "replicated", False, "attention")
        yield Component("q_a_norm.weight", (mla.q_rank,), "replicated")
        yield from _linear("q_b_proj", query, mla.q_rank, "column", False, "attention")
    yield Component("kv_a_norm.weight", (mla.kv_rank,), "replicated")
    yield from _linear("kv_b_proj", size.heads * (mla.nope + mla.value), mla.kv_rank, "column", False, "attention")
    yield from _linear("o_proj", size.hidden, size.heads * mla.value, "row", False, "attention")
    # Once loaded, kv_b_proj is kept a second time, cut in two for decoding (mla_attention.py, W_UK_T and W_UV).
    copy = (size.heads * (mla.nope + mla.value), mla.kv_rank)
    yield Component("W_UK_T, W_UV", copy, "column", kind="attention", counted=False)


def _feed_forward(family: Family, read: Reader, size: Sizes) -> Iterator[Component]:
    mixture, experts = size.mixture, family.experts
    bias = _flag(family, read, family.mlp_bias)
    if mixture is None or experts is None:
        yield from _mlp(family.gated, "", size.intermediate, size.hidden, bias, None)
        return
    dense = tuple(i for i in range(size.layers) if i not in set(mixture.layers))
    if dense:
        yield from _mlp(family.gated, "", size.intermediate, size.hidden, bias, dense)
    if mixture.shared:
        yield from _mlp(True, "shared_experts.", mixture.shared, size.hidden, False, mixture.layers)
        if experts.shared_gate:
            gate = (1, size.hidden)
            yield Component("shared_expert_gate.weight", gate, "replicated", kind="router", layers=mixture.layers)
    yield from _routed(experts, mixture, size.hidden)


def _mlp(
    gated: bool, prefix: str, width: int, hidden: int, bias: bool, layers: tuple[int, ...] | None
) -> Iterator[Component]:
    kind = "shared experts" if prefix else "mlp"
    first, outputs = ("gate_up_proj", 2 * width) if gated else ("up_proj", width)
    for part in (
        *_linear(prefix + first, outputs, hidden, "column", bias, kind),
        *_linear(prefix + "down_proj", hidden, width, "row", bias, kind),
    ):
        yield Component(part.name, part.shape, part.split, quantizable=part.quantizable, kind=kind, layers=layers)


def _routed(experts: Experts, mixture: Mixture, hidden: int) -> Iterator[Component]:
    n, width, layers = mixture.count, mixture.width, mixture.layers
    yield Component("router.weight", (n, hidden), "replicated", kind="router", layers=layers)
    if experts.router_bias:
        yield Component("router.bias", (n,), "replicated", kind="router", layers=layers)
    if experts.correction_bias:
        yield Component(
            "e_score_correction_bias", (n,), "replicated", kind="router", layers=layers, dtype="float32", counted=False
        )
    for name, shape, split in (
        ("w13", (n, 2 * width, hidden), "expert_column"),
        ("w2", (n, hidden, width), "expert_row"),
    ):
        yield Component(f"experts.{name}", shape, split, quantizable=True, kind="experts", layers=layers)
    if experts.expert_bias:
        yield Component("experts.w13_bias", (n, 2 * width), "expert_column", kind="experts", layers=layers)
        yield Component("experts.w2_bias", (n, hidden), "replicated", kind="experts", layers=layers)


def _norms(family: Family, read: Reader, size: Sizes) -> Iterator[Component]:
    if family.qk_norm and (family.qk_norm_flag is None or read.flag(family.qk_norm_flag, False)):
        all_heads = family.qk_norm == "all"
        for name, heads in (("q_norm", size.heads), ("k_norm", size.kv_heads)):
            yield Component(f"{name}.weight", (size.head_dim * (heads if all_heads else 1),), "replicated")
    if not family.norm_weight:
        return
    for tensor in ("weight", "bias") if family.norm_bias else ("weight",):
        for i in range(family.layer_norms):
            yield Component(f"norm{i + 1}.{tensor}", (size.hidden,), "replicated")
        yield Component(f"final_norm.{tensor}", (size.hidden,), "replicated", "last")
