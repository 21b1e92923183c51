"""``engine.speculative_config``: tokens that a drafter proposes and the model checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness import catalog
from harness.errors import nearest
from harness.scenario.fields import Fault, Part

if TYPE_CHECKING:
    from harness.scenario.scenario import Scenario

SINCE = "0.15"  # vllm/v1/spec_decode/draft_model.py: V1 before it had no draft models


class Speculative(Part):
    """Who proposes, and how much."""

    method: Literal["draft_model", "ngram"] | None = Field(
        None, description="draft_model: a smaller model; ngram: what the prompt says (eagle, mtp and others: not yet)"
    )
    model: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        None, description="the draft model: a catalogue name (`bench models`)"
    )
    num_speculative_tokens: Annotated[int, Field(ge=1, le=1024)]

    @property
    def drafts(self) -> bool:
        """Whether a second model is loaded."""
        return self.model is not None


def speculative_faults(s: Scenario) -> Iterator[Fault]:
    """Faults that lie between keys."""
    asked, key = s.engine.speculative_config, ("engine", "speculative_config")
    if asked is None:
        return
    if asked.method == "ngram" and asked.model is not None:
        yield (*key, "model"), "ngram has no model: it proposes what the prompt says"
    elif asked.method != "ngram" and asked.model is None:
        yield (*key, "model"), "missing: the draft model (or say method: ngram)"
    if asked.method == "ngram" and s.engine.async_scheduling:
        yield (*key, "method"), "vLLM schedules ngram synchronously: not beside engine.async_scheduling"
    if asked.model is not None and not catalog.knows_model(asked.model):
        yield (*key, "model"), f"unknown model{nearest(asked.model, catalog.model_names())} (`bench models` lists them)"
    if asked.drafts and catalog.version_key(s.engine.vllm) < catalog.version_key(SINCE):
        yield (*key, "model"), f"vLLM {s.engine.vllm} has no draft models in V1; they came with {SINCE}"
    if asked.drafts and s.engine.pipeline_parallel_size > 1:
        yield (*key, "model"), "a draft model beside pipeline stages is not modelled"
    if asked.drafts and s.on_cpu:
        yield (*key, "model"), "draft models are not modelled on this computer"
