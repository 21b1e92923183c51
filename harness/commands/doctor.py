"""``bench doctor``: what this machine has, and what a run can and can't measure on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from harness.doctor import Check

_MARKS = {True: "ok", False: "NO", None: "–"}


@click.command(short_help="Tell what this machine can measure.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def doctor(as_json: bool) -> None:
    """Tell what this machine has for a run: driver, GPUs, vLLM, and what will and won't be measured.

    Nothing is started, and no setting is changed.

    \b
    Examples:
      bench doctor
      bench doctor --json | jq '.checks[] | select(.ok == false)'
    """
    from harness.doctor import machine, measures

    checks, measured = machine(), measures()
    if as_json:
        both = {"checks": [asdict(c) for c in checks], "measures": [asdict(c) for c in measured]}
        click.echo(json.dumps({"schema": 1, **both}, indent=1))
        return
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 100, highlight=False)
    _show(console, "What is here", checks)
    _show(console, "What can be measured", measured)


def _show(console: Console, title: str, checks: Sequence[Check]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        style = "red" if check.ok is False else ""
        what = check.found + (f"\n→ {check.remedy}" if check.remedy else "")
        table.add_row(Text(_MARKS[check.ok], style=style), Text(check.name), Text(what))
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()
