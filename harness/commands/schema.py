"""``bench schema``: the JSON Schema of the scenario language."""

from __future__ import annotations

import json

import click


@click.command(short_help="Print the JSON Schema of scenario files.")
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors and CI.

    \b
    Example:
      bench schema > docs/scenario.schema.json
    """
    from harness.scenario import schema as scenario_schema

    click.echo(json.dumps(scenario_schema(), indent=1))
