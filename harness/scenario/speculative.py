"""``engine.speculative_config``: tokens that a drafter proposes and the model checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness import catalog
from harness.errors import UsageError, nearest
from harness.scenario.fields import Fault, NameOrConfig, Part

if TYPE_CHECKING:
    from harness.scenario.scenario import Scenario

SINCE = "0.15"  # vllm/v1/spec_decode/draft_model.py: V1 before it had no draft models
MTP_SINCE = "0.17"  # before, MTP layers could keep an lm_head of their own (vllm/v1/spec_decode/eagle.py of 0.15)
# Other names of "mtp" (``MTPModelTypes``, vllm/config/speculative.py, 0.17 to 0.32), as far as the layers are modelled.
MTP_NAMES = ("deepseek_mtp", "glm4_moe_mtp", "qwen3_next_mtp", "qwen3_5_mtp")


class Speculative(Part):
    """Who proposes, and how much."""

    method: Literal[
        "draft_model", "ngram", "mtp", "deepseek_mtp", "glm4_moe_mtp", "qwen3_next_mtp", "qwen3_5_mtp",
        "eagle", "eagle3",
    ] | None = Field(
        None,
        description="draft_model: a smaller model; ngram: what the prompt says; mtp (or an older name of it): the "
        "model's own layers for further tokens; eagle, eagle3: a layer that is fed with its hidden states (dflash and "
        "others: not yet)",
    )
    model: NameOrConfig | None = Field(
        None,
        description="the draft model: a catalogue name (`bench models`), of eagle and eagle3 a known drafter; or its "
        "config, inline",
    )
    num_speculative_tokens: Annotated[int, Field(ge=1, le=1024)]

    @property
    def drafts(self) -> bool:
        """Whether more layers than the model's are loaded."""
        return self.proposer != "ngram"

    @property
    def takes_states(self) -> bool:
        """Whether it is fed with the model's hidden states."""
        return self.proposer in ("mtp", "eagle", "eagle3")

    @property
    def proposer(self) -> str:
        """Who proposes, by vLLM's own name: "draft_model", "ngram", "mtp", "eagle" or "eagle3"."""
        return "mtp" if self.method in MTP_NAMES else self.method or "draft_model"


def speculative_faults(s: Scenario) -> Iterator[Fault]:
    """Faults that lie between keys."""
    asked, key = s.engine.speculative_config, ("engine", "speculative_config")
    if asked is None:
        return
    if asked.proposer == "ngram" and asked.model is not None:
        yield (*key, "model"), "ngram has no model: it proposes what the prompt says"
    elif asked.proposer == "mtp" and asked.model is not None:
        yield (*key, "model"), "not modelled beside method: mtp: the layers are those of the model's own checkpoint"
    elif asked.proposer not in ("ngram", "mtp") and asked.model is None:
        yield (*key, "model"), "missing: the draft model (or say method: ngram or mtp)"
    if asked.proposer == "ngram" and s.engine.async_scheduling:
        yield (*key, "method"), "vLLM schedules ngram synchronously: not beside engine.async_scheduling"
    if not isinstance(asked.model, str):
        pass
    elif asked.proposer in ("eagle", "eagle3"):
        try:
            catalog.drafter_config(asked.model)
        except UsageError as error:
            yield (*key, "model"), str(error)
    elif not catalog.knows_model(asked.model):
        yield (*key, "model"), f"unknown model{nearest(asked.model, catalog.model_names())} (`bench models` lists them)"
    if asked.drafts:
        yield from _drafter_faults(s, asked, (*key, "model" if asked.model else "method"))


def _drafter_faults(s: Scenario, asked: Speculative, key: tuple[str, ...]) -> Iterator[Fault]:
    version = catalog.version_key(s.engine.vllm)
    words = {"mtp": "MTP layers", "draft_model": "a draft model"}.get(asked.proposer, "EAGLE drafters")
    if asked.takes_states and version < catalog.version_key(MTP_SINCE):
        yield key, f"{words} are modelled from vLLM {MTP_SINCE} on, not for {s.engine.vllm}"
    elif version < catalog.version_key(SINCE):
        yield key, f"vLLM {s.engine.vllm} has no draft models in V1; they came with {SINCE}"
    if s.engine.pipeline_parallel_size > 1:
        yield key, f"{words} beside pipeline stages: not modelled"
    if s.on_cpu:
        yield key, f"{words} on this computer: not modelled"
