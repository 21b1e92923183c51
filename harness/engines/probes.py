"""Our two probes in the engine: the arguments that put them there, and what it says where it can't load one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.engines.log import plain, process

SCHEDULER, WORKER = "scheduler_cls", "worker_extension_cls"
# What is lost without it.
LOST = {
    SCHEDULER: "its steps are not written down, so peaks and preemptions are those that /metrics showed when asked",
    WORKER: "what its workers hold is told by its log alone",
}
_MODULES = {"scheduler_probe": SCHEDULER, "worker_probe": WORKER}

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line \d+, in (?P<where>\S+)')
_OURS = re.compile(r"\bharness[/.\\]engines[/.\\](?P<module>scheduler_probe|worker_probe)\b")
_ERROR = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception)): (?P<text>.+)")
_NAMING = ("ImportError", "ModuleNotFoundError", "AttributeError", "AssertionError")
_NO_PACKAGE = re.compile(r"No module named '?harness\b")


def arguments(*, asynchronous: bool = False) -> dict[str, str | int | float | bool]:
    """The arguments that put both probes into the engine."""
    scheduler = "RecordingAsyncScheduler" if asynchronous else "RecordingScheduler"
    return {
        SCHEDULER: f"harness.engines.scheduler_probe.{scheduler}",
        WORKER: "harness.engines.worker_probe.WorkerProbe",
    }


def at_fault(lines: Iterable[str]) -> dict[str, str]:
    """Argument -> error, of the probes that an engine which did not start could not load.

    That is so where our module was being imported, where the error was raised in it (one that merely passed through it
    is the engine's own), or where the error speaks of it.
    """
    found: dict[str, str] = {}
    importing: dict[str, str] = {}  # process -> the probe that is being imported
    last: dict[str, str] = {}  # process -> the probe in whose file the last frame lies
    for line in lines:
        who, text = process(line), plain(line)
        if frame := _FRAME.match(text):
            last.pop(who, None)
            if ours := _OURS.search(frame["file"]):
                (importing if frame["where"] == "<module>" else last)[who] = ours["module"]
        elif error := _ERROR.match(text):
            named = error["kind"] in _NAMING and _OURS.search(error["text"])
            module = importing.pop(who, None) or last.pop(who, None) or (named["module"] if named else None)
            said = text[:300]
            if module:
                found.setdefault(_MODULES[module], said)
            elif _NO_PACKAGE.search(text):
                found = dict.fromkeys(LOST, said) | found
    return found
