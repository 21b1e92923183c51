"""Where a calibration's constant takes the place of a published one.

Each fitted constant of the model is an Estimate; before it is used it passes here, with what it is a constant of. What
no run of the calibration told keeps its published figure.
"""

from __future__ import annotations

from harness.ledger import Term
from harness.predict.estimate import Estimate
from harness.predict.settings import Settings

GRAPHS_RESERVED = "graphs_reserved"  # no term of the ledger: what the budget holds for them is vLLM's estimate


def ranks(settings: Settings) -> str:
    """What the runtime and the non-torch increase are constants of."""
    sizes = {
        "tp": settings.tensor_parallel_size, "pp": settings.pipeline_parallel_size, "dp": settings.data_parallel_size
    }  # fmt: skip
    return " ".join(f"{name}={size}" for name, size in sizes.items() if name != "dp" or size > 1)


def refitted(settings: Settings, term: str, of: str, published: Estimate, units: int = 0) -> Estimate:
    """The constant of ``term`` for ``of``: the calibration's, where the scenario has one that knows it.

    ``units``: what its bytes for each unit are multiplied with.
    """
    found = settings.calibration.constant(term, of) if settings.calibration else None
    if found is None:
        return published
    size = found.bytes + found.bytes_per_unit * units
    low = size - (published.bytes - published.low if found.below is None else found.below)
    high = size + (published.high - published.bytes if found.above is None else found.above)
    if term != Term.ACTIVATION_PEAK:  # what its law leaves open may be less than nothing
        size, low, high = (max(n, 0) for n in (size, low, high))
    runs = "1 run" if found.runs == 1 else f"{found.runs} runs"
    return Estimate(size, low, high, f"calibrated on {runs} of this GPU")
