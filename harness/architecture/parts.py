"""The tensors of a model, part by part, shaped as vLLM makes them: that is what its allocator sees.

q, k and v are one matrix, gate and up one, and the experts of a layer two (``w13`` and ``w2``). The counts are held
against transformers' own models by tests/test_architecture.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from harness.architecture.component import Component
from harness.architecture.compressed import Compressed, compressed_parts
from harness.architecture.cross import cross_parts
from harness.architecture.extras import EXTRAS
from harness.architecture.family import Experts, Family
from harness.architecture.indexer import indexer_layers, indexer_parts
from harness.architecture.layout import Attention, Layout
from harness.architecture.mixers import MIXERS
from harness.architecture.reader import Reader


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention: ranks and head dims; ``q_rank`` None: the query is not compressed.

    ``gate``: of the output, one weight for each element of it (Kimi K3).
    """

    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    value: int
    gate: bool = False


@dataclass(frozen=True)
class Mixture:
    """The experts of a model. ``layers``: those that have them; ``shared``: width of all shared experts together.

    ``taken``: elements that an expert takes in; ``gated``: whether it has a gate beside its up projection.
    """

    count: int
    used: int
    width: int
    shared: int
    layers: tuple[int, ...]
    taken: int
    gated: bool


@dataclass(frozen=True)
class Sizes:
    """The counts that the parts are made of."""

    layers: int
    hidden: int
    heads: int
    vocab: int
    tied: bool
    mla: Mla | None
    compressed: Compressed | None
    mixture: Mixture | None
    layout: Layout


def components(family: Family, read: Reader, size: Sizes) -> Iterator[Component]:
    """All parts of the model, in the order in which vLLM makes those of a layer."""
    split = "replicated" if family.whole_embedding else "vocab"
    yield Component("embed_tokens", (size.vocab, size.hidden), split, "first", kind="embedding")
    if family.position_offset is not None:
        rows = read.positions + family.position_offset
        yield Component("embed_positions", (rows, size.hidden), "replicated", "first", kind="embedding")
    if size.compressed:
        yield from compressed_parts(read, size.hidden, size.heads, size.compressed)
    for group in size.layout.attention if not size.compressed else ():
        parts = _latent_attention(size, size.mla) if size.mla else _attention(family, read, size.hidden, group)
        yield from _of(group.layers, size, parts)
    if family.cross:
        yield from cross_parts(size.hidden)
    if family.indexer and size.mla:
        where = indexer_layers(read, size.layers)
        yield from _of(where, size, indexer_parts(read, size.hidden, size.mla.q_rank))
    if family.mixer:
        yield from _of(size.layout.states, size, MIXERS[family.mixer](read, size.hidden)[0])
    yield from _feed_forward(family, read, size)
    yield from _norms(family, size)
    if family.extras:
        yield from EXTRAS[family.extras](read, size.hidden, size.layers)
    if not size.tied:
        yield Component("lm_head.weight", (size.vocab, size.hidden), "vocab", "last", kind="lm_head")
    if _flag(family, read, family.lm_head_bias):
        yield Component("lm_head.bias", (size.vocab,), "vocab", "last", kind="lm_head")


def _of(layers: tuple[int, ...], size: Sizes, parts: Iterable[Component]) -> Iterator[Component]:
    """``parts`` in ``layers`` alone."""
    if layers:
        everywhere = len(layers) == size.layers
        yield from parts if everywhere else (replace(part, layers=layers) for part in parts)


def _flag(family: Family, read: Reader, key: bool | str) -> bool:
    return key if isinstance(key, bool) else read.flag(key, dict(family.bias_defaults).get(key, False))


def linear(
    name: str, out: int, inner: int, split: str, bias: bool, kind: str, step: int = 1
) -> Iterator[Component]:  # fmt: skip
    """A linear layer of ``out`` outputs and ``inner`` inputs."""
    yield Component(f"{name}.weight", (out, inner), split, quantizable=True, kind=kind, step=step)
    if bias:
        # The bias of a row-split layer is added once, after the ranks are summed: each keeps it whole.
        yield Component(f"{name}.bias", (out,), "replicated" if split == "row" else split, kind=kind)


def _attention(family: Family, read: Reader, hidden: int, group: Attention) -> Iterator[Component]:
    units = group.query_and_kv
    gated = family.gate_flag is None or read.flag(family.gate_flag, False)
    if family.gate == "element":
        units = ((group.heads, 2 * group.head_dim), *units[1:])
    copied = () if group.values else units[2:]  # vLLM keeps such keys twice
    units = units if group.values else units[:2]
    outputs, kind = _elements(units), "attention"
    yield Component("qkv_proj.weight", (outputs, hidden), "heads", quantizable=True, kind=kind, units=units)
    for heads, width in copied:
        yield Component(
            "qkv_proj.weight, k as v", (heads * width, hidden), "heads", quantizable=True, kind=kind, units=copied,
            counted=False,
        )  # fmt: skip
    if _flag(family, read, family.qkv_bias):
        has, lacks = (units, ()) if family.key_bias else ((units[0], *units[2:]), units[1:2])
        yield Component("qkv_proj.bias", (_elements(has),), "heads", kind=kind, units=has)
        if lacks:
            yield Component("qkv_proj.bias, k", (_elements(lacks),), "heads", kind=kind, units=lacks, counted=False)
    if family.gate == "head" and gated:
        yield from linear("g_proj", group.heads, hidden, "column", False, kind)
    out = group.heads * group.value_dim
    yield from linear("o_proj", hidden, out, "row", _flag(family, read, family.o_bias), kind)
    if family.sinks is True or family.sinks == group.kind:
        yield Component("sinks", (group.heads,), "column", kind=kind)
    if family.qk_norm and (family.qk_norm_flag is None or read.flag(family.qk_norm_flag, False)):
        norms = (("q_norm", group.heads), ("k_norm", group.kv_heads))
        for name, heads in norms if group.own_kv else norms[:1]:
            width = group.head_dim * (heads if family.qk_norm == "all" else 1)
            yield Component(f"{name}.weight", (width,), "replicated")
    if group.index:
        for name in ("index_q_norm", "index_k_norm"):
            yield Component(f"{name}.weight", (group.index[1],), "replicated")


def _elements(units: tuple[tuple[int, int], ...]) -> int:
    return sum(heads * width for heads, width in units)


def _latent_attention(size: Sizes, mla: Mla) -> Iterator[Component]:
    """Source: ``DeepseekV2MLAAttention``, vllm/model_executor/models/deepseek_v2.py, 0.32."""
    query = size.heads * (mla.nope + mla.rope)
    down = mla.kv_rank + mla.rope
    if mla.q_rank is None:
        yield from linear("q_proj", query, size.hidden, "column", False, "attention")
        yield from linear("kv_a_proj", down, size.hidden, "replicated", False, "attention")
        if mla.gate:
            yield from linear("g_proj", size.heads * mla.value, size.hidden, "column", False, "attention")
    else:
        if mla.gate:  # one matrix with what all ranks have whole (vllm/models/kimi_k3/nvidia/mla.py)
            units = ((1, mla.q_rank), (1, down), (size.heads, mla.value))
            shape = (_elements(units), size.hidden)
            yield Component("qkv_a_g_proj.weight", shape, "heads", quantizable=True, kind="attention", units=units)
        else:
            yield from linear("qkv_a_proj", mla.q_rank + down, size.hidden, "replicated", False, "attention")
        yield Component("q_a_norm.weight", (mla.q_rank,), "replicated")
        yield from linear("q_b_proj", query, mla.q_rank, "column", False, "attention")
    yield Component("kv_a_norm.weight", (mla.kv_rank,), "replicated")
    yield from linear("kv_b_proj", size.heads * (mla.nope + mla.value), mla.kv_rank, "column", False, "attention")
    yield from linear("o_proj", size.hidden, size.heads * mla.value, "row", False, "attention")
    # Once loaded, kv_b_proj is kept a second time, cut in two for decoding (mla_attention.py, W_UK_T and W_UV).
    copy = (size.heads * (mla.nope + mla.value), mla.kv_rank)
    yield Component("W_UK_T, W_UV", copy, "column", kind="attention", counted=False)


# -- what follows attention ------------------------------------------------------------------------


def _feed_forward(family: Family, read: Reader, size: Sizes) -> Iterator[Component]:
    mixture, experts = size.mixture, family.experts
    bias = _flag(family, read, family.mlp_bias)
    for width, layers in size.layout.mlps:
        yield from _of(layers, size, _mlp(family.gated, "", width, size.hidden, bias))
    if mixture is None or experts is None:
        return
    if mixture.shared:
        shared = _mlp(experts.gated, "shared_experts.", mixture.shared, size.hidden, False, experts.shared_step)
        yield from _of(mixture.layers, size, shared)
        if experts.shared_gate:
            gate = Component("shared_expert_gate.weight", (1, size.hidden), "replicated", kind="router")
            yield from _of(mixture.layers, size, [gate])
    normed = experts.latent_norm is not None and read.flag(experts.latent_norm, False)
    yield from _of(mixture.layers, size, _routed(experts, mixture, size.hidden, normed))


def _mlp(gated: bool, prefix: str, width: int, hidden: int, bias: bool, step: int = 1) -> Iterator[Component]:
    kind = "shared experts" if prefix else "mlp"
    first, times = ("gate_up_proj", 2) if gated else ("up_proj", 1)
    yield from linear(prefix + first, times * width, hidden, "column", bias, kind, times * step)
    yield from linear(prefix + "down_proj", hidden, width, "row", bias, kind, step)


def _routed(experts: Experts, mixture: Mixture, hidden: int, normed: bool) -> Iterator[Component]:
    n, width, taken = mixture.count, mixture.width, mixture.taken
    router = "float32" if experts.router_float32 else None
    yield Component("router.weight", (n, hidden), "replicated", kind="router", dtype=router)
    if experts.router_bias:
        yield Component("router.bias", (n,), "replicated", kind="router")
    if experts.correction_bias:
        yield Component(
            "e_score_correction_bias", (n,), "replicated", kind="router", dtype="float32", counted=False
        )
    if taken != hidden:
        yield from linear("fc1_latent_proj", taken, hidden, "replicated", False, "shared experts")
        yield from linear("fc2_latent_proj", hidden, taken, "replicated", False, "shared experts")
        if normed:
            yield Component("latent_norm.weight", (taken,), "replicated")
    first = 2 * width if mixture.gated else width
    for name, shape, split in (
        ("w13", (n, first, taken), "expert_column"),
        ("w2", (n, taken, width), "expert_row"),
    ):
        yield Component(f"experts.{name}", shape, split, quantizable=True, kind="experts", least=experts.least)
    if experts.expert_bias:
        yield Component("experts.w13_bias", (n, first), "expert_column", kind="experts")
        yield Component("experts.w2_bias", (n, hidden), "replicated", kind="experts")


def _norms(family: Family, size: Sizes) -> Iterator[Component]:
    if not family.norm_weight:
        return
    # Of layers that may lack attention or the MLP, each brings its own norm.
    own = (
        tuple(sorted(i for group in size.layout.attention for i in group.layers)),
        tuple(sorted(i for _, layers in size.layout.mlps for i in layers)),
    )
    for tensor in ("weight", "bias") if family.norm_bias else ("weight",):
        for i in range(family.layer_norms):
            norm = Component(f"norm{i + 1}.{tensor}", (size.hidden,), "replicated")
            yield from _of(own[i], size, [norm]) if family.scheme == "blocks" else [norm]
        yield Component(f"final_norm.{tensor}", (size.hidden,), "replicated", "last")
