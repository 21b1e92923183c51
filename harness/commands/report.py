"""``bench report``: renders a run again, from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness import store
from harness.errors import RecordError


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


def _leads_away(path: Path) -> bool:
    """Whether ``path`` is a link, and not to what lies beside it, as ``latest`` is."""
    return path.is_symlink() and path.resolve().parent != path.parent.resolve()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "html", "json", "csv"]), default="text",
    show_default=True, help="How to show it.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="A file to write to (csv: a folder).")
def report(folder: Path, form: str, out: Path | None) -> None:
    """Show a run again. RUN is its folder, or the folder of a scenario (its latest run).

    An interrupted run is shown as far as it came.

    \b
    Examples:
      bench report results/70b_8k_int4/latest
      bench report results/70b_8k_int4 --format markdown > ticket.md
      bench report results/70b_8k_int4 --format html --out report.html
      bench report results/70b_8k_int4 --format csv --out frames/
    """
    from harness.report.content import build, understand

    reading = understand(store.read(find(folder)))
    if form == "csv":
        from harness.report.tables import from_reading

        target = out or reading.record.path / "csv"
        if out is None and any(_leads_away(link) for link in (reading.record.path, target)):
            raise RecordError(f"{target} leads to elsewhere: nothing is written through a link (--out names a folder)")
        try:
            paths = from_reading(reading).to_csv(target)
        except OSError as error:
            raise RecordError(f"{target} can't be written: {error.strerror}") from None
        click.echo("\n".join(map(str, paths)))
        return
    if form == "json":
        from harness.report.document import document

        text = json.dumps(document(reading), indent=1) + "\n"
    elif form == "markdown":
        from harness.report import markdown

        text = markdown.render(build(reading))
    elif form == "html":
        from harness.report import html

        text = html.render(build(reading), reading)
    elif out is None:
        from rich.console import Console

        from harness.report import text as terminal

        terminal.show(build(reading), Console())
        return
    else:
        from harness.report import text as terminal

        text = terminal.render(build(reading))
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{out} can't be written: {error.strerror}") from None
