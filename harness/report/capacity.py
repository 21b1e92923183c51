"""``bench capacity``, as a report and as one JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.ledger import LoadFigures
from harness.predict.capacity import Answer, Capacity, Trial, too_slow
from harness.report.latency import seconds
from harness.report.parts import Report, Section, Table
from harness.report.timeline import picture
from harness.report.words import FIGURE_WORDS, verdict
from harness.scenario import Slo
from harness.simulate.timeline import Timeline

SCHEMA = 1
TITLES = {
    "users": ("How many users", "user", "users"),
    "requests": ("How many requests at once", "request", "requests"),
    "rate_per_s": ("How many requests a second", "requests/s", "requests/s"),
    "context_tokens": ("How long a context", "token", "tokens"),
}
FIGURES = ("peak_blocks_needed", "peak_blocks_used", "peak_running", "peak_waiting", "preemptions", "tokens_scheduled")
TIMES = {"ttft_p50_s": "TTFT p50, s", "ttft_p95_s": "TTFT p95, s", "itl_p95_s": "ITL p95, s"}
JSON_POINTS = 256


@dataclass(frozen=True)
class Rehearsed:
    """A point tried on real vLLM: whether it held, what was expected of the rehearsal's own blocks, what happened."""

    value: float
    holds: bool | None
    expected: LoadFigures
    measured: LoadFigures
    run_dir: str


def build(capacity: Capacity, rehearsed: Sequence[Rehearsed] = ()) -> Report:
    """The report: an answer with its table for each search, and the pool over the load at the largest that is good."""
    scenario, kv = capacity.scenario, capacity.account.kv
    lead = [scenario.question.strip()] if scenario.question else []
    if capacity.account.calibration:
        lead.append(capacity.account.calibration)
    slo = " and the SLO is met" if scenario.slo else ""
    lead.append(
        f"{kv.usable_blocks or 0:,} blocks of {kv.block_size} tokens serve requests on the predicted pool. A load "
        f"holds where no request is preempted or waits for blocks{slo}; by the simulated scheduler."
    )
    notes = tuple(n for n in capacity.account.notes if n.startswith("Latencies"))
    sections = [*_sections(capacity)]
    if rehearsed:
        sections.append(Section("Rehearsed on real vLLM", table=_rehearsal_table(capacity.answers[0], rehearsed)))
    sections += [Section("Notes", notes)] if notes else []
    return Report(f"{scenario.name} · capacity", tuple(lead), tuple(sections))


def _sections(capacity: Capacity) -> Iterator[Section]:
    for answer in capacity.answers:
        title, _, _ = TITLES[answer.what]
        alike = ("Prompts are of one length there, drawn in what is asked.",) if _drawn(answer) else ()
        yield Section(
            title, (_sentence(answer, capacity.scenario.slo), *alike), _table(answer, capacity.scenario.slo)
        )
    first = capacity.answers[0]
    if first.at:
        frames = first.at.simulation.timeline
        by_time = frames[-1].time_s > 0
        points = [
            (p.time_s if by_time else p.step, p.blocks_used, p.running, p.waiting, p.preemptions) for p in frames
        ]
        yield Section(
            f"Over the load of {_count(first, first.largest)}",
            quoted=tuple(picture(points, capacity.account.kv.usable_blocks, "s" if by_time else "steps")),
        )


def _drawn(answer: Answer) -> bool:
    """Whether a context of one length stands beside prompts of many."""
    asked = answer.asked.load.prompt_tokens if answer.asked else None
    return answer.what == "context_tokens" and asked is not None and not isinstance(asked, int)


def _count(answer: Answer, value: float) -> str:
    _, one, many = TITLES[answer.what]
    return f"{value:,g} {one if value == 1 else many}" if value < 1e6 else f"{value:,.0f} {many}"


def _sentence(answer: Answer, slo: Slo | None) -> str:
    held = _count(answer, answer.largest)
    if not answer.largest:
        return "Not even the smallest such load holds: " + _cliff(answer, slo)
    if answer.past is None:
        why = {
            "max_num_seqs": "no more run at once (max_num_seqs), further ones wait for a seat, not for blocks",
            "max_model_len": "no request may be longer (max_model_len)",
            "throughput": "no higher rate is too much, up to ten times what the pool can put through",
        }[answer.limited_by]
        return f"{held} hold: {why}."
    left = "" if answer.low == answer.high else f" ({answer.low:,g} to {answer.high:,g} over the prediction's interval)"
    more = "a step more does" if answer.what == "rate_per_s" else "one more does"
    return f"{held} hold{left}; {more} not: {_cliff(answer, slo)}"


def _cliff(answer: Answer, slo: Slo | None) -> str:
    if answer.past is None:
        return "the pool does not serve one request of it."
    s = answer.past.simulation
    scheduled = s.figures.tokens_scheduled or 1
    if s.figures.preemptions:
        one = s.figures.preemptions == 1
        return (
            f"{s.figures.preemptions:,} preemption{'' if one else 's'}, {s.tokens_recomputed:,} tokens computed again "
            f"({100 * s.tokens_recomputed / scheduled:.1f} % of all)."
        )
    slow = too_slow(slo, s.figures) if slo else {}
    if not s.holds or slo is None:
        return "requests wait for blocks."
    return ", ".join(f"{name} is {seconds(v)} s, at most {slo.limits[name]:g} asked" for name, v in slow.items()) + "."


def _table(answer: Answer, slo: Slo | None) -> Table:
    """A column for the largest that is good, for one step past it, and for what the scenario asks."""
    shown = [t for t in (answer.at, answer.past, answer.asked) if t]
    rows = [("holds", *(verdict(t.simulation.holds) for t in shown))]
    if slo:
        rows.append(("SLO met", *(verdict(not too_slow(slo, t.simulation.figures)) for t in shown)))
    for figure in FIGURES:
        rows.append((FIGURE_WORDS[figure], *(f"{getattr(t.simulation.figures, figure) or 0:,}" for t in shown)))
    rows.append(("tokens computed again", *(f"{t.simulation.tokens_recomputed:,}" for t in shown)))
    asked = {name: f"{name[:-2].replace('_', ' ')}, s" for name in (slo.limits if slo else ())}
    for name, word in (asked | TIMES).items():
        values = [getattr(t.simulation.figures, name) for t in shown]
        if any(v is not None for v in values):
            rows.append((word, *map(seconds, values)))
    heads = [_count(answer, t.value) for t in shown]
    if answer.asked:
        heads[-1] = f"asked: {'up to ' if _drawn(answer) else ''}{heads[-1]}"
    return Table(("figure", *heads), tuple(rows))


def _rehearsal_table(answer: Answer, rehearsed: Sequence[Rehearsed]) -> Table:
    """Two columns for each point: what was expected of the rehearsal's own blocks, and what happened."""
    heads = [f"{_count(answer, r.value)}: {side}" for r in rehearsed for side in ("expected", "measured")]
    rows = [("holds", *(word for r in rehearsed for word in ("", verdict(r.holds))))]
    for figure in ("peak_blocks_used", "peak_running", "preemptions", "tokens_scheduled"):
        values = [getattr(side, figure) for r in rehearsed for side in (r.expected, r.measured)]
        rows.append((FIGURE_WORDS[figure], *("–" if v is None else f"{v:,}" for v in values)))
    return Table(("figure", *heads), tuple(rows))


def document(capacity: Capacity, rehearsed: Sequence[Rehearsed] = ()) -> dict[str, Any]:
    """The one JSON document; a key that can't be filled is null."""
    return {
        "schema": SCHEMA,
        "scenario": capacity.scenario.name,
        "calibration": capacity.account.calibration or None,
        "kv": asdict(capacity.account.kv),
        "answers": [_answer(a) for a in capacity.answers],
        "rehearsed": [asdict(r) for r in rehearsed],
    }


def _answer(a: Answer) -> dict[str, Any]:
    return {
        "what": a.what, "largest": a.largest, "low": a.low, "high": a.high, "limited_by": a.limited_by,
        "at": _trial(a.at), "past": _trial(a.past), "asked": _trial(a.asked),
    }  # fmt: skip


def _trial(trial: Trial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    thinned = Timeline(JSON_POINTS)
    for point in trial.simulation.timeline:
        thinned.add(point)
    return {
        "value": trial.value,
        "holds": trial.simulation.holds,
        "good": trial.good,
        "load": asdict(trial.simulation.figures),
        "tokens_recomputed": trial.simulation.tokens_recomputed,
        "timeline": [p._asdict() for p in thinned.points()],
    }
