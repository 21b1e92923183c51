"""``bench run``: a scenario predicted, run as real as this machine can, compared and explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.check import calibration_option, valid
from harness.commands.once import conclude, once, say
from harness.errors import EXIT_INTERRUPTED, LoadfitError, RecordError, UsageError
from harness.ledger import Account

if TYPE_CHECKING:
    from harness.engines.attached import Attached
    from harness.report.found import Found
    from harness.report.reading import Reading
    from harness.scenario import Scenario


class _Within(click.FloatRange):
    """A range that nan is not in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Fails as click does."""
        number = super().convert(value, param, ctx)
        return self.fail(f"{value} is no number.", param, ctx) if number != number else number


@click.command(short_help="Predict a scenario, run it, compare, and say why.")
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
    "--start-timeout", type=_Within(1, 86_400), default=600.0, show_default=True, metavar="SECONDS",
    help="How long the engine may take to become healthy.",
)  # fmt: skip
@click.option(
    "--interval", "interval_ms", type=_Within(1, 10_000), default=20.0, show_default=True, metavar="MS",
    help="Between two readings of the GPUs' memory.",
)  # fmt: skip
@click.option(
    "--isolation", type=click.Choice(["fail", "warn"]), default="warn", show_default=True,
    help="What other processes on the GPUs do to a measured run.",
)  # fmt: skip
@click.option("--again", is_flag=True, help="Of repeats: run all anew, also those that are finished.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, everything else on stderr.")
@click.option(
    "--junit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Also write the expectations as a JUnit report, for a CI to show.",
)  # fmt: skip
def run(
    scenarios: tuple[str, ...], analytic_only: bool, rehearse: bool, measure: bool, out: Path,
    overrides: tuple[str, ...], calibration: Path | None, attach: str | None, port: int | None, start_timeout: float,
    interval_ms: float, isolation: str, again: bool, as_json: bool, junit: Path | None,
) -> int:  # fmt: skip
    """Predict SCENARIO, run it as real as this machine can, compare, and say why.

    The most real mode is chosen and named in the first line; the flags force one. Everything is kept in
    a run folder that `bench report` reads.

    \b
    Examples:
      bench run scenarios/70b_8k_int4.yaml
      bench run scenarios/*.yaml --analytic-only --junit gate.xml
      bench run scenarios/70b_8k_int4.yaml --set load.users=12
      bench run scenarios/smollm2_cpu.yaml --set repeats=3
      bench run scenarios/70b_8k.yaml --analytic-only --json | jq .prediction
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
        if _of_another_kind(junit):  # `--junit scenarios/*.yaml` names the first scenario
            raise UsageError(f"--junit: {junit} is there and is no JUnit report: name another file")
        _write(junit, b"")  # told now, not after hours
    documents, codes, suites = [], [], []
    for scenario in loaded:
        fault = "the run could not be written down to its end"
        try:
            code, found = _run_one(scenario, forced, out, how, server, again=again, quiet=as_json)
        except LoadfitError as error:  # the other scenarios go on, what was run stays
            if len(loaded) == 1 and junit is None:
                raise
            click.echo(f"bench: {scenario.name}: {error}", err=True)
            code, found, fault = error.exit_code, None, str(error)
        codes.append(code)
        if junit is not None:
            from harness.report import junit as gate

            suites += [gate.suite(reading) for reading in _readings(found)] or [gate.fault(scenario.name, fault)]
        if as_json and found is not None:
            from harness.report.found import document_of

            documents.append(document_of(found))
        if code == EXIT_INTERRUPTED:
            break
    if as_json:
        alone = documents[0] if len(loaded) == 1 and documents else {"schema": 1, "runs": documents}
        click.echo(json.dumps(alone, indent=1))
    if junit is not None:
        _write(junit, gate.render(suites))
    return max(codes)


def _readings(found: Found | None) -> list[Reading]:
    if found is None:
        return []
    from harness.report.reading import Reading

    return [found] if isinstance(found, Reading) else list(found.newest.values())


def _of_another_kind(file: Path) -> bool:
    """Whether writing a JUnit report there would cost somebody a file."""
    if not file.is_file():
        return False
    try:
        with file.open("rb") as there:
            return not there.read(1024).lstrip().startswith((b"<testsuite", b"<?xml")) and file.stat().st_size > 0
    except OSError:
        return False  # the next one to open it tells


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
    scenario: Scenario, forced: str | None, out: Path, how: dict[str, Any], server: Attached | None, *, again: bool,
    quiet: bool,
) -> tuple[int, Found | None]:  # fmt: skip
    from harness.predict import predict

    prediction = predict(scenario)
    if server is not None:
        why = f"--attach {server.url}"
        say(scenario, f"measured: {why}")
        return _engine("measured", scenario, prediction, out, {**how, "why": why}, server, again=again, quiet=quiet)
    if forced == "analytic":
        return _analytic(scenario, prediction, out, "--analytic-only", quiet=quiet)
    # What starts engines is imported only where an engine may be started.
    from harness import modes

    if forced is None:
        mode, why = modes.choose(scenario, prediction)
        if mode is modes.Mode.ANALYTIC:
            say(scenario, f"analytic: {why}")
            return _analytic(scenario, prediction, out, why, quiet=quiet)
    else:
        mode, why = modes.Mode(forced), f"--{'rehearse' if forced == 'rehearsal' else 'measure'}"
        obstacle = modes.obstacle(mode, scenario, prediction)
        if obstacle and mode is modes.Mode.REHEARSAL and scenario.load and not _admits(prediction):
            # Nothing to rehearse is a result, not a failure of this machine.
            say(scenario, f"analytic: {obstacle}")
            return _analytic(scenario, prediction, out, obstacle, quiet=quiet)
    say(scenario, f"{mode}: {why}")
    return _engine(mode, scenario, prediction, out, {**how, "why": why}, None, again=again, quiet=quiet)


def _engine(
    mode: Any, scenario: Scenario, prediction: Account, out: Path, how: dict[str, Any], server: Attached | None, *,
    again: bool, quiet: bool,
) -> tuple[int, Found | None]:  # fmt: skip
    if scenario.repeats == 1:
        return once(mode, scenario, prediction, out, how, server, quiet=quiet)
    from harness.commands.repeated import repeated

    return repeated(mode, scenario, prediction, out, how, server, again=again, quiet=quiet)


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

    if scenario.repeats > 1:
        say(scenario, "repeats: an analytic run comes out the same each time, so there is one")
    folder = analytic(scenario, prediction, out, why)
    return conclude(folder, quiet=quiet)
