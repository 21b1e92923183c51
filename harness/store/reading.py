"""A run folder read back: what is damaged, cut short or not a plain file is left out, and said so."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from harness.engines.log import printable, read_lines
from harness.errors import RecordError, nearest
from harness.files import read_plain
from harness.ledger import Account
from harness.store.names import (
    COLUMNS,
    ENGINE_LOG,
    FRAME_COLUMNS,
    FRAMES,
    MANIFEST,
    PREDICTION,
    REHEARSAL,
    SCENARIO,
    SCHEMA,
)
from harness.store.shapes import Place, keep_sound

if TYPE_CHECKING:
    import pandas as pd

LARGEST_JSON = 64 << 20
LARGEST_TABLE = 1 << 30  # six hours of 8 GPUs, read every 20 ms


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
    def series(self) -> Place | None:
        """Its place among the repeats of a series, None where it was run by itself."""
        return self.manifest.get("series")

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
        if folder.exists():
            raise RecordError(f"{folder} is a file, not a run folder")
        near = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise RecordError(f"{folder} is not a folder{nearest(folder.name, near)}")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        raise RecordError(f"{folder} holds no {MANIFEST}: not a run folder, or cut short before the run began")
    if manifest.get("schema") != SCHEMA:
        raise RecordError(f"{folder} was written by another version (schema {manifest.get('schema')!r}, not {SCHEMA})")
    problems: list[str] = []
    keep_sound(manifest, problems)
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


def read_json(path: Path) -> Any:
    """The JSON data of a file of a run folder, None where there is no file. Raises RecordError."""
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


def _read_account(path: Path, problems: list[str]) -> Account | None:
    try:
        raw = asdict(Account.from_dict(read_json(path) or {}))
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
