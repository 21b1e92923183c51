"""``bench capacity``: the most users and the longest context that hold."""

from __future__ import annotations

import json

import click

from harness.commands.check import valid
from harness.errors import LoadfitError, UsageError


@click.command()
@click.argument("scenario", metavar="SCENARIO")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the scenario.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def capacity(scenario: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Find the most users and the longest context that hold on SCENARIO's predicted pool.

    By search over the simulated scheduler: the largest that runs without preemption and without waiting
    for blocks, one step past it, and what the step costs.

    \b
    Examples:
      bench capacity scenarios/70b_8k_int4.yaml
      bench capacity scenarios/70b_8k_int4.yaml --set engine.kv_cache_dtype=fp8 --json | jq .answers[0].largest
    """
    from harness.predict.capacity import capacity as found

    loaded = valid(scenario, overrides)
    try:
        result = found(loaded)
    except LoadfitError as error:
        raise UsageError(f"{scenario}: {error}") from None
    from harness.report import capacity as report

    if as_json:
        click.echo(json.dumps(report.document(result), indent=1))
        return
    from rich.console import Console

    from harness.report import text

    text.show(report.build(result), Console())
