"""``bench check``: only validates."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.errors import EXIT_USAGE, LoadfitError, UsageError

if TYPE_CHECKING:
    from harness.scenario import Scenario


def calibration_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--calibration FILE`` of a command that predicts a scenario."""
    told = "Predict with the constants in a file of bench calibrate."
    return click.option("--calibration", type=click.Path(path_type=Path), metavar="FILE", help=told)(command)


def valid(file: str, overrides: Sequence[str] = (), calibration: Path | None = None) -> Scenario:
    """The scenario in ``file``, whose arguments vLLM would take, with what ``calibration`` holds.

    Raises LoadfitError that names the file.
    """
    from harness.scenario import calibrated, load_scenario, place_of

    scenario = load_scenario(file, overrides)
    if calibration is not None:
        scenario = calibrated(scenario, calibration)
    try:
        if scenario.kind == "finetune":
            from harness.predict.finetune import checked

            checked(scenario)
        else:
            from harness.predict.limits import bounds

            bounds(scenario, 0)  # what vLLM would refuse before it looks at the memory
    except UsageError as error:
        key, _, text = str(error).partition(": ")
        if not re.fullmatch(r"(device|engine|gpu|load|weights|training)(\.\w+)*", key):
            raise UsageError(f"{file}: {error}") from None
        where = place_of(file, overrides, key)
        raise UsageError(f"{where}: {key}: {text}" if where.startswith(file) else f"{file}: {where}: {text}") from None
    return scenario


@click.command(short_help="Validate scenario files.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def check(files: tuple[str, ...]) -> int:
    """Validate scenario files: every fault at its line, with the nearest right name.

    \b
    Example:
      bench check scenarios/*.yaml
    """
    bad = 0
    for file in files:
        try:
            valid(file)
        except LoadfitError as error:
            bad += 1
            click.echo(str(error), err=True)
        else:
            click.echo(f"{file}: ok")
    return EXIT_USAGE if bad else 0
