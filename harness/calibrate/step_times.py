"""The shares of the roofline that several runs reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from harness.calibrate.fit import LEAST, splits
from harness.calibrate.runs import Run
from harness.predict.settings import device_gpu
from harness.predict.step_time import Efficiency, published
from harness.roofline import FITTED_SHARES, Reached, off, reached
from harness.scenario.calibration import StepTimes
from harness.scenario.device import LARGEST_SHARE


def step_times(runs: Sequence[Run]) -> tuple[StepTimes | None, str]:
    """The shares of the roofline, the median of the runs; and why there are none."""
    told: list[tuple[Run, Reached]] = []
    why = "no run recorded its steps"
    for run in runs:
        if run.steps is None or run.steps.empty:
            continue
        one = reached(run.scenario, run.steps)
        if isinstance(one, str):
            why = f"{run.name}: {one}"
        elif max(getattr(one.efficiency, name) for name in FITTED_SHARES) > LARGEST_SHARE:
            why = f"{run.name}: its steps ask for more than {LARGEST_SHARE:g} of what the GPU has"
        else:
            told.append((run, one))
    if not told:
        return None, why

    def error(run: Run, shares: Efficiency) -> float:
        assert run.steps is not None
        return off(run.scenario, run.steps, shares)

    found = _shares([one for _, one in told])
    out = [
        error(one[0], _shares([r for _, r in rest]))
        for one, rest in splits(told, [run.model for run, _ in told])
    ] if len(told) >= LEAST else []  # fmt: skip
    gpu = device_gpu(runs[0].scenario)
    assert gpu is not None
    return StepTimes(
        **{name: round(getattr(found, name), 4) for name in FITTED_SHARES},
        runs=len(told),
        before=median(error(run, published(gpu)) for run, _ in told),
        after=median(error(run, found) for run, _ in told),
        held_out=median(out) if out else None,
    ), ""


def _shares(told: Sequence[Reached]) -> Efficiency:
    middle = {name: median(getattr(one.efficiency, name) for one in told) for name in FITTED_SHARES}
    return replace(told[0].efficiency, **middle)
