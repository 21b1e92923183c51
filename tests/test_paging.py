"""The same load on contiguous memory and on blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import SCENARIOS, bench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_scheduler import load, workloads

from harness.predict import predict
from harness.scenario import Load, load_scenario
from harness.simulate import Limits, simulate
from harness.simulate.paging import Buddies, Use, compare


def by_name(uses: tuple[Use, ...]) -> dict[Any, Use]:
    return {use.block_size or use.allocator: use for use in uses}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(workloads())
def test_blocks_of_the_engine_do_what_the_simulation_does(case: tuple[Load, Limits]) -> None:
    work, limits = case
    uses = by_name(compare(work, limits))
    ours, alone = uses[limits.block_size], simulate(work, replace(limits, enable_prefix_caching=False)).figures
    assert (ours.steps, ours.preemptions, ours.at_once) == (alone.steps, alone.preemptions, alone.peak_running)
    tokens = (limits.num_blocks - 1) * limits.block_size
    for use in uses.values():
        assert 0 < use.used_tokens <= use.reserved_tokens <= tokens
    assert 1 not in uses or uses[1].wasted_share == 0
    whole = uses.get("contiguous, max_model_len")
    assert whole is None or (whole.at_once <= tokens // limits.max_model_len and not whole.preemptions)


def test_means_worked_by_hand() -> None:
    """One request of 16 + 17 tokens: 17 steps with KV of 16, 17, ..., 32 tokens."""
    work = load(requests=1, prompt_tokens=16, output_tokens=17)
    uses = by_name(compare(work, Limits(9, 16, 4, 128, 128)))
    used = sum(range(16, 33)) / 17
    assert all(use.used_tokens == used and use.steps == 17 and use.at_once == 1 for use in uses.values())
    reserved = {name: use.reserved_tokens for name, use in uses.items()}
    assert reserved["contiguous, max_model_len"] == 128
    assert reserved["contiguous, power of two"] == 64  # 33 tokens
    assert reserved[16] == (16 + 16 * 32) / 17
    assert (reserved[1], reserved[32], reserved[128]) == (used, 32, 128)
    assert 256 not in uses  # no such block in 128 tokens


def test_requests_that_fit_at_once() -> None:
    """1,024 tokens, requests of 100 + 28: eight of them however they are paged, four by max_model_len of 256."""
    work = load(requests=20, prompt_tokens=100, output_tokens=28)
    uses = by_name(compare(work, Limits(65, 16, 64, 4096, 256)))
    assert uses["contiguous, max_model_len"].at_once == 4
    assert uses["contiguous, power of two"].at_once == 8
    assert uses[16].at_once >= 8 and uses[16].steps < uses["contiguous, max_model_len"].steps


@given(st.integers(1, 300), st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 99)), max_size=60))
def test_the_buddy_allocator(size: int, wishes: list[tuple[int, bool, int]]) -> None:
    buddies, held = Buddies(size), {}  # place -> size

    def taken() -> set[int]:
        return {unit for place, n in held.items() for unit in range(place, place + n)}

    for power, giving, which in wishes:
        if giving and held:
            place = sorted(held)[which % len(held)]
            buddies.give_back(place, held.pop(place))
            continue
        n, busy = 1 << power, taken()
        place = buddies.take(n)
        if place is None:  # and indeed no aligned piece is free
            assert all(busy & set(range(p, p + n)) for p in range(0, size - n + 1, n))
        else:
            assert place % n == 0 and place + n <= size and not busy & set(range(place, place + n))
            held[place] = n
    for place, n in held.items():
        buddies.give_back(place, n)
    whole = 1 << size.bit_length() - 1
    assert buddies.take(whole) == 0


def test_the_command_answers_by_numbers() -> None:
    file = SCENARIOS / "8b_24gb_int4_under_load.yaml"
    ran = bench("paging", file, "--json")
    assert ran.code == 0 and ran.err == ""
    rows = {row["allocator"]: row for row in ran.document["allocators"]}
    assert len(rows) == 11
    whole, power, paged = (rows[n] for n in ("contiguous, max_model_len", "contiguous, power of two", "blocks of 16"))
    assert whole["at_once"] < power["at_once"] < paged["at_once"]
    assert whole["wasted_share"] > 0.6 > 0.3 < power["wasted_share"] and paged["wasted_share"] < 0.005
    shares = [rows[f"blocks of {2**n}"]["wasted_share"] for n in range(9)]
    assert shares == sorted(shares) and shares[0] == 0
    shown = bench("paging", file).out
    assert f"blocks of 16 (the engine's)        {paged['at_once']}" in shown


@pytest.mark.parametrize(("change", "says"), [("load=null", "load: missing: there is no load to judge the pool under")])
def test_errors_are_one_clear_line(change: str, says: str) -> None:
    ran = bench("paging", "scenarios/70b_8k_int4.yaml", "--set", change)
    assert (ran.code, ran.out, ran.err) == (2, "", f"bench: scenarios/70b_8k_int4.yaml: {says}\n")


def test_requests_that_come_by_the_clock_meet_as_many_as_in_a_run() -> None:
    file = SCENARIOS / "8b_24gb_poisson.yaml"
    rows = {r["block_size"]: r for r in bench("paging", file, "--json").document["allocators"]}
    alone = predict(load_scenario(file, ["engine.enable_prefix_caching=false"])).load
    assert (rows[16]["at_once"], rows[16]["steps"]) == (alone.peak_running, alone.steps)
    assert rows[16]["at_once"] > 20


def test_what_counting_does_not_tell_is_refused() -> None:
    given = ["--set", "engine.scheduling_policy=priority", "--set", "load.priorities=[0, 1]"]
    ran = bench("paging", SCENARIOS / "8b_24gb_int4_under_load.yaml", *given)
    assert ran.code == 2 and "paging is compared by a scheduler without priorities" in ran.err
