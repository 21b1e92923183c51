"""The time of a step: the roofline by hand, whole loads against public runs, and sums that are exact."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import SCENARIOS
from hypothesis import given
from hypothesis import strategies as st

from harness.architecture import from_config
from harness.ledger import KvPool
from harness.predict import predict, settings
from harness.predict.simulated import simulated, step_time_of
from harness.predict.step_time import COMPARED, clock
from harness.roofline import at_that_pace, late_s, reached
from harness.scenario import load_scenario, parse_scenario
from harness.simulate import TIMELESS, StepTime
from harness.simulate.latency import Distribution

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
times = st.integers(0, 10**12)
steps = st.builds(StepTime, times, times, times, times, times, times, st.floats(0, 1), times)


@given(steps, st.integers(0, 300), st.integers(1, 200), st.integers(0, 10**6))
def test_many_steps_take_what_they_take_one_by_one(step: StepTime, count: int, requests: int, kv: int) -> None:
    alone = sum(step.step(requests, kv + i * requests, 0) for i in range(count))
    assert step.decoding(count, requests, kv) == alone


@given(st.integers(0, 10**13), st.integers(0, 10**9), st.integers(1, 300), st.integers(1, 9))
def test_a_growing_row_is_told_like_its_values(first: int, growth: int, count: int, each: int) -> None:
    row, single = Distribution(), Distribution()
    row.add_evenly(first, first + growth * (count - 1), count, each)
    for i in range(count):
        single.add(first + growth * i, each)
    assert (row.count, row.total) == (single.count, single.total)
    for q in (0.5, 0.95, 0.99):
        ours, theirs = row.quantile(q), single.quantile(q)
        assert ours is not None and theirs is not None
        assert ours == pytest.approx(theirs, rel=0.021, abs=2)  # a value at a bin's edge may fall on either side


def test_a_70b_by_hand() -> None:
    """docs/latency.md has the same sum in words."""
    found = step_time_of(load_scenario(SCENARIOS / "70b_8k_int4.yaml"))
    linear = 80 * (8192 * 10_240 + 8192 * 8192 + 3 * 8192 * 28_672)
    weights = linear * 4.15625 / 8 + 128_256 * 8192 * 2 + (2 * 80 + 1) * 8192 * 2  # lm_head and the norms
    assert found.dense_ps == pytest.approx(1e12 * weights / (3.35e12 * 0.76), rel=1e-6)
    assert found.kv_ps == pytest.approx(1e12 * 2 * 80 * 8 * 128 * 2 / (3.35e12 * 0.45), rel=1e-4)
    assert found.token_ps == pytest.approx(1e12 * 2 * (linear + 161 * 8192) / (989.4e12 * 0.48), rel=1e-6)
    assert found.pair_ps == pytest.approx(1e12 * 4 * 128 * 64 * 80 / (989.4e12 * 0.45), rel=1e-3)
    assert found.step(12, 12 * 7680, 0) / 1e12 == pytest.approx(0.0358, rel=0.01)


def test_experts_are_read_as_far_as_tokens_are_sent_to_them() -> None:
    scenario = parse_scenario("""
name: a
model: Qwen/Qwen3-30B-A3B
gpu: {name: h100}
""")
    found = step_time_of(scenario)
    all_experts = 48 * 128 * 3 * 2048 * 768 * 2
    assert found.experts_ps == pytest.approx(1e12 * all_experts / (3.35e12 * 0.76), rel=1e-6)
    one = found.step(1, 0, 0) - found.launch_ps - found.dense_ps
    assert one == pytest.approx(found.experts_ps * 8 / 128, rel=1e-6)
    assert found.step(1000, 0, 0) - found.launch_ps - found.dense_ps == pytest.approx(found.experts_ps, rel=1e-3)


def test_ranks_share_the_work_and_exchange_it() -> None:
    text = "name: a\nmodel: meta-llama/Llama-3.1-70B-Instruct\ngpu: {name: h200, count: %d}"
    one, two = (step_time_of(parse_scenario(text % n)) for n in (1, 2))
    assert two.token_ps == pytest.approx(one.token_ps / 2, rel=1e-6)
    assert two.kv_ps == pytest.approx(one.kv_ps / 2, rel=1e-4)
    assert two.dense_ps == pytest.approx(one.dense_ps / 2, rel=0.001)
    assert two.launch_ps - one.launch_ps == 160 * 12_000_000 and (one.exchange_ps, two.exchange_ps > 0) == (0, True)


def test_what_a_measured_run_reached_is_found_and_can_be_put_in() -> None:
    """Steps as a GPU that reaches other shares would take them, a few per cent off each."""
    shares = {"weights": 0.62, "kv": 0.7, "linear": 0.55, "attention": 0.3}
    changes = [f"gpu.efficiency.{name}={share}" for name, share in shares.items()]
    scenario = load_scenario(SCENARIOS / "70b_8k_int4.yaml", changes)
    real, rng = step_time_of(scenario), random.Random(1)
    rows = [(n, n * rng.randrange(500, 8000), 0) for n in range(1, 41) for _ in range(4)]
    for _ in range(100):
        new, before = rng.randrange(1024, 8192), rng.choice([0, 2000, 4000])
        rows.append((new + 20, 20 * rng.randrange(500, 8000), new * before + new * (new + 1) // 2))
    took = [round(real.step(*row) / 1000 * rng.gauss(1, 0.02)) for row in rows]
    steps = pd.DataFrame(rows, columns=["tokens", "kv_tokens", "pairs"]).assign(took_ns=took)
    found = reached(load_scenario(SCENARIOS / "70b_8k_int4.yaml"), steps)
    assert not isinstance(found, str)
    for name, share in shares.items():
        # A prefill's attention is a small part of a step at 8K, and as uncertain.
        assert getattr(found.efficiency, name) == pytest.approx(share, rel=0.15 if name == "attention" else 0.05), name
    assert 0.005 < found.decode_error < 0.03 and 0.005 < found.prefill_error < 0.03
    assert "40 of each are needed" in str(reached(scenario, steps[:60]))
    assert "not recorded" in str(reached(scenario, steps[["tokens"]]))


def test_the_pace_that_a_rehearsal_kept_is_what_it_is_compared_at() -> None:
    """Steps of 10 ms held to 8, 1 ms between them, and a break in which nobody was there."""
    began = [0, 11, 22, 533]
    steps = pd.DataFrame({"time_ns": [t * 10**6 for t in began], "paced_ns": [8 * 10**6] * 4, "took_ns": [10**7] * 4})
    assert late_s(steps) == pytest.approx((4 * 0.002 + 2 * 0.001) / 4)
    assert late_s(steps.assign(paced_ns=0)) is None and late_s(steps[["time_ns"]]) is None
    scenario = load_scenario(SCENARIOS / "8b_24gb_poisson.yaml")
    account = predict(scenario)
    slower = at_that_pace(scenario, account, account, steps).load
    assert slower.e2e_mean_s is not None and account.load.e2e_mean_s is not None
    assert 1.02 < slower.e2e_mean_s / account.load.e2e_mean_s < 1.2
    assert at_that_pace(scenario, account, account, steps.assign(paced_ns=0)) is account


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (["gpu={name: t4}", "weights={format: auto}"], "no source gives the bf16 FLOP/s of t4-16gb"),
        (["gpu={name: h100, count: 2}", "engine.pipeline_parallel_size=2"], "how the stages of a pipeline overlap"),
        (["model=google/gemma-2-9b-it", "weights={format: auto}"], "what layers read that do not keep the whole"),
        (["gpu={memory: 80 GiB}"], "no source gives the bandwidth of gpu"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(changes: list[str], why: str) -> None:
    scenario = load_scenario(SCENARIOS / "70b_8k_int4.yaml", changes)
    found = clock(scenario, from_config(scenario.config()), settings(scenario))
    assert isinstance(found, str) and why in found


def test_a_load_by_the_clock_is_not_judged_without_one() -> None:
    changes = ["gpu={memory: 80 GiB}", "load.shape=poisson", "load.users=null", "load.rate=1", "expect={}"]
    account = predict(load_scenario(SCENARIOS / "70b_8k_int4.yaml", changes))
    holds = account.rung("HOLDS")
    assert holds is not None and holds.holds is None
    assert holds.reason == "not judged: the load comes by the clock, and no source gives the bandwidth of gpu"
    # Users who don't think need no clock; only their latencies are not known.
    users = predict(load_scenario(SCENARIOS / "70b_8k_int4.yaml", ["gpu={memory: 80 GiB}"]))
    assert users.load.preemptions and users.load.ttft_p95_s is None


def test_goodput_counts_the_requests_that_meet_the_limits() -> None:
    keys = ["load.shape=poisson", "load.users=null", "load.rate=0.1", "expect={}"]
    free, some, none = (
        predict(load_scenario(SCENARIOS / "70b_8k_int4.yaml", [*keys, *slo])).load
        for slo in ([], ["slo.ttft_p50_s=2.3"], ["slo.tpot_p99_s=0.001"])
    )
    assert (free.goodput_per_s, none.goodput_per_s) == (None, 0.0)
    assert some.goodput_per_s is not None and some.requests_per_s is not None
    assert 0.3 < some.goodput_per_s / some.requests_per_s < 0.8


def test_one_user_alone_has_the_roofline_as_latency() -> None:
    changes = ["load.users=1", "load.requests=1", "load.prompt_tokens=4000", "load.output_tokens=3", "expect={}"]
    scenario = load_scenario(SCENARIOS / "70b_8k_int4.yaml", changes)
    step = step_time_of(scenario)
    figures = simulated(scenario, KvPool(num_blocks=6000)).figures
    prefill = step.step(4000, 0, 4000 * 4001 // 2)
    decode = [step.step(1, 4001, 0), step.step(1, 4002, 0)]
    assert figures.ttft_mean_s == pytest.approx(prefill / 1e12)
    assert [figures.itl_mean_s, figures.tpot_mean_s] == pytest.approx([sum(decode) / 2e12] * 2)
    assert figures.duration_s == figures.e2e_mean_s == pytest.approx((prefill + sum(decode)) / 1e12)
    assert figures.queue_mean_s == 0.0 and step is not TIMELESS


def test_public_runs_are_as_far_off_as_the_documentation_says() -> None:
    from benchmarks.latency import DECODE, PREFILL, compared, table

    runs = list(compared())
    assert {c.gpu for c in runs} == set(COMPARED)
    decode = [c for c in runs if c.aspect == DECODE and not c.fitted]
    assert len(decode) >= 10 and max(abs(c.error) for c in decode) <= 0.155
    # Longer than a tenth of a second, so not the API server's.
    prefill = [c.error for c in runs if c.aspect == PREFILL and c.run.startswith("h100x2") and c.measured > 0.1]
    assert len(prefill) == 3 and max(map(abs, prefill)) <= 0.41
    whole = [c.error for c in runs if c.run in ("h100-14b-4k", "a100-14b-32k") and c.metric == "duration_s"]
    assert len(whole) == 2 and max(map(abs, whole)) <= 0.2
    written = (ROOT / "docs" / "latency.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in written, "python -m benchmarks.latency --markdown"
