"""A run as the prediction sees it: what it tells of each constant, and what the law leaves for it.

    measured = law + constant + bytes for each unit x units

The law is what is predicted with the constant at nothing, so what is fitted is what the prediction uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from harness import __version__
from harness.architecture import Architecture, from_config
from harness.calibrate.runs import Run
from harness.catalog import Gpu
from harness.errors import UsageError
from harness.ledger import Term
from harness.predict import settings
from harness.predict.admission import budget, grant
from harness.predict.calibrated import kinds
from harness.predict.estimate import Estimate
from harness.predict.graphs import graph_units, graphs_a_unit
from harness.predict.refitted import GRAPHS_RESERVED
from harness.predict.settings import Settings, device_gpu
from harness.scenario import Calibration, minor
from harness.scenario.calibration import FORMAT, Constant

GRAPHS = (Term.CUDA_GRAPHS, GRAPHS_RESERVED)
OF_A_STAGE = (Term.ACTIVATION_PEAK, *GRAPHS)  # the other constants are the same on every stage
Key = tuple[str, str]  # a term, and what of it


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
    def seen(self) -> list[tuple[Key, Seen]]:
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


def case_of(run: Run) -> Case:
    """``run`` as the prediction sees it. Raises UsageError where it can't be predicted."""
    scenario = run.scenario.model_copy(update={"calibration": None})
    gpu = device_gpu(scenario)
    assert gpu is not None
    try:
        architecture = from_config(scenario.config())
        chosen = settings(scenario, architecture)
        return Case(run, architecture, chosen, gpu, grant(architecture, chosen, gpu).budget.stage)
    except UsageError as error:
        raise UsageError(f"{run.name}: {error}") from None


def _seen(case: Case) -> Iterator[tuple[Key, Seen]]:
    found = kinds(case.architecture, case.settings, case.stage)
    published, law = case.terms(None), case.terms(_of_nothing(case, found))
    for term, of in found.items():
        if term not in case.run.measured or (case.staged and term in OF_A_STAGE):
            continue
        one = Seen(case.run.model, case.run.measured[term], law[term].bytes, published[term])
        if term in GRAPHS:
            units = graph_units(case.architecture, case.settings, case.stage)[1]
            slope, rate = graphs_a_unit(case.settings), case.architecture.mixture is not None
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
