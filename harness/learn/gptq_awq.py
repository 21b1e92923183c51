"""GPTQ and AWQ on one layer: which signal of the calibration inputs each one uses.

GPTQ rounds column by column and lets the columns to come make up for the error, by the inverse of H = X'X: it uses
how inputs go together. AWQ scales up the columns of loud inputs before it rounds, by a power of their mean magnitude:
it uses how large each input is. On inputs that are only correlated the first gains and the second can't; on inputs that
are only of different size it is the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from harness.learn.finding import Column, Finding
from harness.learn.formats import Array, as_integers, in_groups, symmetric_scale

OUTPUTS, INPUTS, GROUP, BITS, CALIBRATION, DAMP = 128, 256, 128, 4, 2048, 0.01
RANK, LOUD, TIMES = 16, 8, 30.0


def gptq(weights: Array, inputs: Array) -> Array:
    """Frantar et al. 2022, algorithm 1, a column at a time: the error of a column, over the diagonal of the Cholesky
    factor of the inverse Hessian, is taken off the columns to come. One symmetric scale for each group of a row."""
    hessian = inputs.T.astype(np.float64) @ inputs
    hessian += DAMP * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left, out = weights.astype(np.float64), np.empty_like(weights)
    scale = symmetric_scale(weights[:, :GROUP], BITS, 1)
    for i in range(weights.shape[1]):
        if i % GROUP == 0:
            scale = symmetric_scale(left[:, i : i + GROUP].astype(np.float32), BITS, 1)
        column = left[:, i : i + 1].astype(np.float32)
        out[:, i : i + 1] = as_integers(column, BITS, scale)
        error = (left[:, i] - out[:, i]) / upper[i, i]
        left[:, i:] -= np.outer(error, upper[i, i:])
    return out


def awq(weights: Array, inputs: Array) -> Array:
    """Lin et al. 2023: columns times (mean magnitude of their input)^a before rounding and divided by it after, with
    the a of 21 from 0 to 1 that leaves the least error on ``inputs``."""
    loudness = np.mean(np.abs(inputs), axis=0)
    exact = inputs @ weights.T

    def scaled(power: float) -> Array:
        by = loudness**power
        by = (by / np.sqrt(by.max() * by.min())).astype(np.float32)
        return np.asarray(in_groups(weights * by, BITS, GROUP) / by, dtype=np.float32)

    def error(made: Array) -> float:
        return float(np.linalg.norm(inputs @ made.T - exact))

    return min((scaled(float(a)) for a in np.linspace(0, 1, 21)), key=error)


def nearest(weights: Array, inputs: Array) -> Array:
    """Round to nearest: no signal."""
    return in_groups(weights, BITS, GROUP)


METHODS = {"round to nearest": nearest, "GPTQ": gptq, "AWQ": awq}


def _correlated(random: np.random.Generator, rows: int, mixing: Array) -> Array:
    """Inputs of equal size that go together: a few hidden causes, and a little of their own."""
    hidden = random.normal(size=(rows, RANK)) @ mixing + 0.1 * random.normal(size=(rows, INPUTS))
    return np.asarray(hidden / np.sqrt((mixing**2).sum(axis=0) + 0.01), dtype=np.float32)


def run(seed: int = 0) -> Finding:
    """Three methods on three kinds of inputs; errors on inputs that no method has seen."""
    random = np.random.default_rng(seed)
    weights = random.normal(0, 0.02, (OUTPUTS, INPUTS)).astype(np.float32)
    mixing = random.normal(size=(RANK, INPUTS)).astype(np.float32)
    size = np.ones(INPUTS, dtype=np.float32)
    size[random.choice(INPUTS, LOUD, replace=False)] = TIMES

    def plain(rows: int) -> Array:
        return random.normal(size=(rows, INPUTS)).astype(np.float32)

    kinds: dict[str, Callable[[int], Array]] = {
        "correlated, of equal size": lambda rows: _correlated(random, rows, mixing),
        "independent, a few loud": lambda rows: np.asarray(plain(rows) * size),
        "correlated, a few loud": lambda rows: np.asarray(_correlated(random, rows, mixing) * size),
    }
    rows: list[tuple[Any, ...]] = []
    errors: dict[tuple[str, str], float] = {}
    for kind, draw in kinds.items():
        seen, fresh = draw(CALIBRATION), draw(CALIBRATION)
        exact = fresh @ weights.T
        for name, method in METHODS.items():
            made = method(weights, seen)
            output = float(np.linalg.norm(fresh @ made.T - exact) / np.linalg.norm(exact))
            errors[kind, name] = output
            rows.append((kind, name, float(np.linalg.norm(made - weights) / np.linalg.norm(weights)), output,
                         output / errors[kind, "round to nearest"]))  # fmt: skip
    together, loud, both = kinds

    def gain(kind: str, name: str) -> str:
        return f"{errors[kind, name] / errors[kind, 'round to nearest']:.2f}"

    return Finding(
        f"{OUTPUTS} x {INPUTS} weights, {BITS} bits in groups of {GROUP}, {CALIBRATION:,} inputs to calibrate and as "
        f"many new ones to judge, seed {seed}",
        (
            Column("inputs", "inputs"),
            Column("method", "method"),
            Column("weight_error", "error of the weights", "{:.1%}"),
            Column("output_error", "of the output", "{:.1%}"),
            Column("of_nearest", "of nearest's", "{:.2f}"),
        ),
        tuple(rows),
        (
            "GPTQ's signal is the second moment of the inputs, X'X: where inputs go together, a rounding error in "
            f"one weight can be made up by another, and the output's error is {gain(together, 'GPTQ')} of nearest's "
            "although its weights are further off. Where inputs are independent there is nothing to make up with: "
            f"{gain(loud, 'GPTQ')}.",
            "AWQ's signal is each input's mean magnitude: the columns that loud inputs meet are scaled up, so that "
            f"they are rounded finer. It leaves {gain(loud, 'AWQ')} of the error where a few inputs are loud, and "
            f"{gain(together, 'AWQ')} where all are of one size. With both, GPTQ leaves {gain(both, 'GPTQ')} and AWQ "
            f"{gain(both, 'AWQ')}.",
        ),
        (
            "Frantar et al. 2022, GPTQ: https://arxiv.org/abs/2210.17323",
            "Lin et al. 2023, AWQ: https://arxiv.org/abs/2306.00978",
        ),
    )  # fmt: skip
