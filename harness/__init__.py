"""loadfit: why a model that fits a GPU when idle stops fitting under load.

    import harness
    prediction = harness.predict(harness.load_scenario("scenarios/70b_8k_int4.yaml"))
    run = harness.load_run("results/70b_8k_int4/latest")
    run.terms, run.steps, run.requests        # pandas frames

Names are imported when first used, so ``import harness`` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load_scenario": "harness.scenario",
    "parse_scenario": "harness.scenario",
    "Scenario": "harness.scenario",
    "predict": "harness.predict",
    "load_run": "harness.report.tables",
    "Run": "harness.report.tables",
    "Account": "harness.ledger",
    "Ledger": "harness.ledger",
    "LoadfitError": "harness.errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
