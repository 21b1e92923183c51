"""``bench calibrate``: the fitted constants, fitted again on runs of one GPU."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.errors import LoadfitError, RecordError, UsageError
from harness.units import GIB, MIB

if TYPE_CHECKING:
    from harness.calibrate import Run
    from harness.scenario import Calibration

# What the bytes of graphs grow with, by what they are alike in.
_UNITS = {"experts": "sizes", "graphs": "layers x graphs", "layers": "layers"}


HEAD = "# Written by bench calibrate"  # of a file that may be written over


@click.command(short_help="Fit the fitted constants on your own runs.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--gpu", help="The GPU by its catalogue name (`bench gpus`), where a log does not name it.")
@click.option("--model", help="The model by its catalogue name or its folder, where a log's name is not known.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A key of each log's scenario.")
@click.option("--out", type=click.Path(path_type=Path), help="The file to write (GPU-vllm-VERSION.yaml here).")
@click.option("--json", "as_json", is_flag=True, help="The calibration as one JSON document on stdout.")
def calibrate(
    runs: tuple[Path, ...], gpu: str | None, model: str | None, overrides: tuple[str, ...], out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Fit the fitted constants again on RUNs of one GPU under one vLLM: run folders, or vLLM logs as in bench import.

    What is written is a small file, which predictions take by --calibration: runtime at init, non-torch memory and
    graphs by ranks, the activation law's constant, and of runs measured here the shares of the roofline; each
    with its error before and after, and on runs left out of the fit where there are three.

    \b
    Examples:
      bench calibrate results/my_8b/latest results/my_70b/latest
      bench calibrate logs/*.log --gpu h100-sxm-80gb --out h100.yaml
      bench run scenarios/70b_8k_int4.yaml --calibration h100.yaml
    """
    from harness.calibrate import calibrate as fitted

    found = fitted(_read(runs, model, gpu, overrides), datetime.date.today())
    path = out or Path(f"{found.device.replace(' ', '-')}-vllm-{found.vllm}.yaml")
    try:
        if path.is_file() and path.stat().st_size and not path.read_bytes().startswith(HEAD.encode()):
            raise UsageError(f"--out: {path} is there and is no calibration: name another file")  # `--out logs/*.log`
        path.write_text(_yaml(found), encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{path} can't be written: {error.strerror}") from None
    if as_json:
        click.echo(json.dumps({"schema": 1, "file": str(path), **found.model_dump()}, indent=1))
    else:
        _show(found)
        click.echo(f"\nWritten: {path} (bench run SCENARIO --calibration {path})")


def _read(paths: tuple[Path, ...], model: str | None, gpu: str | None, overrides: tuple[str, ...]) -> list[Run]:
    """All runs that something can be fitted on; the others are named. Raises UsageError with all faults at once."""
    from harness.calibrate import runs
    from harness.commands.report import find

    found, faults = [], []
    for path in dict.fromkeys(p.resolve() if p.is_dir() else p for p in (find(p) for p in paths)):
        try:
            run = runs.of_folder(path) if path.is_dir() else runs.of_log(path, model, gpu, overrides)
        except LoadfitError as error:
            faults += str(error).splitlines()
            continue
        if isinstance(run, str):
            click.echo(f"left out: {path.name}: {run}", err=True)
        else:
            found.append(run)
    if faults:
        raise UsageError("\n".join(dict.fromkeys(faults)))
    if not found:
        raise UsageError("no run is left to fit on")
    return found


def _yaml(found: Calibration) -> str:
    from ruamel.yaml import YAML

    yaml, out = YAML(), io.StringIO()
    yaml.width = 110
    yaml.dump(found.model_dump(exclude_defaults=True), out)
    return HEAD + "; sizes in bytes. bench run SCENARIO --calibration FILE\n" + out.getvalue()


def _show(found: Calibration) -> None:
    from harness.commands import tables

    runs = "1 run" if found.runs == 1 else f"{found.runs} runs"
    title = f"{found.device}, vLLM {found.vllm}, {runs}; GiB, errors: median, absolute"
    table = tables.table(("term", "of", "constant"), ("runs", "error\nbefore", "after", "held\nout"), title=title)
    for row in _rows(found):
        table.add_row(*row)
    tables.show(table)
    if found.runs < 3:
        click.echo("Fewer than three runs: none can be held out, so nothing tells how far off a next one will be.")
    for what, why in found.not_refitted.items():
        click.echo(f"Not refitted: {what}: {why}.")


def _rows(found: Calibration) -> Iterator[tuple[str, ...]]:
    from harness.predict.calibrated import WORDS

    for c in found.constants:
        size = f"{c.bytes / GIB:.3f}"
        if c.bytes_per_unit:
            each = f"{c.bytes_per_unit / MIB:.3f} MiB x {_UNITS[c.of.split(maxsplit=1)[0].rstrip(',')]}"
            size = f"{size} + {each}" if c.bytes else each
        yield WORDS[c.term], c.of, size, str(c.runs), *_errors(c.before, c.after, c.held_out)
    if found.pool:
        yield "left for KV", "all of these", "", str(found.pool.runs), *_errors(
            found.pool.before, found.pool.after, found.pool.held_out
        )
    if s := found.step_times:
        shares = f"weights {s.weights:.2f}, kv {s.kv:.2f}, linear {s.linear:.2f}, attention {s.attention:.2f}"
        shown = ("–" if e is None else f"{100 * e:.1f} %" for e in (s.before, s.after, s.held_out))
        yield "step time", "shares of the roofline", shares, str(s.runs), *shown


def _errors(*sizes: int | None) -> tuple[str, ...]:
    return tuple("–" if size is None else f"{size / GIB:.3f}" for size in sizes)
