"""What repeats of one run agree in, and by how much they differ: median, least and greatest beside the prediction.

Three or five repeats have no quantiles and no normal law: the least and the greatest tell all that they know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from harness.compare import EQUAL, Comparison


@dataclass(frozen=True)
class Spread:
    """Of the repeats that tell a figure; None where none does. ``told``: how many do. Medians of bytes are whole."""

    median: float | None
    least: float | None
    greatest: float | None
    told: int


@dataclass(frozen=True)
class TermSpread:
    """One term in bytes. ``outside``: the repeats that do not lie within low and high."""

    term: str
    phase: str
    predicted: int | None
    low: int | None
    high: int | None
    measured: Spread
    outside: tuple[int, ...] | None  # None where no interval was predicted, or nothing measured


@dataclass(frozen=True)
class FigureSpread:
    """One figure of the pool or the load. ``here``: what was predicted of what ran, the median where repeats differ in
    that. ``differ``: the repeats whose figure is not the one that was predicted of them."""

    figure: str
    gpu: float | None
    here: float | None
    measured: Spread
    differ: tuple[int, ...] | None


@dataclass(frozen=True)
class RungSpread:
    """One rung: the predicted verdict, and that of each repeat by its number."""

    rung: str
    predicted: bool | None
    measured: dict[int, bool | None]


@dataclass(frozen=True)
class Spreads:
    """All of it."""

    terms: tuple[TermSpread, ...]
    rungs: tuple[RungSpread, ...]
    figures: tuple[FigureSpread, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def spreads(repeats: Mapping[int, Comparison]) -> Spreads:
    """Joined over ``repeats``, by number. What is predicted is what the last of them says."""
    last = repeats[max(repeats)]
    # One that was refused has fewer rows than one that ran.
    keys = dict.fromkeys(
        (row.term, row.phase) for c in sorted(repeats.values(), key=lambda c: -len(c.terms)) for row in c.terms
    )
    return Spreads(
        terms=tuple(_term(term, phase, repeats) for term, phase in keys),
        rungs=tuple(
            RungSpread(row.rung, row.predicted, {
                n: next((r.measured for r in c.rungs if r.rung == row.rung), None) for n, c in repeats.items()
            })
            for row in last.rungs
        ),
        figures=tuple(_figure(row.figure, repeats) for row in last.figures),
    )  # fmt: skip


def _term(term: str, phase: str, repeats: Mapping[int, Comparison]) -> TermSpread:
    rows = {n: row for n, c in repeats.items() for row in c.terms if (row.term, row.phase) == (term, phase)}
    last = rows[max(rows)]
    told = {n: row.measured for n, row in rows.items() if row.measured is not None}
    outside = None
    if told and last.low is not None and last.high is not None:
        outside = tuple(n for n, value in told.items() if not last.low <= value <= last.high)
    found = spread(list(told.values()))
    if found.median is not None:
        found = Spread(round(found.median), found.least, found.greatest, found.told)
    return TermSpread(term, phase, last.predicted, last.low, last.high, found, outside)


def _figure(figure: str, repeats: Mapping[int, Comparison]) -> FigureSpread:
    rows = {n: row for n, c in repeats.items() for row in c.figures if row.figure == figure}
    errors = {n: row.error for n, row in rows.items() if row.error is not None}
    differ = tuple(n for n, error in errors.items() if abs(error) >= EQUAL) if errors else None
    here = spread([row.here for row in rows.values() if row.here is not None]).median
    measured = spread([row.measured for row in rows.values() if row.measured is not None])
    return FigureSpread(figure, rows[max(rows)].gpu, here, measured, differ)


def spread(values: list[float] | list[int]) -> Spread:
    """Of ``values``."""
    if not values:
        return Spread(None, None, None, 0)
    return Spread(median(values), min(values), max(values), len(values))
