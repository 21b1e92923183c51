"""The report for a terminal: 100 columns, and plain when pasted."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from harness.report.content import Report, Section
from harness.report.table import Table

WIDTH = 100
_STYLES = {"yes": "green", "NO": "bold red", "equal": "green"}


def show(report: Report, console: Console) -> None:
    """Print ``report``."""
    if console.is_terminal:
        narrow = console.width < WIDTH - 5
        console.print(_layout(report, narrow=narrow), width=min(WIDTH, console.width), highlight=False)
    else:
        console.file.write(render(report))


def render(report: Report) -> str:
    """As plain text, 100 columns."""
    console = Console(width=WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(_layout(report), highlight=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _layout(report: Report, *, narrow: bool = False) -> RenderableType:
    parts: list[RenderableType] = [Text(report.title, style="bold"), *(Text(line) for line in report.lead)]
    for section in report.sections:
        parts += ["", Text(section.title, style="bold")]
        parts += _body(section, narrow)
    if report.expectation_met is not None:
        parts.append("")
        if report.expectation_met:
            parts.append(Text("As expected: every expectation of the scenario is met.", style="green"))
        else:
            parts += [Text(line, style="bold red") for line in report.expectation_failed]
    return Group(*parts)


def _body(section: Section, narrow: bool) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if section.sentences:
        joined = " ".join if section.flowing else "\n".join
        parts.append(Padding(Text(joined(section.sentences)), (0, 0, 0, 2), expand=False))
    if section.table:
        parts.append(Padding(_table(section.table, narrow), (0, 0, 0, 2), expand=False))
    parts += [Padding(Text(line), (0, 0, 0, 2), expand=False) for line in section.quoted]
    return parts


def _table(table: Table, narrow: bool) -> RichTable:
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    shown = [i for i in range(len(table.columns)) if not (narrow and i == table.droppable)]
    for i in shown:
        name, left = table.columns[i], i in table.left
        rich.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for row in table.rows:
        rich.add_row(*(Text(row[i], style=_STYLES.get(row[i], "")) for i in shown))
    return rich
