"""``expect``: what the author expects, which makes a scenario a check."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from harness import scenario_text
from harness.errors import nearest
from harness.scenario.fields import Part

# What can stop a rung: the terms of the ledger, and what a run can die of.
LIMITS = (
    "kv_cache", "weights", "runtime_at_init", "other_processes", "non_torch_increase", "activation_peak", "cuda_graphs",
    "allocator_slack", "memory", "engine",
    "master_weights", "adapters", "optimizer", "gradients", "activations", "logits", "workspace",  # of a training step
)  # fmt: skip


def _limit(value: Any) -> Any:
    if isinstance(value, str) and value not in LIMITS:
        raise ValueError(
            f"unknown term {scenario_text.show(value)}{nearest(value, LIMITS)} (known: {', '.join(LIMITS)})"
        )
    return value


class Expect(Part):
    """What the author expects; it makes the scenario a check."""

    loads: bool | None = None
    admits: bool | None = None
    starts: bool | None = None
    holds: bool | None = None
    slo: bool | None = Field(None, description="whether the load meets the slo")
    steps: bool | None = Field(None, description="of kind: finetune: whether a training step fits")
    limited_by: Annotated[str, BeforeValidator(_limit)] | None = Field(
        None, description="the term that stops the first rung not reached"
    )

    def items(self) -> list[tuple[str, Any]]:
        """(key, expected) for what is stated."""
        return [(k, v) for k, v in self.model_dump().items() if v is not None]
