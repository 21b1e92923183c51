"""``bench report``: renders a run again, from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness import store
from harness.commands.once import show
from harness.errors import RecordError, UsageError, nearest

if TYPE_CHECKING:
    import pandas as pd


def find(path: Path) -> Path:
    """The run folder that ``path`` names: itself, or the latest run of a scenario's folder."""
    if (path / store.MANIFEST).exists() or not path.is_dir():
        return path
    runs = sorted(p.parent for p in path.glob(f"*/{store.MANIFEST}") if not p.parent.is_symlink())
    whole = [run for run in runs if run.suffix != store.PARTIAL]
    if not runs:
        raise RecordError(f"{path} holds no {store.MANIFEST}: not a run folder, or cut short before the run began")
    if whole and runs[-1] != whole[-1]:
        click.echo(f"bench: a later run was cut short, or is still under way: {runs[-1]}", err=True)
    return (whole or runs)[-1]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "html", "json", "csv"]), default="text",
    show_default=True, help="How to show it.",
)  # fmt: skip
@click.option("--table", metavar="NAME", help="Of csv: the one table to show, such as steps (unless given: terms).")
@click.option("--out", type=click.Path(path_type=Path), help="A file to write to (csv: a folder, for all tables).")
@click.option("--alone", is_flag=True, help="One repeat of a series by itself.")
def report(folder: Path, form: str, table: str | None, out: Path | None, alone: bool) -> None:
    """Show a run again. RUN is its folder, or the folder of a scenario (its latest run).

    An interrupted run is shown as far as it came, a repeat with the others of its series. Nothing is written but what
    --out names.

    \b
    Examples:
      bench report results/70b_8k_int4/latest
      bench report results/70b_8k_int4 --format markdown > ticket.md
      bench report results/70b_8k_int4 --format html --out report.html
      bench report results/70b_8k_int4 --format csv --table steps | head
      bench report results/70b_8k_int4 --format csv --out frames/
    """
    if table is not None and form != "csv":
        raise UsageError("--table: of --format csv")
    from harness.report.found import document_of, frames_of, page_of, read, report_of

    found = read(find(folder), alone=alone)
    if form == "csv":
        _csv(frames_of(found), table, out)
    elif form == "json":
        _tell(json.dumps(document_of(found), indent=1) + "\n", out)
    elif form == "html":
        _tell(page_of(found), out)
    elif form == "markdown":
        from harness.report import markdown

        _tell(markdown.render(report_of(found)), out)
    elif out is not None:
        from harness.report import text

        _tell(text.render(report_of(found)), out)
    else:
        show(report_of(found))


def _csv(frames: dict[str, pd.DataFrame], table: str | None, out: Path | None) -> None:
    """One table on stdout or in a file, or all of them in a folder."""
    from harness.report.tables import write

    if table is not None and table not in frames:
        raise UsageError(f"--table: one of {', '.join(frames)}{nearest(table, frames)}")
    if out is None or table is not None:
        _tell(frames[table or "terms"].to_csv(index=False), out)
        return
    try:
        paths = write(frames, out)
    except OSError as error:
        raise RecordError(f"{out} can't be written: {error.strerror}") from None
    click.echo("\n".join(map(str, paths)))


def _tell(text: str, out: Path | None) -> None:
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{out} can't be written: {error.strerror}") from None
