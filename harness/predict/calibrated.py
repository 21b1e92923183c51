"""What a calibration changed of a prediction, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness import __version__
from harness.architecture import Architecture
from harness.catalog import Gpu
from harness.ledger import Term
from harness.predict.admission import Budget, budget
from harness.predict.graphs import graph_units
from harness.predict.refitted import GRAPHS_RESERVED, ranks
from harness.predict.settings import Settings
from harness.scenario import Calibration
from harness.units import gib

WORDS = {
    "runtime_at_init": "runtime at init",
    "non_torch_increase": "non-torch increase",
    "activation_peak": "activation peak",
    "cuda_graphs": "CUDA graphs",
    GRAPHS_RESERVED: "reserved for graphs",
}


def changed(architecture: Architecture, chosen: Settings, gpu: Gpu, b: Budget) -> str:
    """That ``chosen`` has a calibration and what it made of the budget ``b``; empty where it has none."""
    c = chosen.calibration
    if c is None:
        return ""
    before = budget(architecture, replace(chosen, calibration=None), gpu, b.stage)
    changes = [
        f"{word} {gib(was)} to {gib(now)} GiB"
        for word, was, now in _pairs(before, b) if gib(was) != gib(now)
    ]  # fmt: skip
    runs = "1 run" if c.runs == 1 else f"{c.runs} runs"
    # Of a kept scenario; --calibration refuses it.
    by = "" if c.loadfit == __version__ else f" by loadfit {c.loadfit}, whose laws may be others"
    said = f"Calibrated on {runs} of this GPU ({c.device}) under vLLM {c.vllm}, made on {c.made}{by}: "
    said += ", ".join(changes) or "no term of the budget changed"
    if c.step_times:
        said += "; step times by the shares that they reached"
    left = [WORDS[term] for term in _without(c, architecture, chosen, b.stage)]
    return said + (f"; of such a run it has no {', '.join(left)}, which stay as published." if left else ".")


def _pairs(before: Budget, now: Budget) -> Iterator[tuple[str, int, int]]:
    yield WORDS["runtime_at_init"], before.init.bytes, now.init.bytes
    yield WORDS["non_torch_increase"], before.non_torch.bytes, now.non_torch.bytes
    yield WORDS["activation_peak"], before.activation.bytes, now.activation.bytes
    yield WORDS["cuda_graphs"], before.graphs.bytes, now.graphs.bytes
    yield WORDS[GRAPHS_RESERVED], before.reserved.bytes, now.reserved.bytes
    yield "left for KV", before.available.bytes, now.available.bytes


def kinds(architecture: Architecture, chosen: Settings, stage: int) -> dict[str, str]:
    """Term -> what of it the scenario needs a constant for."""
    found = {
        str(Term.RUNTIME_AT_INIT): ranks(chosen),
        str(Term.NON_TORCH_INCREASE): ranks(chosen),
        str(Term.ACTIVATION_PEAK): chosen.model_runner,
    }
    if not chosen.enforce_eager:
        found[str(Term.CUDA_GRAPHS)] = graph_units(architecture, chosen, stage)[0]
        if chosen.graphs_in_budget:
            found[GRAPHS_RESERVED] = found[str(Term.CUDA_GRAPHS)]
    return found


def _without(c: Calibration, architecture: Architecture, chosen: Settings, stage: int) -> list[str]:
    return [term for term, of in kinds(architecture, chosen, stage).items() if c.constant(term, of) is None]
