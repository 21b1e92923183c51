"""The report for a terminal: 100 columns, and plain when pasted."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from harness.engines.log import printable
from harness.report.parts import Report, Section, Table

WIDTH = 100
_STYLES = {"yes": "green", "NO": "bold red", "equal": "green"}


def show(report: Report, console: Console) -> None:
    """Print ``report``."""
    if console.is_terminal:
        width = min(WIDTH, console.width)
        console.print(_layout(report, width), width=width, highlight=False)
    else:
        console.file.write(render(report))


def render(report: Report) -> str:
    """As plain text, 100 columns."""
    console = Console(width=WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(_layout(report), highlight=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _text(text: str, style: str = "") -> Text:
    """Never read as markup, and nothing in it that a terminal would act on; its own line ends stay."""
    return Text("\n".join(map(printable, text.split("\n"))), style=style)


def _layout(report: Report, width: int = WIDTH) -> RenderableType:
    parts: list[RenderableType] = [_text(report.title, style="bold"), *(_text(line) for line in report.lead)]
    for section in report.sections:
        parts += ["", _text(section.title, style="bold")]
        parts += _body(section, width)
    if report.expectation_met is not None:
        parts.append("")
        if report.expectation_met:
            parts.append(_text("As expected: every expectation of the scenario is met.", style="green"))
        else:
            parts += [_text(line, style="bold red") for line in report.expectation_failed]
    return Group(*parts)


def _body(section: Section, width: int) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if section.sentences:
        joined = " ".join if section.flowing else "\n".join
        parts.append(Padding(_text(joined(section.sentences)), (0, 0, 0, 2), expand=False))
    if section.table:
        parts.append(Padding(_table(section.table, width - 2), (0, 0, 0, 2), expand=False))
    parts += [Padding(_text(line), (0, 0, 0, 2), expand=False) for line in section.quoted]
    return parts


def _table(table: Table, width: int) -> RenderableType:
    shown = [i for i in range(len(table.columns)) if not (width < WIDTH - 7 and i == table.droppable)]
    if _least(table, shown) > width:
        return _stacked(table, shown)
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for i in shown:
        name, left = table.columns[i], i in table.left
        rich.add_column(_text(name), justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for row in table.rows:
        rich.add_row(*(_text(row[i], style=_STYLES.get(row[i], "")) for i in shown))
    return rich


def _least(table: Table, shown: list[int]) -> int:
    """Columns of text that the table takes at least: left columns break between words, the others nowhere."""
    columns = ((i in table.left, (table.columns[i], *(row[i] for row in table.rows))) for i in shown)
    pieces = ([w for cell in cells for w in (cell.split() if left else [cell])] for left, cells in columns)
    return sum(max(map(len, words), default=0) for words in pieces) + 3 * (len(shown) - 1)


def _stacked(table: Table, shown: list[int]) -> Text:
    """What no narrow terminal has room for side by side: a line for each cell that says something."""
    text = Text()
    for row in table.rows:
        text.append(f"{printable(row[shown[0]])}\n", style="bold")
        for i in (i for i in shown[1:] if row[i]):
            text.append(f"  {printable(table.columns[i])}: ")
            text.append(f"{printable(row[i])}\n", style=_STYLES.get(row[i], ""))
    text.rstrip()
    return text
