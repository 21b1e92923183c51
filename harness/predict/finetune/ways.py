"""The usual ways to fine-tune the scenario's model on its device, each judged by the same arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.predict import overhead
from harness.predict.finetune import checked, judge
from harness.predict.finetune.step import moments
from harness.predict.settings import device_gpu
from harness.scenario import Scenario

# method, optimizer, precision, gradient_checkpointing; the rest is as the scenario says.
USUAL: tuple[tuple[str, str, str, bool], ...] = (
    ("full", "adamw", "mixed", True),
    ("full", "adamw", "bf16", True),
    ("full", "adamw-8bit", "bf16", True),
    ("full", "adafactor", "bf16", True),
    ("full", "sgd", "bf16", True),
    ("lora", "adamw", "mixed", False),
    ("lora", "adamw", "mixed", True),
    ("qlora", "adamw", "mixed", False),
    ("qlora", "adamw", "mixed", True),
)


@dataclass(frozen=True)
class Way:
    """One way: bytes on the device between steps and at the peak, runtime included; ``limited_by``: what closes it."""

    method: str
    optimizer: str
    precision: str
    gradient_checkpointing: bool
    between_steps: int
    peak: int
    fits: bool
    margin_bytes: int
    limited_by: str | None


def ways(scenario: Scenario) -> Iterator[Way]:
    """:data:`USUAL`, in order, for the scenario's model, device, lengths and adapters."""
    architecture, own = checked(scenario)
    gpu = device_gpu(scenario)
    assert gpu is not None
    total, runtime = overhead.cuda_total(gpu), overhead.context(gpu)
    for method, optimizer, precision, checkpointing in USUAL:
        changed: dict[str, Any] = {
            "method": method, "optimizer": optimizer, "precision": precision, "gradient_checkpointing": checkpointing,
        }  # fmt: skip
        steps = moments(architecture, own.model_copy(update=changed))
        between, *others = (runtime.bytes + m.bytes for m in steps)
        rungs = judge(steps, total, runtime)
        failed = next((r for r in rungs if not r.holds), None)
        yield Way(
            method, optimizer, precision, checkpointing, between, max(others), failed is None,
            total.bytes - max(others), failed.limited_by if failed else None,
        )  # fmt: skip
