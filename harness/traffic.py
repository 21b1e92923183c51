"""Load shape + seed -> requests. One seed, one load: simulation, rehearsal and measurement share it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from harness.scenario import Lengths, Load, Normal, Uniform


@dataclass(frozen=True)
class Request:
    """One request: ``prompt_tokens`` go in, exactly ``output_tokens`` come out. ``index`` counts from 0."""

    index: int
    prompt_tokens: int
    output_tokens: int


def stream(load: Load) -> Iterator[Request]:
    """The requests of ``load`` in the order in which they are sent, drawn one by one."""
    rng = random.Random(load.seed)
    for i in range(load.requests):
        yield Request(i, _draw(load.prompt_tokens, rng), _draw(load.output_tokens, rng))


def requests(load: Load) -> list[Request]:
    """All of :func:`stream`."""
    return list(stream(load))


def _draw(lengths: Lengths, rng: random.Random) -> int:
    if isinstance(lengths, int):
        return lengths
    if isinstance(lengths, Uniform):
        return rng.randint(lengths.low, lengths.high)
    if isinstance(lengths, Normal):
        drawn = rng.gauss(lengths.mean, lengths.stdev)
    else:
        drawn = lengths.median * rng.lognormvariate(0.0, lengths.sigma)
    return min(max(round(min(drawn, 1e9)), lengths.low), lengths.high)


def prompt_ids(request: Request, seed: int, vocab_size: int) -> list[int]:
    """Token ids of a prompt that shares no block with another's: drawn from (seed, index).

    Ids 0-9 are left out: the usual place of the special tokens.
    """
    rng = random.Random(f"{seed}/{request.index}")
    low = min(10, vocab_size - 1)
    return rng.choices(range(low, vocab_size), k=request.prompt_tokens)
