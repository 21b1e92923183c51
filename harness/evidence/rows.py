"""The evidence as it stands: public runs, one a row, and what each states. An empty cell is unknown."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from harness import catalog
from harness.errors import UsageError
from harness.scenario import Scenario, parse_scenario

Row = dict[str, str]
TABLES = ("h100", "community")
# Engine keys that a row may state, by their column.
_ENGINE = (
    "vllm", "entrypoint", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "dtype", "kv_cache_dtype",
    "gpu_memory_utilization", "pipeline_parallel_size", "block_size", "enforce_eager", "enable_chunked_prefill",
    "enable_prefix_caching",
)  # fmt: skip
# What a grant follows from. Stated in the row, not inferred by whoever wrote it down and not our default.
_GRANT = ("vllm", "gpu", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "gpu_memory_utilization")
# A device with room for anything: weights and the rate of the KV cache do not depend on it.
_ANY_GPU = "memory: 512 TiB"


@cache
def rows() -> tuple[Row, ...]:
    """All rows, texts by column; a column that a table lacks is empty."""
    found: list[Row] = []
    for name in TABLES:
        text = (files("harness.catalog") / "evidence" / f"{name}.csv").read_text(encoding="utf-8")
        found += [{**row, "table": name} for row in csv.DictReader(text.splitlines())]
    columns = {column for row in found for column in row}
    return tuple({column: row.get(column) or "" for column in columns} for row in found)


def scenario(row: Row) -> Scenario:
    """The run of ``row`` as a scenario: its configuration, nothing that was measured. Raises UsageError."""
    tp, pp = int(row["tensor_parallel_size"] or 1), int(row["pipeline_parallel_size"] or 1)
    gpu = f"name: {row['gpu']}" if knows_gpu(row) else _ANY_GPU
    stated = {key: row[key] for key in _ENGINE if row[key]}
    engine = "".join(f"  {key}: {repr(value) if key == 'vllm' else value}\n" for key, value in stated.items())
    return parse_scenario(
        f"name: {row['id']}\nmodel: {row['catalogue_model']}\n"
        f"weights: {{format: {row['weights_format'] or 'auto'}}}\ngpu: {{{gpu}, count: {tp * pp}}}\n"
        + (f"engine:\n{engine}" if engine else "")
    )


def knows_gpu(row: Row) -> bool:
    """Whether the catalogue has the row's GPU."""
    try:
        return bool(row["gpu"]) and catalog.gpu(row["gpu"]) is not None
    except UsageError:
        return False


def assumed(row: Row) -> tuple[str, ...]:
    """What the grant follows from and the row does not state itself."""
    inferred = row["inferred"].split()
    return tuple(key for key in _GRANT if not row[key] or key in inferred)


def cannot(row: Row) -> str:
    """Why nothing of the row is predicted; empty where something is."""
    if row["same_as"]:
        return f"the same run as {row['same_as']}"
    if not row["catalogue_model"]:
        return _h100_reason(row) or ("the model is not in the catalogue" if row["model"] else "the model is not stated")
    if not catalog.knows_model(row["catalogue_model"]):
        return "the model is not in the catalogue"
    if not _knows_format(row["weights_format"]):
        return f"the weight format {row['weights_format']} is not known"
    if row["vllm"] and catalog.version_key(row["vllm"]) < catalog.version_key(catalog.oldest_version()):
        return f"vLLM before {catalog.oldest_version()}"
    if not row["tensor_parallel_size"]:
        return "the number of ranks is not stated"
    if row["data_parallel_size"] not in ("", "1"):
        return "several engines (data parallel) are not compared yet"
    return ""


def _knows_format(name: str) -> bool:
    try:
        return not name or bool(catalog.weight_format(name))
    except UsageError:
        return False


def _h100_reason(row: Row) -> str:
    return row["note"].split(";")[0] if row["table"] == "h100" else ""


def cannot_grant(row: Row) -> str:
    """Why the row's grant is not predicted though its weights may be; empty where it is."""
    if not row["vllm"]:
        return "the vLLM version is not stated"
    if not row["weights_format"]:
        return "how the weights are stored is not stated"
    if not row["gpu"]:
        return "the GPU is not stated"
    if not knows_gpu(row):
        return f"the catalogue has no GPU {row['gpu']}"
    if row["speculative"] or row["lora"]:
        return f"{'a drafter' if row['speculative'] else 'LoRA'} is not compared yet"
    return ""
