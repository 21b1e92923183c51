"""Tables that verbs print by themselves: as wide as a report, without spaces at a line's end."""

from __future__ import annotations

from collections.abc import Iterable

import click
from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 100


def table(texts: Iterable[str], numbers: Iterable[str] = (), title: str | None = None) -> Table:
    """An empty one whose first columns have ``texts``, of which the first is not wrapped, the others ``numbers``."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title, padding=(0, 1, 0, 0))
    for n, head in enumerate(texts):
        made.add_column(head, no_wrap=n == 0)
    for head in numbers:
        made.add_column(head, justify="right")
    return made


def show(made: Table) -> None:
    """Print it."""
    console = Console(width=WIDTH, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(made)
    click.echo("\n".join(line.rstrip() for line in captured.get().rstrip().splitlines()))
