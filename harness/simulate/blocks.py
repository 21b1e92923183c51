"""The block pool, block by block: for prompts that share anything, and for block tables of several kinds.

As vllm/v1/core/block_pool.py, 0.32: free blocks wait in a queue; those without content are handed out first, then
those whose content may be found again, the longest free one first. Two blocks may have the same content (requests
that computed it side by side); the one that had it first is found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable


class Block:
    """A block that somebody holds (``holders``) or that is free with content (``key``)."""

    __slots__ = ("holders", "key")

    def __init__(self) -> None:
        self.holders = 1
        self.key: Hashable = None


class Blocks:
    """``num_blocks`` blocks as vLLM counts them; one is the null block, serves nobody, and is None in a table."""

    def __init__(self, num_blocks: int) -> None:
        self.usable = self.free = num_blocks - 1
        self._evictable: OrderedDict[Block, None] = OrderedDict()  # free blocks with content, the oldest first
        self._known: dict[Hashable, list[Block]] = {}  # by content
        self.changes = 0  # how often anything changed

    @property
    def used(self) -> int:
        """Blocks held by requests; those with content that nobody holds count as free, as in vLLM."""
        return self.usable - self.free

    def find(self, key: Hashable) -> Block | None:
        """A block with the content ``key``."""
        same = self._known.get(key)
        return same[0] if same else None

    def name(self, block: Block, key: Hashable) -> None:
        """``block``, that somebody holds, is whole: it can be found by its content."""
        self.changes += 1
        block.key = key
        self._known.setdefault(key, []).append(block)

    def take(self, count: int) -> list[Block]:
        """``count`` blocks (as many must be free) for one holder."""
        for _ in range(count - (self.free - len(self._evictable))):
            block, _none = self._evictable.popitem(last=False)
            same = self._known[block.key]
            if len(same) == 1:
                del self._known[block.key]
            else:
                same.remove(block)
        self.free -= count
        self.changes += count > 0
        return [Block() for _ in range(count)]

    def hold(self, blocks: Iterable[Block | None]) -> None:
        """One holder more for each of ``blocks``."""
        self.changes += 1
        for block in blocks:
            if block is not None:
                if not block.holders:
                    del self._evictable[block]
                    self.free -= 1
                block.holders += 1

    def release(self, blocks: Iterable[Block | None]) -> None:
        """One holder less for each of ``blocks``, which are handed out again in this order."""
        self.changes += 1
        for block in blocks:
            if block is not None:
                block.holders -= 1
                if not block.holders:
                    self.free += 1
                    if block.key is not None:
                        self._evictable[block] = None
