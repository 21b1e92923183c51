"""Prediction + measurement -> Comparison: a join on term, on rung and on figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from harness.ledger import STATED, TRAINING_STATED, Account, LoadFigures, Phase, RungName, StepRung, Term
from harness.scenario import Expect, Slo

EQUAL = 0.005  # figures that differ by less are the same


@dataclass(frozen=True)
class TermRow:
    """One term of the ledger on both sides, in bytes. ``inside``: measured lies within low and high."""

    term: str
    phase: str
    predicted: int | None
    low: int | None
    high: int | None
    measured: int | None
    error: int | None  # predicted - measured
    error_pct: float | None
    inside: bool | None
    source: str


@dataclass(frozen=True)
class RungRow:
    """One rung on both sides."""

    rung: str
    predicted: bool | None
    measured: bool | None
    agree: bool | None
    margin: int | None
    margin_low: int | None
    margin_high: int | None
    limited_by: str | None
    reason: str
    measured_reason: str


@dataclass(frozen=True)
class FigureRow:
    """One figure of the pool or the load. ``gpu``: predicted for the scenario's device; ``here``: for what
    ran here (the stand-in's blocks in a rehearsal, else the same); ``measured``: what happened."""

    figure: str
    gpu: float | None
    here: float | None
    measured: float | None
    error: float | None  # here - measured


@dataclass(frozen=True)
class Comparison:
    """Both sides joined."""

    mode: str
    outcome: str
    terms: tuple[TermRow, ...]
    rungs: tuple[RungRow, ...]
    figures: tuple[FigureRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def compare(
    predicted: Account, measured: Account | None, *, mode: str, outcome: str, here: Account | None = None
) -> Comparison:
    """Join the two sides; ``here`` is what was expected of the run itself (a rehearsal's own blocks)."""
    here = here or predicted
    return Comparison(
        mode=mode,
        outcome=outcome,
        terms=tuple(_terms(predicted, measured)),
        rungs=tuple(_rung(name, predicted, measured) for name in (StepRung if predicted.of_training else RungName)),
        figures=tuple(_figures(predicted, here, measured)),
    )


def _terms(predicted: Account, measured: Account | None) -> list[TermRow]:
    theirs = measured.ledger if measured else None
    keys = [(e.phase, e.term) for e in predicted.ledger]
    keys = list(dict.fromkeys([*keys, *((e.phase, e.term) for e in theirs or ())]))  # the fullest rank stands for all
    stated = TRAINING_STATED if predicted.of_training else STATED
    order = [*stated, Term.KV_USED, Term.OTHER_PROCESSES, Term.ALLOCATOR_SLACK, Term.UNATTRIBUTED, Term.TOTAL]
    phases = [*map(str, Phase), *(phase for phase, _ in keys)]  # the moments of a training step as they come

    def place(names: Sequence[str], name: str) -> int:
        return names.index(name) if name in names else len(names)

    keys.sort(key=lambda k: (place(phases, k[0]), place(order, k[1])))
    rows = []
    for phase, term in keys:
        p = predicted.ledger.find(term, phase)
        m = theirs.find(term, phase) if theirs else None
        ours, real = (p.bytes if p else None), (m.bytes if m else None)
        error = None if ours is None or real is None else ours - real
        rows.append(
            TermRow(
                term, phase, ours, p.low if p else None, p.high if p else None, real, error,
                None if error is None or not real else round(100 * error / real, 2),
                None if real is None or p is None or p.low is None or p.high is None else p.low <= real <= p.high,
                (p.source if p else "") or (m.source if m else ""),
            )
        )  # fmt: skip
    return rows


def _rung(name: str, predicted: Account, measured: Account | None) -> RungRow:
    p, m = predicted.rung(name), measured.rung(name) if measured else None
    ours, real = (p.holds if p else None), (m.holds if m else None)
    return RungRow(
        rung=str(name),
        predicted=ours,
        measured=real,
        agree=None if ours is None or real is None else ours == real,
        margin=p.margin_bytes if p else None,
        margin_low=p.margin_low if p else None,
        margin_high=p.margin_high if p else None,
        limited_by=p.limited_by if p else None,
        reason=p.reason if p else "",
        measured_reason=m.reason if m else "",
    )


def _figures(predicted: Account, here: Account, measured: Account | None) -> list[FigureRow]:
    def row(name: str, gpu: float | None, ours: float | None, real: float | None) -> FigureRow:
        return FigureRow(name, gpu, ours, real, None if ours is None or real is None else ours - real)

    rows = [
        row(name, getattr(predicted.kv, name), getattr(here.kv, name), getattr(measured.kv, name) if measured else None)
        for name in ("block_size", "num_blocks", "max_concurrency")
    ]
    pools = (predicted.kv.usable_tokens, here.kv.usable_tokens, measured.kv.usable_tokens if measured else None)
    rows.append(row("usable_tokens", *pools))
    rows += [
        row(f.name, getattr(predicted.load, f.name), getattr(here.load, f.name),
            getattr(measured.load, f.name) if measured else None)
        for f in fields(LoadFigures)
    ]  # fmt: skip
    return rows


# -- the expectation -----------------------------------------------------------------------------------


def meets(slo: Slo, comparison: Comparison) -> bool | None:
    """Whether the load meets ``slo``, by what was measured where it was; None where a figure is not known."""
    figures = {f.figure: f.measured if f.measured is not None else f.gpu for f in comparison.figures}
    values = {name: figures.get(name) for name in slo.limits}
    if any(value is not None and value > slo.limits[name] for name, value in values.items()):
        return False
    return None if None in values.values() else True


def check(expect: Expect, comparison: Comparison, slo: Slo | None = None) -> tuple[bool | None, list[str]]:
    """Whether the scenario's expectation is met, and what failed in words; (None, []) where none is stated, and
    where the run was cut short or the stand-in's engine failed: neither says anything of the scenario.

    A measured verdict counts before a predicted one.
    """
    stated = expect.items()
    cut = comparison.outcome in ("interrupted", "not_recorded", "device_lost", "disturbed")
    if not stated or cut or (comparison.mode == "rehearsal" and comparison.outcome != "completed"):
        return None, []
    failed = []
    for key, wanted in stated:
        if key == "limited_by":
            found: Any = limiting(comparison)
            how = "predicted"
        elif key == "slo":
            found = meets(slo, comparison) if slo else None
            measured = {f.figure for f in comparison.figures if f.measured is not None}
            how = "measured" if slo and measured & set(slo.limits) else "predicted"
        else:
            row = next(r for r in comparison.rungs if r.rung == key.upper())
            found = row.measured if row.measured is not None else row.predicted
            how = "measured" if row.measured is not None else "predicted"
        if found != wanted:
            shown = found if found is not None else "nothing" if key == "limited_by" else "unknown"
            failed.append(f"expect.{key}: expected {_word(wanted)}, {how} {_word(shown)}")
    return not failed, failed


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def limiting(comparison: Comparison) -> str | None:
    """The term that stops the first rung not reached; None where all are reached."""
    for row in comparison.rungs:
        verdict = row.measured if row.measured is not None else row.predicted
        if verdict is False:
            return row.limited_by
    return None
