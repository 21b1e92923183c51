"""Measured runs of one GPU under one vLLM -> the constants that they refit, for a prediction to take."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from harness import __version__
from harness.calibrate.cases import Case, case_of
from harness.calibrate.fit import LEAST, fit, middle, splits
from harness.calibrate.runs import Run
from harness.calibrate.step_times import step_times
from harness.errors import UsageError
from harness.ledger import Term
from harness.predict.calibrated import WORDS, kinds
from harness.scenario import Calibration, minor
from harness.scenario.calibration import FORMAT, Constant, PoolError

__all__ = ["Case", "Run", "calibrate", "case_of", "splits"]


def calibrate(runs: Sequence[Run], today: datetime.date) -> Calibration:
    """The constants that ``runs`` tell. Raises UsageError where they are of several GPUs or versions, or tell none."""
    first = _one_kind(runs)
    cases = [case_of(run) for run in runs]
    gpu = first.scenario.gpu
    assert gpu is not None and gpu.name is not None
    constants = fit(cases)
    steps, why_not = step_times(runs)
    if not constants and steps is None:
        raise UsageError("the runs tell none of the fitted terms: a log at INFO states few of them (DEBUG states all)")
    found = Calibration(
        format=FORMAT,
        loadfit=__version__,
        gpu=gpu.name,
        mig=gpu.mig,
        vllm=minor(first.scenario.engine.vllm),
        made=today.isoformat(),
        runs=len(runs),
        made_from=[run.name for run in runs],
        constants=constants,
        step_times=steps,
        not_refitted=_not_refitted(cases, constants, why_not),
    )
    return found.model_copy(update={"pool": _pool_error(cases, found)})


def _one_kind(runs: Sequence[Run]) -> Run:
    """The first run, where all are of its GPU and its vLLM."""
    found: dict[tuple[str, str], str] = {}
    for run in runs:
        gpu = run.scenario.gpu
        if gpu is None or gpu.name is None:
            where = "this computer" if gpu is None else "a GPU known by its memory alone"
            raise UsageError(f"{run.name}: ran on {where}: a calibration is for a GPU of the catalogue")
        device = " ".join(filter(None, (gpu.name, gpu.mig)))
        found.setdefault((device, minor(run.scenario.engine.vllm)), run.name)
    if len(found) > 1:
        told = "; ".join(f"{device} under vLLM {version} ({name})" for (device, version), name in found.items())
        raise UsageError(f"the runs are of several kinds, a calibration is for one: {told}")
    return runs[0]


def _pool_error(cases: Sequence[Case], found: Calibration) -> PoolError | None:
    """How far the pool was off with the published constants, with ``found``, and with those of the other models."""
    known = [c for c in cases if Term.KV_AVAILABLE in c.run.measured and c.has_own_pool and not c.staged]
    if not known:
        return None

    def off_by(case: Case, calibration: Calibration | None) -> int:
        return abs(case.terms(calibration)[Term.KV_AVAILABLE].bytes - case.run.measured[Term.KV_AVAILABLE])

    out = [
        off_by(case, found.model_copy(update={"constants": fit(rest)}))
        for case, rest in splits(known, [c.run.model for c in known])
    ] if len(known) >= LEAST else []  # fmt: skip
    return PoolError(
        runs=len(known),
        before=middle(off_by(c, None) for c in known),
        after=middle(off_by(c, found) for c in known),
        held_out=middle(out) if out else None,
    )


def _not_refitted(cases: Sequence[Case], constants: Sequence[Constant], why_no_steps: str) -> dict[str, str]:
    """What of the runs' own kinds stays as published, and why."""
    have, missing = {(c.term, c.of) for c in constants}, {}
    for case in cases:
        for term, of in kinds(case.architecture, case.settings, case.stage).items():
            if (term, of) not in have:
                stated = case.staged and term in case.run.measured
                why = "a pipeline's workers do not say which stage they are" if stated else "no run states it"
                missing[f"{WORDS[term]} of {of}"] = why
    return missing | ({"step times": why_no_steps} if why_no_steps else {})
