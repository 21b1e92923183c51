"""A table before any format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Column heads and rows of text; the first column is left, the others right aligned unless ``left``."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[int] = frozenset({0})
    droppable: int | None = None  # a column that a narrow terminal does without
