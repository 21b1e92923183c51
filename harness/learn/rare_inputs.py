"""Where 4 bits hurt first: answers that change, by how sure the full model was and by how rare the class is.

A small network learns 64 classes whose frequencies fall like 1/rank (Zipf), then its weights are rounded to 8, 4 and
3 bits. The average is made of frequent, easy inputs, whose answers have a margin that rounding does not use up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from harness.learn.finding import Column, Finding
from harness.learn.formats import Array, in_groups

CLASSES, WIDTH, HIDDEN, GROUP = 64, 32, 128, 32
STEPS, BATCH, RATE, NOISE, TESTED = 600, 512, 0.3, 1.3, 20_000
Labels = NDArray[np.int64]
Draw = Callable[[int], tuple[Array, Labels]]


def run(seed: int = 0) -> Finding:
    """Train in float32, round to 8, 4 and 3 bits, and compare answers on new inputs."""
    random = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, CLASSES + 1)
    frequency /= frequency.sum()
    centres = random.normal(size=(CLASSES, WIDTH)).astype(np.float32)

    def draw(count: int) -> tuple[Array, Labels]:
        labels = random.choice(CLASSES, count, p=frequency)
        noise = NOISE * random.normal(size=(count, WIDTH))
        return (centres[labels] + noise).astype(np.float32), labels

    weights = _train(random, draw)
    inputs, labels = draw(TESTED)
    full = _logits(weights, inputs)
    answer, best = full.argmax(axis=1), np.sort(full, axis=1)
    margin = best[:, -1] - best[:, -2]
    sure = np.digitize(margin, np.quantile(margin, [0.1, 0.5]))  # 0: the tenth of smallest margin, 2: the upper half
    rare = labels >= CLASSES // 2
    rows = []
    for bits in (8, 4, 3):
        logits = _logits([in_groups(w, bits, GROUP) for w in weights], inputs)
        changed = logits.argmax(axis=1) != answer
        right, was = logits.argmax(axis=1) == labels, answer == labels
        rows.append((
            bits, float(was.mean()), float(right.mean()), float(was[rare].mean()), float(right[rare].mean()),
            *(float(changed[part].mean()) for part in (sure == 2, sure == 0, ~rare, rare)),
        ))  # fmt: skip
    _, four, three = rows
    return Finding(
        f"{CLASSES} classes, the k-th as frequent as 1/k; {WIDTH} x {HIDDEN} x {CLASSES} weights in groups of "
        f"{GROUP}; {TESTED:,} new inputs, of which {rare.mean():.0%} are of the rarer half of the classes; seed "
        f"{seed}",
        (
            Column("bits", "bits"),
            Column("accuracy_before", "right before", "{:.1%}"),
            Column("accuracy", "after", "{:.1%}"),
            Column("rare_before", "rare before", "{:.1%}"),
            Column("rare", "after", "{:.1%}"),
            Column("changed_sure", "changed: sure", "{:.2%}"),
            Column("changed_unsure", "unsure", "{:.1%}"),
            Column("changed_frequent", "frequent", "{:.2%}"),
            Column("changed_rare", "rare", "{:.2%}"),
        ),
        tuple(rows),
        (
            f"In 4 bits the average moves from {four[1]:.1%} to {four[2]:.1%}, while {four[6]:.0%} of the answers in "
            f"the least sure tenth change and {four[5]:.2%} in the surest half: rounding moves every output a "
            "little, and only a small margin is used up by a little.",
            f"Rare classes have small margins, for they were seen seldom (median {np.median(margin[rare]):.1f} "
            f"against {np.median(margin[~rare]):.1f}): {four[8]:.1%} of their answers change against {four[7]:.1%} "
            f"of the frequent ones ({three[8]:.1%} against {three[7]:.1%} in 3 bits). An average hardly weighs them: "
            "measure the tail by itself.",
        ),
        (
            "Hooker et al. 2019, What Do Compressed Deep Neural Networks Forget?: https://arxiv.org/abs/1911.05248",
            "Hooker et al. 2020, Characterising Bias in Compressed Models: https://arxiv.org/abs/2010.03058",
        ),
    )  # fmt: skip


def _logits(weights: list[Array], inputs: Array) -> Array:
    first, second = weights
    return np.asarray(np.maximum(inputs @ first.T, 0) @ second.T, dtype=np.float32)


def _train(random: np.random.Generator, draw: Draw) -> list[Array]:
    """The weights, outputs x inputs, after ``STEPS`` of gradient descent on fresh inputs."""
    first = (random.normal(size=(HIDDEN, WIDTH)) * np.sqrt(2 / WIDTH)).astype(np.float32)
    second = (random.normal(size=(CLASSES, HIDDEN)) * np.sqrt(1 / HIDDEN)).astype(np.float32)
    rows = np.arange(BATCH)
    for _ in range(STEPS):
        inputs, labels = draw(BATCH)
        held = np.maximum(inputs @ first.T, 0)
        logits = held @ second.T
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        chances[rows, labels] -= 1
        chances /= BATCH
        back = (chances @ second) * (held > 0)
        second -= RATE * (chances.T @ held)
        first -= RATE * (back.T @ inputs)
    return [first, second]
