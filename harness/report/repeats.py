"""The report of a series: the spread of its repeats beside the prediction, and which of them fell outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.compare import Comparison
from harness.ledger import LATENCIES
from harness.report.latency import SHOWN, WORDS, seconds
from harness.report.parts import Report, Section, Table
from harness.report.reading import Reading
from harness.report.sentences import ran, setting
from harness.report.series import Series
from harness.report.words import FIGURE_WORDS, QUESTIONS, number, sizes, term_words, verdict
from harness.scenario import Slo
from harness.spread import FigureSpread, RungSpread, Spread, TermSpread

_THROUGHPUT = {
    "duration_s": "seconds that the load takes",
    "requests_per_s": "requests a second", "output_tokens_per_s": "tokens a second",
    "goodput_per_s": "requests a second that meet the SLO",
}  # fmt: skip


def build(series: Series) -> Report:
    """The report; where no repeat was counted, what became of them."""
    last = series.last
    sections = [*(_measured(series, last) if last else ()), Section("Repeats", table=_repeats(series)),
                Section("Notes", tuple(_notes(series)))]  # fmt: skip
    met, failed = series.expectation
    mode, count = f" · {last.record.mode}" if last else "", len(series.counted)
    of = f" of {series.repeats}" if count < series.repeats else ""
    return Report(
        title=f"{series.name}{mode} · {count}{of} repeats",
        lead=tuple(_lead(series)),
        sections=tuple(s for s in sections if s.sentences or (s.table and s.table.rows)),
        expectation_met=met,
        expectation_failed=tuple(failed),
    )


def rungs(series: Series) -> list[tuple[str, bool | None]]:
    """Each rung's verdict: no where one repeat says no."""
    told = []
    for row in series.spreads.rungs if series.counted else ():
        said = list(row.measured.values())
        told.append((row.rung, False if False in said else row.predicted if None in said else True))
    return told


def _lead(series: Series) -> Iterator[str]:
    if series.last is None:
        yield "No repeat has come to its end."
        return
    yield from setting(series.last)
    one = "one server that was there before, which keeps what it has cached" if series.last.record.attached else (
        "a fresh engine each time"
    )  # fmt: skip
    yield f"{ran(series.last)}: the same requests, {one}."
    if series.last.scenario.engine.trust_remote_code:
        yield "The scenario lets the model's own code run (trust_remote_code: true)."


def _measured(series: Series, last: Reading) -> Iterator[Section]:
    told, rehearsed = series.spreads, last.record.mode == "rehearsal"
    yield Section("Four rungs", table=_rungs(told.rungs))
    terms = _terms(told.terms)
    outside = ("Outside: the repeats that lie outside of what was predicted, low to high.",) if terms else ()
    yield Section("Memory for each device", outside, terms, chart="spread")
    differ = "Differ: the repeats in which it was not what was predicted" + (" for here." if rehearsed else ".")
    yield Section("Block pool and load", (differ,), _figures(told.figures, rehearsed))
    yield Section("Throughput", table=_throughput(told.figures))
    yield Section("Latency, seconds", table=_latency(told.figures, rehearsed))
    yield Section("SLO", table=_slo(last.scenario.slo, told.figures, series.comparisons))


def _rungs(rows: Sequence[RungSpread]) -> Table:
    shown = tuple((r.rung, QUESTIONS.get(r.rung, ""), verdict(r.predicted), _said(r)) for r in rows)
    return Table(("rung", "question", "predicted", "measured"), shown, frozenset({0, 1}))


def _said(row: RungSpread) -> str:
    """The verdict of all, or which repeats say what."""
    verdicts: dict[bool | None, list[int]] = {}
    for n, holds in row.measured.items():
        verdicts.setdefault(holds, []).append(n)
    if len(verdicts) == 1:
        return verdict(*verdicts)
    return "; ".join(f"{verdict(holds)}: {_numbers(repeats)}" for holds, repeats in verdicts.items())


def _numbers(repeats: Sequence[int] | None) -> str:
    return "–" if repeats is None else ", ".join(map(str, repeats)) or "none"


def _terms(rows: Sequence[TermSpread]) -> Table | None:
    """None where nothing was measured: in a rehearsal bytes are the prediction's."""
    rows = [r for r in rows if r.phase in ("idle", "load") and (r.measured.told or r.predicted is not None)]
    if not any(r.measured.told for r in rows):
        return None
    unit, size = sizes(max(int(r.measured.greatest or r.predicted or 0) for r in rows))
    shown = []
    phase = ""
    for r in rows:
        interval = "–" if r.low is None or r.high is None else f"{size(r.low)} – {size(r.high)}"
        told = r.measured
        between = f"{size(told.least)} – {size(told.greatest)}" if told.told else "–"
        shown.append((r.phase if r.phase != phase else "", term_words(r.term), size(r.predicted), interval,
                      size(told.median), between, _numbers(r.outside)))  # fmt: skip
        phase = r.phase
    heads = ("phase", "term", f"predicted {unit}", "low – high", "median", "least – greatest", "outside")
    return Table(heads, tuple(shown), frozenset({0, 1}), droppable=3)


def _figures(rows: Sequence[FigureSpread], rehearsed: bool) -> Table:
    shown = tuple(
        (FIGURE_WORDS[r.figure], number(r.gpu), *[number(r.here)] * rehearsed, number(r.measured.median),
         _between(r.measured), _numbers(r.differ))
        for r in rows if r.figure in FIGURE_WORDS and (r.gpu, r.here, r.measured.median) != (None, None, None)
    )  # fmt: skip
    heads = ("figure", "predicted" + " for the GPU" * rehearsed, *["for here"] * rehearsed)
    return Table((*heads, "median", "least – greatest", "differ"), shown)


def _between(told: Spread) -> str:
    if told.least is None or told.least == told.greatest:
        return "–" if told.least is None else "all alike"
    return f"{number(told.least)} – {number(told.greatest)}"


def _throughput(rows: Sequence[FigureSpread]) -> Table:
    shown = tuple(
        (_THROUGHPUT[r.figure], seconds(r.gpu), seconds(r.measured.median),
         f"{seconds(r.measured.least)} – {seconds(r.measured.greatest)}")
        for r in rows if r.figure in _THROUGHPUT and r.measured.told
    )  # fmt: skip
    return Table(("figure", "predicted", "median", "least – greatest"), shown)


def _latency(rows: Sequence[FigureSpread], rehearsed: bool) -> Table:
    """A row for each latency and side that tells of it."""
    figures = {r.figure: r for r in rows}
    shown: list[tuple[str, ...]] = []
    for name in LATENCIES:
        of = [figures.get(f"{name}_{which}_s") for which in SHOWN]
        word = WORDS[name]
        sides: dict[str, list[float | None]] = {
            "predicted": [f.gpu if f else None for f in of],
            **({"predicted for here": [f.here if f else None for f in of]} if rehearsed else {}),
            "median": [f.measured.median if f else None for f in of],
            "least": [f.measured.least if f else None for f in of],
            "greatest": [f.measured.greatest if f else None for f in of],
        }
        for side, values in sides.items():
            if any(f and f.measured.told for f in of) and any(v is not None for v in values):
                shown.append((word, side, *map(seconds, values)))
                word = ""
    return Table(("latency", "", *SHOWN), tuple(shown), frozenset({0, 1}))


def _slo(slo: Slo | None, rows: Sequence[FigureSpread], repeats: Mapping[int, Comparison]) -> Table:
    """A row for each limit that something was measured of, and the repeats that missed it."""
    figures = {r.figure: r for r in rows if r.measured.told}
    shown = []
    for name, limit in slo.limits.items() if slo else ():
        row = figures.get(name)
        if row is None:
            continue
        told = {n: f.measured for n, c in repeats.items() for f in c.figures if f.figure == name}
        missed = [n for n, value in told.items() if value is not None and value > limit]
        shown.append((name, seconds(limit), seconds(row.gpu), seconds(row.measured.median),
                      f"{seconds(row.measured.least)} – {seconds(row.measured.greatest)}",
                      _numbers(missed)))  # fmt: skip
    return Table(("limit", "at most, s", "predicted", "median", "least – greatest", "missed"), tuple(shown))


def _repeats(series: Series) -> Table:
    shown = tuple(
        (str(r.number), r.outcome, verdict(r.counted), verdict(r.met) if r.counted else "–", r.path.name)
        for r in series.runs
    )
    return Table(("repeat", "how it ended", "counted", "as expected", "run folder"), shown, frozenset({0, 1, 4}))


def _notes(series: Series) -> Iterator[str]:
    for run in (r for r in series.runs if not r.counted):
        why = ": ".join(filter(None, (run.outcome, " ".join(run.reason.split()).rstrip("."))))
        yield f"Repeat {run.number} was not counted ({run.path.name}): {why}."
    missing = [n for n in range(1, series.repeats + 1) if n not in series.counted]
    if missing:
        yield f"Still to be run: {_numbers(missing)}. `bench run` on the same scenario does that, and keeps the others."
    predictions = [reading.record.prediction for reading in series.counted.values()]
    if any((p.ledger, p.kv) != (predictions[-1].ledger, predictions[-1].kv) for p in predictions):
        yield "The repeats were not all predicted alike; the prediction shown is that of the last."
    if series.last is not None and series.last.record.attached:
        yield (
            "Each repeat sends the same prompts to the same server: what its prefix cache keeps of the one before is "
            "not computed again, and the load then looks lighter than it is."
        )
