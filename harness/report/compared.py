"""The tables of a comparison: rungs, terms, processes, and the figures of the load."""

from __future__ import annotations

from collections.abc import Sequence

from harness.compare import EQUAL, Comparison, FigureRow, RungRow, TermRow
from harness.measure import processes
from harness.report.parts import Table
from harness.report.reading import Reading
from harness.report.words import FIGURE_WORDS, QUESTIONS, number, sizes, term_words, verdict
from harness.units import GIB, MIB


def rungs_table(comparison: Comparison, questions: dict[str, str] = QUESTIONS) -> Table:
    """Each rung with its question, verdicts, margin and limit."""

    def margin(row: RungRow) -> str:
        if row.margin is None:
            return "–"
        small = abs(row.margin) < GIB // 10
        scale, unit = (MIB, " MiB") if small else (GIB, " GiB")
        if row.margin_low is None or row.margin_high is None:
            return f"{row.margin / scale:+.1f}{unit}"
        return f"{row.margin / scale:+.1f} ({row.margin_low / scale:+.1f} … {row.margin_high / scale:+.1f}){unit}"

    rows = tuple(
        (r.rung, questions[r.rung], verdict(r.predicted), verdict(r.measured), margin(r),
         term_words(r.limited_by or "–"))
        for r in comparison.rungs
    )  # fmt: skip
    return Table(
        ("rung", "question", "predicted", "measured", "margin (low … high)", "limited by"), rows,
        frozenset({0, 1, 5}), droppable=1,
    )  # fmt: skip


def terms_table(terms: Sequence[TermRow]) -> Table:
    """Idle and under load; what the device held at the other marks is the GPUs' own table."""
    rows = []
    terms = [t for t in terms if t.phase in ("idle", "load")]
    measured = any(t.measured is not None for t in terms)
    seen = ""
    largest = max((t.predicted or t.measured or 0 for t in terms), default=0)
    unit, size = sizes(largest)

    for t in terms:
        span = f"{size(t.low)} – {size(t.high)}" if t.low is not None and t.high is not None else "–"
        row = [t.phase if t.phase != seen else "", term_words(t.term), size(t.predicted), span]
        if measured:
            percent = "–" if t.error_pct is None else f"{t.error_pct:+.1f}"
            within = "" if t.inside is None else verdict(t.inside)
            row += [size(t.measured), size(t.error, "+"), percent, within]
        rows.append(tuple(row))
        seen = t.phase
    columns = ["phase", "term", f"predicted {unit}", "low – high"]
    columns += ["measured", "error", "%", "inside"] * measured
    return Table(tuple(columns), tuple(rows), frozenset({0, 1}))


def process_table(reading: Reading) -> Table | None:
    """What each kind of process held, MiB of PSS; None but for a measured run."""
    if reading.record.mode != "measured":
        return None
    frame = processes(reading.record)

    def size(value: float) -> str:
        return "–" if value != value else f"{value / MIB:,.1f}"

    rows = tuple(
        (str(name).replace("_", " "), *map(size, held))
        for name, *held in frame.itertuples(index=False, name=None)
    )
    return Table(("process", "PSS before weights, MiB", "idle", "peak under load"), rows)


def figures_table(comparison: Comparison) -> Table:
    """The pool and the load, in counts."""
    rehearsed = comparison.mode == "rehearsal"
    measured = any(f.measured is not None for f in comparison.figures)
    rows = []
    for f in comparison.figures:
        if f.figure not in FIGURE_WORDS:
            continue
        if f.gpu is None and f.here is None and f.measured is None:
            continue
        row = [FIGURE_WORDS.get(f.figure, f.figure), number(f.gpu)]
        if rehearsed:
            row.append(number(f.here))
        if measured:
            row += [number(f.measured), _difference(f)]
        rows.append(tuple(row))
    columns = ["figure", "predicted" + (" for the GPU" if rehearsed else "")]
    columns += ["predicted for here"] * rehearsed + ["measured", "difference"] * measured
    return Table(tuple(columns), tuple(rows))


def _difference(f: FigureRow) -> str:
    if f.error is None:
        return "–"
    return "equal" if abs(f.error) < EQUAL else f"{f.error:+,.0f}" if f.error == int(f.error) else f"{f.error:+,.2f}"
