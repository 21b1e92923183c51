"""Attention over compressed rows (DeepSeek V4): its tensors, and the caches of each layer.

A layer looks at a window of latent rows, and with a ratio at one more row for each 4 or 128 tokens, which a compressor
makes of them. With the ratio 4 an indexer chooses among these rows, by keys that a compressor of its own makes. A
residual of several streams runs through the layers (hyper-connections), and the first layers choose experts by a table
of token ids.
Source: vllm/models/deepseek_v4 (attention.py, compressor.py, nvidia/model.py) and
vllm/v1/attention/backends/mla/sparse_swa.py, 0.32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from harness.architecture.component import Component
from harness.architecture.kv_layers import COMPRESSED, COMPRESSOR, INDEXER, SLIDING, KvLayer
from harness.architecture.reader import Reader, show
from harness.errors import UsageError

INDEXED, DEEP = 4, 128  # the ratios that there are kernels for
_HEAD, _INDEX_HEAD = 512, 128  # and the head dims
_ROW = 584  # fp8_ds_mla: 448 fp8 values, 64 bf16 values of RoPE, 8 scales
_INDEX_ROW = 132  # 128 fp8 values and a float32 scale
_ALIGN = 576  # a page is whole steps of this
_WINDOW_BLOCK, _STATE_BLOCK = 64, {INDEXED: 4, DEEP: 8}  # tokens
_SINKS = 64  # the kernels' heads: 64 or 128
_KIND = "hyper-connections"


@dataclass(frozen=True)
class Compressed:
    """``ratios``: tokens of a compressed row in each layer, 0 where there is none. ``groups``: of the output.
    ``streams``: of the residual. ``top_k``: rows that an indexer chooses; ``index_width``: of all its heads."""

    ratios: tuple[int, ...]
    groups: int
    streams: int
    query_rank: int
    top_k: int
    index_width: int

    def layers(self, *ratios: int) -> tuple[int, ...]:
        """The layers with one of ``ratios``."""
        return tuple(i for i, ratio in enumerate(self.ratios) if ratio in ratios)

    def has(self, ratio: int) -> bool:
        """Whether a layer has ``ratio``."""
        return ratio in self.ratios


def compressed(read: Reader, layers: int) -> Compressed:
    """Raises UsageError for what vLLM has no kernel for."""
    given = read.config.get("compress_ratios")
    if not isinstance(given, list) or len(given) < layers:
        raise UsageError(f"config: compress_ratios: expected a number for each of {layers} layers, got {show(given)}")
    ratios = tuple(0 if ratio == 1 else ratio for ratio in given[:layers])
    for ratio in ratios:
        if isinstance(ratio, bool) or ratio not in (0, INDEXED, DEEP):
            raise UsageError(f"config: compress_ratios: expected 0, 1, {INDEXED} or {DEEP}, got {show(ratio)}")
    if DEEP in ratios and INDEXED not in ratios:
        raise UsageError(f"config: compress_ratios: {DEEP} without {INDEXED} in other layers is not supported yet")
    for key, only in (("head_dim", _HEAD), ("index_head_dim", _INDEX_HEAD)):
        if read.count(key) != only:
            raise UsageError(f"config: {key}: vLLM's kernels have {only} alone, got {read.count(key)}")
    if read.number("vision_n_layers", 0):
        raise UsageError("config: vision_n_layers: DeepSeek V4 with a vision tower is not supported yet")
    return Compressed(
        ratios, read.count("o_groups"), read.count("hc_mult", largest=1024), read.count("q_lora_rank"),
        read.count("index_topk"), read.count("index_n_heads") * _INDEX_HEAD,
    )  # fmt: skip


def rotary_shapes(read: Reader, found: Compressed, scaled: int) -> tuple[tuple[int, int], ...]:
    """(positions, dims) of the rotary caches: of layers with a ratio, ``scaled`` as YaRN says, and of the others."""
    dims = read.count("qk_rope_head_dim")
    return tuple(
        (positions, dims) for positions, ratios in ((scaled, (INDEXED, DEEP)), (read.positions, (0,)))
        if found.layers(*ratios)
    )  # fmt: skip


# -- caches ----------------------------------------------------------------------------------------


def compressed_caches(read: Reader, found: Compressed) -> Iterator[tuple[tuple[int, ...], KvLayer]]:
    """(layers, a cache that each of them keeps), in the order in which vLLM makes them."""
    window = KvLayer(SLIDING, 1, _HEAD, read.count("sliding_window"), _ROW, block_size=_WINDOW_BLOCK, align=_ALIGN)
    rows = KvLayer(COMPRESSED, 1, _HEAD, row_bytes=_ROW, align=_ALIGN)
    keys = KvLayer(INDEXER, 1, _INDEX_HEAD, row_bytes=_INDEX_ROW, tokens_per_row=INDEXED, align=_ALIGN)
    indexed = found.layers(INDEXED)
    yield indexed, keys
    yield indexed, _state(INDEXED, _INDEX_HEAD)
    yield tuple(range(len(found.ratios))), window
    for ratio in (INDEXED, DEEP):
        yield found.layers(ratio), replace(rows, tokens_per_row=ratio)
        yield found.layers(ratio), _state(ratio, _HEAD)


def _state(ratio: int, dim: int) -> KvLayer:
    """What a compressor keeps of the tokens that its next rows are made of: a value and a score each, in float32."""
    streams = _streams(ratio)
    width = 2 * streams * dim
    return KvLayer(
        COMPRESSOR, 1, width, streams * ratio, 4 * width, block_size=_STATE_BLOCK[ratio], align=_ALIGN
    )  # fmt: skip


def _streams(ratio: int) -> int:
    """Rows of the small ratio overlap: each is made of twice as many tokens."""
    return 2 if ratio == INDEXED else 1


# -- tensors ---------------------------------------------------------------------------------------


def compressed_parts(read: Reader, hidden: int, heads: int, found: Compressed) -> Iterator[Component]:
    """The tensors of attention, of the residual's streams, and what chooses experts beside the router."""
    rank, out_rank, kind = found.query_rank, read.count("o_lora_rank"), "attention"
    out = found.groups * out_rank
    inner = heads * _HEAD // found.groups
    for name, shape, split in (
        ("wqa_wkv", (rank + _HEAD, hidden), "replicated"), ("wq_b", (heads * _HEAD, rank), "column"),
        ("wo_a", (out, inner), "column"), ("wo_b", (hidden, out), "row"),
    ):  # fmt: skip
        yield Component(f"{name}.weight", shape, split, quantizable=True, kind=kind)
    yield Component("q_norm.weight", (rank,), "replicated")
    yield Component("kv_norm.weight", (_HEAD,), "replicated")
    yield Component("attn_sink", (heads,), "column", kind=kind, dtype="float32", step=_SINKS)
    for ratio in (INDEXED, DEEP):
        yield from _of(found.layers(ratio), _compressor(f"compressor (1:{ratio}).", ratio, _HEAD, hidden))
    yield from _of(found.layers(INDEXED), _indexer(found.index_width, hidden, rank))
    yield from _streams_of_residual(found.streams, hidden)
    yield from _choice_of_experts(read, len(found.ratios))


def _of(layers: tuple[int, ...], parts: Iterable[Component]) -> Iterator[Component]:
    """``parts`` in ``layers`` alone; none where there is no such layer."""
    yield from (replace(part, layers=layers) for part in parts if layers)


def _compressor(prefix: str, ratio: int, dim: int, hidden: int) -> Iterator[Component]:
    width = _streams(ratio) * dim
    yield Component(f"{prefix}ape", (ratio, width), "replicated", kind="compressor", dtype="float32")
    yield Component(f"{prefix}wkv_wgate.weight", (2 * width, hidden), "replicated", kind="compressor")
    yield Component(f"{prefix}norm.weight", (dim,), "replicated", kind="compressor")


def _indexer(width: int, hidden: int, rank: int) -> Iterator[Component]:
    yield Component("indexer.wq_b.weight", (width, rank), "replicated", quantizable=True, kind="indexer")
    yield Component("indexer.weights_proj.weight", (width // _INDEX_HEAD, hidden), "replicated", kind="indexer")
    yield from _compressor("indexer.compressor.", INDEXED, _INDEX_HEAD, hidden)


def _streams_of_residual(streams: int, hidden: int) -> Iterator[Component]:
    mixed = (2 + streams) * streams
    for where in ("attn", "ffn"):
        for name, shape in (("fn", (mixed, streams * hidden)), ("base", (mixed,)), ("scale", (3,))):
            yield Component(f"hc_{where}_{name}", shape, "replicated", kind=_KIND, dtype="float32")
    yield from stream_head(streams, hidden, "every")


def stream_head(streams: int, hidden: int, place: str, layers: tuple[int, ...] | None = None) -> Iterator[Component]:
    """What makes one hidden state of the streams, for the logits."""
    for name, shape in (("fn", (streams, streams * hidden)), ("base", (streams,)), ("scale", (1,))):
        yield Component(f"hc_head_{name}", shape, "replicated", place, kind=_KIND, dtype="float32", layers=layers)


def _choice_of_experts(read: Reader, layers: int) -> Iterator[Component]:
    """The first layers look a token's experts up, the others have a bias for each expert."""
    hashed = min(read.number("num_hash_layers", 0), layers)
    experts, used = read.count("n_routed_experts"), read.count("num_experts_per_tok")
    table = Component(
        "tid2eid", (read.count("vocab_size"), used), "replicated", kind="router", dtype="int32", counted=False
    )  # fmt: skip
    bias = Component(
        "e_score_correction_bias", (experts,), "replicated", kind="router", dtype="float32", counted=False
    )  # fmt: skip
    yield from _of(tuple(range(hashed)), [table])
    yield from _of(tuple(range(hashed, layers)), [bias])
