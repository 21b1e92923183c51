"""``bench check``: only validates."""

from __future__ import annotations

import click

from harness.errors import EXIT_USAGE, LoadfitError, ScenarioError
from harness.predict import settings
from harness.scenario import load_scenario


@click.command()
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
            scenario = load_scenario(file)
            settings(scenario)  # what vLLM would refuse before it looks at the memory
        except ScenarioError as error:
            bad += 1
            click.echo(str(error), err=True)
        except LoadfitError as error:
            bad += 1
            click.echo(f"{file}: {error}", err=True)
        else:
            click.echo(f"{file}: ok")
    return EXIT_USAGE if bad else 0
