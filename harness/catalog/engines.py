"""What a vLLM version does where nothing is given, and how it counts: engines.json."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from harness.errors import UsageError
from harness.units import GIB

EntryPoint = Literal["server", "llm"]
Sampler = Literal["sort", "triton"]
Packing = Literal["tuples", "slots", "dense", "groups"]


@dataclass(frozen=True)
class V2Runner:
    """Which models Model Runner V2 runs: those of ``architectures``, where ``dense`` all without experts and recurrent
    states, and where ``experts`` all others too; quantized ones only where ``quantized``.
    """

    architectures: tuple[str, ...]
    dense: bool
    quantized: bool
    experts: bool


@dataclass(frozen=True)
class EngineDefaults:
    """What one vLLM version does where nothing is given, and how it counts.

    ``sampler``: how Model Runner V1 narrows to top-k and top-p. ``v2_state_counted``: whether the profile sees what
    Model Runner V2 keeps for sampling. ``chunked_prefill_tokens``: of V0, where a prompt is cut.
    """

    vllm: str
    engine: Literal["v0", "v1"]
    gpu_memory_utilization: float
    block_size: int
    cpu_block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    chunked_prefill_tokens: int
    checks_free_memory: bool  # whether it refuses to start where less is free than requested
    cuts_lone_prefill: bool  # whether long_prefill_token_threshold holds for a request that is alone, too
    skipped_keep_their_place: bool  # in the queue, those without a free LoRA slot; false where that is not known, too
    counts_all_in_use: bool  # whether all that is not PyTorch's is taken off the budget, the context and others' too
    v2_runner: V2Runner | None
    sampler: Sampler
    experts_workspace_kept: bool  # made once and kept, or for each layer anew
    v2_sampler_profiled: bool
    v2_proposers: tuple[str, ...]  # methods of speculative decoding that it has; others are left to V1
    v2_state_counted: bool
    non_torch_one_rank_gib: float
    graphs_gib_a_layer: float | None
    graphs_in_budget: bool  # of Model Runner V1; V2 has a line of its own
    v2_graphs_in_budget: bool
    largest_capture_blackwell: int  # the largest size of which a graph is captured by default on B200 and B300
    captures_uniform_decodes: bool  # sizes of batches of nothing but decodes besides
    one_line_kv_log: bool
    tokens_by_concurrency: bool
    caches_state_prefixes: bool  # by default, of models with recurrent states
    counts_async_batches: bool  # whether a window is charged for every batch in flight, or for one
    page_packing: Packing  # of pages of several sizes in one block, see predict/kv_packed.py
    state_checkpoints: tuple[str, ...]  # kernels of recurrent layers whose prefill may leave a state in a block more


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((Path(__file__).parent / "engines.json").read_text(encoding="utf-8"))
    return data


@cache
def version_key(version: str) -> tuple[int, ...]:
    """``"0.32.1"`` -> (0, 32, 1), for comparing. Raises UsageError on anything else."""
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6}){1,2}", version):
        raise UsageError(f"vLLM version {version[:40]!r} is not of the form '0.33' or '0.32.0'")
    return tuple(map(int, version.split(".")))


def last_with_class(name: str) -> str | None:
    """The last version that has the model class ``name``; None where the newest one has it."""
    found = _data()["last_with_class"].get(name)
    return None if found is None else str(found)


def checked_version() -> str:
    """The newest vLLM whose source the rules were read in."""
    return str(_data()["checked"])


def rules_of(version: str) -> str:
    """Where the rules that predict ``version`` were read: "0.32", or "0.32 and the changes read in 0.33"."""
    checked, asked = checked_version(), version_key(version)
    later = [v for v in _data()["versions"] if version_key(checked) < version_key(v) <= asked]
    return f"{checked} and the changes read in {', '.join(sorted(later, key=version_key))}" if later else checked


def oldest_version() -> str:
    """The oldest vLLM whose profile run is modelled."""
    return str(_data()["oldest"])


def engine_defaults(
    version: str, memory_bytes: int = 0, gpu_name: str = "", entrypoint: EntryPoint = "server"
) -> EngineDefaults:
    """Defaults of vLLM ``version`` on a GPU of ``memory_bytes`` called ``gpu_name``, started by ``entrypoint``.

    Raises UsageError for a version before :func:`oldest_version`.
    """
    data = _data()
    asked = version_key(version)
    oldest = oldest_version()
    if asked < version_key(oldest):
        raise UsageError(f"vLLM {version}: versions before {oldest} count their memory otherwise, not modelled")
    merged: dict[str, Any] = {}
    for row in _until(data["versions"], asked):
        merged.update(row)
    merged.pop("source")
    v2 = merged.pop("v2_runner")
    runner = V2Runner(**{**v2, "architectures": tuple(v2["architectures"])}) if v2 else None
    for key in ("v2_proposers", "state_checkpoints"):
        merged[key] = tuple(merged[key])
    merged.update(_batch(data["batch_defaults"], asked, memory_bytes, gpu_name.lower(), entrypoint))
    return EngineDefaults(vllm=version, **merged, v2_runner=runner)


def _until(by_version: dict[str, Any], asked: tuple[int, ...]) -> list[Any]:
    """The entries of the versions up to ``asked``, oldest first."""
    known = sorted(by_version, key=version_key)
    return [by_version[since] for since in known if version_key(since) <= asked]


def cpu_batch_defaults() -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens) of vLLM's server on a CPU, for one worker."""
    row = _data()["cpu_batch_defaults"]
    return row["max_num_seqs"], row["max_num_batched_tokens"]


def _batch(
    tables: dict[str, Any], asked: tuple[int, ...], memory_bytes: int, gpu_name: str, entrypoint: EntryPoint
) -> dict[str, int]:
    found = _until(tables, asked)
    if not found:  # V0: tokens follow from max_model_len
        return {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
    for row in found[-1]:
        named = row["in_name"] is None or any(name in gpu_name for name in row["in_name"])
        barred = row["not_in_name"] is not None and row["not_in_name"] in gpu_name
        if memory_bytes >= row["memory_at_least_gib"] * GIB and named and not barred:
            return {"max_num_seqs": row["max_num_seqs"], "max_num_batched_tokens": row[f"{entrypoint}_tokens"]}
    raise AssertionError("the last row of batch_defaults takes every GPU")
