"""``bench gpus``: the GPUs that the catalogue knows."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from harness import catalog
from harness.units import gib


@click.command(short_help="List the GPUs of the catalogue.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def gpus(as_json: bool) -> None:
    """List the GPUs of the catalogue: memory as the driver states it and as CUDA sees it, with sources.

    \b
    Example:
      bench gpus
    """
    known = catalog.gpus()
    if as_json:
        click.echo(json.dumps({"schema": 1, "gpus": [asdict(g) for g in known]}, indent=1, default=str))
        return
    from harness.commands import tables

    table = tables.table(("name", "as the driver calls it"), ("NVML GiB", "CUDA GiB", "GB/s", "bf16 TFLOP/s"))
    for g in known:
        bandwidth = "–" if g.bandwidth_bytes_per_s is None else f"{g.bandwidth_bytes_per_s / 1e9:,.0f}"
        flops = "–" if g.bf16_flops is None else f"{g.bf16_flops / 1e12:,.0f}"
        table.add_row(g.name, g.title, gib(g.memory_bytes), gib(g.cuda_total_bytes), bandwidth, flops)
    tables.show(table)
