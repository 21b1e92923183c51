"""A run folder being written: JSON files whole or not at all, tables line by line."""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.errors import EXIT_MACHINE, RecordError
from harness.store.names import COLUMNS, FRAME_COLUMNS, FRAMES, MANIFEST, PARTIAL, SCHEMA


class Frame(Protocol):
    """A point of it."""

    @property
    def step(self) -> int:
        """Counts from 1."""


class WriteError(RecordError):
    """The disk takes no more: a fault of the machine, not of what was asked."""

    exit_code = EXIT_MACHINE


def _full(error: OSError | ValueError, path: Path) -> WriteError:
    why = getattr(error, "strerror", None) or error
    return WriteError(f"{path} can't be written: {why}; what was written before stays readable")


class TableWriter:
    """Appends rows to one table; flushed at least every second, at once where ``flush_s`` is 0."""

    def __init__(self, path: Path, columns: Sequence[str], flush_s: float = 1.0) -> None:
        self.path = path
        self._flush_s = flush_s
        self._flushed = time.monotonic()
        try:
            self._file = path.open("w", encoding="utf-8", newline="")
            self._rows = csv.writer(self._file, lineterminator="\n")
            self._rows.writerow(columns)
            self._file.flush()
        except OSError as error:
            raise _full(error, path) from None

    def append(self, *values: Any) -> None:
        """One row; None is an empty cell."""
        try:
            self._rows.writerow(values)
            if time.monotonic() - self._flushed >= self._flush_s:
                self._file.flush()
                self._flushed = time.monotonic()
        except (OSError, ValueError) as error:
            raise _full(error, self.path) from None

    def close(self) -> None:
        """Flush and close."""
        try:
            self._file.close()
        except OSError as error:
            raise _full(error, self.path) from None


@dataclass
class RunFolder:
    """A run being written."""

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, out: Path, scenario_name: str, mode: str) -> RunFolder:
        """A new folder ``out/<scenario>/<UTC time>-<mode>.partial``. Raises RecordError."""
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        parent = out / scenario_name
        if parent.is_symlink() and out.resolve() not in parent.resolve().parents:
            raise RecordError(f"{parent} is a link that leads out of {out}: nothing is written through it")
        for n in range(1000):
            path = parent / f"{stamp}-{mode}{f'-{n}' if n else ''}{PARTIAL}"
            whole = path.with_name(path.name.removesuffix(PARTIAL))
            if whole.exists():
                continue
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise RecordError(f"no run folder can be made in {parent}: {error.strerror or error}") from None
            return cls(path)
        raise RecordError(f"no free name for a run folder in {parent}")

    def file(self, name: str) -> Path:
        """The path of a file inside."""
        return self.path / name

    def write_text(self, name: str, text: str) -> None:
        """A whole file, or none of it."""
        beside = self.path / f".{name}.new"
        try:
            with beside.open("w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            beside.replace(self.path / name)
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise _full(error, self.path / name) from None

    def write_json(self, name: str, data: Any) -> None:
        """As :meth:`write_text`."""
        self.write_text(name, json.dumps(data, indent=1, ensure_ascii=False) + "\n")

    def save_manifest(self, **changes: Any) -> None:
        """The manifest with ``changes`` made, written anew."""
        self.manifest.update(changes)
        self.write_json(MANIFEST, {"schema": SCHEMA, **self.manifest})

    def table(self, name: str, flush_s: float = 1.0) -> TableWriter:
        """A writer for the table ``name``."""
        return TableWriter(self.path / f"{name}.csv", COLUMNS[name], flush_s)

    def write_frames(self, timeline: Sequence[Frame]) -> None:
        """The timeline of a simulated load, a line for each point."""
        lines = [",".join(map(str, (p.step, *(getattr(p, c) for c in FRAME_COLUMNS[1:])))) for p in timeline]
        self.write_text(FRAMES, "\n".join([",".join(FRAME_COLUMNS), *lines]) + "\n")

    def discard(self) -> None:
        """Remove it: nothing was measured yet."""
        shutil.rmtree(self.path, ignore_errors=True)

    def finish(self) -> Path:
        """Give the folder its whole name, and ``latest`` beside it; the new path."""
        whole = self.path.with_name(self.path.name.removesuffix(PARTIAL))
        try:
            self.path.rename(whole)
        except OSError as error:
            raise _full(error, whole) from None
        self.path = whole
        link = whole.parent / f".latest-{os.getpid()}"
        with contextlib.suppress(OSError):
            link.symlink_to(whole.name)
            link.replace(whole.parent / "latest")
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)
        return self.path
