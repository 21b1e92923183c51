"""One family of errors, each with the exit code that ``bench`` ends with.

0 met · 1 expectation not met · 2 bad scenario or usage · 3 this machine can't do the forced mode ·
4 the engine failed in a way that the scenario did not expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

EXIT_MET = 0
EXIT_NOT_MET = 1
EXIT_USAGE = 2
EXIT_MACHINE = 3
EXIT_ENGINE = 4
EXIT_INTERRUPTED = 130


class LoadfitError(Exception):
    """Base of every error that reaches the user as one clear line."""

    exit_code = EXIT_USAGE


class UsageError(LoadfitError):
    """A wrong argument, an unknown name, a path that does not lead anywhere."""


class MachineError(LoadfitError):
    """The forced mode needs something that this machine does not have."""

    exit_code = EXIT_MACHINE


class EngineError(LoadfitError):
    """The engine refused, died or hung, and the scenario did not expect it."""

    exit_code = EXIT_ENGINE


class RecordError(LoadfitError):
    """A run folder can't be written or read."""


@dataclass(frozen=True)
class Problem:
    """One fault of one file: where, at which key, and what was expected there."""

    where: str  # "scenarios/a.yaml:7"
    key: str  # "engine.max_model_len", "" for the whole file
    message: str

    def __str__(self) -> str:
        named = not self.key or self.where == f"--set {self.key}"  # don't say the key twice
        return f"{self.where}: {self.message}" if named else f"{self.where}: {self.key}: {self.message}"


class ScenarioError(UsageError):
    """All the faults of a scenario file, collected in one go (one line each)."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known name, or an empty string where none is near."""
    known = list(known)
    folded = {k.lower(): k for k in known}
    close = difflib.get_close_matches(str(name).lower()[:80], folded, n=1, cutoff=0.5)
    return f"; did you mean '{folded[close[0]]}'?" if close else ""
