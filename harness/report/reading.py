"""A run folder with what is computed from it: what every report is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.compare import Comparison, compare
from harness.errors import LoadfitError, UsageError
from harness.ledger import Account
from harness.measure import measure
from harness.roofline import at_that_pace
from harness.scenario import Scenario, parse_scenario

if TYPE_CHECKING:
    from harness.store import RunRecord


@dataclass(frozen=True)
class Reading:
    """A run folder with what is computed from it."""

    record: RunRecord
    scenario: Scenario
    measured: Account | None
    comparison: Comparison


def understand(record: RunRecord) -> Reading:
    """Measure and compare what a run folder holds. Raises LoadfitError where its scenario can't be read."""
    try:
        scenario = parse_scenario(record.scenario_yaml, str(record.path / "scenario.yaml"), record.path)
    except LoadfitError as error:
        raise UsageError(f"{record.path}: the scenario kept there can't be read: {error}") from None
    measured, here = measure(record), record.rehearsal
    steps = record.tables.get("steps")
    if here is not None and scenario.load is not None and steps is not None:
        here = at_that_pace(scenario, record.prediction, here, steps)
    comparison = compare(record.prediction, measured, mode=record.mode, outcome=record.outcome, here=here)
    return Reading(record, scenario, measured, comparison)
