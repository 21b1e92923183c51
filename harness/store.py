"""The run folder: the only module that knows the names inside ``results/<scenario>/<run>/``.

A folder is written under a name that ends in ``.partial`` and renamed when whole. JSON files are written
beside and renamed, so that none is ever half there; tables grow line by line and reach the disk at least
every second. What a killed run leaves behind can be read like any other: a last line cut short is dropped.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from harness.engines.log import printable, read_lines
from harness.errors import EXIT_MACHINE, RecordError, nearest
from harness.files import read_plain
from harness.ledger import Account

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
LARGEST_JSON = 64 << 20
LARGEST_TABLE = 1 << 30  # six hours of 8 GPUs, read every 20 ms
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
FRAMES = "simulated.csv"  # the timeline of an analytic run
RESUMED = "resumed"  # a mark: those who start together are let go
LOADING = "loading"  # a mark beside the phases: the worker begins to load the weights

# table -> its columns; steps.csv is written by the scheduler probe inside the engine.
COLUMNS: dict[str, tuple[str, ...]] = {
    "memory": ("time_ns", "pid", "process", "rss_bytes", "pss_bytes"),
    "devices": (
        "time_ns", "uuid", "total_bytes", "reserved_bytes", "used_bytes", "free_bytes", "memory_version", "gpu_percent",
        "memory_percent", "power_mw", "temperature_c", "throttle_reasons", "ecc_uncorrected", "xid",
    ),
    "metrics": ("time_ns", "kv_cache_usage", "running", "waiting", "preemptions", "generation_tokens"),
    "requests": (
        "index", "prompt_tokens", "output_tokens", "tokens_out", "sent_ns", "first_ns", "end_ns",
        "status", "error", "text",
    ),
    "steps": ("time_ns", "blocks_used", "running", "waiting", "preempted", "tokens", "blocked_on_kv"),
}  # fmt: skip


# Of a simulated timeline.
FRAME_COLUMNS = ("step", "time_s", "blocks_used", "running", "waiting", "preemptions")


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
    frames: tuple[tuple[float, ...], ...]  # of an analytic run, by FRAME_COLUMNS
    problems: tuple[str, ...]

    @property
    def mode(self) -> str:
        """analytic, rehearsal, measured or imported."""
        return str(self.manifest.get("mode", "analytic"))

    @property
    def real(self) -> bool:
        """Whether the scenario's own model ran on its own device: measured by us, or told by its log."""
        return self.mode in ("measured", "imported")

    @property
    def outcome(self) -> str:
        """How it ended; a run that never said is interrupted."""
        outcome = str(self.manifest.get("outcome", "running"))
        return "interrupted" if outcome == "running" else outcome

    @property
    def marks(self) -> dict[str, int]:
        """Phase -> monotonic ns of its beginning."""
        return dict(self.manifest.get("marks", {}))

    @property
    def probe(self) -> dict[str, int]:
        """What the first worker told of its memory when idle; a figure that it could not read is not there."""
        first = next(iter(self.workers("idle")), {})
        return {k: v for k, v in (self.manifest.get("probe") or first).items() if type(v) is int}

    @property
    def on_gpus(self) -> bool:
        """Whether the run's devices are GPUs, read through NVML or not."""
        return bool(self.gpus) or self.manifest.get("device") == "gpu"

    @property
    def attached(self) -> bool:
        """Whether the engine was there before the run."""
        return bool(self.manifest.get("engine", {}).get("attached"))

    @property
    def blocks_source(self) -> str:
        """Who told of the blocks in use."""
        told = len(self.tables["steps"]) > 0
        return f"peak blocks in use, {'scheduler probe' if told else 'samples of /metrics'}"

    def workers(self, phase: str) -> list[dict[str, Any]]:
        """What each worker told at the mark ``phase``: figures in bytes, and its GPU's uuid and name."""
        return list(self.manifest.get("workers", {}).get(phase, ()))

    @property
    def gpus(self) -> list[dict[str, Any]]:
        """The GPUs that were sampled, in the order of the engine's devices; none where this computer was the device."""
        return list(self.manifest.get("gpus", ()))

    @property
    def arguments(self) -> dict[str, Any]:
        """What the engine was given."""
        given = self.manifest.get("engine", {}).get("arguments")
        return given if isinstance(given, dict) else {}

    @property
    def block_size(self) -> int | None:
        """The block size that the engine was given, or chose, in tokens."""
        sizes = (self.arguments.get("block_size"), self.probe.get("block_size"), self.cache_config.get("block_size"))
        return next((s for s in sizes if type(s) is int and s > 0), None)

    @property
    def cache_config(self) -> dict[str, int]:
        """What /metrics told of the pool when idle: num_gpu_blocks, block_size."""
        return dict(self.manifest.get("cache_config", {}))


def read(path: str | Path) -> RunRecord:
    """The run in folder ``path``, whole or cut short. Raises RecordError where it is no run folder."""
    folder = Path(path)
    if not folder.is_dir():
        near = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise RecordError(f"{folder} is not a folder{nearest(folder.name, near)}")
    manifest = _read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        raise RecordError(f"{folder} holds no {MANIFEST}: not a run folder, or cut short before the run began")
    if manifest.get("schema") != SCHEMA:
        raise RecordError(f"{folder} was written by another version (schema {manifest.get('schema')!r}, not {SCHEMA})")
    problems: list[str] = []
    _keep_sound(manifest, problems)
    prediction = _read_account(folder / PREDICTION, problems)
    rehearsal = _read_account(folder / REHEARSAL, []) if (folder / REHEARSAL).exists() else None
    # An analytic run has no tables; pandas stays out of its path.
    ran = manifest.get("mode") != "analytic"
    # An attached engine writes no steps for us, and a log has none.
    own = not manifest.get("engine", {}).get("attached") and manifest.get("mode") != "imported"
    names = COLUMNS if ran else ()
    tables = {name: _read_table(folder / f"{name}.csv", name, problems, expected=own) for name in names}
    log = folder / ENGINE_LOG
    odd = "a link to elsewhere" if log.is_symlink() else "not a file" if log.exists() and not log.is_file() else ""
    if odd:
        problems.append(f"{ENGINE_LOG} is left out: {odd}")
    return RunRecord(
        path=folder,
        manifest=manifest,
        scenario_yaml=_read_text(folder / SCENARIO, problems),
        prediction=prediction or Account(),
        rehearsal=rehearsal,
        tables=tables,
        log_lines=() if odd else tuple(read_lines(log)),
        frames=() if ran else tuple(_read_frames(folder / FRAMES, problems)),
        problems=tuple(problems),
    )


def _read_text(path: Path, problems: list[str] | None = None) -> str:
    """A file of a folder that may come from anybody: nothing is read through a link, or without an end."""
    try:
        return read_plain(path, LARGEST_TABLE, links=False).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        if problems is not None:
            problems.append(f"{path.name} is left out: {error.strerror}")
        return ""


def _read_json(path: Path) -> Any:
    try:
        text = read_plain(path, LARGEST_JSON, links=False).decode("utf-8")
        return _printable(json.loads(text, parse_int=_int64, parse_constant=_int64))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} can't be read: {error}") from None


def _int64(text: str) -> int:
    number = int(text)  # NaN and Infinity are no numbers of ours either
    if abs(number) >= 2**63:
        raise ValueError(f"{text[:40]} is out of range")
    return number


def _printable(value: Any) -> Any:
    """JSON data with every text on one line, and nothing in it that a terminal would act on."""
    if isinstance(value, dict):
        return {printable(k): _printable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_printable(v) for v in value]
    return printable(value) if isinstance(value, str) else value


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
}


def _keep_sound(manifest: dict[str, Any], problems: list[str]) -> None:
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


def _read_account(path: Path, problems: list[str]) -> Account | None:
    try:
        raw = asdict(Account.from_dict(_read_json(path) or {}))
        return TypeAdapter(Account).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problems.append(f"{path.name} is of another shape: {where}: {first['msg']}")
    except (RecordError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"{path.name} is cut short or of another shape: {error}")
    return None


def _read_frames(path: Path, problems: list[str]) -> Iterator[tuple[float, ...]]:
    """The points of a simulated timeline, in order; pandas stays out of an analytic run's path."""
    head, *lines = _read_text(path, problems).splitlines() or [""]
    columns = ",".join(FRAME_COLUMNS)
    if head not in ("", columns):
        problems.append(f"{path.name} has other columns than {columns}")
        return
    numbers = range(len(FRAME_COLUMNS))
    for line in lines:
        if _whole(line, len(FRAME_COLUMNS), list(numbers)) and all(line.split(",")):
            yield tuple(map(float, line.split(",")))


_WORDS = ("process", "status", "error", "text", "uuid", "memory_version")  # columns of text; all others hold numbers
_NUMBER = re.compile(r"(?:-?\d{1,18}(?:\.\d+)?(?:[eE][-+]?\d{1,2})?)?", re.ASCII)


def _read_table(path: Path, name: str, problems: list[str], *, expected: bool = True) -> pd.DataFrame:
    """The rows that are whole; one that was cut short or can't be right is left out, and said so."""
    import io

    import pandas as pd

    if name == "steps" and expected and not path.exists():
        problems.append(f"{path.name} is missing: the scheduler's steps were not recorded, or the file was lost")
    head, *lines = _read_text(path, problems).split("\n")
    columns = head.split(",")
    if not set(COLUMNS[name]) <= set(columns):
        if head:
            problems.append(f"{path.name} has other columns than {', '.join(COLUMNS[name])}")
        return pd.DataFrame(columns=list(COLUMNS[name]))
    if lines and lines.pop():
        problems.append(f"{path.name}: its last line was cut short and is left out")
    numbers = [i for i, column in enumerate(columns) if column not in _WORDS]
    rows = [line for line in lines if not line.startswith("#")]
    whole = [printable(row) for row in rows if _whole(row, len(columns), numbers)]
    if len(whole) < len(rows):
        problems.append(f"{path.name}: {len(rows) - len(whole)} lines can't be read and are left out")
    text = {c: str for c in columns if c in _WORDS}
    frame = pd.read_csv(io.StringIO("\n".join([head, *whole])), dtype=text)
    numeric = [c for c in columns if c not in text]
    frame[numeric] = frame[numeric].apply(pd.to_numeric)
    return frame


def _whole(row: str, width: int, numbers: list[int]) -> bool:
    """Whether ``row`` has all its cells, a number in the first and numbers or nothing in the others of ``numbers``."""
    try:
        cells = next(csv.reader([row], strict=True)) if '"' in row else row.split(",")
    except (csv.Error, StopIteration):
        return False
    return len(cells) == width and cells[0] != "" and all(_NUMBER.fullmatch(cells[i]) for i in numbers)
