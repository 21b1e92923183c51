"""A scenario's ``repeats``: what is finished of the series is kept, the rest is run, the spread is shown."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from harness.commands.once import code_of, once, preparing, say, show
from harness.devices import lock, procfs
from harness.errors import EXIT_INTERRUPTED, EXIT_MACHINE, LoadfitError, MachineError
from harness.store import series as stored

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engines.attached import Attached
    from harness.ledger import Account
    from harness.report.series import Series
    from harness.scenario import Scenario


def repeated(
    mode: Any, scenario: Scenario, prediction: Account, out: Path, how: dict[str, Any],
    server: Attached | None = None, *, again: bool, quiet: bool,
) -> tuple[int, Series]:  # fmt: skip
    """Run the repeats that are not finished yet; the worst exit code of all that count or were run now.

    A failure of the engine does not keep the others from being run; an interrupt, a full disk or a lost GPU does.
    """
    from harness.report import repeats as report
    from harness.report import series

    parent = out / scenario.name
    key = _what(mode, scenario, prediction, server)
    try:
        held = lock.take(f"series-{stored.key_of(key=key, parent=str(parent.resolve()))}")
    except lock.TakenError as taken:
        raise MachineError(
            f"another bench runs these repeats ({taken}): wait for it, its finished repeats are not run again"
        ) from None
    with held:
        id = (None if again else stored.latest(key, parent)) or stored.begin(key)
        before = series.gather(parent, id)
        _tell_kept(scenario, before)
        codes = [code_of(run.met) for run in before.runs if run.counted]
        for number in (n for n in range(1, scenario.repeats + 1) if n not in before.counted):
            say(scenario, f"repeat {number} of {scenario.repeats}: {'the same server' if server else 'a fresh engine'}")
            place = {"id": id, "repeat": number, "repeats": scenario.repeats}
            try:
                code, _ = once(mode, scenario, prediction, out, {**how, "series": place}, server, quiet=True)
            except LoadfitError as error:
                if not codes:
                    raise
                click.echo(f"bench: repeat {number} of {scenario.repeats}: {error}", err=True)
                code = error.exit_code
                codes.append(code)
                break
            codes.append(code)
            if code in (EXIT_INTERRUPTED, EXIT_MACHINE):
                break
        found = replace(series.gather(parent, id), repeats=scenario.repeats)
    if not quiet:
        show(report.build(found))
        click.echo(f"\nRun folders: {parent} (one by itself: bench report FOLDER --alone)")
    return max(codes), found


def _what(mode: Any, scenario: Scenario, prediction: Account, server: Attached | None) -> str:
    """The name of what is repeated: the scenario, the mode, the engine with its arguments, and the machine."""
    with contextlib.closing(preparing(mode, scenario, prediction, server)()) as session:
        expected = session.expected
        return stored.key_of(
            digest=scenario.digest,
            mode=str(mode),
            engine=(session.engine.distribution, session.engine.version, session.plan.arguments),
            server=server.url if server else None,
            # What is rehearsed is the prediction's pool, at the prediction's pace.
            rehearsed=(expected.kv, expected.load) if session.mode == "rehearsal" else None,
            machine=(procfs.machine(), [gpu.uuid for gpu in session.gpus]),
        )


def _tell_kept(scenario: Scenario, found: Series) -> None:
    kept = [f"{run.number} ({run.path.name})" for run in found.runs if run.counted]
    if kept:
        enough = len(found.counted) >= scenario.repeats
        left = "; nothing is left to run (--again runs all anew)" if enough else ""
        say(scenario, f"kept of {scenario.repeats} repeats: {', '.join(kept)}{left}")
