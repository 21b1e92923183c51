"""GPUs by name, and the MIG slices that some can be cut into: gpus.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import UsageError, nearest
from harness.units import GIB


@dataclass(frozen=True)
class Gpu:
    """A GPU. Bytes, bytes/s, FLOP/s (dense); None: no source was found.

    ``memory_bytes`` is NVML's total (what nvidia-smi prints), ``cuda_total_bytes`` what CUDA sees: the
    figure that vLLM multiplies by ``gpu_memory_utilization``. ``mig``: the profile, where it is a slice of a GPU.
    """

    name: str
    title: str
    memory_bytes: int
    aliases: tuple[str, ...] = ()
    memory_source: str = ""
    cuda_total_bytes: int | None = None
    cuda_total_source: str | None = None
    bandwidth_bytes_per_s: int | None = None
    bf16_flops: int | None = None
    fp8_flops: int | None = None
    compute_capability: str | None = None
    multiprocessors: int | None = None
    multiprocessors_source: str | None = None
    sources: tuple[str, ...] = ()
    notes: str = ""
    mig: str | None = None


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((Path(__file__).parent / "gpus.json").read_text(encoding="utf-8"))
    return data


def unknown(kind: str, name: str, known: Iterable[str], command: str) -> UsageError:
    """The error of a name that the catalogue has not, with the nearest that it has."""
    shown = name if len(name) <= 80 else name[:77] + "..."
    return UsageError(f"unknown {kind} {shown!r}{nearest(name, known)} (`bench {command}` lists them)")


@cache
def gpus() -> tuple[Gpu, ...]:
    """All GPUs of the catalogue, smallest memory first."""
    rows = [Gpu(**{**row, "aliases": tuple(row["aliases"]), "sources": tuple(row["sources"])}) for row in
            _data()["gpus"]]  # fmt: skip
    return tuple(sorted(rows, key=lambda g: (g.memory_bytes, g.name)))


@cache
def _gpu_names() -> dict[str, Gpu]:
    return {alias.lower(): g for g in gpus() for alias in (g.name, g.title, *g.aliases)}


def gpu(name: str) -> Gpu:
    """The GPU called ``name`` (or one of its aliases). Raises UsageError for an unknown one, and for one that shares
    its memory with the CPU: there no figure of the driver says what CUDA may take."""
    plain = name.strip().lower()
    found = _gpu_names().get(plain)
    if found is not None:
        return found
    for row in _data()["unified_memory"]:
        if plain in (row["name"], row["title"].lower(), *row["aliases"]):
            raise UsageError(
                f"{row['title']} shares its memory with the CPU: NVML states no total there, and what is free depends "
                "on every other process, so no budget can be told"
            )
    # "a100" names four cards that differ in memory: ask, don't guess.
    kin = [g.name for g in gpus() if g.name.startswith(plain + "-")]
    if kin:
        raise UsageError(f"unknown GPU {plain!r}: say which of {', '.join(kin)} (`bench gpus` lists them)")
    raise unknown("GPU", name, [g.name for g in gpus()], "gpus")


def mig_profiles(name: str) -> tuple[str, ...]:
    """The MIG profiles of the GPU called ``name`` whose size has a source."""
    return tuple(_data()["mig"].get(name, {}))


def mig_slice(card: Gpu, profile: str) -> Gpu:
    """The slice ``profile`` (such as 3g.40gb) of ``card``, as a GPU of its own. Raises UsageError.

    Bandwidth and FLOP/s of a slice have no source and are None.
    """
    known = _data()["mig"].get(card.name, {})
    row = known.get(profile.strip().lower().removeprefix("mig "))
    if row is None:
        said = f"known: {', '.join(known)}" if known else "no slice of it has a sourced size"
        raise UsageError(f"MIG profile {profile[:40]!r} of {card.name}{nearest(profile, known)} ({said})")
    return replace(
        card,
        title=f"{card.title} MIG {profile}",
        memory_bytes=round(row["gib"] * GIB),
        memory_source=row["source"],
        cuda_total_bytes=None,
        cuda_total_source=None,
        bandwidth_bytes_per_s=None,
        bf16_flops=None,
        fp8_flops=None,
        multiprocessors=row["multiprocessors"],
        multiprocessors_source=row["source"],
        mig=profile,
    )
