"""What a report says of the load's time: latencies by quantile, throughput, and the SLO."""

from __future__ import annotations

from collections.abc import Iterator

from harness.compare import Comparison, FigureRow, meets
from harness.ledger import LATENCIES, QUANTILES
from harness.scenario import Slo

Columns = tuple[str, ...]
Rows = tuple[tuple[str, ...], ...]
WORDS = {
    "ttft": "time to first token (TTFT)", "itl": "inter-token latency (ITL)", "tpot": "time per output token (TPOT)",
    "queue": "queue: until it first runs", "e2e": "end to end",
}  # fmt: skip
SHOWN = ("mean", *(f"p{q}" for q in QUANTILES))


def seconds(value: float | None) -> str:
    """Three digits of a time."""
    if value is None:
        return "–"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def table(comparison: Comparison) -> tuple[Columns, Rows]:
    """A row for each latency and side that tells of it."""
    figures = {f.figure: f for f in comparison.figures}
    sides = [("predicted", "gpu"), ("predicted for here", "here"), ("measured", "measured")]
    if comparison.mode != "rehearsal":
        del sides[1]
    rows: list[tuple[str, ...]] = []
    for name in LATENCIES:
        word = WORDS[name]
        for side, attribute in sides:
            told = tuple(seconds(_value(figures.get(f"{name}_{which}_s"), attribute)) for which in SHOWN)
            if any(value != "–" for value in told) and not (attribute == "here" and rows and rows[-1][2:] == told):
                rows.append((word, side, *told))
                word = ""
    return ("latency", "", *SHOWN), tuple(rows)


def _value(row: FigureRow | None, side: str) -> float | None:
    return getattr(row, side) if row else None


def throughput(comparison: Comparison) -> Iterator[str]:
    """How long the load takes, and what comes out of it."""
    figures = {f.figure: f for f in comparison.figures}
    for side, attribute in (("Predicted", "gpu"), ("Measured", "measured")):
        names = ("duration_s", "requests_per_s", "output_tokens_per_s", "goodput_per_s")
        duration, requests, tokens, good = (_value(figures.get(name), attribute) for name in names)
        if duration is not None and requests is not None and tokens is not None:
            told = f"{side}: {duration:,.1f} s, {requests:.3g} requests and {tokens:,.0f} tokens a second"
            yield told + ("." if good is None else f"; goodput {good:.3g} requests a second.")


def slo_table(slo: Slo | None, comparison: Comparison) -> tuple[Columns, Rows]:
    """A row for each limit."""
    if slo is None:
        return (), ()
    figures = {f.figure: f for f in comparison.figures}
    rows = []
    for name, limit in slo.limits.items():
        predicted, measured = (_value(figures.get(name), side) for side in ("gpu", "measured"))
        value = measured if measured is not None else predicted
        met = "–" if value is None else "yes" if value <= limit else "NO"
        rows.append((name, seconds(limit), seconds(predicted), seconds(measured), met))
    met_all = meets(slo, comparison)
    rows.append(("all of them", "", "", "", "–" if met_all is None else "yes" if met_all else "NO"))
    return ("limit", "at most, s", "predicted", "measured", "met"), tuple(rows)
