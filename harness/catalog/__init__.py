"""Facts by name: GPUs, models, number formats, engine defaults. Data files with sources, one lookup each.

A name is looked up without regard to case, then among the aliases. An unknown name is an error that
names the nearest known one; it is never taken for another.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from harness.catalog.engines import (
    EngineDefaults,
    V2Runner,
    checked_version,
    cpu_batch_defaults,
    engine_defaults,
    last_with_class,
    oldest_version,
    rules_of,
    version_key,
)
from harness.catalog.gpus import Gpu, gpu, gpus, mig_profiles, mig_slice, unknown
from harness.errors import UsageError, nearest

DEFAULT_VLLM = "0.33"
_FOLDER = Path(__file__).parent

__all__ = [
    "CHECKED", "DEFAULT_VLLM", "CpuRuntime", "EngineDefaults", "Gpu", "V2Runner", "WeightFormat", "checked_version",
    "cpu_batch_defaults", "cpu_runtime", "engine_defaults", "gpu", "gpus", "knows_model", "last_with_class",
    "mig_profiles", "mig_slice", "model_config", "model_facts", "model_names", "oldest_version", "refusal",
    "refused_models", "rules_of", "version_key", "weight_format", "weight_format_names",
]  # fmt: skip


@dataclass(frozen=True)
class WeightFormat:
    """How a quantized matrix [outputs, inputs] is stored. ``bits``: of each weight; None for ``auto`` only.

    ``scale_per``: "group" (``group_size`` weights of one row share a scale), "block" (so many rows and columns),
    "channel" (one scale for each row), "tensor" or None. ``scale_bits``: all that is kept for one of these but its
    ``zero_point_bits``. ``any_group``: the group's size may be chosen. ``interleaved``: in one tensor with the weights.
    ``input_bits``: kept for each input. ``values``: the format of v, where it differs from that of q and k. ``only``:
    the kind of part that it is made for. ``layout_share``: what the kernel's layout adds; ``width_multiple``: of an
    expert's width. ``dtype``: set for plain number types. ``refused_from``: the vLLM that is known to refuse it;
    ``plugin_from``: the one that reads it by a plugin alone.
    """

    name: str
    bits: int | None = None
    dtype: str | None = None
    scale_bits: float = 0
    zero_point_bits: int = 0
    input_bits: int = 0
    scale_per: str | None = None
    group_size: int | None = None
    any_group: bool = False
    interleaved: bool = False
    values: str | None = None
    only: str | None = None
    layout_share: float = 0.0
    width_multiple: int = 1
    source: str = ""
    note: str = ""
    refused_from: str | None = None
    refusal: str = ""
    plugin_from: str | None = None
    plugin: str = ""

    @property
    def bits_per_weight(self) -> float:
        """Of a large matrix, where what is kept for a row, a column or all of it weighs nothing."""
        bits = float(self.bits or 0)
        if self.group_size is None or self.scale_per not in ("group", "block"):
            return bits
        share = self.group_size ** (2 if self.scale_per == "block" else 1)
        return bits + (self.scale_bits + self.zero_point_bits) / share


@cache
def _data(file: str) -> Any:
    return json.loads((_FOLDER / file).read_text(encoding="utf-8"))


# -- models ----------------------------------------------------------------------------------------


@cache
def _model_index() -> dict[str, str]:
    models = _data("models.json")["models"]
    return {alias.lower(): name for name, m in models.items() for alias in (name, *m["aliases"])}


def model_names() -> tuple[str, ...]:
    """The models of the catalogue, as their hub names them."""
    return tuple(_data("models.json")["models"])


def knows_model(name: str) -> bool:
    """Whether :func:`model_config` has ``name``."""
    return name.strip().lower() in _model_index()


def refused_models() -> dict[str, str]:
    """Models that are known and not predicted, and why."""
    return {name: row["reason"] for name, row in _data("models.json")["refused"].items()}


def refusal(name: str) -> str | None:
    """Why ``name`` is not predicted, where it is known for that."""
    found = next((n for n in refused_models() if n.lower() == name.strip().lower()), None)
    return None if found is None else f"model {found} is not predicted: {refused_models()[found]}"


def _no_model(name: str) -> UsageError:
    refused = refusal(name)
    return UsageError(refused) if refused else unknown("model", name, model_names(), "models")


def model_config(name: str) -> dict[str, Any]:
    """The config of the model called ``name``, with the keys of its config.json. Raises UsageError."""
    key = _model_index().get(name.strip().lower())
    if key is None:
        raise _no_model(name)
    return dict(_data("models.json")["models"][key]["config"])


def drafter_names() -> tuple[str, ...]:
    """The EAGLE drafters that :func:`drafter_config` knows."""
    return tuple(_data("drafters.json")["drafters"])


def drafter_config(name: str) -> dict[str, Any]:
    """The config of the EAGLE drafter called ``name``. Raises UsageError."""
    rows = {n.lower(): row for n, row in _data("drafters.json")["drafters"].items()}
    if name.strip().lower() not in rows:
        known = ", ".join(drafter_names())
        raise UsageError(f"unknown drafter {name[:80]!r}{nearest(name, drafter_names())} (known: {known})")
    return dict(rows[name.strip().lower()]["config"])


# What an entry was compared with, in words; the rest of an entry that only counts right may be wrong.
CHECKED = {
    "config": "compared with the published config.json or a public copy of it",
    "table": "its facts agree with another project's table of published configs",
    "log": "a public vLLM log agrees with its weights and its KV tokens",
    "count": "checked by its parameter total alone: compare it with the published config.json, or name a local folder",
}


def model_facts(name: str) -> dict[str, Any]:
    """What is recorded beside the config: source, date, parameters, aliases, what it was ``checked`` against (a
    key of :data:`CHECKED`). Raises UsageError."""
    key = _model_index().get(name.strip().lower())
    if key is None:
        raise _no_model(name)
    row = _data("models.json")["models"][key]
    return {"name": key, **{k: v for k, v in row.items() if k != "config"}}


# -- number formats --------------------------------------------------------------------------------

_SIZED = re.compile(r"(.+?)-(?:g(\d{1,6})|channel)")
_KEYS = {f.name for f in fields(WeightFormat)}


def weight_format_names() -> tuple[str, ...]:
    """The formats that :func:`weight_format` knows; one in groups may carry ``-gN`` or ``-channel`` at its end."""
    return tuple(_data("formats.json")["formats"])


@cache
def weight_format(name: str) -> WeightFormat:
    """The format called ``name``: ``bf16``, ``fp8``, ``awq-int4-g128``, ``int4-channel``. Raises UsageError."""
    formats = _data("formats.json")["formats"]
    plain = name.strip().lower()
    sized = None if plain in formats else _SIZED.fullmatch(plain)
    base = sized[1] if sized else plain
    row = formats.get(base)
    if row is None or (sized and not row.get("any_group")):
        raise UsageError(
            f"unknown weight format {name[:80]!r}{nearest(base, formats)} (known: {', '.join(formats)}; those of int4 "
            "and the packed ones of int8 may end in their group size, such as awq-int4-g128, or in -channel)"
        )
    found = WeightFormat(**{**{k: v for k, v in row.items() if k in _KEYS}, "name": plain})
    if sized is None:
        return found
    if sized[2] is None:
        return replace(found, scale_per="channel", group_size=None)
    if not 8 <= int(sized[2]) <= 4096:
        raise UsageError(f"weight format {name[:80]!r}: a group holds 8 to 4096 weights")
    return replace(found, group_size=int(sized[2]))


# -- this computer ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CpuRuntime:
    """What vLLM's processes take on a CPU beside weights and pool; (low, likely, high) bytes each.

    ``processes``: PSS of api_server, engine_core and worker before a model is loaded; ``late_growth``: what the
    first two still grow by until the engine is idle; ``growth_under_load``: what all of them grow by from idle
    to the peak of a load, the tensors of a step left out.
    """

    processes: dict[str, tuple[int, int, int]]
    late_growth: tuple[int, int, int]
    growth_under_load: tuple[int, int, int]
    source: str


@cache
def cpu_runtime(tokenizer: bool) -> CpuRuntime:
    """Measured by this project, for there is no published figure; a server with a tokenizer takes more."""
    data = _data("cpu_runtime.json")["with_tokenizer" if tokenizer else "without_tokenizer"]

    def three(values: list[int]) -> tuple[int, int, int]:
        low, likely, high = values
        return low, likely, high

    return CpuRuntime(
        {name: three(p) for name, p in data["processes"].items()},
        three(data["late_growth"]),
        three(data["growth_under_load"]),
        data["source"],
    )
