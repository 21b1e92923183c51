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


def arrivals_s(load: Load) -> Iterator[float] | None:
    """When each request of ``load`` is sent, in seconds from the first one; None where answers tell.

    Gaps between requests have the mean 1 / rate: all alike (constant), exponential (poisson, ramp), or gamma
    distributed with the shape ``burstiness``. Drawn beside the lengths, so these are the same at any rate.
    """
    return None if load.rate is None else _timed(load, load.rate)


def _timed(load: Load, rate: float) -> Iterator[float]:
    rng, time_s = random.Random(f"{load.seed}/arrivals"), 0.0
    shape = {"constant": None, "gamma": load.burstiness}.get(load.shape, 1.0)
    for i in range(load.requests):
        yield time_s
        now = rate if load.end_rate is None else rate + (load.end_rate - rate) * i / load.requests
        time_s += 1 / now if shape is None else rng.gammavariate(shape, 1 / (shape * now))


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


def prompt_ids(request: Request, seed: int, vocab_size: int, shared_prefix_tokens: int = 0) -> list[int]:
    """Token ids of a prompt that shares no block with another's but for the prefix: drawn from (seed, index).

    Ids 0-9 are left out: the usual place of the special tokens.
    """
    ids = range(min(10, vocab_size - 1), vocab_size)
    shared = random.Random(f"{seed}/shared").choices(ids, k=shared_prefix_tokens)
    own = random.Random(f"{seed}/{request.index}").choices(ids, k=request.prompt_tokens - shared_prefix_tokens)
    return shared + own
