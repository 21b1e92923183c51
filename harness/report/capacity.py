"""``bench capacity``, as a report and as one JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from harness.predict.capacity import Answer, Capacity, Trial
from harness.report.content import FIGURE_WORDS, Report, Section, Table, picture, verdict
from harness.simulate.timeline import Timeline

SCHEMA = 1
TITLES = {
    "users": ("How many users", "user", "users"),
    "requests": ("How many requests at once", "request", "requests"),
    "context_tokens": ("How long a context", "token", "tokens"),
}
FIGURES = ("peak_blocks_needed", "peak_blocks_used", "peak_running", "peak_waiting", "preemptions", "tokens_scheduled")
JSON_POINTS = 256


def build(capacity: Capacity) -> Report:
    """The report: an answer with its table for each search, and the pool over the load at the largest that holds."""
    scenario, kv = capacity.scenario, capacity.account.kv
    lead = [scenario.question.strip()] if scenario.question else []
    lead.append(
        f"{kv.usable_blocks or 0:,} blocks of {kv.block_size} tokens serve requests on the predicted pool. A load "
        "holds where no request is preempted or waits for blocks; by the simulated scheduler."
    )
    return Report(f"{scenario.name} · capacity", tuple(lead), tuple(_sections(capacity)))


def _sections(capacity: Capacity) -> Iterator[Section]:
    for answer in capacity.answers:
        title, _, _ = TITLES[answer.what]
        yield Section(title, (_sentence(answer),), _table(answer))
    first = capacity.answers[0]
    if first.at:
        points = [tuple(map(float, p)) for p in first.at.simulation.timeline]
        yield Section(
            f"Over the load of {_count(first, first.largest)}",
            quoted=tuple(picture(points, capacity.account.kv.usable_blocks, "steps")),  # type: ignore[arg-type]
        )


def _count(answer: Answer, value: int) -> str:
    _, one, many = TITLES[answer.what]
    return f"{value:,} {one if value == 1 else many}"


def _sentence(answer: Answer) -> str:
    held = _count(answer, answer.largest)
    if not answer.largest:
        return "Not even the smallest such load holds: " + _cliff(answer)
    if answer.past is None:
        why = {
            "max_num_seqs": "no more run at once (max_num_seqs), further ones wait for a seat, not for blocks",
            "max_model_len": "no request may be longer (max_model_len)",
        }[answer.limited_by]
        return f"{held} hold: {why}."
    left = "" if answer.low == answer.high else f" ({answer.low:,} to {answer.high:,} over the prediction's interval)"
    return f"{held} hold{left}; one more does not: {_cliff(answer)}"


def _cliff(answer: Answer) -> str:
    if answer.past is None:
        return "the pool does not serve one request of it."
    s = answer.past.simulation
    scheduled = s.figures.tokens_scheduled or 1
    if not s.figures.preemptions:
        return "requests wait for blocks."
    one = s.figures.preemptions == 1
    return (
        f"{s.figures.preemptions:,} preemption{'' if one else 's'}, {s.tokens_recomputed:,} tokens computed again "
        f"({100 * s.tokens_recomputed / scheduled:.1f} % of all)."
    )


def _table(answer: Answer) -> Table:
    """A column for the largest that holds, for one step past it, and for what the scenario asks."""
    shown = [t for t in (answer.at, answer.past, answer.asked) if t]
    rows = [("holds", *(verdict(t.simulation.holds) for t in shown))]
    for figure in FIGURES:
        rows.append((FIGURE_WORDS[figure], *(f"{getattr(t.simulation.figures, figure) or 0:,}" for t in shown)))
    rows.append(("tokens computed again", *(f"{t.simulation.tokens_recomputed:,}" for t in shown)))
    asked = f"asked: {_count(answer, answer.asked.value)}"
    return Table(("figure", *(_count(answer, t.value) for t in shown[:-1]), asked), tuple(rows))


def document(capacity: Capacity) -> dict[str, Any]:
    """The one JSON document; a key that can't be filled is null."""
    return {
        "schema": SCHEMA,
        "scenario": capacity.scenario.name,
        "kv": asdict(capacity.account.kv),
        "answers": [_answer(a) for a in capacity.answers],
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
        "load": asdict(trial.simulation.figures),
        "tokens_recomputed": trial.simulation.tokens_recomputed,
        "timeline": [p._asdict() for p in thinned.points()],
    }
