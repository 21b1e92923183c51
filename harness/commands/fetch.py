"""``bench fetch``: what a prediction needs of a hub's model, and nothing of its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from harness.errors import MachineError, UsageError

HEADERS, QUANTIZATION = "headers.safetensors", "hf_quant_config.json"


@click.command(short_help="Take a hub's config and headers, not its weights.")
@click.argument("name", metavar="ORG/NAME")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make (NAME of the model unless given).")
@click.option("--revision", help="A branch, tag or commit of the hub's repository.")
def fetch(name: str, out: Path | None, revision: str | None) -> None:
    """Take a model's config and safetensors headers from the Hugging Face hub, kilobytes instead of its weights.

    The folder can be a scenario's model: the headers tell the format of each layer.

    \b
    Example:
      bench fetch RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8 --out ./llama-fp8
      bench models --config ./llama-fp8
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) or ".." in name:
        raise UsageError(f"bench fetch: expected ORG/NAME as the hub names a model, got {name[:80]!r}")
    folder = out or Path(name.partition("/")[2])
    if folder.exists():
        raise UsageError(f"bench fetch: {folder} exists already: name another folder with --out")
    config, beside, header = _from_hub(name, revision)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config, encoding="utf-8")
    if beside is not None:
        (folder / QUANTIZATION).write_text(beside, encoding="utf-8")
    if header:
        text = json.dumps(header).encode()
        (folder / HEADERS).write_bytes(len(text).to_bytes(8, "little") + text)
    held = f"the headers of {len(header)} tensors" if header else "no safetensors headers: the hub has none of it"
    click.echo(f"{folder}: config.json and {held} (bench models --config {folder})")


def _from_hub(name: str, revision: str | None) -> tuple[str, str | None, dict[str, Any]]:
    """(config.json, hf_quant_config.json or None, header). Raises MachineError where the hub can't be asked."""
    try:
        import huggingface_hub as hub
        from huggingface_hub.utils import logging
    except ImportError:
        raise MachineError("bench fetch needs the hub's own client: pip install 'loadfit[hub]'") from None

    logging.set_verbosity_error()  # its tries are not news, its failure is one line below

    def text(file: str) -> str:
        return Path(hub.hf_hub_download(name, file, revision=revision)).read_text(encoding="utf-8")

    try:
        config = text("config.json")
        there = hub.file_exists(name, QUANTIZATION, revision=revision)
        beside = text(QUANTIZATION) if there else None
        found = hub.get_safetensors_metadata(name, revision=revision)
    except hub.errors.NotASafetensorsRepoError:
        return config, beside, {}
    except Exception as error:  # the client's own, of the network, of the server: each is one line here
        first = (str(error).splitlines() or [""])[0].partition(". ")[0][:200]
        raise MachineError(f"bench fetch: the hub has no answer for {name}: {type(error).__name__}: {first}") from None
    header: dict[str, Any] = {}
    for file in found.files_metadata.values():
        for tensor, info in file.tensors.items():
            header[tensor] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
    return config, beside, header
