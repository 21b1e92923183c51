"""What a report is made of, before any format: tables and sentences, all as text."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Column heads and rows of text; the first column is left, the others right aligned unless ``left``."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[int] = frozenset({0})
    droppable: int | None = None  # a column that a narrow terminal does without


@dataclass(frozen=True)
class Section:
    """A heading with sentences, a table, lines to be quoted as they are, or several of these."""

    title: str
    sentences: tuple[str, ...] = ()
    table: Table | None = None
    quoted: tuple[str, ...] = ()
    flowing: bool = False  # the sentences make one paragraph
    chart: str | None = None  # its picture where a format has pictures, instead of what is quoted


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...] = ()
    expectation_met: bool | None = None
    expectation_failed: tuple[str, ...] = field(default=())
