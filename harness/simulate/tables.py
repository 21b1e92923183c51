"""Block tables: what each kind of attention keeps of a request, and which prefix all of them still have.

As vllm/v1/core/single_type_kv_cache_manager.py and kv_cache_coordinator.py, 0.32, with
``prefix_cache_retention_interval`` at its default, 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm

from harness.simulate.blocks import Block

FULL, SLIDING, CHUNKED, STATE, CROSS = "full", "sliding", "chunked", "state", "cross"
_UNBOUNDED = 2**60
Row = list[Block | None]  # the blocks of a request in one table, None where they are kept no longer
Find = Callable[[int, int], Block | None]  # (table, tokens) -> the block that ends there, where it is known


@dataclass(frozen=True)
class Table:
    """One block table. ``window``: tokens of a sliding one, or of a chunk of a chunked one; of cross-attention the
    positions of the encoder, which are kept whole.

    A state (Mamba, linear attention) is one block of a request, whatever its length.
    """

    kind: str
    block_size: int
    window: int = 0

    def blocks(self, tokens: int) -> int:
        """Blocks of the first ``tokens`` tokens, were all of them kept."""
        return -(-(self.window if self.kind == CROSS else tokens) // self.block_size)

    def room(self, blocks: int) -> int:
        """Tokens that ``blocks`` from the start suffice for."""
        return _UNBOUNDED if self.kind == CROSS else blocks * self.block_size

    def left_behind(self, computed: int) -> int:
        """Blocks from the start that no token after the first ``computed`` looks at."""
        if self.kind == SLIDING:
            return max(computed - self.window + 1, 0) // self.block_size
        if self.kind == CHUNKED:
            return computed // self.window * self.window // self.block_size
        return 0

    def leaves_at(self, blocks: int) -> int:
        """How many tokens must be computed for so many blocks from the start to be left behind."""
        if self.kind == SLIDING:
            return self.window - 1 + blocks * self.block_size
        return -(-blocks * self.block_size // self.window) * self.window

    def most(self, in_flight: int, max_model_len: int) -> int | None:
        """The most blocks that an admission reckons with; None: all that the input has.

        Source: ``max_admission_blocks_per_request``, vllm/v1/kv_cache_interface.py.
        """
        if self.kind == SLIDING:
            return self.blocks(min(self.window - 1 + in_flight, max_model_len)) + 1
        if self.kind == CHUNKED:
            return self.blocks(min(self.window + in_flight, max_model_len))
        return None

    def held(self, tokens: int, in_flight: int, max_model_len: int) -> int:
        """The most blocks that a request of ``tokens`` holds at once."""
        most = self.most(in_flight, max_model_len)
        return self.blocks(tokens) if most is None else min(self.blocks(tokens), most)

    def tail(self) -> int:
        """Whole blocks before a position that a request needs to resume there."""
        return -(-(self.window - 1) // self.block_size)


def described(tables: tuple[Table, ...]) -> str:
    """Such as "2 KV tables (full and sliding attention)"."""
    kinds = " and ".join(sorted({t.kind for t in tables}))
    return f"{len(tables)} KV table{'s'[: len(tables) - 1]} ({kinds} attention)"


class Tables:
    """The tables of a model, and the prefix that a new request finds in all of them."""

    def __init__(self, tables: tuple[Table, ...], drop_last: bool) -> None:
        self.all = tables
        self.align = lcm(*(t.block_size for t in tables))  # what a prefix is a multiple of
        self._drop_last = drop_last  # a drafter needs the hidden states of the last found block again
        # Tables of one kind have a prefix together; full attention comes first, for it narrows the search.
        kinds: dict[Table, list[int]] = {}
        for i, table in enumerate(tables):
            kinds.setdefault(table, []).append(i)
        self._kinds = sorted(kinds.items(), key=lambda kind: kind[0].kind != FULL)

    def prefix(self, find: Find, most: int) -> tuple[list[Row], int, int]:
        """(row of each table, tokens, junction): the longest prefix, of ``most`` tokens, that every table has.

        ``junction``: where a longer prefix ends that not every table has, 0 where there is none.
        """
        rows: list[Row] = [[] for _ in self.all]
        length, longest = most, 0
        full: dict[Table, int] = {}  # found once: its beginnings are there too
        while True:
            found = length
            for table, members in self._kinds:
                if table in full:
                    found = min(found, full[table])
                    continue
                for i, row in zip(members, self._rows(table, members, find, found), strict=True):
                    rows[i] = row
                found = len(rows[members[0]]) * table.block_size
                if table.kind == FULL:
                    full[table] = found
                longest = max(longest, found)
            if found >= length:
                break
            length = found
            if len(self._kinds) == 2 and full:  # vLLM looks once
                break
        for table, members in self._kinds:
            if table.kind == FULL:
                for i in members:
                    del rows[i][table.blocks(length) :]
        return rows, length, longest if longest > length and len(self.all) > 1 else 0

    def _rows(self, table: Table, members: list[int], find: Find, most: int) -> list[Row]:
        def at(k: int) -> list[Block | None] | None:
            blocks = [find(i, (k + 1) * table.block_size) for i in members]
            return None if None in blocks else blocks

        columns = {FULL: self._full, SLIDING: self._sliding, CHUNKED: self._chunked}[table.kind](table, at, most)
        return [[c[m] if c else None for c in columns] for m in range(len(members))]

    def _full(self, table: Table, at: Callable[[int], Row | None], most: int) -> list[Row | None]:
        columns: list[Row | None] = []
        for k in range(most // table.block_size):
            column = at(k)
            if column is None:
                break
            columns.append(column)
        length = len(columns) * table.block_size
        if self._drop_last and length:
            length -= table.block_size
        del columns[length // self.align * self.align // table.block_size :]
        return columns

    def _sliding(self, table: Table, at: Callable[[int], Row | None], most: int) -> list[Row | None]:
        """From the end: the first run of blocks that fills the window."""
        columns: list[Row | None] = [None] * (most // table.block_size)
        run, wanted = 0, table.tail()
        for k in reversed(range(len(columns))):
            column = at(k)
            if column is None:
                run = 0
                continue
            if not run and (k + 1) * table.block_size % self.align:
                continue
            columns[k] = column
            run += 1
            if run >= wanted:
                return columns[: k + run]
        del columns[run:]  # a run from the very start need not fill the window
        while len(columns) * table.block_size % self.align:
            columns.pop()
        return columns

    def _chunked(self, table: Table, at: Callable[[int], Row | None], most: int) -> list[Row | None]:
        columns: list[Row | None] = [None] * table.left_behind(most)
        for k in range(len(columns), most // table.block_size):
            column = at(k)
            if column is None:
                break
            columns.append(column)
        return columns

    def kept(self, table: Table, k: int, ends: tuple[int, ...]) -> bool:
        """Whether block ``k`` is worth finding again: where a request may resume at one of ``ends`` (tokens)."""
        if table.kind != SLIDING:
            return True
        aligned = (tokens // self.align * self.align // table.block_size for tokens in ends)
        return any(end - table.tail() <= k < end for end in aligned)
