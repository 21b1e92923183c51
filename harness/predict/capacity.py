"""How much a pool holds: the most users, the highest rate and the longest context, by search over the simulation.

A load holds where no request is preempted or waits for blocks; where the scenario states an SLO, it has to be met
too. The answer is a point that is good and the next one, which is not; both are simulated whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from harness.errors import UsageError
from harness.ledger import Account, LoadFigures, Term
from harness.predict import predict
from harness.predict.limits import bounds
from harness.predict.simulated import step_time_of, targets_of
from harness.scenario import Load, Scenario, Slo, Trace, longest, longest_request
from harness.simulate import TIMELESS, Limits, Simulation, StepTime, holds, simulate

LOOK_PAST = 16  # a load is no smooth thing: so many points past the cliff are looked at before it is believed


MOST = 1000  # hundredths of the throughput up to which a rate is followed
STREAM = 256  # requests of the stream that a rate is judged by, where the scenario's load has fewer
Tell = Callable[[int, int, str], None]  # searches done, searches in all, what is searched


@dataclass(frozen=True)
class Trial:
    """A simulated point: ``value`` users, requests, requests per second or tokens. ``good``: it holds, and meets the
    SLO where there is one."""

    value: float
    load: Load
    simulation: Simulation
    good: bool


@dataclass(frozen=True)
class Answer:
    """The largest value that is good, one step past it, and the scenario's own value, if it has one.

    ``largest`` is 0 where nothing is good. ``low`` and ``high``: the same on the smallest and the largest pool
    of the prediction's interval. ``limited_by`` is ``kv_cache`` or ``slo``, or what ends the search before they do.
    """

    what: str  # users, requests, rate_per_s or context_tokens
    largest: float
    low: float
    high: float
    limited_by: str
    at: Trial | None
    past: Trial | None
    asked: Trial | None


@dataclass(frozen=True)
class Capacity:
    """The answers for a scenario, on the predicted pool."""

    scenario: Scenario
    account: Account
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class _Judge:
    """Simulates loads on one pool and says whether they are good."""

    limits: Limits
    step_time: StepTime
    slo: Slo | None
    targets_s: dict[str, float]

    def good(self, load: Load) -> bool:
        """Whether it holds and meets the SLO."""
        if self.limits.num_blocks < 2:
            return False
        try:
            if not holds(load, self.limits, self.step_time):
                return False
            return self.slo is None or not too_slow(self.slo, simulate(load, self.limits, self.step_time).figures)
        except UsageError:  # the pool does not serve one such request
            return False

    def trial(self, value: float, load: Load) -> Trial | None:
        """The load simulated whole, None where the pool does not serve one request of it."""
        try:
            simulation = simulate(load, self.limits, self.step_time, self.targets_s)
        except UsageError:
            return None
        slow = self.slo and too_slow(self.slo, simulation.figures)
        return Trial(value, load, simulation, simulation.holds and not slow)


def too_slow(slo: Slo, figures: LoadFigures) -> dict[str, float]:
    """The figures that are above their limit, and what they are, in seconds."""
    values = {name: getattr(figures, name) for name in slo.limits}
    return {name: value for name, value in values.items() if value is not None and value > slo.limits[name]}


def capacity(scenario: Scenario, tell: Tell = lambda done, all_, what: None) -> Capacity:
    """What the predicted pool of ``scenario`` holds of its load.

    Raises UsageError where the scenario states no load that can be made larger, is granted no pool that serves one
    request of it, or states an SLO that not even one request alone meets.
    """
    account, load, limits = loaded_pool(scenario)
    judge = _Judge(limits, step_time_of(scenario), scenario.slo, targets_of(scenario))
    _check_slo(load, judge)
    pools = [replace(judge, limits=replace(limits, num_blocks=n)) for n in _interval(account)]
    searches = list(_searches(load, judge))
    answers = []
    for i, search in enumerate(searches):
        def told(pool: int, i: int = i, search: _Search = search) -> None:
            tell(3 * i + pool, 3 * len(searches), search.what)

        answers.append(_answer(search, judge, pools, told))
    return Capacity(scenario, account, tuple(answers))


def _check_slo(load: Load, judge: _Judge) -> None:
    """Raises UsageError where one request alone is too slow."""
    if judge.slo is None:
        return
    if judge.step_time is TIMELESS:
        raise UsageError("slo: how long the steps take is not known, so nothing can be said of latencies")
    alone = load.model_copy(update={"shape": "closed", "users": 1, "requests": load.turns, "rate": None})
    for name, value in too_slow(judge.slo, simulate(alone, judge.limits, judge.step_time).figures).items():
        raise UsageError(
            f"slo.{name}: nothing meets {judge.slo.limits[name]:g} s: one user alone, with nobody beside him, has "
            f"{value:.3g} s"
        )


def loaded_pool(scenario: Scenario) -> tuple[Account, Load, Limits]:
    """The prediction, the load and the scheduler's limits on the predicted pool.

    Raises UsageError where the scenario states no load, is granted no pool, or has one that can't be simulated.
    """
    if scenario.kind == "finetune":
        raise UsageError("kind: finetune: a training step has no load")
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
    """Loads by a whole number; ``unit``: what one of it is worth."""

    what: str
    asked: float | None
    least: int
    most: int
    limited_by: str  # what makes ``most`` the end
    load_at: Callable[[int], Load]
    asked_load: Load
    unit: float = 1


def _searches(load: Load, judge: _Judge) -> Iterator[_Search]:
    if not load.open:
        yield _many(load, judge.limits)
    if judge.step_time is not TIMELESS:
        yield _rate(load, judge) if load.trace is None else _speed(load, load.trace, judge)
    if load.trace is None:
        yield _context(load, judge.limits)


def _many(load: Load, limits: Limits) -> _Search:
    """Users who each send as many requests as the scenario's do; or requests of a burst.

    No more than ``max_num_seqs`` run at once: further users wait for a seat, whatever the pool. A burst fills
    the seats that come free, so it is followed to four times as many.
    """
    if load.users is None:
        return _Search(
            "requests", load.conversations, 1, max(load.conversations, 4 * limits.max_num_seqs), "max_num_seqs",
            lambda n: load.model_copy(update={"requests": n * load.turns}), load,
        )  # fmt: skip
    each = -(-load.conversations // load.users) * load.turns
    return _Search(
        "users", load.users, 1, max(load.users, limits.max_num_seqs), "max_num_seqs",
        lambda n: load.model_copy(update={"users": n, "requests": n * each}), load,
    )  # fmt: skip


def _rate(load: Load, judge: _Judge) -> _Search:
    """Requests of the same lengths that come at random (poisson, unless the load says how) at a rate.

    The rate is told in steps of about 1 % of what the pool can put through, and followed to ten times that.
    """
    keys = {"users": None, "think_s": load.think_s if load.turns > 1 else 0.0}
    shape = load.shape if load.open and load.shape != "ramp" else "poisson"
    requests = max(load.conversations, STREAM) * load.turns
    stream = load.model_copy(update={**keys, "shape": shape, "requests": requests, "rate": 1.0, "end_rate": None})
    burst = stream.model_copy(update={"shape": "burst", "rate": None, "burstiness": None})
    through = (simulate(burst, judge.limits, judge.step_time).figures.requests_per_s or 0.0) / load.turns
    unit = _round_down(through / 100)
    return _Search(
        "rate_per_s", load.rate if shape == load.shape else None, 1, MOST, "throughput",
        lambda n: stream.model_copy(update={"rate": round(n * unit, 9)}), load, unit,
    )  # fmt: skip


def _speed(load: Load, trace: Trace, judge: _Judge) -> _Search:
    """A recording played faster or slower: its mean rate."""
    times = [row.time_s for row in trace.rows[: load.requests]]
    recorded = len(times) / max(times[-1], 1e-9)  # at a time_scale of 1
    at_once = load.model_copy(update={"trace": trace.model_copy(update={"time_scale": 1e-9})})
    unit = _round_down((simulate(at_once, judge.limits, judge.step_time).figures.requests_per_s or 0.0) / 100)

    def load_at(n: int) -> Load:
        return load.model_copy(update={"trace": trace.model_copy(update={"time_scale": recorded / (n * unit)})})

    asked = float(f"{recorded / trace.time_scale:.3g}")
    return _Search("rate_per_s", asked, 1, MOST, "throughput", load_at, load, unit)


def _round_down(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is no more than ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * max(step for step in (1, 2, 5) if step * power <= value)


def _context(load: Load, limits: Limits) -> _Search:
    """Tokens of the longest request, the outputs as the scenario has them and all first prompts of one length."""
    assert load.prompt_tokens is not None
    rest = longest_request(load) - longest(load.prompt_tokens)
    shared = load.shared_prefix_tokens
    return _Search(
        "context_tokens", longest_request(load), shared + 1 + rest, limits.max_model_len, "max_model_len",
        lambda n: load.model_copy(update={"prompt_tokens": n - rest}), load,
    )  # fmt: skip


def _is_good(search: _Search, judge: _Judge, told: Callable[[], None], n: int) -> bool:
    told()
    return judge.good(search.load_at(n))


def _answer(search: _Search, judge: _Judge, pools: list[_Judge], told: Callable[[int], None]) -> Answer:
    found = []
    for i, each in enumerate([judge, *pools]):
        found.append(_largest(partial(_is_good, search, each, partial(told, i)), search.least, search.most))
    largest, low, high = found
    end = largest >= search.most

    def trial(n: int) -> Trial | None:
        return judge.trial(round(n * search.unit, 9), search.load_at(n))

    past = None if end else trial(max(largest + 1, search.least))
    limited_by = search.limited_by if end else "slo" if past and past.simulation.holds else "kv_cache"
    return Answer(
        what=search.what,
        largest=round(largest * search.unit, 9),
        low=round(min(low, largest) * search.unit, 9),
        high=round(max(high, largest) * search.unit, 9),
        limited_by=limited_by,
        at=trial(largest) if largest else None,
        past=past,
        asked=None if search.asked is None else judge.trial(search.asked, search.asked_load),
    )


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
