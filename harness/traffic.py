"""Load shape + seed -> requests. One seed, one load: simulation, rehearsal and measurement share it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.scenario import Empirical, Lengths, Load, Normal, Uniform
from harness.scenario.trace import HASH_TOKENS, Row


@dataclass(frozen=True)
class Request:
    """One request: ``prompt_tokens`` go in, exactly ``output_tokens`` come out. ``index`` counts from 0.

    ``turn`` counts within a ``conversation``, from 0: a later turn's prompt is all of the turn before, its answer and
    something new. ``time_s`` from the first request, None where an answer tells when it is sent. ``priority``: the
    least goes first. ``adapter``: the LoRA adapter that it asks for, from 1; 0 is none.
    """

    index: int
    prompt_tokens: int
    output_tokens: int
    conversation: int = 0
    turn: int = 0
    time_s: float | None = None
    pieces: tuple[tuple[int, int], ...] = ()  # (id, tokens) of its first tokens: prompts share those with equal ids
    priority: int = 0
    adapter: int = 0


def stream(load: Load) -> Iterator[Request]:
    """The requests of ``load`` in the order in which they are sent, conversation by conversation, drawn one by one."""
    rng, times = random.Random(load.seed), arrivals_s(load)
    # Drawn apart: the lengths are the same with and without them.
    ranks, prefixes, adapters = (random.Random(f"{load.seed}/{what}") for what in ("ranks", "prefixes", "adapters"))

    def priority() -> int:
        return ranks.choice(load.priorities) if load.priorities else 0

    for i in range(load.conversations):
        time_s = next(times) if times else None
        adapter = adapters.randint(1, load.adapters) if load.adapters else 0
        if load.trace is not None:
            yield _recorded(i, load.trace.rows[i], HASH_TOKENS.get(load.trace.format, 0), time_s, priority(), adapter)
            continue
        pieces: tuple[tuple[int, int], ...] = ()
        if load.shared_prefixes > 1:
            pieces = ((prefixes.randrange(load.shared_prefixes), load.shared_prefix_tokens),)
        said = 0
        for turn in range(load.turns):
            said += _draw(load.turn_tokens if turn else load.prompt_tokens, rng)
            output = _draw(load.output_tokens, rng)
            when = None if turn else time_s
            yield Request(i * load.turns + turn, said, output, i, turn, when, pieces, priority(), adapter)
            said += output


def _recorded(
    index: int, row: Row, hash_tokens: int, time_s: float | None, priority: int, adapter: int
) -> Request:  # fmt: skip
    """A row of a trace; one without hash_ids has a prompt like no other."""
    left, pieces = row.prompt_tokens, []
    for piece in row.hash_ids:
        if left > 0:
            pieces.append((piece, min(hash_tokens, left)))
        left -= hash_tokens
    return Request(index, row.prompt_tokens, row.output_tokens, index, 0, time_s, tuple(pieces), priority, adapter)


def arrivals_s(load: Load) -> Iterator[float] | None:
    """When each conversation of ``load`` begins, in seconds from the first one; None where answers tell.

    Gaps between them have the mean 1 / rate: all alike (constant), exponential (poisson, ramp), or gamma distributed
    with the shape ``burstiness``. Drawn beside the lengths, so these are the same at any rate.
    """
    if load.trace is not None:
        scale = load.trace.time_scale
        return (row.time_s * scale for row in load.trace.rows[: load.requests])
    return None if load.rate is None else _at_a_rate(load, load.rate)


def _at_a_rate(load: Load, rate: float) -> Iterator[float]:
    rng, time_s = random.Random(f"{load.seed}/arrivals"), 0.0
    shape = {"constant": None, "gamma": load.burstiness}.get(load.shape, 1.0)
    for i in range(load.conversations):
        yield time_s
        now = rate if load.end_rate is None else rate + (load.end_rate - rate) * i / load.conversations
        time_s += 1 / now if shape is None else rng.gammavariate(shape, 1 / (shape * now))


def requests(load: Load) -> list[Request]:
    """All of :func:`stream`."""
    return list(stream(load))


def _draw(lengths: Lengths | None, rng: random.Random) -> int:
    assert lengths is not None
    if isinstance(lengths, int):
        return lengths
    if isinstance(lengths, Uniform):
        return rng.randint(lengths.low, lengths.high)
    if isinstance(lengths, Empirical):
        return rng.choice(lengths.seen)
    if isinstance(lengths, Normal):
        drawn = rng.gauss(lengths.mean, lengths.stdev)
    else:
        drawn = lengths.median * rng.lognormvariate(0.0, lengths.sigma)
    return min(max(round(min(drawn, 1e9)), lengths.low), lengths.high)


def prompt_ids(
    request: Request, seed: int, vocab_size: int, common_tokens: int = 0, said: Sequence[int] = ()
) -> list[int]:
    """Token ids of a prompt: what is common to all (or ``said`` before in its conversation), then its own.

    Its own are drawn from (seed, index), so that it shares no block with another's. Ids 0-9 are left out: the usual
    place of the special tokens.
    """
    ids = range(min(10, vocab_size - 1), vocab_size)

    def drawn(what: object, count: int) -> list[int]:
        return random.Random(f"{seed}/{what}").choices(ids, k=count)

    begin = list(said) or drawn("shared", common_tokens)
    for piece, count in () if said else request.pieces:
        begin += drawn(f"piece/{piece}", count)
    return begin + drawn(request.index, request.prompt_tokens - len(begin))
