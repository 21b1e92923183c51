"""``bench learn``: a question answered by a small experiment on this computer."""

from __future__ import annotations

import json
import os
import textwrap

import click


@click.command(short_help="Answer a question by a small experiment.")
@click.argument("name", required=False)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of what is drawn.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def learn(name: str | None, seed: int, as_json: bool) -> None:
    """List the experiments, or do the one called NAME: a table, what it says, and the papers behind it.

    Real arithmetic on made-up inputs, in seconds, without a GPU.

    \b
    Examples:
      bench learn
      bench learn fp16-bf16
      bench learn gptq-awq --seed 1 --json
    """
    from harness.learn import EXPERIMENTS, find, run
    from harness.report import learn as report

    if name is None:
        if as_json:
            listed = [{"name": n, "question": e.question} for n, e in EXPERIMENTS.items()]
            click.echo(json.dumps({"schema": 1, "experiments": listed}, indent=1))
        else:
            for known, experiment in EXPERIMENTS.items():
                click.echo(textwrap.fill(f"{known:<18}{experiment.question}", 100, subsequent_indent=" " * 18))
        return
    find(name)
    # On matrices this small a second thread only waits for the first.
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    finding = run(name, seed)
    if as_json:
        click.echo(json.dumps(report.document(name, seed, finding), indent=1))
        return
    from rich.console import Console

    from harness.report import text

    text.show(report.build(name, finding), Console())
