"""``training``: one fine-tuning step, by the names that transformers, peft and bitsandbytes use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from harness.scenario.fields import Fault, Part, Tokens

if TYPE_CHECKING:
    from harness.scenario.scenario import Scenario

ALL_LINEAR = "all-linear"


def _targets(value: Any) -> Any:
    if value == ALL_LINEAR or (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
        return value
    raise ValueError(f"expected {ALL_LINEAR} or a list of modules such as [q_proj, v_proj]")


class Lora(Part):
    """The adapters: B (out x r) times A (r x in) beside each target module."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    target_modules: Annotated[str | list[str], BeforeValidator(_targets)] = Field(
        ALL_LINEAR, description="all-linear (every linear layer but lm_head), or a list such as [q_proj, v_proj]"
    )


class Training(Part):
    """One training step of a causal language model with transformers, on one device."""

    method: Literal["full", "lora", "qlora"] = Field(
        description="full: all parameters train; lora: adapters on a frozen 16-bit base; qlora: on a 4-bit (nf4) base"
    )
    lora: Lora = Field(Lora(), description="such as {rank: 16, target_modules: all-linear}")
    optimizer: Literal[
        "adamw", "adamw-8bit", "paged-adamw", "paged-adamw-8bit", "adafactor", "sgd", "sgd-momentum"
    ] = "adamw"
    precision: Literal["mixed", "bf16", "fp32"] = Field(
        "mixed",
        description="mixed: what trains is float32, products are 16-bit (autocast); bf16: everything 16-bit; fp32",
    )
    sequence_length: Tokens = 2048
    micro_batch: Annotated[int, Field(ge=1, le=65_536)] = 1
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    gradient_checkpointing: bool = False
    attn_implementation: Literal["sdpa", "eager"] = Field(
        "sdpa", description="sdpa: flash attention, no score matrix is kept; eager: the scores of all pairs are"
    )
    double_quant: bool = Field(True, description="qlora: the scales of the 4-bit blocks are quantized too")
    prepare_model_for_kbit_training: bool = Field(
        True, description="qlora: as peft's function, what is not 4-bit (embeddings, lm_head, norms) is made float32"
    )


def training_faults(s: Scenario) -> Iterator[Fault]:
    """Faults that lie between keys."""
    if s.kind != "finetune":
        if s.training is not None:
            yield ("training",), "given without kind: finetune"
        if s.expect.steps is not None:
            yield ("expect", "steps"), "only kind: finetune has a training step"
        return
    if s.training is None:
        yield ("training",), "missing: such as {method: qlora, sequence_length: 2048}"
    for key in ("engine", "load", "slo", "weights"):
        if key in s.model_fields_set:
            yield (key,), "belongs to serving: kind: finetune has training instead"
    for key in sorted({"in_use", "efficiency"} & (s.gpu.model_fields_set if s.gpu else set())):
        yield ("gpu", key), "belongs to serving: a training step has the device to itself, and no time"
    for key in ("admits", "starts", "holds", "slo"):
        if getattr(s.expect, key) is not None:
            yield ("expect", key), "belongs to serving: kind: finetune has loads and steps"
    if s.on_cpu:
        yield ("device",), "fine-tuning is predicted for a gpu"
    if s.count > 1:
        yield ("gpu", "count"), "fine-tuning is predicted for one device: sharded training is not supported yet"
    if s.training is not None:
        yield from _between(s.training)


def _between(t: Training) -> Iterator[Fault]:
    given = t.model_fields_set
    if t.method == "full" and "lora" in given:
        yield ("training", "lora"), "method: full has no adapters"
    if t.method != "qlora":
        for key in ("double_quant", "prepare_model_for_kbit_training"):
            if key in given:
                yield ("training", key), f"method: {t.method} has no 4-bit weights"
