"""How much a pool holds: the most users and the longest context, found by search over the simulation.

A load holds where no request is preempted or waits for blocks. The answer is a point that holds and the
next one, which does not; both are simulated whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.errors import UsageError
from harness.ledger import Account, Term
from harness.predict import predict
from harness.predict.limits import bounds
from harness.scenario import Load, Scenario, longest, longest_request
from harness.simulate import Limits, Simulation, holds, simulate

LOOK_PAST = 16  # a load is no smooth thing: so many points past the cliff are looked at before it is believed


@dataclass(frozen=True)
class Trial:
    """A simulated point: ``value`` users, requests or tokens."""

    value: int
    simulation: Simulation


@dataclass(frozen=True)
class Answer:
    """The largest value that holds, one step past it, and the scenario's own value.

    ``largest`` is 0 where nothing holds. ``low`` and ``high``: the same on the smallest and the largest pool
    of the prediction's interval. ``limited_by`` is ``kv_cache``, or what ends the search before the pool does.
    """

    what: str  # users, requests or context_tokens
    largest: int
    low: int
    high: int
    limited_by: str
    at: Trial | None
    past: Trial | None
    asked: Trial


@dataclass(frozen=True)
class Capacity:
    """The answers for a scenario, on the predicted pool."""

    scenario: Scenario
    account: Account
    answers: tuple[Answer, ...]


def capacity(scenario: Scenario) -> Capacity:
    """What the predicted pool of ``scenario`` holds of its load.

    Raises UsageError where the scenario states no load, or is granted no pool that serves one request of it.
    """
    account, load, limits = loaded_pool(scenario)
    pools = [replace(limits, num_blocks=n) for n in _interval(account)]
    searches = (_many(load, limits), _context(load, limits))
    return Capacity(scenario, account, tuple(_answer(s, load, limits, pools) for s in searches))


def loaded_pool(scenario: Scenario) -> tuple[Account, Load, Limits]:
    """The prediction, the load and the scheduler's limits on the predicted pool.

    Raises UsageError where the scenario states no load, is granted no pool, or has one that can't be simulated.
    """
    if scenario.load is None:
        raise UsageError("load: missing: there is no load to judge the pool under")
    account = predict(scenario)
    starts = account.rung("STARTS")
    if not (starts and starts.holds) or account.kv.num_blocks is None:
        failed = next(r for r in account.rungs if not r.holds)
        raise UsageError(f"no pool to judge: {failed.rung} fails: {failed.reason}")
    held = account.rung("HOLDS")
    if held is not None and held.holds is None:
        raise UsageError(f"the load is {held.reason}")
    return account, scenario.load, bounds(scenario, account.kv.num_blocks)


def _interval(account: Account) -> tuple[int, int]:
    """The fewest and the most blocks that the prediction leaves open."""
    blocks, entry = account.kv.num_blocks or 0, account.ledger.find(Term.KV_AVAILABLE)
    size = account.kv.bytes_per_block
    if entry is None or entry.low is None or entry.high is None or entry.bytes is None or not size:
        return blocks, blocks
    return blocks + (entry.low - entry.bytes) // size, blocks + -(-(entry.high - entry.bytes) // size)


@dataclass(frozen=True)
class _Search:
    what: str
    asked: int
    least: int
    most: int
    limited_by: str  # what makes ``most`` the end
    load_at: Callable[[int], Load]


def _many(load: Load, limits: Limits) -> _Search:
    """Users who each send as many requests as the scenario's do; or requests of a burst.

    No more than ``max_num_seqs`` run at once: further users wait for a seat, whatever the pool. A burst fills
    the seats that come free, so it is followed to four times as many.
    """
    if load.users is None:
        return _Search(
            "requests", load.requests, 1, max(load.requests, 4 * limits.max_num_seqs), "max_num_seqs",
            lambda n: load.model_copy(update={"requests": n}),
        )  # fmt: skip
    each = -(-load.requests // load.users)
    return _Search(
        "users", load.users, 1, max(load.users, limits.max_num_seqs), "max_num_seqs",
        lambda n: load.model_copy(update={"users": n, "requests": n * each}),
    )  # fmt: skip


def _context(load: Load, limits: Limits) -> _Search:
    """Tokens of prompt and output, the outputs as the scenario has them and all prompts of one length."""
    assert load.output_tokens is not None
    output = longest(load.output_tokens)
    shared = load.shared_prefix_tokens
    return _Search(
        "context_tokens", longest_request(load), shared + 1 + output, limits.max_model_len, "max_model_len",
        lambda n: load.model_copy(update={"prompt_tokens": n - output}),
    )  # fmt: skip


def _answer(search: _Search, load: Load, limits: Limits, pools: list[Limits]) -> Answer:
    def largest_on(pool: Limits) -> int:
        if pool.num_blocks < 2:
            return 0
        return _largest(lambda n: _holds(search.load_at(n), pool), search.least, search.most)

    def trial(n: int) -> Trial | None:
        try:
            return Trial(n, simulate(search.load_at(n), limits))
        except UsageError:  # the pool does not serve one such request
            return None

    largest = largest_on(limits)
    low, high = (largest_on(p) for p in pools)
    end = largest >= search.most
    return Answer(
        what=search.what,
        largest=largest,
        low=min(low, largest),
        high=max(high, largest),
        limited_by=search.limited_by if end else "kv_cache",
        at=trial(largest) if largest else None,
        past=None if end else trial(max(largest + 1, search.least)),
        asked=Trial(search.asked, simulate(load, limits)),
    )


def _holds(load: Load, limits: Limits) -> bool:
    try:
        return holds(load, limits)
    except UsageError:  # the pool does not serve one such request
        return False


def _largest(good: Callable[[int], bool], least: int, most: int) -> int:
    """The largest value of which ``good`` is true while it is false for the LOOK_PAST next ones; 0 for none."""
    if not good(least):
        return 0
    low, step = least, 1
    while low + step <= most and good(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, most + 1)  # not good, or beyond the end
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    further = next((n for n in range(min(low + LOOK_PAST, most), low + 1, -1) if good(n)), None)
    return low if further is None else _largest(good, further, most)
