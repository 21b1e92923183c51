"""A run, and once more where one of our own probes kept the engine from its start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import store
from harness.engines import log, probes
from harness.errors import RecordError
from harness.ledger import Account
from harness.run import REFUSED, execute
from harness.scenario import Scenario
from harness.sessions import Session, without


def attempt(
    prepare: Callable[[], Session], scenario: Scenario, prediction: Account, out: Path, say: Callable[[str], None],
    **how: Any,
) -> store.RunFolder:  # fmt: skip
    """:func:`execute` what ``prepare`` makes ready; where the engine can't load one of our probes, again without it.

    ``say`` is told so in a line. The start that failed stays a run folder of its own.
    """
    lost: dict[str, str] = {}
    while True:
        session = without(prepare(), lost)
        try:
            folder = execute(scenario, prediction, session, out, **how)
        finally:
            session.close()
        found = _not_loaded(folder, session)
        if not found.keys() - lost.keys():
            return folder
        lost |= found
        folder.manifest.pop("series", None)  # its place is that of the run that follows
        with contextlib.suppress(RecordError):
            folder.save_manifest()
            folder.finish()
        for name, said in found.items():
            say(f"the engine could not load our {name} ({said}; {folder.path}): once more without it")


def _not_loaded(folder: store.RunFolder, session: Session) -> dict[str, str]:
    """The probes, and what was said of them, that kept the engine from its start and that a run can do without."""
    if folder.manifest["outcome"] != REFUSED or session.server is not None:
        return {}
    found = probes.at_fault(log.read_lines(folder.file(store.ENGINE_LOG)))
    return {} if session.pace and probes.SCHEDULER in found else found  # nothing else keeps the pace
