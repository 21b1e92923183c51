"""Requests that decode, told by one clock.

Each of them takes one token a step, so what differs between them never changes: at which turn of the
clock, modulo the block size, it takes its next block, and at which turn it ends. Any number of steps is
therefore taken at once, at a cost that depends neither on the steps nor on the requests.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator

from harness.simulate.latency import Come
from harness.traffic import Request

NOT_DECODING = -1


class Sequence(Come):
    """A request under way, in tokens: its ``end``, what there is (``tokens``), what has KV (``computed``),
    and the input that was ``prefilled`` before it began to decode. ``seat`` counts admissions.

    While it decodes only ``finish`` holds, the clock's reading at its end; :meth:`Lockstep.leave` brings
    the other figures up to date.
    """

    __slots__ = ("blocks", "computed", "content", "end", "finish", "prefilled", "ran", "seat", "tokens")

    def __init__(self, request: Request, came_ps: int, later: deque[Request]) -> None:
        super().__init__(request, came_ps, later)
        self.content = request.conversation  # whose blocks it finds in the cache
        self.tokens = request.prompt_tokens
        self.end = request.prompt_tokens + request.output_tokens
        self.ran = False
        self.computed = self.blocks = self.prefilled = self.seat = 0
        self.finish = NOT_DECODING


class Lockstep:
    """The decoding requests: how many, which blocks they will want, which end next."""

    def __init__(self, block_size: int) -> None:
        self.clock = self.count = 0
        self._contexts = 0  # tokens of all of them, less one clock each
        self._size = block_size
        self._takers = [0] * block_size  # requests by the clock's reading, mod block size, at which they take a block
        self._finishes: list[tuple[int, int, Sequence]] = []  # a heap; entries of those that left are stale

    def join(self, seq: Sequence) -> None:
        """From the next step on ``seq`` decodes: all but its last token have KV."""
        seq.finish = self.clock + seq.end - seq.tokens
        self._takers[self._phase(seq)] += 1
        self._contexts += seq.end - seq.finish
        self.count += 1
        heapq.heappush(self._finishes, (seq.finish, seq.seat, seq))

    def leave(self, seq: Sequence) -> None:
        """``seq`` decodes no longer; its figures are brought up to date."""
        self._takers[self._phase(seq)] -= 1
        self._contexts -= seq.end - seq.finish
        self.count -= 1
        seq.tokens = seq.end - (seq.finish - self.clock)
        seq.computed = seq.tokens - 1
        seq.blocks = -(-seq.computed // self._size)
        seq.finish = NOT_DECODING

    def delay(self, seq: Sequence) -> None:
        """``seq`` sits out the step that is being scheduled."""
        self.leave(seq)
        self.clock += 1
        self.join(seq)
        self.clock -= 1

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV the next step reads or makes."""
        return self._contexts + self.count * self.clock

    def _phase(self, seq: Sequence) -> int:
        return (seq.finish - seq.end + 1) % self._size

    def takes_block(self, seq: Sequence) -> bool:
        """Whether ``seq`` needs a block for its next token."""
        return (self.clock - self._phase(seq)) % self._size == 0

    def blocks_for(self, steps: int) -> int:
        """New blocks that all of them need for ``steps`` more tokens each."""
        rounds, rest = divmod(steps, self._size)
        return rounds * self.count + sum(self._takers[(self.clock + i) % self._size] for i in range(rest))

    def blocks_over(self, steps: int) -> int:
        """:meth:`blocks_for` one step, two steps and so on to ``steps``, all together."""
        rounds, rest = divmod(steps, self._size)
        taken = (self._takers[(self.clock + i) % self._size] for i in range(min(steps, self._size)))
        first = list(itertools.accumulate(taken))
        whole = rounds * (rounds - 1) // 2 * self._size * self.count + rounds * sum(first)
        return whole + rest * rounds * self.count + sum(first[:rest])

    def steps_within(self, blocks: int, most: int) -> int:
        """The steps, ``most`` at most, for which ``blocks`` new blocks suffice."""
        rounds = min(blocks // self.count, most // self._size)
        steps, left = rounds * self._size, blocks - rounds * self.count
        while steps < most:
            left -= self._takers[(self.clock + steps) % self._size]
            if left < 0:
                break
            steps += 1
        return steps

    def steps_to_end(self) -> int:
        """Steps until the next one ends."""
        heap = self._finishes
        while heap[0][2].finish != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] - self.clock

    def ended(self) -> Iterator[Sequence]:
        """Take out those that have had their last token."""
        heap = self._finishes
        while heap and heap[0][0] <= self.clock:
            finish, _, seq = heapq.heappop(heap)
            if seq.finish == finish:
                self.leave(seq)
                yield seq
