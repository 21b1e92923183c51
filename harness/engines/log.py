"""What vLLM's log says: the marks of a start, the lines worth quoting, the reason of a failure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from harness.engines.masks import mask

MAX_LINE = 2_000  # characters of a line that are looked at
MAX_BYTES = 4 << 20  # of a log: so much of its beginning, and so much of its end

# What a terminal would act on: escape sequences whole, then control, direction and surrogate characters.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?", re.DOTALL)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
# Prefixes of vLLM's log records: "(Worker pid=42) INFO 11-24 06:53:00 [file.py:1] text"; before 0.8 "file.py:1] text".
_RECORD = re.compile(
    r"^(?:\((?P<process>[^)]*)\)\s*)?"
    r"(?:(?P<level>INFO|WARNING|ERROR|DEBUG) \S+ \S+ (?:\[[^\]]*\]|\S+:\d+\]) ?)?"
)

# text -> the mark of the run that it sets, and what progress calls the stage
STAGES = (
    (re.compile(r"Initializing a V1 LLM engine"), "engine starts"),
    (re.compile(r"Starting to load model"), "loading weights"),
    (re.compile(r"(Model loading|Loading weights) took|Initializing model took"), "weights loaded"),
    (re.compile(r"Warming up model"), "compiling"),
    (re.compile(r"KV cache size"), "pool granted"),
    (re.compile(r"Starting vLLM server|Application startup complete"), "server starts"),
)
LOADING = re.compile(r"Starting to load model")
LOADED = re.compile(r"(Model loading|Loading weights) took|KV cache size|for KV cache on node")

_QUOTABLE = re.compile(
    r"Model loading took|Loading model weights took|model weights take|Available KV cache memory|KV cache size|"
    r"Maximum concurrency|# (?:GPU|cuda) blocks|"
    r"Graph capturing finished|Estimated CUDA graph memory|for KV cache on node|Free memory on device"
)
# The exceptions that say why; the generic ones that wrap them come last.
_REASON = re.compile(
    r"(?<![\w.])(?P<kind>[\w.]*(?:OutOfMemoryError|ValueError|RuntimeError|OSError|FileNotFoundError|PermissionError|"
    r"ValidationError|ImportError|ModuleNotFoundError|MemoryError|KeyError|AssertionError|NotImplementedError|"
    r"TypeError|AttributeError|HTTPError|RepositoryNotFoundError)): (?P<text>.+)$|error: (?P<usage>.+)$|"
    r"^\s*(?P<value>Value error, .+?)(?: \[type=.*)?$|"
    r"(?<!\w)(?P<dead>\w+ proc \S+ died unexpectedly.*)$"
)
_WRAPPERS = (
    "validation error", "Engine core initialization failed", "WorkerProc initialization failed", "cancelled",
    "EngineDeadError",
)  # fmt: skip


def printable(text: str) -> str:
    """``text`` on one line, without anything that a terminal would act on."""
    return text if text.isprintable() else _CONTROLS.sub(" ", _ESCAPES.sub("", text))


def read_lines(path: Path, longest: int = MAX_LINE) -> list[str]:
    """The lines of a log as printable text; of a huge one its beginning and its end. [] where there is none.

    ``longest``: so many characters of a line.
    """
    try:
        if not path.is_file():  # a pipe would have us wait
            return []
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES)
            size = file.seek(0, 2)
            if size > 2 * MAX_BYTES:
                raw += b"\n[...]\n"
            file.seek(max(MAX_BYTES, size - MAX_BYTES))
            raw += file.read(MAX_BYTES)
    except OSError:
        return []
    return [mask(printable(line[:longest])) for line in re.split(r"[\r\n]+", raw.decode("utf-8", "replace")) if line]


def plain(line: str) -> str:
    """A log line without its process, level, time and file."""
    return _RECORD.sub("", line.rstrip("\n"), count=1).strip()


def process(line: str) -> str:
    """Which process a log line is of, as it names itself; "" where it does not."""
    record = _RECORD.match(line)
    return (record and record["process"]) or ""


def stage(line: str) -> str | None:
    """What the start has come to, where ``line`` tells it."""
    for pattern, name in STAGES:
        if pattern.search(line):
            return name
    return None


def quotable(lines: Iterable[str]) -> list[str]:
    """The lines in which the engine states its memory and its pool, in order, each once."""
    return list(dict.fromkeys(plain(line) for line in lines if _QUOTABLE.search(line)))


def reason(lines: Iterable[str]) -> str | None:
    """Why the engine gave up, in its own words: the root cause rather than what wraps it; None if unsaid.

    A line that vLLM itself calls a warning or information names errors that did not happen.
    """
    found = None
    for line in lines:
        record, text = _RECORD.match(line), plain(line)
        match = _REASON.search(text)
        if not match or text.startswith("loadfit: ") or (record and record["level"] in ("INFO", "WARNING", "DEBUG")):
            continue  # our probes go on without what they could not do
        kind, usage = match["kind"], match["usage"]
        text = f"{kind}: {match['text']}" if kind else f"error: {usage}" if usage else match["value"] or match["dead"]
        if any(w in text for w in _WRAPPERS):
            found = found or text
        elif found is None or any(w in found for w in _WRAPPERS):
            found = text
    return found
