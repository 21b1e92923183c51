"""One scale for a whole matrix, for each output channel, or for each group of inputs: bytes against error.

A matrix of normal weights, and the same with a few loud output channels, as integers of 8 and of 4 bits. The largest
weight that shares a scale sets the step for all that share it.
"""

from __future__ import annotations

import numpy as np

from harness.learn.finding import Column, Finding
from harness.learn.formats import Array, as_integers, in_groups, symmetric_scale

OUTPUTS, INPUTS, GROUP, LOUD, TIMES, SCALE_BYTES = 1024, 1024, 128, 10, 20.0, 2
GRAINS = ("tensor", "channel", "group of 128")


def quantized(weights: Array, bits: int, grain: str) -> Array:
    """``weights`` as integers of ``bits`` with symmetric scales of ``grain``, and back."""
    if grain.startswith("group"):
        return in_groups(weights, bits, GROUP)
    return as_integers(weights, bits, symmetric_scale(weights, bits, 1 if grain == "channel" else None))


def run(seed: int = 0) -> Finding:
    """Both matrices, both widths, all three grains."""
    random = np.random.default_rng(seed)
    even = random.normal(0, 0.02, (OUTPUTS, INPUTS)).astype(np.float32)
    loud = even.copy()
    chosen = random.choice(OUTPUTS, LOUD, replace=False)
    loud[chosen] *= TIMES
    others = np.setdiff1d(np.arange(OUTPUTS), chosen)
    inputs = random.normal(size=(256, INPUTS)).astype(np.float32)
    rows = []
    for bits in (8, 4):
        for grain in GRAINS:
            scales = {"tensor": 1, "channel": OUTPUTS}.get(grain, OUTPUTS * INPUTS // GROUP)
            rows.append((
                bits, grain, scales, scales * SCALE_BYTES, scales * SCALE_BYTES / (OUTPUTS * INPUTS * bits / 8),
                _error(inputs, even, quantized(even, bits, grain)),
                _error(inputs, loud[others], quantized(loud, bits, grain)[others]),
            ))  # fmt: skip
    tensor, channel, _, tensor4, channel4, group4 = rows
    return Finding(
        f"{OUTPUTS:,} x {INPUTS:,} weights, {LOUD} output channels {TIMES:.0f} times as loud in one of two, scales "
        f"of {SCALE_BYTES} bytes, seed {seed}",
        (
            Column("bits", "bits"),
            Column("scale_per", "one scale per"),
            Column("scales", "scales", "{:,}"),
            Column("scale_bytes", "bytes", "{:,}"),
            Column("share", "of weights", "{:.2%}"),
            Column("error", "error, even", "{:.2%}"),
            Column("error_beside_loud", "beside loud ones", "{:.2%}"),
        ),
        tuple(rows),
        (
            f"In 8 bits a scale for each channel costs {channel[3]:,} bytes, {channel[4]:.2%} of the weights. Where "
            f"all channels are alike it gains little ({tensor[5]:.2%} -> {channel[5]:.2%}); beside {LOUD} loud ones "
            f"the other {OUTPUTS - LOUD:,} would lose {tensor[6]:.1%} of their output to one common scale, and "
            f"{channel[6]:.2%} to their own.",
            f"In 4 bits one scale for the matrix leaves {tensor4[6]:.0%} of error in the ordinary channels: their "
            f"weights are nearly all rounded to 0. A scale for each channel brings {channel4[6]:.1%}, and one for "
            f"each {GROUP} weights {group4[6]:.1%}, for {group4[4]:.1%} more bytes.",
        ),
        (
            "Nagel et al. 2021, A White Paper on Neural Network Quantization: https://arxiv.org/abs/2106.08295",
            "Dettmers et al. 2022, LLM.int8(): https://arxiv.org/abs/2208.07339",
        ),
    )  # fmt: skip


def _error(inputs: Array, exact: Array, rounded: Array) -> float:
    """What is lost of the layer's output: the norm of the error over the norm of the output."""
    return float(np.linalg.norm(inputs @ (rounded - exact).T) / np.linalg.norm(inputs @ exact.T))
