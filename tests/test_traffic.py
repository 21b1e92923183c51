"""Load shape + seed -> requests."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.scenario import Load
from harness.traffic import Request, prompt_ids, requests

BLOCK = 16


def load(**keys: Any) -> Load:
    return Load.model_validate(
        {"shape": "burst", "requests": 500, "prompt_tokens": 100, "output_tokens": 10, "seed": 5, **keys}
    )


def spread(kind: str, low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"distribution": kind, "low": low, "high": high, **more}


MIXED = {
    "prompt_tokens": spread("lognormal", 16, 4000, median=400, sigma=1.0),
    "output_tokens": spread("normal", 1, 900, mean=200.0, stdev=60.0),
}


def test_fixed_lengths_in_order() -> None:
    assert requests(load(requests=3)) == [Request(i, 100, 10, conversation=i) for i in range(3)]


def test_the_same_seed_draws_the_same_requests() -> None:
    assert requests(load(**MIXED)) == requests(load(**MIXED))
    assert requests(load(**MIXED)) != requests(load(**MIXED, seed=6))
    # The order of sending and the number of users change nothing about the requests.
    assert requests(load(**MIXED)) == requests(load(**MIXED, shape="closed", users=7))
    # A longer load begins with the shorter one.
    assert requests(load(**MIXED))[:20] == requests(load(**MIXED, requests=20))


def test_a_seed_draws_these_requests() -> None:
    """Pinned: a recorded run must mean the same load in every later version."""
    drawn = requests(load(**MIXED, requests=4))
    assert [(r.prompt_tokens, r.output_tokens) for r in drawn] == [(905, 240), (88, 62), (373, 125), (688, 179)]


def test_uniform_reaches_both_ends_and_keeps_within() -> None:
    drawn = [r.prompt_tokens for r in requests(load(prompt_tokens=spread("uniform", 3, 7)))]
    assert set(drawn) == {3, 4, 5, 6, 7}


def test_normal_and_lognormal_have_their_middle_where_they_say() -> None:
    work = requests(load(**MIXED, requests=4000))
    prompts, outputs = [r.prompt_tokens for r in work], [r.output_tokens for r in work]
    assert statistics.fmean(outputs) == pytest.approx(200, abs=4)
    assert statistics.stdev(outputs) == pytest.approx(60, abs=3)
    assert statistics.median(prompts) == pytest.approx(400, rel=0.06)
    logs = [math.log(p) for p in prompts if 16 < p < 4000]
    assert statistics.stdev(logs) == pytest.approx(1.0, abs=0.06)


@settings(deadline=None)
@given(
    kind=st.sampled_from([
        {"distribution": "uniform"}, {"distribution": "normal", "mean": 1e7, "stdev": 1e7},
        {"distribution": "normal", "mean": 0.1, "stdev": 0}, {"distribution": "lognormal", "median": 1e7, "sigma": 10},
        {"distribution": "lognormal", "median": 0.1, "sigma": 10},
    ]),
    ends=st.tuples(st.integers(1, 10**7), st.integers(1, 10**7)).map(sorted),
    seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_every_length_lies_within_its_ends(kind: dict[str, Any], ends: list[int], seed: int) -> None:
    lengths = {**kind, "low": ends[0], "high": ends[1]}
    for r in requests(load(requests=50, prompt_tokens=lengths, output_tokens=lengths, seed=seed)):
        assert ends[0] <= r.prompt_tokens <= ends[1]
        assert ends[0] <= r.output_tokens <= ends[1]


@pytest.mark.parametrize("vocab_size", [4096, 32_000, 128_256])
def test_no_two_prompts_share_a_block(vocab_size: int) -> None:
    blocks = [
        tuple(ids[i : i + BLOCK])
        for ids in (prompt_ids(r, 5, vocab_size) for r in requests(load(requests=200, prompt_tokens=128)))
        for i in range(0, 128, BLOCK)
    ]
    assert len(set(blocks)) == len(blocks) == 200 * 8


def test_prompts_are_those_of_the_seed_and_keep_off_the_special_tokens() -> None:
    one = prompt_ids(Request(3, 2000, 1), 5, 4096)
    assert one == prompt_ids(Request(3, 2000, 1), 5, 4096)
    assert one != prompt_ids(Request(3, 2000, 1), 6, 4096)
    assert len(one) == 2000
    assert min(one) >= 10 and max(one) < 4096
    assert prompt_ids(Request(0, 4, 1), 5, 1) == [0, 0, 0, 0]


def test_a_shared_prefix_is_common_to_all_and_nothing_else_is() -> None:
    prompts = [prompt_ids(r, 5, 4096, 40) for r in requests(load(requests=50))]
    assert all(len(p) == 100 and p[:40] == prompts[0][:40] for p in prompts)
    assert len({tuple(p[32 : 32 + BLOCK]) for p in prompts}) == 50
