"""The block pool, counted rather than listed.

vLLM keeps a queue of free blocks (vllm/v1/core/block_pool.py, 0.32): blocks without a hash are put at
its front, blocks whose content may be found again at its end, and allocation takes from the front. A
request frees its blocks tail first, so what survives of it is always a prefix. For prompts that share
nothing, the queue is therefore fully told by the number of free blocks without content and, for each
freed request, the length of the prefix that is left, oldest first. Nothing here grows with the pool, nor
with the requests that have ended: nobody asks for their blocks again, so neighbours are kept as one.

A prefix that all prompts share is held as long as any request runs, and freed after the last one's own
blocks: it is the newest entry of the queue whenever it is there, and evicted after all others.
"""

from __future__ import annotations

from collections import OrderedDict

_SHARED = -1


class BlockPool:
    """``num_blocks`` blocks as vLLM counts them; one is the null block and serves nobody.

    The first ``shared_blocks`` blocks of all requests have the same content.
    """

    def __init__(self, num_blocks: int, *, caching: bool = True, shared_blocks: int = 0) -> None:
        self.usable = num_blocks - 1
        self.caching = caching
        self.free = self.usable
        self._blank = self.usable  # free blocks without content
        # Cached blocks left of freed requests, oldest first; what nobody asks for again has a key below _SHARED.
        self._prefixes: OrderedDict[int, int] = OrderedDict()
        self._forgotten = _SHARED - 1
        self._shared_blocks = shared_blocks if caching else 0
        self._shared_held = 0  # blocks of the shared prefix that running requests hold
        self._holders = 0

    @property
    def used(self) -> int:
        """Blocks held by requests; cached blocks of freed requests count as free, as in vLLM."""
        return self.usable - self.free

    @property
    def shared_in_use(self) -> int:
        """Blocks of the shared prefix that somebody holds: the next request has them for nothing."""
        return self._shared_held

    def cached(self, request: int) -> int:
        """Blocks from the start of ``request`` that are there: of the shared prefix, then its own."""
        shared = self._shared_held if self._holders else self._prefixes.get(_SHARED, 0)
        return shared if shared < self._shared_blocks else shared + self._prefixes.get(request, 0)

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

    def admit(self, request: int) -> int:
        """``request`` runs from now on: hand it all that is cached of it; the number of blocks."""
        count = self.cached(request)
        self.free -= count - self._shared_held
        if not self._holders:
            self._shared_held = self._prefixes.pop(_SHARED, 0)
        if self._shared_held == self._shared_blocks:
            self._prefixes.pop(request, None)
        self._holders += 1
        return count

    def computed(self, full: int) -> None:
        """A running request has its first ``full`` blocks whole: others find the shared ones among them."""
        self._shared_held = max(self._shared_held, min(full, self._shared_blocks))

    def release(self, request: int, blocks: int, full: int, *, for_good: bool = False) -> None:
        """Free ``blocks`` blocks of ``request``, of which the first ``full`` hold whole, hashed blocks.

        ``for_good``: it has ended, and will not ask for them again.
        """
        if not self.caching:
            full = 0
        self._holders -= 1
        shared = min(full, self._shared_blocks)
        self.free += blocks - (shared if self._holders else 0)
        self._blank += blocks - full
        if full > shared:
            self._append(request, full - shared, for_good)
        if not self._holders:
            self._shared_held = 0
            if shared:
                self._prefixes[_SHARED] = shared

    def _append(self, request: int, blocks: int, for_good: bool) -> None:
        if for_good:
            if self._prefixes and next(reversed(self._prefixes)) == self._forgotten:
                self._prefixes[self._forgotten] += blocks
                return
            self._forgotten -= 1
            request = self._forgotten
        self._prefixes[request] = blocks
