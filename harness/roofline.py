"""The shares of a GPU's roofline that a measured run reached, from its own steps.

Two least squares: steps in which a few requests decode tell what reading takes (the weights by the intercept, KV by the
slope), steps full of prompts what computing takes. What the launch of a step costs can't be told from reading the
weights, so it stays at the published figure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.architecture import from_config
from harness.engines.standin import stand_in
from harness.errors import LoadfitError
from harness.ledger import Account
from harness.predict import settings
from harness.predict.limits import bounds
from harness.predict.settings import device_gpu
from harness.predict.simulated import simulated, step_time_of
from harness.predict.step_time import Efficiency, clock, published
from harness.scenario import Scenario
from harness.simulate import StepTime
from harness.simulate.latency import PS

if TYPE_CHECKING:
    import pandas as pd

LEAST = 40  # steps of each kind, fewer tell nothing
BREAK_NS = 50_000_000
FITTED_SHARES = ("weights", "kv", "linear", "attention")
CLEAR = 2  # how far from the ridge of the published roofline a step has to be, to be told by one side of it


@dataclass(frozen=True)
class Reached:
    """``efficiency`` as fitted, and by how much the fitted steps are off on the median, as a share of their time."""

    efficiency: Efficiency
    decode_error: float
    prefill_error: float


def reached(scenario: Scenario, steps: pd.DataFrame) -> Reached | str:
    """What the run of ``scenario`` with these ``steps`` reached, or why that can't be told."""
    gpu = device_gpu(scenario)
    if gpu is None or not {"kv_tokens", "pairs", "took_ns"} <= set(steps.columns):
        return "no GPU" if gpu is None else "the steps' work was not recorded"
    now = published(gpu)
    step = clock(scenario, from_config(scenario.config()), settings(scenario), now)
    if not isinstance(step, StepTime):
        return step
    if step.experts_ps:
        return "how many experts a step reads is not recorded"
    ridge = step.dense_ps / step.token_ps  # tokens of a step that take as long to compute as the weights to read
    decode = steps[(steps["pairs"] == 0) & (steps["tokens"] <= ridge / CLEAR)]
    prefill = steps[(steps["pairs"] > 0) & (steps["tokens"] >= ridge * CLEAR)]
    if min(len(decode), len(prefill)) < LEAST:
        return f"{len(decode)} steps of decoding and {len(prefill)} full of prompts: {LEAST} of each are needed"
    seconds = decode["took_ns"] / 1e9
    fixed, each_kv = _fit([_ones(decode), decode["kv_tokens"]], seconds)
    decode_error = _error(fixed + each_kv * decode["kv_tokens"], seconds)
    rest = prefill["took_ns"] / 1e9 - step.launch_ps / 1e12 - each_kv * prefill["kv_tokens"]
    each_token, each_pair = _fit([prefill["tokens"], prefill["pairs"]], rest)
    prefill_error = _error(each_token * prefill["tokens"] + each_pair * prefill["pairs"], rest)
    read = fixed - step.launch_ps / 1e12
    if min(read, each_kv, each_token, each_pair) <= 0:
        return "the steps do not tell reading from computing"
    return Reached(
        replace(
            now,
            weights=now.weights * step.dense_ps / 1e12 / read,
            kv=now.kv * step.kv_ps / 1e12 / each_kv,
            linear=now.linear * step.token_ps / 1e12 / each_token,
            attention=now.attention * step.pair_ps / 1e12 / each_pair,
        ),
        decode_error, prefill_error,
    )  # fmt: skip


def off(scenario: Scenario, steps: pd.DataFrame, shares: Efficiency) -> float:
    """By how much steps of a GPU that reaches ``shares`` are off on the median, as a share of their time."""
    step = clock(scenario, from_config(scenario.config()), settings(scenario), shares)
    assert isinstance(step, StepTime)
    work = zip(steps["tokens"].tolist(), steps["kv_tokens"].tolist(), steps["pairs"].tolist(), strict=True)
    took = [step.step(*row) / 1000 for row in work]
    return float((took / steps["took_ns"] - 1).abs().median())


def late_s(steps: pd.DataFrame) -> float | None:
    """Seconds by which a step of a rehearsal was longer than it was held to, what lies between two included: the mean.

    None where they were held to nothing. Longer breaks are times in which nobody was there.
    """
    if not {"paced_ns", "took_ns"} <= set(steps.columns) or not steps["paced_ns"].sum():
        return None
    between = (steps["time_ns"].shift(-1) - steps["time_ns"] - steps["took_ns"]).clip(lower=0)
    late = (steps["took_ns"] - steps["paced_ns"]).sum() + between[between < BREAK_NS].sum()
    return float(late) / len(steps) / 1e9


def at_that_pace(scenario: Scenario, prediction: Account, rehearsal: Account, steps: pd.DataFrame) -> Account:
    """What was expected of a ``rehearsal``, simulated again with steps as long as they were."""
    late = late_s(steps)
    if late is None or prediction.kv.num_blocks is None:
        return rehearsal
    try:
        own = stand_in(bounds(scenario, prediction.kv.num_blocks)).limits
        step = step_time_of(scenario)
        step = replace(step, launch_ps=step.launch_ps + round(late * PS))
        figures = simulated(scenario, prediction.kv, own, step).figures
    except LoadfitError:  # the folder's prediction is not one of this scenario
        return rehearsal
    return replace(rehearsal, load=figures)


def _ones(frame: pd.DataFrame) -> Any:
    return frame["tokens"] * 0 + 1


def _fit(columns: list[Any], values: Any) -> list[float]:
    """Least squares of relative errors, without an intercept of its own."""
    import numpy as np

    weight = 1 / values.to_numpy(dtype=float)
    matrix = np.column_stack([c.to_numpy(dtype=float) * weight for c in columns])
    found = np.linalg.lstsq(matrix, np.ones(len(weight)), rcond=None)[0]
    return [float(x) for x in found]


def _error(fitted: Any, values: Any) -> float:
    return float((fitted / values - 1).abs().median())
