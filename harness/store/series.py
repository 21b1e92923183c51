"""Repeats of one run: ordinary run folders beside one another, tied by what their manifests say of a series.

``series`` in a manifest: ``id`` (what was repeated, and when that began), ``repeat`` (its number, from 1) and
``repeats`` (how many were asked for).
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.errors import RecordError
from harness.store.names import MANIFEST
from harness.store.reading import read_json
from harness.store.shapes import Place


def key_of(**what: Any) -> str:
    """The name of what is repeated: equal for equal JSON data ``what``."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def begin(key: str) -> str:
    """The id of a new series."""
    return f"{key}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S-%f}"


def place(folder: Path) -> Place | None:
    """The place in a series that ``folder``'s manifest states; None where it states none, or can't be read."""
    try:
        manifest = read_json(folder / MANIFEST)
        return TypeAdapter(Place).validate_python(manifest["series"])
    except (RecordError, ValidationError, TypeError, KeyError):
        return None


def members(parent: Path) -> dict[str, list[tuple[Path, Place]]]:
    """The id of each series in the scenario's folder ``parent`` -> its run folders with their places, oldest first."""
    found: dict[str, list[tuple[Path, Place]]] = {}
    for folder in sorted(p.parent for p in parent.glob(f"*/{MANIFEST}") if not p.parent.is_symlink()):
        its = place(folder)
        if its is not None:
            found.setdefault(its["id"], []).append((folder, its))
    return found


def latest(key: str, parent: Path) -> str | None:
    """The id of the series of ``key`` that was begun last, None where there is none."""
    return max((id for id in members(parent) if id.startswith(f"{key}-")), default=None)
