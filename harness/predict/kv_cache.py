"""The KV cache as vLLM V1 plans it: layers in groups, blocks from one pool, and what a request takes of them.

Layers of one kind share a block table. Where a model mixes kinds, vLLM cuts each kind into groups of equally many
layers; every group takes its blocks from the same pool, so a block is as large as the largest group's page, and a
request takes blocks for each group. A sliding layer keeps its window, the tokens in flight and one block more.
Source: vllm/v1/kv_cache_interface.py and ``get_kv_cache_groups``, ``get_kv_cache_configs``,
``get_kv_cache_capacity`` of vllm/v1/core/kv_cache_utils.py, 0.32, with the layer-outer layout (LBNHC).
tests/test_vllm_planner.py holds these functions against vLLM's own planner.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from harness.architecture import FULL, MLA, SLIDING, Architecture
from harness.ledger import KvPool
from harness.predict.settings import Settings


@dataclass(frozen=True)
class Group:
    """Layers (numbers) that share a block table. Their pages are ``block_size`` tokens each."""

    kind: str
    window: int | None
    block_size: int
    layers: tuple[int, ...]
    page_bytes: int  # of one layer, padded where that is needed

    def blocks_for(self, tokens: int, in_flight: int) -> int:
        """Blocks that a request of ``tokens`` may hold at once in this group."""
        if self.kind != SLIDING or self.window is None:
            return -(-tokens // self.block_size)
        return -(-min(self.window - 1 + in_flight, tokens) // self.block_size) + 1


def groups(architecture: Architecture, settings: Settings) -> tuple[Group, ...]:
    """The groups of the whole model, in the order of their first layers."""
    kinds, block_size = architecture.kv_kinds, settings.block_size
    pages = {
        layer: layer.bytes_per_token(settings.tensor_parallel_size, settings.kv_dtype_bytes) * block_size
        for layer in kinds
    }
    page, size = max(pages.values()), _group_size([len(members) for members in kinds.values()])
    found = []
    for layer, members in kinds.items():
        # A smaller page holds more tokens, where that comes out even; else it is padded.
        own = pages[layer]
        tokens = block_size * (page // own) if page % own == 0 else block_size
        count = -(-len(members) // size)
        found += [Group(layer.kind, layer.window, tokens, members[i::count], page) for i in range(count)]
    return tuple(found)


def _group_size(counts: list[int]) -> int:
    """Layers in a group: as many as the rarest kind has, unless all have nearly as many.

    Source: ``_get_kv_cache_groups_uniform_page_size``.
    """
    return max(counts) if max(counts) < 1.5 * min(counts) else min(counts)


def is_one_table(architecture: Architecture, settings: Settings) -> bool:
    """Whether every layer keeps every token: one block table, as the simulated scheduler has it."""
    found = groups(architecture, settings)
    return len(found) == 1 and found[0].kind in (FULL, MLA)


def bytes_per_token(architecture: Architecture, settings: Settings, stage: int = 0) -> int:
    """Bytes that a token writes on one rank of ``stage``, all of its layers together."""
    held = architecture.stage(stage, settings.pipeline_parallel_size)
    return sum(
        layer.bytes_per_token(settings.tensor_parallel_size, settings.kv_dtype_bytes) * _count(members, held)
        for layer, members in architecture.kv_kinds.items()
    )


def _count(members: tuple[int, ...], held: range) -> int:
    return bisect_left(members, held.stop) - bisect_left(members, held.start)


def bytes_per_block(architecture: Architecture, settings: Settings, stage: int = 0) -> int:
    """Bytes of one block of the pool on one rank of ``stage``: the largest group's pages."""
    held = architecture.stage(stage, settings.pipeline_parallel_size)
    return max(g.page_bytes * _count(g.layers, held) for g in groups(architecture, settings))


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
    block_size = min(g.block_size for g in found)
    if num_blocks is None:
        return KvPool(token, block, block_size)
    concurrency = num_blocks / request_blocks(architecture, settings, settings.max_model_len)
    tokens = num_blocks // len(found) * block_size
    if settings.defaults.tokens_by_concurrency:
        tokens = int(concurrency * settings.max_model_len)
    return KvPool(
        bytes_per_token=token, bytes_per_block=block, block_size=block_size, num_blocks=num_blocks, tokens=tokens,
        max_concurrency=concurrency,
    )  # fmt: skip
