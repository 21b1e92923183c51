"""The KV cache of full attention: bytes of a token and of a block, and the pool that a grant buys.

Source: ``FullAttentionSpec`` (vllm/v1/kv_cache_interface.py), ``get_kv_cache_configs`` and
``get_kv_cache_capacity`` (vllm/v1/core/kv_cache_utils.py), vLLM 0.32. tests/test_vllm_planner.py holds these
functions against vLLM's own planner.
"""

from __future__ import annotations

from harness.architecture import Architecture, stage_layers
from harness.ledger import KvPool
from harness.predict.settings import Settings


def bytes_per_token(architecture: Architecture, settings: Settings, stage: int = 0) -> int:
    """Bytes that one token holds on one rank of ``stage``: a key and a value in each of its layers."""
    layers = stage_layers(architecture.layers, settings.pipeline_parallel_size)[stage]
    heads = architecture.kv_heads_on_rank(settings.tensor_parallel_size)
    return 2 * layers * heads * architecture.head_dim * settings.kv_dtype_bytes


def bytes_per_block(architecture: Architecture, settings: Settings, stage: int = 0) -> int:
    """Bytes of one block of ``block_size`` tokens on one rank of ``stage``."""
    return bytes_per_token(architecture, settings, stage) * settings.block_size


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that a request of ``tokens`` holds."""
    return -(-tokens // block_size)


def longest_that_fits(available: int, block_bytes: int, block_size: int, max_model_len: int) -> int:
    """The "estimated maximum model length" of vLLM's refusal: 0 where not even one token fits."""
    return min(max(available // block_bytes, 0) * block_size, max_model_len)


def pool(num_blocks: int, token_bytes: int, settings: Settings) -> KvPool:
    """The pool of ``num_blocks``, with the token count and the concurrency that vLLM prints."""
    concurrency = num_blocks / blocks_for(settings.max_model_len, settings.block_size)
    tokens = num_blocks * settings.block_size
    if settings.defaults.tokens_by_concurrency:
        tokens = int(concurrency * settings.max_model_len)
    return KvPool(
        bytes_per_token=token_bytes,
        bytes_per_block=token_bytes * settings.block_size,
        block_size=settings.block_size,
        num_blocks=num_blocks,
        tokens=tokens,
        max_concurrency=concurrency,
    )
