"""The repeats of one run, gathered from their folders: what was counted, what was not, and the spread of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store
from harness.compare import Comparison, check
from harness.errors import LoadfitError
from harness.report.document import document as document_of
from harness.report.outcome import is_result
from harness.report.reading import Reading, understand
from harness.report.words import OUTCOMES
from harness.spread import Spreads, spreads
from harness.store import series as stored

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True)
class Repeat:
    """One run of a series. ``reading`` is None, and ``why`` says so, where the folder can't be read.

    ``counted``: it is a result, in a folder with its whole name; what is not is run anew.
    """

    number: int
    path: Path
    reading: Reading | None
    why: str = ""

    @property
    def counted(self) -> bool:
        return self.reading is not None and self.path.suffix != store.PARTIAL and is_result(self.reading)

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.reading is None:
            return "can't be read"
        outcome = self.reading.record.outcome
        cut = self.path.suffix == store.PARTIAL and outcome not in ("interrupted", "not_recorded")
        return OUTCOMES.get(outcome, outcome) + (", but bench was killed at its end" if cut else "")

    @property
    def reason(self) -> str:
        """Why it is not counted, beyond how it ended."""
        return self.why if self.reading is None else str(self.reading.record.manifest.get("reason", ""))

    @property
    def met(self) -> bool | None:
        """Whether the scenario's expectation is met."""
        assert self.reading is not None
        return check(self.reading.scenario.expect, self.reading.comparison, self.reading.scenario.slo)[0]


@dataclass(frozen=True)
class Series:
    """All runs of a series, by number and age."""

    id: str
    repeats: int  # as many as were asked for
    parent: Path
    runs: tuple[Repeat, ...]

    @property
    def counted(self) -> dict[int, Reading]:
        """Number -> what was run; where two benches did one at the same time, the later."""
        return {r.number: r.reading for r in self.runs if r.counted and r.reading is not None}

    @property
    def newest(self) -> dict[int, Reading]:
        """Number -> the one that was counted, else the last that was tried."""
        return dict(sorted(({r.number: r.reading for r in self.runs if r.reading} | self.counted).items()))

    @property
    def last(self) -> Reading | None:
        """The counted one whose prediction stands beside all."""
        return self.counted[max(self.counted)] if self.counted else None

    @property
    def name(self) -> str:
        """The scenario's."""
        return self.last.scenario.name if self.last else self.parent.name

    @property
    def expectation(self) -> tuple[bool | None, list[str]]:
        """Whether all that count meet the scenario's expectation, and which failed in what; (None, []) as in check."""
        met, failed = [], []
        for n, r in self.counted.items():
            one, lines = check(r.scenario.expect, r.comparison, r.scenario.slo)
            met.append(one)
            failed += [f"repeat {n}: {line}" for line in lines]
        return (None if not met or None in met else all(met)), failed

    @property
    def comparisons(self) -> dict[int, Comparison]:
        """Of the counted ones, by number."""
        return {n: reading.comparison for n, reading in self.counted.items()}

    @property
    def spreads(self) -> Spreads:
        """Of the counted ones; there is at least one."""
        return spreads(self.comparisons)


def gather(parent: Path, id: str) -> Series:
    """The series ``id`` from the run folders in ``parent``."""
    runs, asked = [], 1
    for folder, its in stored.members(parent).get(id, ()):
        asked = its["repeats"]  # the last one's: more may have been asked for later
        try:
            runs.append(Repeat(its["repeat"], folder, understand(store.read(folder))))
        except LoadfitError as error:
            runs.append(Repeat(its["repeat"], folder, None, str(error)))
    return Series(id, asked, parent, tuple(sorted(runs, key=lambda r: r.number)))


def of(folder: Path) -> Series | None:
    """The series that the run in ``folder`` is a repeat of; None where it has none, or none of the others is there."""
    its = stored.place(folder)
    parent = folder.resolve().parent
    if its is None or len(stored.members(parent).get(its["id"], ())) < 2:
        return None
    return gather(parent, its["id"])


def document(series: Series) -> dict[str, Any]:
    """The one JSON document: the spread, and the document of each repeat that was counted."""
    last = series.last
    met, failed = series.expectation
    return {
        "schema": SCHEMA,
        "scenario": series.name,
        "mode": last.record.mode if last else None,
        "repeats": series.repeats,
        "expectation": {"met": met, "failed": failed},
        "spread": series.spreads.as_dict() if last else None,
        "not_counted": [
            {"repeat": r.number, "outcome": r.reading.record.outcome if r.reading else None, "reason": r.reason,
             "run_dir": str(r.path)}
            for r in series.runs if not r.counted
        ],
        "runs": [{"repeat": n, **document_of(reading)} for n, reading in series.counted.items()],
    }  # fmt: skip


def frames(series: Series) -> dict[str, pd.DataFrame]:
    """Name -> frame: terms, rungs, figures (a column for the median, the least and the greatest), repeats."""
    import pandas as pd

    told = series.spreads if series.counted else Spreads((), (), ())
    return {
        "terms": pd.DataFrame([_flat(asdict(row)) for row in told.terms]).convert_dtypes(),
        "figures": pd.DataFrame([_flat(asdict(row)) for row in told.figures]),
        "rungs": pd.DataFrame([
            {"rung": row.rung, "predicted": row.predicted, "repeat": n, "measured": holds}
            for row in told.rungs for n, holds in row.measured.items()
        ]),
        "repeats": pd.DataFrame(list(_listed(series))),
    }  # fmt: skip


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    measured = row.pop("measured")
    numbers = {key: row.pop(key) for key in ("outside", "differ") if key in row}
    listed = {key: None if value is None else " ".join(map(str, value)) for key, value in numbers.items()}
    return {**row, **measured, **listed}


def _listed(series: Series) -> Iterator[dict[str, Any]]:
    for r in series.runs:
        record = r.reading.record if r.reading else None
        yield {
            "repeat": r.number, "counted": r.counted, "outcome": record.outcome if record else None,
            "reason": r.reason, "run_dir": str(r.path),
        }  # fmt: skip
