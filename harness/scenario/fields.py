"""What the mappings of a scenario are made of: strictness, and the types of single values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from harness.units import parse_bytes

LARGEST_BYTES = 2**50


def _bytes(value: Any) -> int:
    if not isinstance(value, (str, int)):
        raise ValueError("a size like '80 GiB' or a whole number of bytes")
    return parse_bytes(value)


Size = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=str | int)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]

Fault = tuple[tuple[str, ...], str]  # path, text


class Part(BaseModel):
    """A mapping of the scenario: strict, frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
