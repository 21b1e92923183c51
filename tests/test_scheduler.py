"""harness.simulate against vLLM's own scheduler: equal counts, step by step."""

from __future__ import annotations

import importlib.util
import json
import math
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.modes import limits_of
from harness.predict import predict
from harness.predict.simulated import step_time_of
from harness.scenario import Load, load_scenario, longest_request
from harness.sessions import scheduler_arguments
from harness.simulate import Limits, Point, Simulation, driver, holds, simulate
from harness.simulate.step_time import TIMELESS, StepTime
from harness.simulate.timeline import MAX_POINTS, Timeline
from harness.traffic import requests

SCENARIOS = Path(__file__).parents[1] / "scenarios"
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM (the extra cpu)")


def load(**keys: Any) -> Load:
    return Load.model_validate({"shape": "burst", "seed": 1, **keys})


def against_vllm(work: Load, limits: Limits, step_time: StepTime = TIMELESS) -> Simulation:
    """Simulate, drive vLLM's scheduler, and demand the same at every step."""
    import vllm_scheduler

    limits = vllm_scheduler.as_installed(limits)
    steps: list[tuple[int, int, int, int]] = []
    latencies: dict[str, list[int]] = {}
    theirs = vllm_scheduler.run(work, limits, per_step=steps, step_time=step_time, latencies=latencies)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(driver, "Timeline", lambda: Timeline(10**9))  # no point stands for several
        ours = simulate(work, limits, step_time)
    counts = {f.name: getattr(ours.figures, f.name) for f in fields(theirs) if getattr(theirs, f.name) is not None}
    assert replace(theirs, **counts) == theirs
    if step_time is not TIMELESS:
        same_latencies(ours, latencies)
    assert ours.figures.preemptions or not ours.tokens_recomputed
    done = 0
    for p in ours.timeline:
        assert (p.blocks_used, p.running, p.waiting, p.preemptions) == steps[p.step - 1], f"step {p.step}"
        # Steps taken at once: nothing but the blocks may have changed on the way.
        skipped = steps[done : p.step - 1]
        assert all(s[1:] == (p.running, p.waiting, p.preemptions) for s in skipped), f"step {done + 1}..{p.step}"
        blocks = [s[0] for s in skipped] + [p.blocks_used]
        assert blocks == sorted(blocks), f"step {done + 1}..{p.step}"
        done = p.step
    assert done == len(steps)
    return ours


def same_latencies(ours: Simulation, theirs: dict[str, list[int]]) -> None:
    """The means are exact, quantiles within 1 %."""
    for name, values in theirs.items():
        values.sort()
        told = {which: getattr(ours.figures, f"{name}_{which}_s") for which in ("mean", "p50", "p95", "p99")}
        if not values:
            assert set(told.values()) == {None}
            continue
        assert told["mean"] == pytest.approx(sum(values) / len(values) / 1e12, rel=1e-9), name
        for q in (50, 95, 99):
            nearest = values[math.ceil(q / 100 * len(values)) - 1] / 1e12
            assert told[f"p{q}"] == pytest.approx(nearest, rel=0.0101), f"{name} p{q}"


# FACTS of a run of vLLM 0.32's scheduler: 64 requests of 2000 + 1000 tokens at once, 8,192 tokens a step.
TABLE = [
    # blocks, steps, preemptions, peak running, tokens scheduled
    (12500, 1015, 0, 64, 191_936),
    (10000, 1518, 11, 64, 220_725),
    (8000, 2006, 21, 63, 241_149),
    (4096, 3005, 23, 32, 227_875),
    (1200, 9002, 29, 9, None),
]


@pytest.mark.parametrize(("blocks", "steps", "preemptions", "running", "tokens"), TABLE)
def test_the_recorded_table(blocks: int, steps: int, preemptions: int, running: int, tokens: int | None) -> None:
    work = load(requests=64, prompt_tokens=2000, output_tokens=1000)
    f = simulate(work, Limits(blocks, 16, 64, 8192, 4096)).figures
    assert (f.steps, f.preemptions, f.peak_running) == (steps, preemptions, running)
    assert tokens is None or f.tokens_scheduled == tokens
    # What the load would hold at once in a pool without end does not depend on the pool.
    assert f.peak_blocks_needed == 11_996
    assert f.peak_blocks_used == min(11_996, blocks - 1)


@needs_vllm
@pytest.mark.parametrize("blocks", [row[0] for row in TABLE])
def test_the_table_step_by_step(blocks: int) -> None:
    against_vllm(load(requests=64, prompt_tokens=2000, output_tokens=1000), Limits(blocks, 16, 64, 8192, 4096))


@needs_vllm
@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_loads(path: Path) -> None:
    scenario = load_scenario(path)
    if scenario.gpu is None or scenario.load is None:
        pytest.skip("no load on a GPU")
    account = predict(scenario)
    starts = account.rung("STARTS")
    if not (starts and starts.holds):
        pytest.skip("the prediction grants no pool to run the load in")
    if (account.load.steps or 0) > 30_000:
        pytest.skip(f"{account.load.steps:,} steps take vLLM's scheduler too long for a test")
    simulation = against_vllm(scenario.load, limits_of(scenario, account.kv), step_time_of(scenario))
    assert simulation.figures == replace(account.load, goodput_per_s=None)  # against_vllm knows no SLO


def lengths(most: int) -> st.SearchStrategy[Any]:
    pair = st.tuples(st.integers(1, most), st.integers(1, most)).map(sorted)
    return st.integers(1, most) | pair.map(lambda p: {"distribution": "uniform", "low": p[0], "high": p[1]})


@st.composite
def workloads(draw: st.DrawFn) -> tuple[Load, Limits]:
    """A load, and a pool between the least that serves its longest request and what all of it would take."""
    count = draw(st.integers(1, 24))
    keys: dict[str, Any] = {"requests": count, "seed": draw(st.integers(0, 999))}
    if draw(st.booleans()):
        keys |= {"shape": "closed", "users": draw(st.integers(1, count))}
    work = load(**keys, prompt_tokens=draw(lengths(300)), output_tokens=draw(lengths(200)))
    block_size = draw(st.sampled_from([16, 32]))
    sizes = sorted(-(-(r.prompt_tokens + r.output_tokens - 1) // block_size) for r in requests(work))
    need = max(sum(sizes[-work.concurrency :]), sizes[-1])
    blocks = 1 + sizes[-1] + round((need - sizes[-1]) * draw(st.floats(0, 1.1)))
    seqs = draw(st.sampled_from([64, 8, 3, 2, 1]))
    budget = draw(st.sampled_from([2048, 256, 100, 65, 64]))
    model_len = draw(st.sampled_from([512, max(longest_request(work), 64)]))
    return work, Limits(blocks, block_size, seqs, budget, model_len, draw(st.booleans()))


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Scheduler options off their defaults."""
    return {
        "scheduler_reserve_full_isl": draw(st.booleans()),
        "watermark": draw(st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.9])),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 1, 16, 30, 64, 100])),
        "enable_chunked_prefill": draw(st.booleans()),
    }


@needs_vllm
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(workloads(), options())
def test_any_workload_with_options(case: tuple[Load, Limits], chosen: dict[str, Any]) -> None:
    work, limits = case
    limits = replace(limits, **chosen)
    # What vLLM itself demands.
    longest_chunk = min(limits.long_prefill_token_threshold, limits.max_model_len)
    limits = replace(limits, long_prefill_token_threshold=longest_chunk)
    if not limits.enable_chunked_prefill:
        limits = replace(limits, max_num_batched_tokens=max(limits.max_num_batched_tokens, limits.max_model_len))
    against_vllm(work, limits)


@needs_vllm
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(workloads(), options())
def test_any_workload_scheduled_asynchronously(case: tuple[Load, Limits], chosen: dict[str, Any]) -> None:
    work, limits = case
    longest_chunk = min(chosen["long_prefill_token_threshold"], limits.max_model_len)
    limits = replace(limits, **{**chosen, "long_prefill_token_threshold": longest_chunk}, async_scheduling=True)
    if not limits.enable_chunked_prefill:
        limits = replace(limits, max_num_batched_tokens=max(limits.max_num_batched_tokens, limits.max_model_len))
    against_vllm(work, limits)


@st.composite
def sharing(draw: st.DrawFn) -> tuple[Load, Limits]:
    """As workloads(), where all prompts begin with the same tokens."""
    work, limits = draw(workloads())
    shared = draw(st.sampled_from([1, 15, 16, 17, 32, 64, 100, 160]) | st.integers(1, 200))
    longer = work.prompt_tokens
    if isinstance(longer, int):
        longer += shared
    else:
        longer = longer.model_copy(update={"low": longer.low + shared, "high": longer.high + shared})
    work = work.model_copy(update={"shared_prefix_tokens": shared, "prompt_tokens": longer})
    model_len = max(limits.max_model_len, longest_request(work))
    longest = -(-longest_request(work) // limits.block_size)
    blocks = max(limits.num_blocks, longest + 1 + draw(st.integers(0, 3)))
    return work, replace(limits, max_model_len=model_len, num_blocks=blocks)


@needs_vllm
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(sharing(), options(), st.booleans())
def test_any_workload_with_a_shared_prefix(
    case: tuple[Load, Limits], chosen: dict[str, Any], asynchronous: bool
) -> None:
    work, limits = case
    longest_chunk = min(chosen["long_prefill_token_threshold"], limits.max_model_len)
    limits = replace(limits, **{**chosen, "long_prefill_token_threshold": longest_chunk}, async_scheduling=asynchronous)
    if not limits.enable_chunked_prefill:
        limits = replace(limits, max_num_batched_tokens=max(limits.max_num_batched_tokens, limits.max_model_len))
    against_vllm(work, limits)


@st.composite
def arriving(draw: st.DrawFn) -> tuple[Load, Limits, StepTime]:
    """As workloads(), or with a shared prefix, where the requests come at a rate: from a request every hundred steps to
    a hundred a step. Some steps are as long as a gap exactly."""
    work, limits = draw(workloads() | sharing())
    shape = draw(st.sampled_from(["constant", "poisson", "gamma", "ramp"]))
    keys: dict[str, Any] = {"shape": shape, "users": None, "rate": draw(st.sampled_from([0.5, 2, 20, 125, 1000]))}
    if shape == "gamma":
        keys["burstiness"] = draw(st.sampled_from([0.1, 0.5, 4.0]))
    if shape == "ramp":
        keys["end_rate"] = draw(st.sampled_from([0.5, 10, 2000]))
    milliseconds = st.integers(0, 20).map(lambda ms: ms * 10**9)
    step_time = StepTime(
        draw(milliseconds), draw(milliseconds) // 100, draw(milliseconds) // 1000, draw(milliseconds) // 10_000
    )
    return work.model_copy(update=keys), limits, step_time


@st.composite
def conversing(draw: st.DrawFn) -> tuple[Load, Limits, StepTime]:
    """Conversations of a few turns, begun by users, at once or at a rate, with or without time to think."""
    work, limits, step_time = draw(arriving())
    turns = draw(st.integers(2, 4))
    keys: dict[str, Any] = {"turns": turns, "turn_tokens": draw(st.integers(1, 100)), "requests": turns * work.requests}
    keys["think_s"] = draw(st.sampled_from([0.0, 0.02, 0.5, 3.0]))
    closed = {"shape": "closed", "rate": None, "end_rate": None, "burstiness": None}
    if draw(st.booleans()):
        work = work.model_copy(update={**closed, "users": draw(st.integers(1, work.requests))})
    work = work.model_copy(update=keys)
    model_len = max(limits.max_model_len, longest_request(work))
    blocks = max(limits.num_blocks, -(-longest_request(work) // limits.block_size) + 1 + draw(st.integers(0, 9)))
    return work, replace(limits, max_model_len=model_len, num_blocks=blocks), step_time


@needs_vllm
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(arriving() | conversing(), options(), st.booleans())
def test_any_workload_that_arrives(
    case: tuple[Load, Limits, StepTime], chosen: dict[str, Any], asynchronous: bool
) -> None:
    work, limits, step_time = case
    longest_chunk = min(chosen["long_prefill_token_threshold"], limits.max_model_len)
    limits = replace(limits, **{**chosen, "long_prefill_token_threshold": longest_chunk}, async_scheduling=asynchronous)
    if not limits.enable_chunked_prefill:
        limits = replace(limits, max_num_batched_tokens=max(limits.max_num_batched_tokens, limits.max_model_len))
    against_vllm(work, limits, step_time)


@needs_vllm
def test_who_ends_in_one_step_gives_back_in_the_order_of_admission() -> None:
    """A later turn is admitted after younger conversations; what it gives back is evicted after theirs."""
    lengths = {"prompt_tokens": {"distribution": "uniform", "low": 11, "high": 282},
               "output_tokens": {"distribution": "uniform", "low": 1, "high": 11}}  # fmt: skip
    keys: dict[str, Any] = {"shape": "gamma", "rate": 0.5, "burstiness": 0.1, "requests": 42, "seed": 170}
    work = load(**keys, **lengths, turns=2, turn_tokens=2)
    limits = Limits(11, 32, 64, 2048, 512, scheduler_reserve_full_isl=False)
    against_vllm(work, limits, StepTime(12 * 10**9, kv_ps=11_000_000, pair_ps=800_000))


@needs_vllm
def test_who_comes_to_one_that_ran_alone_is_cut() -> None:
    """The first of two has the whole budget while nobody else is there; the other's first chunk is the threshold's."""
    work = load(shape="constant", users=None, rate=1000, requests=2, prompt_tokens=141, output_tokens=5)
    keys: dict[str, Any] = {"scheduler_reserve_full_isl": False, "enable_prefix_caching": False}
    limits = Limits(11, 16, 64, 2048, 512, long_prefill_token_threshold=1, **keys)
    figures = against_vllm(work, limits, StepTime(0, pair_ps=100_000)).figures
    assert (figures.peak_running, figures.preemptions) == (2, 1)


@needs_vllm
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(workloads())
def test_any_workload(case: tuple[Load, Limits]) -> None:
    against_vllm(*case)


@needs_vllm
def test_a_conversation_finds_what_was_said_before() -> None:
    """Three turns of 160 + 32 and twice 16 + 32 tokens: a later turn computes what is new and the last block's rest."""
    keys: dict[str, Any] = {"shape": "closed", "users": 2, "requests": 12, "turns": 3, "turn_tokens": 16}
    work, limits = load(prompt_tokens=160, output_tokens=32, **keys), Limits(100, 16, 16, 4096, 512)
    computed = sum(tokens - found - 1 for tokens, found in ((192, 0), (240, 176), (288, 224)))
    assert against_vllm(work, limits).figures.tokens_scheduled == 4 * computed
    forgetful = against_vllm(work, replace(limits, enable_prefix_caching=False)).figures
    assert forgetful.tokens_scheduled == 4 * (191 + 239 + 287)


def test_a_shared_prefix_is_held_once() -> None:
    """16 requests of 10 + 2 blocks, of which 8 are common to all: 8 + 16 x 4 blocks instead of 16 x 12."""
    keys: dict[str, Any] = {"requests": 16, "prompt_tokens": 160, "output_tokens": 33}
    limits = Limits(1000, 16, 16, 4096, 512)
    alone, shared = (simulate(load(**keys, shared_prefix_tokens=n), limits) for n in (0, 128))
    assert (alone.figures.peak_blocks_used, shared.figures.peak_blocks_used) == (16 * 12, 8 + 16 * 4)
    asked = 16 * (160 + 32)
    assert (alone.figures.tokens_scheduled, shared.figures.tokens_scheduled) == (asked, asked - 15 * 128)
    # A block that is only partly common is nobody's but its request's; without prefix caching nothing is common.
    partly = simulate(load(**keys, shared_prefix_tokens=15), limits)
    off = simulate(load(**keys, shared_prefix_tokens=128), replace(limits, enable_prefix_caching=False))
    assert partly.figures == off.figures == alone.figures


def test_asynchronously_blocks_come_back_one_step_later() -> None:
    """Two requests, one after the other in a pool for one: the second starts a step later than synchronously."""
    work = load(requests=2, prompt_tokens=32, output_tokens=5)
    limits = Limits(4, 16, 8, 256, 64)
    plain, ahead = (simulate(work, replace(limits, async_scheduling=a)).figures for a in (False, True))
    assert plain.steps == 10 and ahead.steps == 12  # a step without work after each of the two
    assert plain.tokens_scheduled == ahead.tokens_scheduled


def test_asynchronous_scheduling_where_there_is_none() -> None:
    with pytest.raises(UsageError, match=r"engine\.async_scheduling: vLLM on this computer schedules synchronously"):
        load_scenario(SCENARIOS / "tiny_cpu.yaml", ["engine.async_scheduling=true", "engine.block_size=32"])


def test_a_shared_prefix_is_shorter_than_the_prompts() -> None:
    with pytest.raises(UsageError, match=r"expected less than the shortest prompt \(7,168 tokens\)"):
        load_scenario(SCENARIOS / "70b_8k_int4.yaml", ["load.shared_prefix_tokens=7168"])


OPTIONS = {
    "watermark": 0.05, "scheduler_reserve_full_isl": False, "long_prefill_token_threshold": 2048,
    "max_num_batched_tokens": 16_384, "enable_chunked_prefill": False,
}  # fmt: skip


def test_the_options_of_a_scenario_reach_the_simulation_and_the_server() -> None:
    changed = [f"engine.{k}={json.dumps(v)}" for k, v in OPTIONS.items()]
    plain, chosen = (load_scenario(SCENARIOS / "70b_8k_int4.yaml", s) for s in ([], changed))
    limits = limits_of(chosen, predict(chosen).kv)
    assert {k: getattr(limits, k) for k in OPTIONS} == OPTIONS
    assert chosen.load and predict(chosen).load == simulate(chosen.load, limits, step_time_of(chosen)).figures
    assert OPTIONS.items() <= scheduler_arguments(limits).items()
    # A server of another version need not know an option that nobody asked for.
    assert "watermark" not in scheduler_arguments(limits_of(plain, predict(plain).kv))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["enable_chunked_prefill=false", "max_num_batched_tokens=4096"],
         "engine.enable_chunked_prefill: without it max_num_batched_tokens (4,096) must be at least "
         "max_model_len (8,192)"),
        (["long_prefill_token_threshold=9000"],
         "engine.long_prefill_token_threshold: 9,000 is above max_model_len (8,192)"),
    ],
)  # fmt: skip
def test_options_that_vllm_refuses_are_refused(keys: list[str], text: str) -> None:
    scenario = load_scenario(SCENARIOS / "70b_8k_int4.yaml", [f"engine.{k}" for k in keys])
    with pytest.raises(UsageError) as error:
        predict(scenario)
    assert str(error.value) == text


def test_a_threshold_for_long_prefills_spares_who_is_alone_from_0_31_on() -> None:
    work, limits = load(requests=1, prompt_tokens=100, output_tokens=1), Limits(10, 16, 8, 256, 512)
    limits = replace(limits, long_prefill_token_threshold=30)
    spared, cut = (simulate(work, replace(limits, cuts_lone_prefill=c)).figures.steps for c in (False, True))
    assert (spared, cut) == (1, 4)
    for version, cuts in (("0.30", True), ("0.31", False)):
        scenario = load_scenario(SCENARIOS / "70b_8k_int4.yaml", [f"engine.vllm={version}"])
        limits = limits_of(scenario, predict(scenario).kv)
        assert limits.cuts_lone_prefill == cuts and "cuts_lone_prefill" not in scheduler_arguments(limits)


@pytest.mark.parametrize(("version", "judged"), [("0.30", False), ("0.31", True)])
def test_adapters_are_judged_where_they_queue_as_simulated(version: str, judged: bool) -> None:
    changed = [f"engine.vllm={version}", "engine.enable_lora=true", "load.adapters=2"]
    rung = predict(load_scenario(SCENARIOS / "8b_24gb_int4_under_load.yaml", changed)).rung("HOLDS")
    assert rung and (rung.holds is not None) == judged
    assert judged or "how vLLM before 0.31 queues requests" in rung.reason


def test_a_pool_too_small_for_one_request_is_refused() -> None:
    work = load(requests=4, prompt_tokens=100, output_tokens=61)
    assert simulate(work, Limits(11, 16, 8, 256, 512)).figures.peak_blocks_used == 10
    with pytest.raises(UsageError, match=r"^a request of the load needs 10 blocks of 16 tokens; the pool has 9$"):
        simulate(work, Limits(10, 16, 8, 256, 512))


def test_no_more_than_the_need_is_used_and_only_a_short_pool_preempts() -> None:
    work = load(requests=20, prompt_tokens=100, output_tokens=100)
    ample = simulate(work, Limits(1000, 16, 64, 2048, 512))
    need = ample.figures.peak_blocks_needed
    assert need is not None and ample.figures.peak_blocks_used == need
    fitting = simulate(work, Limits(need + 1, 16, 64, 2048, 512))
    assert (fitting.figures, fitting.waited_for_kv) == (ample.figures, False)
    short = simulate(work, Limits(need, 16, 64, 2048, 512))
    assert short.figures.peak_blocks_needed == need
    assert short.figures.preemptions or short.waited_for_kv


@given(workloads(), st.booleans())
def test_whether_a_load_holds_is_found_without_the_rest(case: tuple[Load, Limits], asynchronous: bool) -> None:
    work, limits = case[0], replace(case[1], async_scheduling=asynchronous)
    assert holds(work, limits) == simulate(work, limits).holds


def test_memory_does_not_grow_with_the_requests() -> None:
    def peak(count: int) -> int:
        mixed = {"distribution": "uniform", "low": 1, "high": 200}
        work = load(requests=count, prompt_tokens=mixed, output_tokens=mixed)
        tracemalloc.start()
        simulation = simulate(work, Limits(100, 16, 16, 2048, 512))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert simulation.figures.preemptions and len(simulation.timeline) <= MAX_POINTS
        return used

    assert peak(16_000) < 1.5 * peak(8_000) < 6_000_000


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=300), st.sampled_from([2, 4, 8]))
def test_a_long_timeline_keeps_its_peaks(states: list[tuple[int, int, int]], most: int) -> None:
    timeline, points = Timeline(most), [Point(i + 1, *s, i) for i, s in enumerate(states)]
    for p in points:
        timeline.add(p)
    kept = timeline.points()
    assert len(kept) <= most and (len(states) > most or kept == tuple(points))
    begin = 0
    for p in kept:
        part = points[begin : p.step]
        assert p[1:4] == tuple(max(q[i] for q in part) for i in (1, 2, 3)) and p.preemptions == part[-1].preemptions
        begin = p.step
    assert begin == len(states)
