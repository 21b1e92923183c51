"""What vLLM's log says: the marks of a start, the lines worth quoting, the reason of a failure."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Prefixes of vLLM's log records: "(Worker pid=42) INFO 11-24 06:53:00 [file.py:1] text".
_RECORD = re.compile(r"^(?:\((?P<process>[^)]*)\)\s*)?(?:(?P<level>INFO|WARNING|ERROR|DEBUG) \S+ \S+ \[[^\]]*\] ?)?")

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
    r"Model loading took|Available KV cache memory|KV cache size|Maximum concurrency|# GPU blocks|"
    r"Graph capturing finished|Estimated CUDA graph memory|for KV cache on node|Free memory on device"
)
# The exceptions that say why; the generic ones that wrap them come last.
_REASON = re.compile(
    r"(?P<kind>[\w.]*(?:OutOfMemoryError|ValueError|RuntimeError|OSError|FileNotFoundError|PermissionError|"
    r"ValidationError|ImportError|ModuleNotFoundError|MemoryError|KeyError|AssertionError|NotImplementedError|"
    r"TypeError|AttributeError|HTTPError|RepositoryNotFoundError)): (?P<text>.+)$|error: (?P<usage>.+)$"
)
_WRAPPERS = ("Engine core initialization failed", "WorkerProc initialization failed", "cancelled", "EngineDeadError")


def plain(line: str) -> str:
    """A log line without its process, level, time and file."""
    return _RECORD.sub("", line.rstrip("\n"), count=1).strip()


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
    """Why the engine gave up, in its own words: the root cause rather than what wraps it; None if unsaid."""
    found = None
    for line in lines:
        match = _REASON.search(plain(line))
        if not match:
            continue
        text = f"{match['kind']}: {match['text']}" if match["kind"] else f"error: {match['usage']}"
        if any(w in text for w in _WRAPPERS):
            found = found or text
        elif found is None or any(w in found for w in _WRAPPERS):
            found = text
    return found
