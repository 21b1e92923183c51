"""``bench run``: a scenario predicted, run as real as this machine can, compared and explained."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import store
from harness.commands.check import calibration_option, valid
from harness.errors import (
    EXIT_ENGINE,
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_MET,
    EXIT_NOT_MET,
    LoadfitError,
    RecordError,
    UsageError,
)
from harness.ledger import Account

if TYPE_CHECKING:
    from harness.engines.attached import Attached
    from harness.report.content import Reading
    from harness.scenario import Scenario


@click.command()
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@click.option("--analytic-only", is_flag=True, help="Arithmetic and simulation; no engine.")
@click.option("--rehearse", is_flag=True, help="Real vLLM on this CPU, stand-in model.")
@click.option("--measure", is_flag=True, help="Everything real, on the scenario's device.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
    help="Where run folders go.",
)  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the scenario.")
@calibration_option
@click.option("--attach", metavar="URL", help="Measure a server that already runs; its key is VLLM_API_KEY.")
@click.option("--port", type=click.IntRange(1, 65535), help="The loopback port to serve on (a free one unless given).")
@click.option(
    "--start-timeout", type=click.FloatRange(1, 86_400), default=600.0, show_default=True, metavar="SECONDS",
    help="How long the engine may take to become healthy.",
)  # fmt: skip
@click.option(
    "--interval", "interval_ms", type=click.FloatRange(1, 10_000), default=20.0, show_default=True, metavar="MS",
    help="Between two readings of the GPUs' memory.",
)  # fmt: skip
@click.option(
    "--isolation", type=click.Choice(["fail", "warn"]), default="warn", show_default=True,
    help="What other processes on the GPUs do to a measured run.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, everything else on stderr.")
@click.option(
    "--junit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Also write the expectations as a JUnit report, for a CI to show.",
)  # fmt: skip
def run(
    scenarios: tuple[str, ...], analytic_only: bool, rehearse: bool, measure: bool, out: Path,
    overrides: tuple[str, ...], calibration: Path | None, attach: str | None, port: int | None, start_timeout: float,
    interval_ms: float, isolation: str, as_json: bool, junit: Path | None,
) -> int:  # fmt: skip
    """Predict SCENARIO, run it as real as this machine can, compare, and say why.

    The most real mode is chosen and named in the first line; the flags force one. Everything is kept in
    a run folder that `bench report` reads.

    \b
    Examples:
      bench run scenarios/70b_8k_int4.yaml
      bench run scenarios/*.yaml --analytic-only --junit gate.xml
      bench run scenarios/70b_8k_int4.yaml --set load.users=12 --set load.requests=24
      bench run scenarios/70b_8k.yaml --analytic-only --json | jq .prediction.rungs
    """
    modes = {"analytic": analytic_only, "rehearsal": rehearse, "measured": measure}
    wanted = [mode for mode, asked in modes.items() if asked]
    if len(wanted) > 1:
        raise UsageError("--analytic-only, --rehearse and --measure: one of them at most")
    forced = wanted[0] if wanted else None
    if attach is not None and forced in ("analytic", "rehearsal"):
        raise UsageError("--attach: a server that runs is measured, neither predicted alone nor rehearsed")
    loaded = _load_all(scenarios, overrides, calibration)
    how = {"port": port, "start_timeout_s": start_timeout, "interval_s": interval_ms / 1000, "isolation": isolation}
    server = _attached(attach)
    if junit is not None:
        _write(junit, b"")  # told now, not after hours
    documents, codes, suites = [], [], []
    for scenario in loaded:
        fault = "the run could not be written down to its end"
        try:
            code, reading = _run_one(scenario, forced, out, how, server, quiet=as_json)
        except LoadfitError as error:  # the other scenarios go on, what was run stays
            if len(loaded) == 1 and junit is None:
                raise
            click.echo(f"bench: {scenario.name}: {error}", err=True)
            code, reading, fault = error.exit_code, None, str(error)
        codes.append(code)
        if junit is not None:
            from harness.report import junit as gate

            suites.append(gate.suite(reading) if reading else gate.fault(scenario.name, fault))
        if as_json and reading is not None:
            from harness.report.document import document

            documents.append(document(reading))
        if code == EXIT_INTERRUPTED:
            break
    if as_json:
        alone = documents[0] if len(loaded) == 1 and documents else {"schema": 1, "runs": documents}
        click.echo(json.dumps(alone, indent=1))
    if junit is not None:
        _write(junit, gate.render(suites))
    return max(codes)


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise RecordError(f"{file} can't be written: {error.strerror}") from None


def _load_all(files: tuple[str, ...], overrides: tuple[str, ...], calibration: Path | None) -> list[Scenario]:
    """All scenarios, or all the faults of all files in one UsageError."""
    loaded, faults = [], []
    for file in files:
        try:
            loaded.append(valid(file, overrides, calibration))
        except LoadfitError as error:
            faults.append(str(error))
    if faults:
        raise UsageError("\n".join(dict.fromkeys("\n".join(faults).splitlines())))
    return loaded


def _run_one(
    scenario: Scenario, forced: str | None, out: Path, how: dict[str, Any], server: Attached | None, *, quiet: bool
) -> tuple[int, Reading | None]:  # fmt: skip
    from harness.predict import predict

    prediction = predict(scenario)
    if server is not None:
        why = f"--attach {server.url}"
        _say(scenario, f"measured: {why}")
        return _engine("measured", scenario, prediction, out, {**how, "why": why}, server, quiet=quiet)
    if forced == "analytic":
        return _analytic(scenario, prediction, out, "--analytic-only", quiet=quiet)
    # What starts engines is imported only where an engine may be started.
    from harness import modes

    if forced is None:
        mode, why = modes.choose(scenario, prediction)
        if mode is modes.Mode.ANALYTIC:
            _say(scenario, f"analytic: {why}")
            return _analytic(scenario, prediction, out, why, quiet=quiet)
    else:
        mode, why = modes.Mode(forced), f"--{'rehearse' if forced == 'rehearsal' else 'measure'}"
        obstacle = modes.obstacle(mode, scenario, prediction)
        if obstacle and mode is modes.Mode.REHEARSAL and scenario.load and not _admits(prediction):
            # Nothing to rehearse is a result, not a failure of this machine.
            _say(scenario, f"analytic: {obstacle}")
            return _analytic(scenario, prediction, out, obstacle, quiet=quiet)
    _say(scenario, f"{mode}: {why}")
    return _engine(mode, scenario, prediction, out, {**how, "why": why}, quiet=quiet)


def _attached(url: str | None) -> Attached | None:
    if url is None:
        return None
    from harness.engines.attached import attach

    return attach(url)


def _admits(prediction: Account) -> bool:
    rung = prediction.rung("ADMITS")
    return bool(rung and rung.holds)


def _analytic(scenario: Scenario, prediction: Account, out: Path, why: str, *, quiet: bool) -> tuple[int, Reading]:
    from harness.analytic import analytic

    folder = analytic(scenario, prediction, out, why)
    return conclude(folder, quiet=quiet)


def _engine(
    mode: Any, scenario: Scenario, prediction: Account, out: Path, how: dict[str, Any],
    server: Attached | None = None, *, quiet: bool,
) -> tuple[int, Reading | None]:  # fmt: skip
    from harness import run as running
    from harness import sessions
    from harness.commands.progress import watching

    def prepare() -> sessions.Session:
        return sessions.attach(scenario, prediction, server) if server else sessions.prepare(mode, scenario, prediction)

    with watching() as progress:
        folder = running.run(
            prepare, scenario, prediction, out, lambda text: _say(scenario, text), progress=progress, **how
        )
    if folder.manifest["outcome"] == "not_recorded":
        click.echo(f"bench: {folder.manifest['reason']}: {folder.path}", err=True)
        return EXIT_MACHINE, None
    return conclude(folder, quiet=quiet)


def conclude(folder: store.RunFolder, *, quiet: bool) -> tuple[int, Reading]:
    """Write what is computed from the folder into it, show the report, and tell the exit code."""
    from harness.report import markdown
    from harness.report.content import build, understand

    reading = understand(store.read(folder.path))
    report = build(reading)
    unrecorded = False
    try:
        folder.write_json(store.COMPARISON, reading.comparison.as_dict())
        if reading.measured:
            folder.write_json(store.MEASUREMENT, reading.measured.as_dict())
        folder.write_text(store.REPORT, markdown.render(report))
        folder.finish()
        if reading.record.mode != "analytic":  # which has pictures when they are asked for
            from harness.report import html

            folder.write_text(store.PAGE, html.render(report, reading))
    except RecordError as error:
        click.echo(f"bench: {error}", err=True)
        unrecorded = True
    reading = replace(reading, record=replace(reading.record, path=folder.path))  # it has its whole name now
    if not quiet:
        from rich.console import Console

        from harness.report import text

        text.show(report, Console())
        click.echo(f"\nRun folder: {folder.path}")
    else:
        click.echo(f"run folder: {folder.path}", err=True)
    return EXIT_MACHINE if unrecorded else _exit_code(reading, report.expectation_met), reading


def _exit_code(reading: Reading, met: bool | None) -> int:
    outcome = reading.record.outcome
    if outcome not in ("completed", "cut_short") and not (met and _expected(reading)):
        click.echo(f"bench: {outcome}: {reading.record.manifest.get('reason', '')}", err=True)
        not_the_engine = {"interrupted": EXIT_INTERRUPTED, "device_lost": EXIT_MACHINE, "disturbed": EXIT_MACHINE}
        return not_the_engine.get(outcome, EXIT_ENGINE)
    return EXIT_NOT_MET if met is False else EXIT_MET


def _expected(reading: Reading) -> bool:
    """Whether the engine's failure is one that the scenario speaks of: then it is a result, not an error.

    A stand-in is never expected to fail, and a crash of the engine under load is no lack of memory.
    """
    outcome, expect = reading.record.outcome, reading.scenario.expect
    if not reading.record.real:
        return False
    if outcome in ("refused_at_start", "hung_at_start"):
        return False in (expect.loads, expect.admits, expect.starts)
    holds = reading.measured.rung("HOLDS") if reading.measured else None
    out_of_memory = outcome == "died_under_load" and holds is not None and holds.limited_by == "memory"
    return expect.holds is False and (out_of_memory or outcome == "load_timed_out")


def _say(scenario: Scenario, text: str) -> None:
    print(f"{scenario.name}: {text}", file=sys.stderr, flush=True)
