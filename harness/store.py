"""The run folder: the only module that knows the names inside ``results/<scenario>/<run>/``.

A folder is written under a name that ends in ``.partial`` and renamed when whole. JSON files are written
beside and renamed, so that none is ever half there; tables grow line by line and reach the disk at least
every second. What a killed run leaves behind can be read like any other: a last line cut short is dropped.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import RecordError
from harness.ledger import Account

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
PARTIAL = ".partial"
MANIFEST = "manifest.json"
SCENARIO = "scenario.yaml"
PREDICTION = "prediction.json"
REHEARSAL = "rehearsal.json"
MEASUREMENT = "measurement.json"
COMPARISON = "comparison.json"
REPORT = "report.md"
ENGINE_LOG = "engine.log"
STEPS = "steps.csv"

# table -> its columns; steps.csv is written by the scheduler probe inside the engine.
COLUMNS: dict[str, tuple[str, ...]] = {
    "memory": ("time_ns", "pid", "process", "rss_bytes", "pss_bytes"),
    "metrics": ("time_ns", "kv_cache_usage", "running", "waiting", "preemptions", "generation_tokens"),
    "requests": (
        "index", "prompt_tokens", "output_tokens", "tokens_out", "sent_ns", "first_ns", "end_ns",
        "status", "error", "text",
    ),
    "steps": ("time_ns", "blocks_used", "running", "waiting", "preempted", "tokens", "blocked_on_kv"),
}  # fmt: skip


def _full(error: OSError, path: Path) -> RecordError:
    return RecordError(f"{path} can't be written: {error.strerror or error}; what was written before stays readable")


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
        except OSError as error:
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
        except OSError as error:
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

    def finish(self) -> Path:
        """Give the folder its whole name, and ``latest`` beside it; the new path."""
        whole = self.path.with_name(self.path.name.removesuffix(PARTIAL))
        try:
            self.path.rename(whole)
            self.path = whole
            link = whole.parent / f".latest-{os.getpid()}"
            link.symlink_to(whole.name)
            link.replace(whole.parent / "latest")
        except OSError as error:
            if self.path != whole:
                raise _full(error, whole) from None
        return self.path


@dataclass(frozen=True)
class RunRecord:
    """A run read back from its folder. Tables that are missing are empty; an analytic run has none."""

    path: Path
    manifest: dict[str, Any]
    scenario_yaml: str
    prediction: Account
    rehearsal: Account | None
    tables: dict[str, pd.DataFrame]
    log_lines: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def mode(self) -> str:
        """analytic, rehearsal or measured."""
        return str(self.manifest.get("mode", "analytic"))

    @property
    def outcome(self) -> str:
        """How it ended; a run that never said is interrupted."""
        outcome = str(self.manifest.get("outcome", "running"))
        return "interrupted" if outcome == "running" else outcome

    @property
    def marks(self) -> dict[str, int]:
        """Phase -> monotonic ns of its beginning."""
        return {str(k): int(v) for k, v in self.manifest.get("marks", {}).items()}


def read(path: str | Path) -> RunRecord:
    """The run in folder ``path``, whole or cut short. Raises RecordError where it is no run folder."""
    folder = Path(path)
    if not folder.is_dir():
        near = sorted(p.name for p in folder.parent.glob("*")) if folder.parent.is_dir() else []
        hint = f"; there is {', '.join(near[-3:])}" if near else ""
        raise RecordError(f"{folder} is not a folder{hint}")
    manifest = _read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        raise RecordError(f"{folder} holds no {MANIFEST}: not a run folder, or cut short before the run began")
    if manifest.get("schema") != SCHEMA:
        raise RecordError(f"{folder} was written by another version (schema {manifest.get('schema')!r}, not {SCHEMA})")
    problems: list[str] = []
    prediction = _read_account(folder / PREDICTION, problems)
    rehearsal = _read_account(folder / REHEARSAL, []) if (folder / REHEARSAL).exists() else None
    # An analytic run has no tables; pandas stays out of its path.
    ran = manifest.get("mode") != "analytic"
    tables = {name: _read_table(folder / f"{name}.csv", name, problems) for name in COLUMNS} if ran else {}
    return RunRecord(
        path=folder,
        manifest=manifest,
        scenario_yaml=_read_text(folder / SCENARIO),
        prediction=prediction or Account(),
        rehearsal=rehearsal,
        tables=tables,
        log_lines=tuple(_read_text(folder / ENGINE_LOG).splitlines()),
        problems=tuple(problems),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} can't be read: {error}") from None


def _read_account(path: Path, problems: list[str]) -> Account | None:
    try:
        return Account.from_dict(_read_json(path) or {})
    except (RecordError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"{path.name} is cut short or of another shape: {error}")
        return None


def _read_table(path: Path, name: str, problems: list[str]) -> pd.DataFrame:
    import io

    import pandas as pd

    text = _read_text(path)
    whole, _, rest = text.rpartition("\n")
    if rest:
        problems.append(f"{path.name}: its last line was cut short and is left out")
    lines = re.sub(r"(?m)^#.*\n?", "", whole + "\n") if whole else ""
    try:
        frame = pd.read_csv(io.StringIO(lines), on_bad_lines="skip", dtype={"text": str, "error": str})
    except (ValueError, pd.errors.ParserError):  # EmptyDataError is a ValueError
        return pd.DataFrame(columns=list(COLUMNS[name]))
    if not set(COLUMNS[name]) <= set(frame.columns):
        problems.append(f"{path.name} has other columns than {', '.join(COLUMNS[name])}")
        return pd.DataFrame(columns=list(COLUMNS[name]))
    numbers = [c for c in COLUMNS[name] if c not in ("process", "status", "error", "text")]
    frame[numbers] = frame[numbers].apply(pd.to_numeric, errors="coerce")
    return frame
