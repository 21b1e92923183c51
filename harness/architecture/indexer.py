"""The indexer of sparse attention: a small attention of its own that chooses what the large one looks at.

Tokens of a latent row (DSA), or blocks of keys (MiniMax M3).
Source: ``DeepseekV32Indexer`` and ``DeepseekV32Attention`` of vllm/models/deepseek_v32/attention.py,
``MiniMaxM3IndexerCache`` of vllm/models/minimax_m3/common/indexer.py, 0.32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.architecture.component import Component
from harness.architecture.kv_layers import INDEXER, KvLayer
from harness.architecture.layout import flag_list
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


def _tokens(read: Reader, layers: int) -> tuple[tuple[int, ...], KvLayer]:
    """One row of fp8 and its scales, whatever kv_cache_dtype is."""
    dim = read.count("index_head_dim")
    return indexer_layers(read, layers), KvLayer(INDEXER, 1, dim, row_bytes=dim + dim // _SCALE_OF * 4)


def _blocks(read: Reader, layers: int) -> tuple[tuple[int, ...], KvLayer]:
    """One key in bf16, whatever kv_cache_dtype is (``resolve_indexer_kv_dtype("bf16")``)."""
    dim = read.count("index_head_dim")
    where = tuple(i for i, flag in enumerate(flag_list(read, "index_layers", layers)) if flag)
    return where, KvLayer(INDEXER, 1, dim, row_bytes=2 * dim)


# The layers that have an indexer of the kind, and what each of them keeps.
INDEXERS: dict[str, Callable[[Reader, int], tuple[tuple[int, ...], KvLayer]]] = {"tokens": _tokens, "blocks": _blocks}
