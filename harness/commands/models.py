"""``bench models``: the models that the catalogue knows."""

from __future__ import annotations

import json
from typing import Any

import click

from harness import catalog
from harness.architecture import from_config


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def models(as_json: bool) -> None:
    """List the models of the catalogue: parameters, layers, heads and KV bytes for each token (bf16).

    \b
    Example:
      bench models
    """
    rows: list[dict[str, Any]] = []
    for name in catalog.model_names():
        a = from_config(catalog.model_config(name))
        rows.append(
            {
                "name": name, "parameters": a.parameters, "layers": a.layers, "heads": a.heads,
                "kv_heads": a.kv_heads, "kv_bytes_per_token": sum(k.bytes_per_token(1, 2) for k in a.kv_layers),
            }
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"schema": 1, "models": rows}, indent=1))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("model")
    for head in ("parameters", "layers", "heads", "KV heads", "KV KiB/token"):
        table.add_column(head, justify="right")
    for r in rows:
        table.add_row(
            r["name"], f"{r['parameters'] / 1e9:.2f} B", str(r["layers"]), str(r["heads"]), str(r["kv_heads"]),
            f"{r['kv_bytes_per_token'] / 1024:,.1f}",
        )  # fmt: skip
    Console(width=100).print(table)
