"""Small experiments, each an answer by numbers that a learner computes in seconds: real arithmetic, made-up inputs.

``run(name, seed)`` gives a :class:`Finding`. NumPy is imported where an experiment that needs it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import cast

from harness.errors import UsageError, nearest
from harness.learn.finding import Column, Finding

__all__ = ["EXPERIMENTS", "Column", "Experiment", "Finding", "find", "run"]


@dataclass(frozen=True)
class Experiment:
    """A question and the module that answers it."""

    module: str
    question: str


EXPERIMENTS = {
    "fp16-bf16": Experiment(
        "training_formats",
        "fp16 and bf16 take the same two bytes. Why can the one with fewer bits of mantissa be the better one to "
        "train in?",
    ),
    "scales": Experiment(
        "scales",
        "One scale for a whole weight matrix, or one for each output channel. What does each cost in bytes, and "
        "what does it lose?",
    ),
    "gptq-awq": Experiment(
        "gptq_awq",
        "GPTQ and AWQ both arrive at 4 bits. Which signal does each one use to decide what may be rounded?",
    ),
    "int4-rare-inputs": Experiment(
        "rare_inputs",
        "Why does 4-bit quantization hurt rare and difficult inputs long before it shows in an average?",
    ),
    "kv-heads": Experiment(
        "kv_heads",
        "What do multi-query and grouped-query attention save, and where in the memory does it show?",
    ),
    "rag-or-finetune": Experiment(
        "retrieval",
        "New knowledge through retrieval or through fine-tuning. What does each cost in memory when it serves?",
    ),
}


def find(name: str) -> Experiment:
    """The experiment called ``name``. Raises UsageError for an unknown one."""
    if name not in EXPERIMENTS:
        raise UsageError(f"unknown experiment {name[:80]!r}{nearest(name, EXPERIMENTS)} (`bench learn` lists them)")
    return EXPERIMENTS[name]


def run(name: str, seed: int = 0) -> Finding:
    """Do the experiment ``name`` with the random numbers of ``seed``."""
    return cast(Finding, import_module(f"harness.learn.{find(name).module}").run(seed))
