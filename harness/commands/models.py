"""``bench models``: the models that the catalogue knows, and what one of them is made of."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import catalog
from harness.architecture import Architecture
from harness.architecture.folder import read_config
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.predict.inventory import Inventory, Part

SMALL_SHARE = 0.0005  # parts below are shown as one row


@click.command(short_help="List models, or show where the bytes of one sit.")
@click.argument("words", nargs=-1, metavar="[NAME | WORDS...]")
@click.option("--config", type=click.Path(path_type=Path), help="A config.json or its folder, instead of NAME.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def models(words: tuple[str, ...], config: Path | None, as_json: bool) -> None:
    """List the models of the catalogue, or those that all WORDS are part of: of the name, the class, the kinds of the
    KV cache, "experts", "vision" or "audio". With the NAME of one, show where its bytes sit.

    \b
    Examples:
      bench models
      bench models qwen vl
      bench models experts mla
      bench models gpt-oss-20b
      bench models --config ./my-model/config.json --json
    """
    from harness.predict.inventory import inventory

    if words and config is not None:
        raise UsageError("bench models: give NAME or --config, not both")
    name = " ".join(words)
    if config is None and not catalog.knows_model(name):
        _list(_matching(words), as_json)
        return
    if config is None:
        shown = inventory(catalog.model_config(name))
    else:
        shown = inventory(read_config(config), config if config.is_dir() else None)
    if as_json:
        click.echo(json.dumps({"schema": 1, **shown.as_dict()}, indent=1))
        return
    if config is not None:
        _show(str(config), shown)
        return
    facts = catalog.model_facts(name)
    _show(facts["name"], shown)
    click.echo(f"Entry: {catalog.CHECKED[facts['checked']]} ({facts.get('copy') or facts['source']})")


def kv_words(architecture: Architecture) -> str:
    """The layers of the cache in words: ``12 sliding 128 + 12 full``."""
    return " + ".join(
        f"{len(members)} {layer.kind}" + (f" {layer.window}" if layer.window else "")
        + (f" 1:{layer.tokens_per_row}" if layer.tokens_per_row > 1 else "")
        for layer, members in architecture.kv_kinds.items()
    )


# -- the list --------------------------------------------------------------------------------------


def _matching(words: tuple[str, ...]) -> list[tuple[str, Inventory]]:
    """The models that all ``words`` are part of. Raises UsageError, with near names, where there is none."""
    from harness.predict.inventory import inventory

    rows = [(name, inventory(catalog.model_config(name))) for name in catalog.model_names()]
    found = [(n, i) for n, i in rows if all(w.lower() in _searched(n, i.architecture) for w in words)]
    if not found:
        catalog.model_config(" ".join(words))
    return found


def _searched(name: str, a: Architecture) -> str:
    kinds = {kind.kind for kind in a.kv_kinds}
    return " ".join(
        (name, *catalog.model_facts(name)["aliases"], a.name, *kinds, *["experts"] * bool(a.mixture),
         *(m for m in ("vision", "audio") if a.tower and m in a.tower.senses))
    ).lower()  # fmt: skip


def _list(rows: list[tuple[str, Inventory]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"schema": 1, "models": [_row(n, i) for n, i in rows]}, indent=1))
        return
    from harness.commands import tables

    table = tables.table(("model",), ("billions", "active", "KiB"))
    for head in ("cache", "entry"):
        table.add_column(head)
    for name, shown in rows:
        a = shown.architecture
        table.add_row(
            name, f"{a.parameters / 1e9:.2f}", f"{a.active_parameters / 1e9:.2f}" if a.mixture else "",
            f"{shown.kv_bytes_per_token / 1024:,.1f}", kv_words(a), catalog.model_facts(name)["checked"],
        )  # fmt: skip
    tables.show(table)
    click.echo(
        f"\n{len(rows)} of {len(catalog.model_names())} models; `bench models NAME` shows one. Billions of parameters, "
        "of them active\nfor a token; KiB of KV cache that a token writes; the layers of the cache. Entries are"
    )
    for checked in dict.fromkeys(catalog.model_facts(name)["checked"] for name, _ in rows):
        click.echo(textwrap.fill(f"  {checked}: {catalog.CHECKED[checked]}", tables.WIDTH, subsequent_indent="    "))


def _row(name: str, shown: Inventory) -> dict[str, Any]:
    a = shown.architecture
    return {
        "name": name, "parameters": a.parameters, "active_parameters": a.active_parameters, "layers": a.layers,
        "heads": a.heads, "kv_heads": a.kv_heads, "kv_kinds": sorted({k.kind for k in a.kv_kinds}),
        "kv_bytes_per_token": shown.kv_bytes_per_token, "checked": catalog.model_facts(name)["checked"],
    }  # fmt: skip


# -- one model -------------------------------------------------------------------------------------


def _show(title: str, shown: Inventory) -> None:
    from harness.commands import tables
    from harness.predict.inventory import Part

    a = shown.architecture
    active = f", {a.active_parameters / 1e9:.2f} B of them for a token" if a.mixture else ""
    click.echo(f"{title} ({a.name}): {a.parameters:,} parameters{active}; weights {shown.quantization.name}\n")
    table = tables.table(("part", "of"), ("copies", "parameters", "MiB", "share"))
    parts = sorted(shown.parts, key=lambda p: -p.bytes)
    small = [p for p in parts if p.bytes < SMALL_SHARE * shown.bytes]
    if len(small) < 3:  # no need to fold them
        small = []
    for part in parts[: len(parts) - len(small)]:
        table.add_row(*_cells(part, shown.bytes))
    if small:
        parameters, bytes_ = sum(p.parameters for p in small), sum(p.bytes for p in small)
        table.add_row(*_cells(Part(f"{len(small)} smaller", "", 0, parameters, bytes_), shown.bytes))
    table.add_row("all", "", "", f"{a.parameters:,}", f"{shown.bytes / 2**20:,.1f}", "100.0 %")
    tables.show(table)
    state = f"; a request's states take {shown.state_bytes:,}" if shown.state_bytes else ""
    if shown.encoder_bytes:
        state += f"; a request's encoder leaves {shown.encoder_bytes:,} ({a.encoder_tokens:,} positions)"
    click.echo(
        f"\nKV cache: {kv_words(a)}; one token writes {shown.kv_bytes_per_token:,} bytes ({shown.kv_dtype}), "
        f"all layers together{state}"
    )
    click.echo(f"Parts by {a.source}; formats from {shown.quantization.source}")


def _cells(part: Part, whole: int) -> tuple[str, ...]:
    share = f"{100 * part.bytes / whole:.1f} %"
    return part.name, part.kind, str(part.copies or ""), f"{part.parameters:,}", f"{part.bytes / 2**20:,.1f}", share
