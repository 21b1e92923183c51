"""One run with an engine, and what follows every run: what is computed from its folder, the report, the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from harness import store
from harness.errors import EXIT_ENGINE, EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_MET, EXIT_NOT_MET, RecordError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engines.attached import Attached
    from harness.ledger import Account
    from harness.report.parts import Report
    from harness.report.reading import Reading
    from harness.scenario import Scenario
    from harness.sessions import Session


def preparing(
    mode: Any, scenario: Scenario, prediction: Account, server: Attached | None
) -> Callable[[], Session]:
    """What makes ready what is to be run; it is closed by whoever asks for it."""
    from harness import sessions

    def prepare() -> Session:
        return sessions.attach(scenario, prediction, server) if server else sessions.prepare(mode, scenario, prediction)

    return prepare


def once(
    mode: Any, scenario: Scenario, prediction: Account, out: Path, how: dict[str, Any],
    server: Attached | None = None, *, quiet: bool,
) -> tuple[int, Reading | None]:  # fmt: skip
    """One run: its exit code, and what is read of it; None where it could not be written down to its end."""
    from harness.attempts import attempt
    from harness.commands.progress import watching

    prepare = preparing(mode, scenario, prediction, server)
    with watching() as progress:
        folder = attempt(
            prepare, scenario, prediction, out, lambda text: say(scenario, text), progress=progress, **how
        )
    if folder.manifest["outcome"] == "not_recorded":
        click.echo(f"bench: {folder.manifest['reason']}: {folder.path}", err=True)
        return EXIT_MACHINE, None
    return conclude(folder, quiet=quiet)


def conclude(folder: store.RunFolder, *, quiet: bool) -> tuple[int, Reading]:
    """Write what is computed from the folder into it, show the report, and tell the exit code."""
    from harness.report import markdown
    from harness.report.content import build
    from harness.report.reading import understand

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
        show(report)
        click.echo(f"\nRun folder: {folder.path}")
    else:
        click.echo(f"run folder: {folder.path}", err=True)
    return EXIT_MACHINE if unrecorded else _exit_code(reading, report), reading


def show(report: Report) -> None:
    """On the terminal."""
    from rich.console import Console

    from harness.report import text

    text.show(report, Console())


def _exit_code(reading: Reading, report: Report) -> int:
    from harness.report.outcome import is_result

    outcome = reading.record.outcome
    if not is_result(reading):
        click.echo(f"bench: {outcome}: {reading.record.manifest.get('reason', '')}", err=True)
        not_the_engine = {"interrupted": EXIT_INTERRUPTED, "device_lost": EXIT_MACHINE, "disturbed": EXIT_MACHINE}
        return not_the_engine.get(outcome, EXIT_ENGINE)
    return code_of(report.expectation_met)


def code_of(met: bool | None) -> int:
    """The exit code of a result."""
    return EXIT_NOT_MET if met is False else EXIT_MET


def say(scenario: Scenario, text: str) -> None:
    """A line on stderr about ``scenario``."""
    print(f"{scenario.name}: {text}", file=sys.stderr, flush=True)
