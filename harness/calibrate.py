"""Measured runs of one GPU under one vLLM -> the constants that they refit, each with its error before and after.

    measured = law + constant + bytes per unit x units

The law is what is predicted with the constant at nothing, so what is fitted is what the prediction uses. An offset is
the median of what the law leaves. Graphs are a line over the layers where three models of different depth ran, by the
medians of Theil and Sen (one odd run does not move it); else the published slope stays. With experts they are one rate,
bytes a captured size. Held out are all runs of a model at once, or single runs where there is one model alone.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from statistics import median
from typing import TypeVar

from harness import __version__
from harness.architecture import Architecture, from_config
from harness.catalog import Gpu
from harness.errors import UsageError
from harness.ledger import Term
from harness.measured_run import Run
from harness.predict import settings
from harness.predict.admission import budget, grant
from harness.predict.calibrated import WORDS, kinds
from harness.predict.estimate import Estimate
from harness.predict.overhead import graph_units, graphs_a_layer
from harness.predict.refitted import GRAPHS_RESERVED
from harness.predict.settings import Settings, device_gpu
from harness.predict.step_time import Efficiency, published
from harness.roofline import FITTED_SHARES, Reached, off, reached
from harness.scenario import Calibration, minor
from harness.scenario.calibration import FORMAT, Constant, PoolError, StepTimes
from harness.scenario.device import LARGEST_SHARE
from harness.units import MIB

T = TypeVar("T")
LEAST = 3  # runs, fewer are not held out; depths, fewer tell no slope
GRAPHS = (Term.CUDA_GRAPHS, GRAPHS_RESERVED)
OF_A_STAGE = (Term.ACTIVATION_PEAK, *GRAPHS)  # the other constants are the same on every stage
MODELS = 8  # from which an interval may become narrower
PRINTED = 5 * MIB  # a log has two decimals of a GiB: half of the last one, rounded up


@dataclass(frozen=True)
class Case:
    """A run as the prediction sees it, without a calibration."""

    run: Run
    architecture: Architecture
    settings: Settings
    gpu: Gpu
    stage: int

    def terms(self, calibration: Calibration | None) -> dict[str, Estimate]:
        """The fitted terms and what is left for KV, as predicted with ``calibration``."""
        chosen = replace(self.settings, calibration=calibration)
        b = budget(self.architecture, chosen, self.gpu, self.stage)
        return {
            Term.RUNTIME_AT_INIT: b.init,
            Term.NON_TORCH_INCREASE: b.non_torch,
            Term.ACTIVATION_PEAK: b.activation,
            Term.CUDA_GRAPHS: b.graphs,
            GRAPHS_RESERVED: b.reserved,
            Term.KV_AVAILABLE: b.available,
        }

    @cached_property
    def seen(self) -> list[tuple[tuple[str, str], Seen]]:
        """What it tells: (term, what of it), and the figures."""
        return list(_seen(self))

    @property
    def staged(self) -> bool:
        """Whether a worker is one of several stages: a log does not say which."""
        return self.settings.pipeline_parallel_size > 1

    @property
    def has_own_pool(self) -> bool:
        """Whether the profile decided the pool's size, not the scenario."""
        return self.settings.kv_cache_memory_bytes is None and self.settings.num_gpu_blocks_override is None


@dataclass(frozen=True)
class Seen:
    """One term of one run, bytes. ``law``: predicted with the constant at nothing; ``published``: with the published
    one; ``slope``: the published bytes for each of ``units``; ``rate``: there is nothing beside these."""

    model: str
    measured: int
    law: int
    published: Estimate
    units: int = 0
    slope: int = 0
    rate: bool = False


def calibrate(runs: Sequence[Run], today: datetime.date) -> Calibration:
    """The constants that ``runs`` tell. Raises UsageError where they are of several GPUs or versions, or tell none."""
    first = _one_kind(runs)
    cases = [case_of(run) for run in runs]
    gpu = first.scenario.gpu
    assert gpu is not None and gpu.name is not None
    constants = fit(cases)
    steps, why_not = _step_times(runs)
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
    kinds: dict[tuple[str, str], str] = {}
    for run in runs:
        gpu = run.scenario.gpu
        if gpu is None or gpu.name is None:
            where = "this computer" if gpu is None else "a GPU known by its memory alone"
            raise UsageError(f"{run.name}: ran on {where}: a calibration is for a GPU of the catalogue")
        device = " ".join(filter(None, (gpu.name, gpu.mig)))
        kinds.setdefault((device, minor(run.scenario.engine.vllm)), run.name)
    if len(kinds) > 1:
        told = "; ".join(f"{device} under vLLM {version} ({name})" for (device, version), name in kinds.items())
        raise UsageError(f"the runs are of several kinds, a calibration is for one: {told}")
    return runs[0]


def case_of(run: Run) -> Case:
    scenario = run.scenario.model_copy(update={"calibration": None})
    gpu = device_gpu(scenario)
    assert gpu is not None
    architecture = from_config(scenario.config())
    chosen = settings(scenario, architecture)
    return Case(run, architecture, chosen, gpu, grant(architecture, chosen, gpu).budget.stage)


# -- the fit -----------------------------------------------------------------------------------------------


def fit(cases: Iterable[Case]) -> list[Constant]:
    """The constants, by term and by what they are constants of."""
    seen: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    for case in cases:
        for key, one in case.seen:
            seen[key].append(one)
    return [_constant(term, of, seen[term, of]) for term, of in sorted(seen, key=_order)]


def _order(key: tuple[str, str]) -> tuple[int, str]:
    return list(WORDS).index(key[0]), key[1]


def _seen(case: Case) -> Iterator[tuple[tuple[str, str], Seen]]:
    found = kinds(case.architecture, case.settings, case.stage)
    published, law = case.terms(None), case.terms(_of_nothing(case, found))
    for term, of in found.items():
        if term not in case.run.measured or (case.staged and term in OF_A_STAGE):
            continue
        one = Seen(case.run.scenario.model_name, case.run.measured[term], law[term].bytes, published[term])
        if term in GRAPHS:
            units = graph_units(case.architecture, case.settings, case.stage)[1]
            slope, rate = graphs_a_layer(case.settings), case.architecture.mixture is not None
            one = replace(one, units=units, slope=slope, rate=rate)
        yield (term, of), one


def _of_nothing(case: Case, found: dict[str, str]) -> Calibration:
    """A calibration whose constants are all 0."""
    gpu = case.run.scenario.gpu
    assert gpu is not None and gpu.name is not None
    zeros = [
        Constant.model_validate({"term": term, "of": of, "bytes": 0, "runs": 1, "before": 0, "after": 0})
        for term, of in found.items()
    ]
    return Calibration(
        format=FORMAT, loadfit=__version__, gpu=gpu.name, vllm=minor(case.settings.vllm), made="2000-01-01", runs=1,
        made_from=[], constants=zeros,
    )  # fmt: skip


def _constant(term: str, of: str, seen: list[Seen]) -> Constant:
    size, each = _solve(seen)
    out = _held_out(seen)
    return Constant.model_validate({
        "term": term,
        "of": of,
        "bytes": size,
        "bytes_per_unit": each,
        "below": _room(seen, out, min(s.published.bytes - s.published.low for s in seen)),
        "above": _room(seen, [-e for e in out], min(s.published.high - s.published.bytes for s in seen)),
        "runs": len(seen),
        "before": _middle(abs(s.published.bytes - s.measured) for s in seen),
        "after": _middle(abs(e) for e in _errors(seen, size, each)),
        "held_out": _middle(abs(e) for e in out) if out else None,
    })  # fmt: skip


def _room(seen: Sequence[Seen], out: Sequence[int], published: int) -> int | None:
    """How far the interval goes to one side, where the held-out runs were off by ``out``; None: as ``published``.

    The next of k models lies in the range of k held-out ones with a probability of (k - 1) / (k + 1), so few models
    make an interval wider and never narrower.
    """
    if not out:
        return None
    most = max(0, *out) + PRINTED
    return most if most > published or len({s.model for s in seen}) >= MODELS else None


def _solve(seen: Sequence[Seen]) -> tuple[int, int]:
    """(bytes, bytes for each unit)."""
    if seen[0].rate:
        return 0, _middle((s.measured - s.law) / s.units for s in seen)
    each = _slope(seen)
    return _middle(s.measured - s.law - each * s.units for s in seen), each


def _slope(seen: Sequence[Seen]) -> int:
    """The median slope between two depths where there are three of them, else the published one."""
    by_depth: dict[int, list[int]] = defaultdict(list)
    for s in seen:
        by_depth[s.units].append(s.measured - s.law)
    if len(by_depth) < LEAST:
        return seen[0].slope
    middles = {units: median(sizes) for units, sizes in by_depth.items()}
    slopes = [(middles[b] - middles[a]) / (b - a) for a, b in combinations(sorted(middles), 2)]
    return max(round(median(slopes)), 0)


def _held_out(seen: Sequence[Seen]) -> list[int]:
    """Errors (predicted less measured) of runs that the fit did not have; none where too few are there."""
    if len(seen) < LEAST:
        return []
    return [e for one, rest in splits(seen, [s.model for s in seen]) for e in _errors([one], *_solve(rest))]


def splits(items: Sequence[T], models: Sequence[str]) -> Iterator[tuple[T, list[T]]]:
    """Each of ``items`` and those to fit without it: without its model's, where there are several models."""
    several = len(set(models)) > 1
    for n, one in enumerate(items):
        yield one, [
            x for m, x in enumerate(items) if (models[m] != models[n] if several else m != n)
        ]  # fmt: skip


def _errors(seen: Iterable[Seen], size: int, each: int) -> list[int]:
    return [s.law + size + each * s.units - s.measured for s in seen]


def _middle(values: Iterable[float]) -> int:
    return round(median(values))


# -- what is made of all of them ------------------------------------------------------------------------------


def _pool_error(cases: Sequence[Case], found: Calibration) -> PoolError | None:
    """How far the pool was off with the published constants, with ``found``, and with those of the other models."""
    known = [c for c in cases if Term.KV_AVAILABLE in c.run.measured and c.has_own_pool and not c.staged]
    if not known:
        return None

    def off_by(case: Case, calibration: Calibration | None) -> int:
        return abs(case.terms(calibration)[Term.KV_AVAILABLE].bytes - case.run.measured[Term.KV_AVAILABLE])

    out = [
        off_by(case, found.model_copy(update={"constants": fit(rest)}))
        for case, rest in splits(known, [c.run.scenario.model_name for c in known])
    ] if len(known) >= LEAST else []  # fmt: skip
    return PoolError(
        runs=len(known),
        before=_middle(off_by(c, None) for c in known),
        after=_middle(off_by(c, found) for c in known),
        held_out=_middle(out) if out else None,
    )


def _step_times(runs: Sequence[Run]) -> tuple[StepTimes | None, str]:
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
        for one, rest in splits(told, [run.scenario.model_name for run, _ in told])
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


def _not_refitted(cases: Sequence[Case], constants: Sequence[Constant], why_no_steps: str) -> dict[str, str]:
    """What of the runs' own kinds stays as published, and why."""
    have, missing = {(c.term, c.of) for c in constants}, {}
    for case in cases:
        for term, of in kinds(case.architecture, case.settings, case.stage).items():
            if (term, of) not in have:
                stated = case.staged and term in case.run.measured
                why = "a pipeline's workers do not say which stage they are" if stated else "no run states it"
                missing[f"{term} of {of}"] = why
    return missing | ({"step_times": why_no_steps} if why_no_steps else {})
