"""A scenario's load on a pool, simulated, with all that the scenario says of it."""

from __future__ import annotations

from harness.architecture import from_config
from harness.ledger import KvPool
from harness.predict.limits import bounds
from harness.predict.settings import settings
from harness.predict.step_time import clock
from harness.scenario import Scenario
from harness.simulate import TIMELESS, Limits, Simulation, StepTime, simulate


def step_time_of(scenario: Scenario) -> StepTime:
    """How long the scenario's steps take, ``TIMELESS`` where that is not known."""
    architecture = from_config(scenario.config())
    found = clock(scenario, architecture, settings(scenario, architecture))
    return found if isinstance(found, StepTime) else TIMELESS


def targets_of(scenario: Scenario) -> dict[str, float]:
    """What makes a request good, in seconds."""
    return scenario.slo.of_a_request if scenario.slo else {}


def simulated(
    scenario: Scenario, kv: KvPool, limits: Limits | None = None, step_time: StepTime | None = None
) -> Simulation:
    """The scenario's load on the pool ``kv``, or under ``limits`` of another's. Raises UsageError where it can't be."""
    assert scenario.load is not None
    limits = limits or bounds(scenario, kv.num_blocks or 0)
    step_time = step_time_of(scenario) if step_time is None else step_time
    return simulate(scenario.load, limits, step_time, targets_of(scenario))
