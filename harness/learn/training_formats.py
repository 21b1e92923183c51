"""fp16 against bf16 in training: what becomes of gradients, and of the loss.

A network of three layers learns to tell 32 classes apart. Activations and gradients are rounded to the format after
each product (sums in float32, as tensor cores make them); the weights stay in float32. The gradient of a mean over many
tokens is small: fp16 ends at 6e-8, bf16 at 9e-41.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from harness.learn.finding import Column, Finding
from harness.learn.formats import BF16, FP16, Array, as_bf16, as_fp16

TOKENS, WIDTHS, STEPS, RATE, SCALE = 512, (32, 64, 64, 32), 120, 0.5, 2.0**16
# A step's loss is a mean over all its tokens, 16 million in Llama 3's pretraining (arXiv 2407.21783); these are one of
# so many parts of it, as accumulation and devices make them.
PARTS = 2**15
COUNTED = 20  # every so many steps the gradients are counted

Round = Callable[[Array], Array]
Labels = NDArray[np.int64]


@dataclass
class _Tally:
    """Gradients counted while they are rounded."""

    all: int = 0
    zero: int = 0
    infinite: int = 0
    errors: list[float] = field(default_factory=list)
    counting: bool = False

    def count(self, exact: Array, rounded: Array) -> None:
        if not self.counting:
            return
        there = exact != 0
        self.all += int(there.sum())
        self.zero += int((there & (rounded == 0)).sum())
        self.infinite += int((~np.isfinite(rounded)).sum())
        kept = there & (rounded != 0) & np.isfinite(rounded)
        if kept.any():
            self.errors.append(float(np.median(np.abs(rounded[kept] / exact[kept] - 1))))


def run(seed: int = 0) -> Finding:
    """Train four times from the same start: float32, fp16, fp16 with its loss scaled, bf16."""
    ways: tuple[tuple[str, Round, float], ...] = (
        ("fp32", lambda x: x, 1.0),
        ("fp16", as_fp16, 1.0),
        ("fp16, scaled", as_fp16, SCALE),
        ("bf16", as_bf16, 1.0),
    )
    rows = []
    for name, to, scale in ways:
        before, after, tally, lost = _train(seed, to, scale)
        error = float(np.median(tally.errors)) if tally.errors else 0.0
        rows.append((name, tally.zero / tally.all, tally.infinite / tally.all, error, lost, before, after))
    plain, half, scaled, brain = rows
    return Finding(
        f"a network {' x '.join(map(str, WIDTHS))}, {STEPS} steps of gradient descent, {TOKENS:,} tokens a step that "
        f"are one of {PARTS:,} parts of a batch, seed {seed}",
        (
            Column("format", "rounded to"),
            Column("gradients_to_zero", "gradients -> 0", "{:.1%}"),
            Column("gradients_to_infinity", "-> inf", "{:.1%}"),
            Column("rounding_error", "rounding error", "{:.3%}"),
            Column("updates_lost", "updates lost", "{:.1%}"),
            Column("loss_before", "loss before", "{:.3f}"),
            Column("loss_after", "after", "{:.3f}"),
        ),
        tuple(rows),
        (
            f"fp16 rounds {brain[3] / scaled[3]:.0f} times finer where a number fits ({FP16.mantissa_bits} bits of "
            f"mantissa against {BF16.mantissa_bits}), but {half[1]:.0%} of its gradients fall below "
            f"{FP16.smallest:.0e} and become 0: the loss ends at {half[6]:.3f} where float32 ends at {plain[6]:.3f}.",
            f"bf16 has float32's exponent: {brain[1]:.1%} become 0, and the loss ends at {brain[6]:.3f}. A random "
            f"error of {brain[3]:.2%} in each gradient is averaged out by the next steps; a gradient that is 0 is "
            "not.",
            f"Scaling the loss by {SCALE:,.0f} moves the gradients into fp16's range ({scaled[1]:.1%} become 0, loss "
            f"{scaled[6]:.3f}). The mantissa is missed elsewhere: {brain[4]:.0%} of the updates would vanish in "
            f"weights kept in bf16 ({scaled[4]:.0%} in fp16), which is why mixed precision keeps them in float32.",
        ),
        (
            "Micikevicius et al. 2017, Mixed Precision Training: https://arxiv.org/abs/1710.03740",
            "Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training: https://arxiv.org/abs/1905.12322",
        ),
    )  # fmt: skip


def _train(seed: int, to: Round, scale: float) -> tuple[float, float, _Tally, float]:
    """(loss before, loss after, the gradients' tally, the share of updates that weights in the format would lose)."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(WIDTHS[-1], WIDTHS[0])).astype(np.float32)
    labels = random.integers(0, WIDTHS[-1], TOKENS)
    inputs = (centres[labels] + 0.8 * random.normal(size=(TOKENS, WIDTHS[0]))).astype(np.float32)
    weights = [
        (random.normal(size=(a, b)) * np.sqrt(2 / a)).astype(np.float32)
        for a, b in pairwise(WIDTHS)
    ]
    tally, before, lost = _Tally(), 0.0, []
    for number in range(STEPS + 1):
        tally.counting = number % COUNTED == 0
        loss, gradients = _step(weights, inputs, labels, to, scale, tally)
        before = before or loss
        if number == STEPS:
            break
        for weight, gradient in zip(weights, gradients, strict=True):
            update, there = RATE * gradient, gradient != 0
            if tally.counting and there.any():
                lost.append(float(np.mean((to(to(weight) - update) == to(weight))[there])))
            weight -= update
    return before, loss, tally, float(np.mean(lost))


def _step(
    weights: list[Array], inputs: Array, labels: Labels, to: Round, scale: float, tally: _Tally
) -> tuple[float, list[Array]]:
    """(mean loss, gradients of the weights), all in between rounded by ``to``."""
    held = [to(inputs)]
    matrices = [to(w) for w in weights]
    for i, matrix in enumerate(matrices):
        product = to(held[-1] @ matrix)
        held.append(np.maximum(product, 0) if i < len(matrices) - 1 else product)
    logits = held.pop()
    shifted = logits - logits.max(axis=1, keepdims=True)
    chances = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(-np.log(np.maximum(chances[rows, labels], 1e-30)).mean())
    chances[rows, labels] -= 1
    flowing = _rounded(chances * np.float32(scale / (len(labels) * PARTS)), to, tally)
    gradients: list[Array] = []
    for i in reversed(range(len(matrices))):
        # The parts are summed in float32 and the scale is taken off again: the other parts are taken to be alike.
        gradients.insert(0, _rounded(held[i].T @ flowing, to, tally) * np.float32(PARTS / scale))
        if i:
            flowing = _rounded((flowing @ matrices[i].T) * (held[i] > 0), to, tally)
    return loss, gradients


def _rounded(exact: Array, to: Round, tally: _Tally) -> Array:
    rounded = to(exact)
    tally.count(exact, rounded)
    return rounded
