"""``bench capacity``: the most users, the highest rate and the longest context that hold."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.commands.check import calibration_option, valid
from harness.errors import LoadfitError, MachineError, UsageError

if TYPE_CHECKING:
    from harness.predict.capacity import Capacity, Tell, Trial
    from harness.report.capacity import Rehearsed

_WORDS = {"users": "users", "requests": "requests", "rate_per_s": "rates", "context_tokens": "contexts"}
_PATIENCE_S = 2.0


@click.command(short_help="Find how many users, requests and tokens hold.")
@click.argument("scenario", metavar="SCENARIO")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the scenario.")
@calibration_option
@click.option("--rehearse", is_flag=True, help="Try the first answer and one step past it on real vLLM (minutes).")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
    help="Where the run folders of --rehearse go.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def capacity(
    scenario: str, overrides: tuple[str, ...], calibration: Path | None, rehearse: bool, out: Path, as_json: bool
) -> None:  # fmt: skip
    """Find the most users, the highest request rate and the longest context that hold on SCENARIO's predicted pool.

    By search over the simulated scheduler: the largest that runs without preemption and without waiting
    for blocks, and meets the scenario's SLO where it states one; one step past it, and what the step costs.

    \b
    Examples:
      bench capacity scenarios/70b_8k_int4.yaml
      bench capacity scenarios/70b_8k_int4.yaml --set slo.ttft_p95_s=5
      bench capacity scenarios/70b_8k_int4.yaml --json | jq .answers[0].largest
      bench capacity scenarios/70b_8k_int4.yaml --rehearse
    """
    from harness.predict.capacity import capacity as found

    loaded = valid(scenario, overrides, calibration)
    try:
        with _watching() as tell:
            result = found(loaded, tell)
    except LoadfitError as error:
        raise UsageError(f"{scenario}: {error}") from None
    rehearsed = [_rehearsed(result, trial, out) for trial in _first(result)] if rehearse else []
    from harness.report import capacity as report

    if as_json:
        click.echo(json.dumps(report.document(result, rehearsed), indent=1))
        return
    from rich.console import Console

    from harness.report import text

    text.show(report.build(result, rehearsed), Console())


def _first(result: Capacity) -> list[Trial]:
    """The largest load that is good by the first answer, and one step past it."""
    first = result.answers[0]
    return [trial for trial in (first.at, first.past) if trial]


def _rehearsed(result: Capacity, trial: Trial, out: Path) -> Rehearsed:
    """``trial`` on real vLLM. Raises MachineError where this machine can't, or where it did not run to its end."""
    from harness import modes, store
    from harness.attempts import attempt
    from harness.commands.once import preparing, say
    from harness.commands.progress import watching
    from harness.predict import predict
    from harness.report.capacity import Rehearsed
    from harness.report.reading import understand

    tried = result.scenario.model_copy(update={"load": trial.load})
    prediction = predict(tried)
    prepare = preparing(modes.Mode.REHEARSAL, tried, prediction, None)
    with watching() as progress:
        folder = attempt(
            prepare, tried, prediction, out, lambda text: say(tried, text), why="bench capacity --rehearse",
            progress=progress,
        )  # fmt: skip
    folder.finish()
    reading = understand(store.read(folder.path))
    expected = reading.record.rehearsal
    if reading.measured is None or expected is None or reading.record.outcome != "completed":
        raise MachineError(f"{folder.path}: {reading.record.outcome}: {reading.record.manifest.get('reason', '')}")
    holds = reading.measured.rung("HOLDS")
    return Rehearsed(
        trial.value, holds.holds if holds else None, expected.load, reading.measured.load, str(folder.path)
    )


@contextlib.contextmanager
def _watching() -> Iterator[Tell]:
    """A Tell that shows a bar once the search has taken two seconds, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    began, bar = time.monotonic(), Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=1)

    def tell(done: int, total: int, what: str) -> None:
        if time.monotonic() - began > _PATIENCE_S and sys.stderr.isatty():
            bar.start()
        bar.update(task, description=f"searching {_WORDS[what]}", completed=done, total=total)

    try:
        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()
