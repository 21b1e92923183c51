"""What an experiment found: a table of figures, what they say, and the papers behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """A column of the table: its key in the JSON document, its head, and how its figures are shown (``form`` "bytes":
    with the unit that suits each)."""

    key: str
    head: str
    form: str = "{}"


@dataclass(frozen=True)
class Finding:
    """``setting``: what was done, in words; ``rows`` hold the values of ``columns``; ``says``: sentences with the run's
    own numbers."""

    setting: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    says: tuple[str, ...]
    sources: tuple[str, ...]

    def figures(self) -> list[dict[str, Any]]:
        """The rows as plain data."""
        return [dict(zip((c.key for c in self.columns), row, strict=True)) for row in self.rows]
