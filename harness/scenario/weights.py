"""``weights``: how the weights are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from harness import catalog
from harness.errors import UsageError
from harness.scenario.fields import Fault, Part

GROUP_SIZES = (32, 64, 128)


def _weight_format(value: Any) -> Any:
    if isinstance(value, str):
        try:
            catalog.weight_format(value)
        except UsageError as error:
            raise ValueError(str(error)) from None
    return value


class Weights(Part):
    """How the weights are stored."""

    format: Annotated[str, BeforeValidator(_weight_format)] = Field(
        "auto",
        description="auto (what the config states), fp32, fp16, bf16, fp8, fp8-block, int8, int4, nvfp4, mxfp4 and "
        "others, or with the method and the group size in the name: awq-int4-g128, gptq-int4-g128",
    )
    group_size: Annotated[int, Field(ge=8, le=4096)] | None = Field(
        None, description="weights that share one scale (int4 and packed int8; 128 unless given)"
    )
    load: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights of the same size")


def weight_faults(weights: Weights) -> Iterator[Fault]:
    """Faults that lie between the keys."""
    given, named = weights.group_size, catalog.weight_format(weights.format)
    if given is not None and not named.any_group:
        yield ("weights", "group_size"), f"{weights.format} has no group size to choose"
    elif given is not None and named.scale_per != "group":
        yield ("weights", "group_size"), f"{weights.format} has one scale for each channel"
    elif given is not None and "-g" in named.name and named.group_size != given:
        yield ("weights", "group_size"), f"expected {named.group_size} as in format {weights.format}, got {given}"
    group = given or named.group_size
    if named.any_group and group is not None and group not in GROUP_SIZES:
        key = "group_size" if given else "format"
        yield ("weights", key), f"vLLM's 4-bit kernels have groups of 32, 64 or 128, got {group}"
