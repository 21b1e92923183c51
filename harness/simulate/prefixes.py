"""Which blocks of which requests have the same content."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable

from harness.traffic import Request

SHARED = -1  # the piece that all prompts of a load begin with


class Pieces:
    """Names for what lies before a token of a request: equal where all tokens before it are."""

    def __init__(self, shared_tokens: int) -> None:
        self._shared = ((SHARED, shared_tokens),) if shared_tokens else ()
        self._ids: dict[Hashable, int] = {}

    def of(self, request: Request) -> Names:
        """The names for ``request``: one for each piece of its prompt, one for what is its own."""
        ends: list[int] = []
        names: list[Hashable] = []
        before: Hashable = ("adapter", request.adapter)  # an adapter's KV is like no other
        end = 0
        for piece, tokens in (*self._shared, *request.pieces):
            before = self._ids.setdefault((before, end, piece), len(self._ids))
            end += tokens
            ends.append(end)
            names.append(before)
        return Names(ends, [*names, ("own", request.conversation, request.adapter)])


class Names:
    """Names for the beginnings of one request."""

    __slots__ = ("_ends", "_names")

    def __init__(self, ends: list[int], names: list[Hashable]) -> None:
        self._ends, self._names = ends, names

    def of(self, tokens: int) -> Hashable:
        """The name of the first ``tokens`` tokens, but for their number."""
        return self._names[bisect_left(self._ends, tokens)]
