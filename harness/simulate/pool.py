"""The block pool, counted rather than listed.

vLLM keeps a queue of free blocks (vllm/v1/core/block_pool.py, 0.32): blocks without a hash are put at
its front, blocks whose content may be found again at its end, and allocation takes from the front. A
request frees its blocks tail first, so what survives of it is always a prefix. For prompts that share
nothing, the queue is therefore fully told by the number of free blocks without content and, for each
freed request, the length of the prefix that is left, oldest first. Nothing here grows with the pool, nor
with the requests that have ended: nobody asks for their blocks again, so neighbours are kept as one.
"""

from __future__ import annotations

from collections import OrderedDict


class BlockPool:
    """``num_blocks`` blocks as vLLM counts them; one is the null block and serves nobody."""

    def __init__(self, num_blocks: int, *, caching: bool = True) -> None:
        self.usable = num_blocks - 1
        self.caching = caching
        self.free = self.usable
        # Cached blocks left of freed requests, oldest first; what nobody asks for again has a negative key.
        self._prefixes: OrderedDict[int, int] = OrderedDict()
        self._forgotten = -1
        self._blank = self.usable  # free blocks without content

    @property
    def used(self) -> int:
        """Blocks held by requests; cached blocks of freed requests count as free, as in vLLM."""
        return self.usable - self.free

    def cached(self, request: int) -> int:
        """Blocks from the start of ``request`` that are still there since it was freed."""
        return self._prefixes.get(request, 0)

    def take(self, count: int) -> None:
        """Hand out ``count`` blocks: blank ones first, then the oldest prefixes from their tails."""
        self.free -= count
        blank = min(count, self._blank)
        self._blank -= blank
        count -= blank
        while count:
            oldest, length = next(iter(self._prefixes.items()))
            if length > count:
                self._prefixes[oldest] = length - count
                return
            del self._prefixes[oldest]
            count -= length

    def reclaim(self, request: int) -> int:
        """Take back all that is left of ``request``; the number of blocks."""
        count = self._prefixes.pop(request, 0)
        self.free -= count
        return count

    def release(self, request: int, blocks: int, full: int, *, for_good: bool = False) -> None:
        """Free ``blocks`` blocks of ``request``, of which the first ``full`` hold whole, hashed blocks.

        ``for_good``: it has ended, and will not ask for them again.
        """
        self.free += blocks
        if not self.caching:
            full = 0
        self._blank += blocks - full
        if not full:
            return
        if for_good:
            if self._prefixes and next(reversed(self._prefixes)) == self._forgotten:
                self._prefixes[self._forgotten] += full
                return
            self._forgotten -= 1
            request = self._forgotten
        self._prefixes[request] = full
