"""The KV cache as vLLM V1 plans it: blocks from one pool, what a request takes of them, and when that is refused.

Source: ``get_kv_cache_configs`` and ``get_kv_cache_capacity`` of vllm/v1/core/kv_cache_utils.py, 0.32.
tests/test_vllm_planner.py holds these functions against vLLM's own planner.
"""

from __future__ import annotations

from bisect import bisect_left

from harness.architecture import FULL, MLA, Architecture
from harness.ledger import KvPool
from harness.predict.kv_groups import Group, groups, packing, with_draft
from harness.predict.kv_packed import slots_bytes, tuples_bytes
from harness.predict.settings import Settings

__all__ = [
    "Group", "bytes_per_block", "bytes_per_token", "charged_per_block", "groups", "is_one_table", "longest_that_fits",
    "pool", "request_blocks",
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
    how = packing(architecture, settings)
    if how == "tuples":
        return charged_per_block(architecture, settings, stage)
    held, found = _held(architecture, settings, stage), groups(architecture, settings)
    if how == "slots":
        return slots_bytes([g.pages_on(held) for g in found])
    return max(g.bytes_on(held) for g in found)


def charged_per_block(
    architecture: Architecture, settings: Settings, stage: int = 0, block_bytes: int | None = None
) -> int:  # fmt: skip
    """Bytes that a request is charged for each of its blocks, where vLLM asks whether it fits: those of the block, but
    for pages of several sizes before 0.29. ``block_bytes``: of a block, where that is known."""
    if packing(architecture, settings) == "groups":
        return bytes_per_block(architecture, settings, stage) if block_bytes is None else block_bytes
    held, found = _held(architecture, settings, stage), groups(architecture, settings)
    # A group without a layer of the stage is not cut to it.
    pages = {g: g.pages_on(held) or g.pages for g in found}
    return tuples_bytes([*pages.values()], pages[next(g for g in found if g.window is None)])


def _held(architecture: Architecture, settings: Settings, stage: int) -> range:
    return with_draft(architecture, settings).stage(stage, settings.stages)


def request_blocks(architecture: Architecture, settings: Settings, tokens: int) -> int:
    """Blocks of the pool that a request of ``tokens`` may hold at once, all groups together."""
    return sum(g.blocks_for(tokens, settings.in_flight_tokens) for g in groups(architecture, settings))


def longest_that_fits(architecture: Architecture, settings: Settings, available: int, block_bytes: int) -> int:
    """The "estimated maximum model length" of vLLM's refusal: 0 where not even one token fits.

    ``block_bytes``: what a request is charged for a block.
    """
    found, low, high = groups(architecture, settings), 0, settings.max_model_len
    while low < high:
        middle = (low + high + 1) // 2
        if sum(g.blocks_for(middle, settings.in_flight_tokens) for g in found) * block_bytes <= available:
            low = middle
        else:
            high = middle - 1
    return low


def _counted_blocks(architecture: Architecture, settings: Settings, stage: int) -> int:
    """The blocks of a request of max_model_len that the printed concurrency counts with: to 0.26 each as large as its
    group's pages are, beside those of the rows' group (``get_max_concurrency_for_kv_cache_config``)."""
    if packing(architecture, settings) not in ("tuples", "slots"):
        return request_blocks(architecture, settings, settings.max_model_len)
    held, found = _held(architecture, settings, stage), groups(architecture, settings)
    page = {g: g.bytes_on(held) or sum(g.pages) for g in found}
    taken = sum(g.blocks_for(settings.max_model_len, settings.in_flight_tokens) * page[g] for g in found)
    return -(-taken // page[next(g for g in found if g.window is None)])


def pool(architecture: Architecture, settings: Settings, num_blocks: int | None, stage: int = 0) -> KvPool:
    """The pool of ``num_blocks`` (None: none is granted) with the token count and the concurrency that vLLM prints."""
    token, block = (f(architecture, settings, stage) for f in (bytes_per_token, bytes_per_block))
    found = groups(architecture, settings)
    least = settings.block_size if architecture.compressed else min(g.block_size for g in found)
    block_size = least * settings.decode_context_parallel_size
    if num_blocks is None:
        return KvPool(token, block, block_size, tables=len(found))
    concurrency = num_blocks / _counted_blocks(architecture, settings, stage)
    tokens = num_blocks // len(found) * block_size
    if settings.defaults.tokens_by_concurrency:
        tokens = int(concurrency * settings.max_model_len)
    return KvPool(
        bytes_per_token=token, bytes_per_block=block, block_size=block_size, num_blocks=num_blocks, tokens=tokens,
        max_concurrency=concurrency, tables=len(found),
    )  # fmt: skip
