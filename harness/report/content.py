"""What a report says, before any format: sections of tables and sentences, all as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.compare import EQUAL, Comparison, FigureRow, RungRow, TermRow, check, compare
from harness.errors import LoadfitError, UsageError
from harness.explain import explain, heading
from harness.ledger import Account
from harness.measure import measure, processes
from harness.report import bars, devices, latency
from harness.report.table import Table
from harness.roofline import at_that_pace, reached
from harness.scenario import Scenario, parse_scenario
from harness.units import GIB, MIB, human

if TYPE_CHECKING:
    from harness.store import RunRecord

QUESTIONS = {
    "LOADS": "do the weights fit?",
    "ADMITS": "is a pool granted?",
    "STARTS": "does warm-up pass?",
    "HOLDS": "does the load hold?",
}
TERM_WORDS = {
    "weights": "weights",
    "runtime_at_init": "runtime at init",
    "other_processes": "other processes",
    "non_torch_increase": "non-torch increase",
    "activation_peak": "activation peak",
    "cuda_graphs": "CUDA graphs",
    "kv_available": "KV pool",
    "kv_cache": "KV cache",
    "kv_used": "of the pool, used",
    "allocator_slack": "allocator slack",
    "master_weights": "master weights",
    "optimizer": "optimizer states",
    "unattributed": "unattributed",
    "total": "total",
}
FIGURE_WORDS = {
    "block_size": "tokens in a block",
    "num_blocks": "blocks in the pool",
    "usable_tokens": "tokens in the pool",
    "max_concurrency": "max concurrency (vLLM's line)",
    "peak_blocks_needed": "blocks wanted at the peak",
    "peak_blocks_used": "blocks used at the peak",
    "peak_running": "requests running, peak",
    "peak_waiting": "requests waiting, peak",
    "preemptions": "preemptions",
    "steps": "scheduler steps",
    "tokens_scheduled": "tokens scheduled",
}
OUTCOMES = {
    "completed": "completed",
    "refused_at_start": "the engine refused to start",
    "hung_at_start": "the engine never became healthy",
    "died_under_load": "the engine died under load",
    "load_timed_out": "the load did not end in its time",
    "no_answers": "no request was answered",
    "requests_failed": "some requests failed",
    "interrupted": "interrupted",
    "device_lost": "a GPU was lost",
    "disturbed": "another process came onto the GPUs",
    "cut_short": "the log ends before the start does",
    "not_recorded": "the run could not be written down to its end",
}


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


@dataclass(frozen=True)
class Reading:
    """A run folder with what is computed from it."""

    record: RunRecord
    scenario: Scenario
    measured: Account | None
    comparison: Comparison


def understand(record: RunRecord) -> Reading:
    """Measure and compare what a run folder holds. Raises LoadfitError where its scenario can't be read."""
    try:
        scenario = parse_scenario(record.scenario_yaml, str(record.path / "scenario.yaml"), record.path)
    except LoadfitError as error:
        raise UsageError(f"{record.path}: the scenario kept there can't be read: {error}") from None
    measured, here = measure(record), record.rehearsal
    steps = record.tables.get("steps")
    if here is not None and scenario.load is not None and steps is not None:
        here = at_that_pace(scenario, record.prediction, here, steps)
    comparison = compare(record.prediction, measured, mode=record.mode, outcome=record.outcome, here=here)
    return Reading(record, scenario, measured, comparison)


def build(reading: Reading) -> Report:
    """The report of a run."""
    if reading.scenario.kind == "finetune":
        from harness.report import finetune

        return finetune.build(reading)
    record, comparison = reading.record, reading.comparison
    met, failed = check(reading.scenario.expect, comparison, reading.scenario.slo)
    sections = [
        Section(heading(comparison), tuple(explain(reading.scenario, record.prediction, comparison)), flowing=True),
        Section("Four rungs", table=rungs_table(comparison)),
        Section("Memory for each device", table=_terms_table(comparison.terms), chart="memory"),
        Section("The GPUs over the run", table=devices.table(record, reading.measured)),
        Section("GPU memory over the run", quoted=tuple(devices.timeline(record)), chart="gpus"),
        Section("Memory by process", table=_process_table(reading)),
        Section("Block pool and load", table=_figures_table(comparison)),
        Section("Latency, seconds", tuple(latency.throughput(comparison)),
                Table(*latency.table(comparison), left=frozenset({0, 1})), chart="waits"),
        Section("SLO", table=Table(*latency.slo_table(reading.scenario.slo, comparison))),
        Section("Over the load", quoted=tuple(_timeline(reading)), chart="load"),
        Section("The engine's own words", quoted=tuple(_words(reading))),
        Section("Notes", sentences=tuple(_notes(reading))),
    ]  # fmt: skip
    return Report(
        title=f"{reading.scenario.name} · {record.mode}",
        lead=tuple(_lead(reading)),
        sections=tuple(s for s in sections if s.sentences or s.quoted or (s.table and s.table.rows)),
        expectation_met=met,
        expectation_failed=tuple(failed),
    )


def setting(reading: Reading) -> Iterable[str]:
    """What was asked, of what on what, and how far it was predicted to come."""
    scenario, prediction = reading.scenario, reading.record.prediction
    if scenario.question:
        yield scenario.question.strip()
    device = "this computer (CPU)" if scenario.on_cpu else _gpu(scenario)
    yield f"{scenario.model_name}, weights {scenario.weights.format}, on {device}, vLLM {scenario.engine.vllm}."
    if prediction.calibration:
        yield prediction.calibration
    if prediction.rungs:
        yield f"Predicted to reach: {prediction.highest or 'none of the four rungs'}."


def ran(reading: Reading) -> str:
    """How it was run, and by what."""
    engine = reading.record.manifest.get("engine", {})
    by = f"{engine.get('distribution', 'vLLM')} {engine.get('version', '')}".strip()
    return f"{reading.record.mode.capitalize()} ({_real(reading)}) by {by}"


def _lead(reading: Reading) -> Iterable[str]:
    yield from setting(reading)
    scenario, record = reading.scenario, reading.record
    if record.mode == "analytic":
        yield f"Analytic: arithmetic and the simulated scheduler; {record.manifest.get('why') or 'nothing was run'}."
    else:
        yield f"{ran(reading)}: {OUTCOMES.get(record.outcome, record.outcome)}."
        if record.outcome != "completed" and record.manifest.get("reason"):
            yield f"{record.manifest['reason']}"
    if record.series:
        yield f"Repeat {record.series['repeat']} of {record.series['repeats']}."
    if scenario.engine.trust_remote_code:
        yield "The scenario lets the model's own code run (trust_remote_code: true)."


def _real(reading: Reading) -> str:
    if reading.record.mode == "rehearsal":
        return "real vLLM, stand-in model"
    if reading.record.mode == "imported":
        return str(reading.record.manifest.get("why") or "from a log")
    if reading.record.attached:
        return "a server that was there before"
    return "random weights, all else real" if reading.scenario.weights.load == "dummy" else "everything real"


def _gpu(scenario: Scenario) -> str:
    assert scenario.gpu is not None
    name = scenario.gpu.name or f"GPU of {human(scenario.gpu.memory)}"
    return f"{scenario.gpu.count} x {name}" if scenario.gpu.count > 1 else f"one {name}"


# -- tables --------------------------------------------------------------------------------------------


def term_words(term: str) -> str:
    """A term as reports call it."""
    return TERM_WORDS.get(term, term)


def verdict(holds: bool | None) -> str:
    """yes, no or a dash."""
    return "–" if holds is None else "yes" if holds else "NO"


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


def sizes(largest: int) -> tuple[str, Callable[..., str]]:
    """The unit for figures up to ``largest`` bytes, and what writes bytes in it: (value, sign="")."""
    unit, scale, digits = ("GiB", GIB, 2) if largest >= 8 * GIB else ("MiB", MIB, 1)

    def size(value: float | None, sign: str = "") -> str:
        return "–" if value is None else f"{value / scale:{sign},.{digits}f}"

    return unit, size


def _terms_table(terms: Sequence[TermRow]) -> Table:
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


def _process_table(reading: Reading) -> Table | None:
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


def number(value: float | None) -> str:
    """A count, or a ratio with two digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def _figures_table(comparison: Comparison) -> Table:
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


# -- the picture -----------------------------------------------------------------------------------------

def _timeline(reading: Reading) -> Iterable[str]:
    found, top, unit = points(reading)
    if found:
        yield from picture(found, top, unit)


def picture(found: Sequence[tuple[float, float, float, float, float]], top: int | None, unit: str) -> Iterable[str]:
    """Four lines of bars over (when, blocks used, running, waiting, preemptions so far), and the axis."""
    end = found[-1][0] or 1
    series = (("blocks used", 1, top), ("running", 2, None), ("waiting", 3, None), ("preemptions", 4, None))
    for name, column, ceiling in series:
        line = bars.resample([(p[0] / end, p[column]) for p in found])
        peak = max(line)
        most = f"{peak:,.0f}" + (f" of {ceiling:,}" if ceiling else "")
        yield f"{name:>12} {bars.draw(line, ceiling or peak)} {most}"
    yield f"{'':>12} 0{'':{bars.WIDTH - 2}}{end:,.0f} {unit}"


def points(reading: Reading) -> tuple[list[tuple[float, float, float, float, float]], int | None, str]:
    """(when, blocks, running, waiting, preemptions so far), the blocks there are, and the unit of when."""
    record = reading.record
    steps = record.tables.get("steps")
    if steps is not None and len(steps):
        seconds = (steps["time_ns"] - steps["time_ns"].iloc[0]) / 1e9
        columns = (seconds, steps["blocks_used"], steps["running"], steps["waiting"], steps["preempted"].cumsum())
        measured = list(zip(*(c.tolist() for c in columns), strict=True))
        usable = (reading.measured or Account()).kv.usable_blocks
        return measured, usable, "s"
    by_time = bool(record.frames) and record.frames[-1][1] > 0
    frames = [(time_s if by_time else step, *rest) for step, time_s, *rest in record.frames]
    return frames, record.prediction.kv.usable_blocks, "s" if by_time else "steps"  # type: ignore[return-value]


# -- words -----------------------------------------------------------------------------------------------


def _words(reading: Reading) -> Iterable[str]:
    predicted = reading.record.prediction.engine_says
    if predicted:
        yield f"vLLM {reading.scenario.engine.vllm} would say (predicted):"
        yield from (f"  {line}" for line in predicted)
    said = reading.measured.engine_says if reading.measured else ()
    if said:
        yield "vLLM said here (measured):"
        yield from (f"  {line}" for line in said)


def _reached(reading: Reading) -> Iterable[str]:
    """The shares of the roofline that a run on a GPU reached, to predict the next ones with."""
    steps = reading.record.tables.get("steps")
    if reading.record.mode != "measured" or reading.scenario.on_cpu or steps is None or steps.empty:
        return
    found = reached(reading.scenario, steps)
    if isinstance(found, str):
        yield f"What this run reached of the GPU's roofline can't be told: {found}."
        return
    e = found.efficiency
    shares = ", ".join(f"{name}: {getattr(e, name):.2f}" for name in ("weights", "kv", "linear", "attention"))
    yield (
        f"This run reached, of the GPU's roofline, gpu.efficiency: {{{shares}}} (decoding off by "
        f"{100 * found.decode_error:.0f} %, prefill by {100 * found.prefill_error:.0f} % on the median step)."
    )


def _notes(reading: Reading) -> Iterable[str]:
    record = reading.record
    yield from record.prediction.notes
    yield from record.rehearsal.notes if record.rehearsal else ()
    # What could not be read of the folder is among a measurement's notes.
    yield from reading.measured.notes if reading.measured else record.problems
    if record.manifest.get("digest") not in (None, reading.scenario.digest):
        yield "scenario.yaml is not what was run: it was changed or cut short since (its digest is another)."
    version = str(record.manifest.get("engine", {}).get("version", ""))
    if version and version.split(".")[:2] != reading.scenario.engine.vllm.split(".")[:2]:
        yield f"The scenario is of vLLM {reading.scenario.engine.vllm}; what ran here is {version}."
    yield from devices.health(record)
    yield from _reached(reading)
    sampling = record.manifest.get("sampling")
    if sampling and record.mode == "measured":
        whose = "The host's memory" if record.on_gpus else "Memory"
        yield (
            f"{whose} was read every {1000 * sampling['interval_s']:.0f} ms ({sampling['sweeps']:,} times, longest gap "
            f"{1000 * sampling['longest_gap_s']:.0f} ms, {sampling['cpu_s']:.1f} s of CPU)."
        )
    answers = record.tables.get("requests")
    if answers is None:
        return
    failed = answers[answers["status"] != "ok"]
    if len(failed):
        first = failed.iloc[0]
        yield f"{len(failed)} of {len(answers)} requests failed; the first: {first['status']}: {first['error']}"
    texts = answers["text"].dropna()
    if len(texts):
        yield f"An answer: {texts.iloc[0].strip()[:160]!r}"
