"""Numbers as a format holds them: values in, the values that the format can say out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Float:
    """A 16-bit floating-point format: bits of mantissa, the smallest (subnormal) and the largest number."""

    name: str
    mantissa_bits: int
    smallest: float
    largest: float


FP16 = Float("fp16", 10, 2.0**-24, 65504.0)
BF16 = Float("bf16", 7, 2.0**-133, float(2.0**127 * (2 - 2.0**-7)))


def as_fp16(values: Array) -> Array:
    """``values`` rounded to IEEE half precision and back; above 65,504 infinite, below 2^-25 zero."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def as_bf16(values: Array) -> Array:
    """``values`` rounded to bfloat16 (the upper half of a float32, to nearest even) and back."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    out = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isfinite(values), out, values)


def as_integers(values: Array, bits: int, scale: Array, zero: Array | float = 0.0) -> Array:
    """``values`` as integers of ``bits`` with ``scale`` (broadcast), and back. Symmetric where ``zero`` is 0: from
    -(2^(bits-1) - 1) to that; else from 0 to 2^bits - 1."""
    least, most = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if np.all(zero == 0) else (0, 2**bits - 1)
    codes = np.clip(np.round(values / scale) + zero, least, most)
    return ((codes - zero) * scale).astype(np.float32)


def symmetric_scale(values: Array, bits: int, axis: int | None) -> Array:
    """The scale at which the largest of ``values`` (all, or along ``axis``) takes the largest integer."""
    largest = np.max(np.abs(values), axis=axis, keepdims=axis is not None)
    return np.asarray(np.maximum(largest, 1e-12) / (2 ** (bits - 1) - 1), dtype=np.float32)


def in_groups(weights: Array, bits: int, group: int) -> Array:
    """``weights`` (outputs x inputs) as integers with one symmetric scale for each ``group`` inputs of a row, and "
    "back."""
    outputs, inputs = weights.shape
    cut = weights.reshape(outputs, inputs // group, group)
    return as_integers(cut, bits, symmetric_scale(cut, bits, 2)).reshape(outputs, inputs)
