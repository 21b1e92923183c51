"""``bench paging``: contiguous KV memory beside blocks."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness.commands.check import calibration_option, valid
from harness.errors import LoadfitError, UsageError


@click.command(short_help="Show what paging saves.")
@click.argument("scenario", metavar="SCENARIO")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the scenario.")
@calibration_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def paging(scenario: str, overrides: tuple[str, ...], calibration: Path | None, as_json: bool) -> None:
    """Show what paging saves: SCENARIO's load on contiguous KV memory and on blocks of 1 to 256 tokens.

    The contiguous allocators reserve max_model_len for each request, or the power of two that it reaches;
    the pool has the same tokens throughout.

    \b
    Examples:
      bench paging scenarios/8b_24gb_int4_under_load.yaml
      bench paging scenarios/70b_8k_int4.yaml --set load.prompt_tokens=1000 --json
    """
    from harness.predict.capacity import loaded_pool
    from harness.predict.simulated import step_time_of
    from harness.simulate.paging import compare

    loaded = valid(scenario, overrides, calibration)
    try:
        account, load, limits = loaded_pool(loaded)
        uses = compare(load, limits, step_time_of(loaded))
    except LoadfitError as error:
        raise UsageError(f"{scenario}: {error}") from None
    from harness.report import paging as report

    if as_json:
        click.echo(json.dumps(report.document(loaded, account, uses), indent=1))
        return
    from rich.console import Console

    from harness.report import text

    text.show(report.build(loaded, account, uses), Console())
