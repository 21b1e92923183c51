"""``bench evidence``: every public run of the evidence, predicted from its configuration alone."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import click

from harness.errors import UsageError
from harness.units import GIB

if TYPE_CHECKING:
    from harness.evidence import Compared


@click.command(short_help="Show how far off predictions of public runs are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, sizes in bytes.")
@click.option("--markdown", is_flag=True, help="The document that is kept as docs/accuracy.md.")
def evidence(as_json: bool, markdown: bool) -> None:
    """Predict every public run of the evidence from its configuration and show how far off each term is.

    \b
    Examples:
      bench evidence
      bench evidence --json
    """
    if as_json and markdown:
        raise UsageError("--json and --markdown: one of them at most")
    from harness import evidence as proof

    runs = proof.compared()
    if as_json:
        click.echo(json.dumps({"schema": 1, **proof.as_dict(runs)}, indent=1))
    elif markdown:
        click.echo(proof.document(runs), nl=False)
    else:
        _show(runs)


def _show(runs: list[Compared]) -> None:
    from harness import evidence as proof
    from harness.commands import tables

    figures = ("n", "MAE", "median", "p95", "worst", "bias", "median\n%", "p95\n%", "worst\n%")
    table = tables.table(("term", "rows"), figures, title="GiB; per cent of what was measured")
    for term, name, e in proof.term_errors(runs):
        sizes = [f"{x / GIB:.3f}" for x in (e.mae, e.median, e.p95, e.worst)]
        shares = [f"{x:.2f}" for x in (e.median_percent, e.p95_percent, e.worst_percent)]
        table.add_row(term, name, str(e.runs), *sizes, f"{e.bias / GIB:+.3f}", *shares)
    tables.show(table)
    for name, key in (("GPU", lambda r: r.gpu), ("version", lambda r: ".".join(r.version.split(".")[:2]))):
        shown = ", ".join(f"{value} {e.median_percent:.2f} % ({e.runs})" for value, e in proof.by(runs, key))
        click.echo(textwrap.fill(f"KV pool, median error by {name}: {shown}", tables.WIDTH, subsequent_indent="  "))
    exact, known = proof.rates(runs)
    right, judged = proof.verdicts(runs)
    pools = sum(r.error("kv") is not None for r in runs)
    click.echo(f"\n{len(runs)} rows, {pools} pools compared; docs/accuracy.md says why not the others.")
    click.echo(f"Bytes of KV cache a token: {exact} of {known} as predicted.")
    fits, known = proof.layered(runs)
    click.echo(f"Tokens of pools whose layers differ, from their bytes: {fits} of {known} as predicted.")
    click.echo(f"Verdicts: {right} of {judged} right.")
    for r in runs:
        if r.judged and r.verdict != r.reached:
            happened = r.reached or r.note or "refused"
            line = f"  wrong: {r.id} {r.label}: {r.verdict or 'refused'} predicted, {happened}"
            click.echo(textwrap.fill(line, tables.WIDTH, subsequent_indent="    "))
