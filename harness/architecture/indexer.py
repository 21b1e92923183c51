"""The indexer of sparse attention (DSA): a small attention of its own that chooses the tokens of the large one.

Source: ``DeepseekV32Indexer`` and ``DeepseekV32Attention`` of vllm/models/deepseek_v32/attention.py, 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.architecture.component import Component
from harness.architecture.kv_layers import INDEXER, KvLayer
from harness.architecture.reader import Reader, show
from harness.errors import UsageError

_SCALE_OF = 128  # fp8 elements that share a float32 scale


def indexer_layers(read: Reader, layers: int) -> tuple[int, ...]:
    """The layers that have an indexer; the others use the choice of the last one that has."""
    pattern = read.config.get("index_topk_pattern")
    if pattern is not None:
        if not isinstance(pattern, str) or len(pattern) < layers:
            raise UsageError(f"config: index_topk_pattern: expected a letter for each layer, got {show(pattern)}")
        return tuple(i for i in range(layers) if pattern[i] != "S")
    every, offset = read.count("index_topk_freq", default=1), read.number("index_skip_topk_offset", 2)
    return tuple(i for i in range(layers) if max(i - offset + 1, 0) % every == 0)


def indexer_parts(read: Reader, hidden: int, q_rank: int | None) -> Iterator[Component]:
    """Its tensors, whole on every rank."""
    heads, dim = read.count("index_n_heads"), read.count("index_head_dim")
    if q_rank is None:
        raise UsageError("config: q_lora_rank: missing: an indexer reads the compressed query")
    yield Component("indexer.wq_b.weight", (heads * dim, q_rank), "replicated", quantizable=True, kind="indexer")
    yield Component("indexer.wk_weights_proj.weight", (dim + heads, hidden), "replicated", kind="indexer")
    for tensor in ("weight", "bias"):
        yield Component(f"indexer.k_norm.{tensor}", (dim,), "replicated", kind="indexer", dtype="float32")


def indexer_cache(read: Reader) -> KvLayer:
    """One row of fp8 and its scales, whatever kv_cache_dtype is."""
    dim = read.count("index_head_dim")
    return KvLayer(INDEXER, 1, dim, row_bytes=dim + dim // _SCALE_OF * 4)
