"""The KV cache as vLLM V1 plans it: blocks from one pool, what a request takes of them, and when that is refused.

Source: ``get_kv_cache_configs`` and ``get_kv_cache_capacity`` of vllm/v1/core/kv_cache_utils.py, 0.32.
tests/test_vllm_planner.py holds these functions against vLLM's own planner.
"""

from __future__ import annotations

from bisect import bisect_left

from harness.architecture import FULL, MLA, Architecture
from harness.ledger import KvPool
from harness.predict.kv_groups import Group, groups, with_draft
from harness.predict.settings import Settings

__all__ = [
    "Group", "bytes_per_block", "bytes_per_token", "groups", "is_one_table", "longest_that_fits", "pool",
    "request_blocks",
]  # fmt: skip


def is_one_table(architecture: Architecture, settings: Settings) -> bool:
    """Whether every layer keeps every token: one block table, as the simulated scheduler has it."""
    found = groups(architecture, settings)
    return len(found) == 1 and found[0].kind in (FULL, MLA)


def bytes_per_token(architecture: Architecture, settings: Settings, stage: int = 0) -> int:
    """Bytes that a token writes on one rank of ``stage``, all of its layers together."""
    architecture = with_draft(architecture, settings)
    held = architecture.stage(stage, settings.stages)
    return int(sum(
        layer.bytes_per_token(settings.tensor_parallel_size, settings.kv_dtype_bytes) * _count(members, held)
        for layer, members in architecture.kv_kinds.items()
    ))  # fmt: skip


def _count(members: tuple[int, ...], held: range) -> int:
    return bisect_left(members, held.stop) - bisect_left(members, held.start)


def bytes_per_block(architecture: Architecture, settings: Settings, stage: int = 0) -> int:
    """Bytes of one block of the pool on one rank of ``stage``: those of the group that needs most."""
    held = with_draft(architecture, settings).stage(stage, settings.stages)
    return max(g.bytes_on(held) for g in groups(architecture, settings))


def request_blocks(architecture: Architecture, settings: Settings, tokens: int) -> int:
    """Blocks of the pool that a request of ``tokens`` may hold at once, all groups together."""
    return sum(g.blocks_for(tokens, settings.in_flight_tokens) for g in groups(architecture, settings))


def longest_that_fits(architecture: Architecture, settings: Settings, available: int, block_bytes: int) -> int:
    """The "estimated maximum model length" of vLLM's refusal: 0 where not even one token fits."""
    found, low, high = groups(architecture, settings), 0, settings.max_model_len
    while low < high:
        middle = (low + high + 1) // 2
        if sum(g.blocks_for(middle, settings.in_flight_tokens) for g in found) * block_bytes <= available:
            low = middle
        else:
            high = middle - 1
    return low


def pool(architecture: Architecture, settings: Settings, num_blocks: int | None, stage: int = 0) -> KvPool:
    """The pool of ``num_blocks`` (None: none is granted) with the token count and the concurrency that vLLM prints."""
    token, block = (f(architecture, settings, stage) for f in (bytes_per_token, bytes_per_block))
    found = groups(architecture, settings)
    least = settings.block_size if architecture.compressed else min(g.block_size for g in found)
    block_size = least * settings.decode_context_parallel_size
    if num_blocks is None:
        return KvPool(token, block, block_size, tables=len(found))
    concurrency = num_blocks / request_blocks(architecture, settings, settings.max_model_len)
    tokens = num_blocks // len(found) * block_size
    if settings.defaults.tokens_by_concurrency:
        tokens = int(concurrency * settings.max_model_len)
    return KvPool(
        bytes_per_token=token, bytes_per_block=block, block_size=block_size, num_blocks=num_blocks, tokens=tokens,
        max_concurrency=concurrency, tables=len(found),
    )  # fmt: skip
