"""``load.trace``: requests that were recorded somewhere, in the formats that people publish.

mooncake
    JSON lines: ``timestamp`` in ms, ``input_length``, ``output_length`` and ``hash_ids``, an id for each 512 tokens of
    the prompt; equal beginnings have equal ids (https://github.com/kvcache-ai/Mooncake).
timed
    What vLLM's ``timed_trace`` data set reads: the same keys, ``timestamp`` in s, an id for each 16 tokens
    (vllm/benchmarks/datasets/datasets.py, 0.32).
burstgpt
    CSV with the columns ``Timestamp`` in s, ``Request tokens``, ``Response tokens``; a row without response tokens is a
    failed request and is left out (https://github.com/HPMLL/BurstGPT).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from harness.errors import Problem, ScenarioError
from harness.scenario.fields import FilePart
from harness.scenario_text import show

HASH_TOKENS = {"mooncake": 512, "timed": 16}  # how many tokens of a prompt one id stands for
_SECONDS = {"mooncake": 1e-3, "timed": 1.0}
_LONGEST = 10_000_000


@dataclass(frozen=True)
class Row:
    """A recorded request; ``time_s`` from the first one. Prompts with the same first ``hash_ids`` begin alike."""

    time_s: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()


class Trace(FilePart):
    """A file of recorded requests."""

    format: Literal["mooncake", "burstgpt", "timed"] = Field(
        description="mooncake: JSON lines, ms; timed: JSON lines of vLLM's timed_trace, s; burstgpt: CSV, s"
    )
    time_scale: Annotated[float, Field(gt=0, le=1e6)] = Field(1.0, description="0.5 plays it twice as fast")
    _rows: tuple[Row, ...] = PrivateAttr(())

    @property
    def rows(self) -> tuple[Row, ...]:
        """The requests, by the time of the recording."""
        return self._rows

    def _take(self, lines: list[str]) -> None:
        read = _burstgpt(lines, self.path) if self.format == "burstgpt" else _json_lines(lines, self.path, self.format)
        rows = sorted(read, key=lambda r: r.time_s)
        if not rows:
            raise _fault(self.path, 1, "", "expected requests, got none")
        self._rows = tuple(replace(r, time_s=r.time_s - rows[0].time_s) for r in rows)


def _fault(path: Path, line: int, key: str, text: str) -> ScenarioError:
    return ScenarioError([Problem(f"{path}:{line}", key, text)])


def _json_lines(lines: list[str], path: Path, form: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise _fault(path, number, "", f"expected a JSON object, got {show(line.strip())}")
        ids = data.get("hash_ids") or ()
        if not isinstance(ids, list | tuple) or not all(type(i) is int for i in ids):
            raise _fault(path, number, "hash_ids", f"expected a list of whole numbers, got {show(ids)}")
        yield Row(
            _time(data.get("timestamp"), path, number, "timestamp") * _SECONDS[form],
            _tokens(data.get("input_length"), path, number, "input_length"),
            _tokens(data.get("output_length"), path, number, "output_length"),
            tuple(ids),
        )


def _burstgpt(lines: list[str], path: Path) -> Iterator[Row]:
    columns = ("Timestamp", "Request tokens", "Response tokens")
    reader = csv.DictReader(lines)
    missing = [c for c in columns if c not in (reader.fieldnames or ())]
    if missing:
        raise _fault(path, 1, "", f"expected the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    for cells in reader:
        when, prompt, output = (_number(cells.get(c)) for c in columns)
        if output == 0:
            continue
        line = reader.line_num
        yield Row(
            _time(when, path, line, columns[0]), _tokens(prompt, path, line, columns[1]),
            _tokens(output, path, line, columns[2]),
        )  # fmt: skip


def _number(cell: str | None) -> Any:
    """The number that the text of a cell is, else the text."""
    try:
        value = float(cell or "")
    except ValueError:
        return cell
    return int(value) if value.is_integer() else value


def _time(value: Any, path: Path, line: int, key: str) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e12:
        raise _fault(path, line, key, f"expected a time, got {'nothing' if value is None else show(value)}")
    return float(value)


def _tokens(value: Any, path: Path, line: int, key: str) -> int:
    if type(value) is not int or not 1 <= value <= _LONGEST:
        got = "nothing" if value is None else show(value)
        raise _fault(path, line, key, f"expected a whole number of tokens from 1 to {_LONGEST:,}, got {got}")
    return value
