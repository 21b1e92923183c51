"""What of a manifest, which may come from anybody, is of the right shape."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from harness.store.names import MANIFEST


class GpuRow(TypedDict):
    """A GPU in the manifest."""

    uuid: str
    name: str
    total_bytes: int | None
    memory_version: str | None
    mig: int
    missing: dict[str, str | None]
    processes: dict[str, list[dict[str, int | None]]]
    strangers: list[str]
    accounting_peak_bytes: int | None
    lost: str | None


class Place(TypedDict):
    """A run's place among its repeats."""

    id: str
    repeat: Annotated[int, Field(ge=1, le=1000)]
    repeats: Annotated[int, Field(ge=1, le=1000)]  # as many as were asked for


# What the manifest holds beside texts: its shape, and the keys that go together.
_SHAPES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "marks": (dict[str, int], ()),
    "engine": (dict[str, dict[str, Any] | str | int | bool | None], ()),
    "probe": (dict[str, int | None], ()),
    "workers": (dict[str, list[dict[str, int | str | None]]], ()),
    "cache_config": (dict[str, int], ()),
    "answers": (dict[str, int], ()),
    "itl_s": (dict[str, float], ()),
    "notes": (list[str], ()),
    "nvml": (dict[str, str | None], ()),
    "sampling": (dict[str, int | float], ("interval_s", "sweeps", "longest_gap_s", "cpu_s")),
    "device_sampling": (
        dict[str, int | float],
        ("interval_s", "sweeps", "longest_gap_s", "cpu_s", "wall_s", "discrepancy_bytes"),
    ),
    "gpus": (list[GpuRow], ()),
    "series": (Place, ()),
}


def keep_sound(manifest: dict[str, Any], problems: list[str]) -> None:
    """Leave out of the manifest what is None or not of its shape, so that nobody else has to ask."""
    for key, (shape, needed) in _SHAPES.items():
        value = manifest.pop(key, None)
        if value is None:
            continue
        try:
            value = TypeAdapter(shape).validate_python(value)
            manifest[key] = {k: value[k] for k in needed} or value
        except (ValidationError, KeyError):
            problems.append(f"{MANIFEST}: {key} is of another shape and is left out")
