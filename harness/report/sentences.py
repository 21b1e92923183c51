"""The sentences of a report beside the explanation: its first lines, the engine's own words, and the notes."""

from __future__ import annotations

from collections.abc import Iterable

from harness.report import devices
from harness.report.reading import Reading
from harness.report.words import OUTCOMES
from harness.roofline import reached
from harness.scenario import Scenario
from harness.units import human


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


def lead(reading: Reading) -> Iterable[str]:
    """The first lines: what was asked, what was predicted, how it was run and how that ended."""
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


def engine_words(reading: Reading) -> Iterable[str]:
    """What vLLM would say, and what it said."""
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


def notes(reading: Reading) -> Iterable[str]:
    """What else has to be known to read the figures."""
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
