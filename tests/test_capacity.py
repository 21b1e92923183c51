"""bench capacity: the largest load that holds, and the cliff one step past it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from conftest import SCENARIOS, bench
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.ledger import LoadFigures
from harness.modes import limits_of
from harness.predict import predict
from harness.predict.capacity import Capacity, capacity
from harness.predict.simulated import step_time_of
from harness.report import text
from harness.report.capacity import build, document
from harness.scenario import Load, load_scenario
from harness.simulate import simulate

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM (the extra cpu)")
HELD = ["70b_8k_int4", "70b_8k_int4_fp8kv", "8b_24gb_int4_under_load", "smollm2_cpu", "tiny_cpu"]


def found(name: str = "70b_8k_int4", *changes: str) -> Capacity:
    return capacity(load_scenario(SCENARIOS / f"{name}.yaml", changes))


@needs_vllm
@pytest.mark.parametrize("what", [0, -1])
@pytest.mark.parametrize("name", HELD)
def test_vllms_own_scheduler_agrees_on_both_sides_of_the_cliff(name: str, what: int) -> None:
    import vllm_scheduler

    result = found(name)
    answer, load = result.answers[what], result.scenario.load
    assert load and answer.at and answer.past and answer.past.value == answer.largest + 1
    limits = limits_of(result.scenario, result.account.kv)
    each = -(-load.requests // (load.users or 1))
    for trial, holds in ((answer.at, True), (answer.past, False)):
        n = trial.value
        if answer.what == "users":
            tried = load.model_copy(update={"users": n, "requests": n * each})
        elif answer.what == "requests":
            tried = load.model_copy(update={"requests": n})
        else:
            output = load.output_tokens if isinstance(load.output_tokens, int) else load.output_tokens.high
            tried = load.model_copy(update={"prompt_tokens": n - output})
        theirs = vllm_scheduler.run(tried, limits)
        assert (theirs.preemptions, theirs.peak_blocks_used) == (
            trial.simulation.figures.preemptions, trial.simulation.figures.peak_blocks_used,
        )  # fmt: skip
        assert trial.simulation.holds is holds and (theirs.preemptions == 0 or not holds)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(2, 300), st.integers(90, 600), st.integers(1, 40))
def test_the_search_finds_what_trying_each_finds(prompt: int, output: int, blocks: int, seqs: int) -> None:
    result = found(
        "70b_8k_int4", f"load.prompt_tokens={prompt}", f"load.output_tokens={output}", "load.users=2",
        "load.requests=4", "engine.max_model_len=1024", f"engine.max_num_seqs={seqs}",
        f"engine.num_gpu_blocks_override={blocks}",
    )  # fmt: skip
    load = result.scenario.load
    assert load
    bounds = limits_of(result.scenario, result.account.kv)
    users, _, context = result.answers

    def works(**changed: Any) -> bool:
        return simulate(load.model_copy(update=changed), bounds).holds

    count = [n for n in range(1, max(seqs, 2) + 1) if works(users=n, requests=2 * n)]
    assert users.largest == max(count) and (users.past is None) == (users.largest == max(seqs, 2))
    longest = [n for n in range(output + 1, 1025) if works(prompt_tokens=n - output)]
    assert context.largest == max(longest) and (context.past is None) == (context.largest == 1024)


def test_the_report_of_the_70b() -> None:
    assert text.render(build(found())).splitlines()[5:18] == [
        "How many users",
        "  12 users hold (12 to 13 over the prediction's interval); one more does not: 2 preemptions, 7,163",
        "  tokens computed again (3.3 % of all).",
        "  figure                      12 users   13 users   asked: 32 users",
        "  ─────────────────────────────────────────────────────────────────",
        "  holds                            yes         NO                NO",
        "  blocks wanted at the peak      6,144      6,656            16,369",
        "  blocks used at the peak        6,144      6,403             6,403",
        "  requests running, peak            12         13                14",
        "  requests waiting, peak            10         11                30",
        "  preemptions                        0          2                 9",
        "  tokens scheduled             196,584    220,129           558,018",
        "  tokens computed again              0      7,163            33,794",
    ]


def figures(name: str, load: Load) -> LoadFigures:
    """The load simulated on the pool that the scenario is granted, by its step times."""
    scenario = load_scenario(SCENARIOS / f"{name}.yaml")
    return simulate(load, limits_of(scenario, predict(scenario).kv), step_time_of(scenario)).figures


def test_a_rate_is_told_by_a_stream_of_the_same_lengths() -> None:
    rate = found().answers[1]
    assert rate.at and rate.past and rate.asked is None
    assert (rate.at.load.shape, rate.at.load.requests, rate.at.load.prompt_tokens) == ("poisson", 256, 7168)
    assert (rate.at.load.rate, rate.past.load.rate) == (rate.largest, rate.past.value)
    # A step is about a hundredth of what the pool puts through, and one more is too many.
    step = rate.past.value - rate.at.value
    through = figures("70b_8k_int4", rate.at.load.model_copy(update={"shape": "burst", "rate": None})).requests_per_s
    assert through is not None and through / 250 < step <= through / 99
    assert (rate.at.simulation.holds, rate.past.simulation.holds) == (True, False)


def test_an_open_load_is_judged_by_its_own_shape_and_rate() -> None:
    rate = found("8b_24gb_poisson", "slo=null", "expect.slo=null").answers[0]
    assert (rate.what, rate.limited_by) == ("rate_per_s", "kv_cache")
    assert rate.asked and (rate.asked.value, rate.asked.good) == (1.0, True)
    assert rate.largest > 1.0


def test_an_slo_has_to_be_met_too() -> None:
    free, bound = (found("70b_8k_int4", *slo).answers for slo in ([], ["slo.ttft_p95_s=12", "slo.itl_p95_s=0.2"]))
    assert all(b.largest < f.largest and b.limited_by == "slo" for f, b in zip(free, bound, strict=True)
               if b.what != "rate_per_s")  # fmt: skip
    at, past = bound[0].at, bound[0].past
    assert at and past and past.simulation.holds
    assert (at.simulation.figures.ttft_p95_s or 0) <= 12 < (past.simulation.figures.ttft_p95_s or 0)
    shown = text.render(build(found("70b_8k_int4", "slo.ttft_p95_s=12")))
    assert "one more does not: ttft_p95_s is " in shown and "at most 12 asked" in shown and "SLO met" in shown


def test_an_slo_that_nothing_meets_is_one_clear_line() -> None:
    ran = bench("capacity", SCENARIOS / "70b_8k_int4.yaml", "--set", "slo.ttft_p95_s=0.5")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert "slo.ttft_p95_s: nothing meets 0.5 s: one user alone, with nobody beside him, has " in ran.err


def test_a_recording_is_played_faster() -> None:
    trace = "load={shape: trace, trace: {file: traces/timed.jsonl, format: timed}, requests: 40}"
    (rate,) = found("8b_24gb_int4_under_load", trace, "engine.num_gpu_blocks_override=600").answers
    assert rate.at and rate.past and rate.asked and rate.at.load.trace and rate.past.load.trace
    assert rate.past.load.trace.time_scale < rate.at.load.trace.time_scale
    assert (rate.at.simulation.holds, rate.past.simulation.holds) == (True, False)


def test_what_ends_the_search_before_the_pool_does_is_said() -> None:
    few = found("70b_8k_int4", "engine.max_num_seqs=4", "load.users=2")
    assert (few.answers[0].largest, few.answers[0].limited_by, few.answers[0].past) == (4, "max_num_seqs", None)
    assert (few.answers[2].largest, few.answers[2].limited_by, few.answers[2].past) == (8192, "max_model_len", None)
    shown = text.render(build(few))
    assert "4 users hold: no more run at once (max_num_seqs), further ones wait for a seat" in shown
    assert "8,192 tokens hold: no request may be longer (max_model_len)." in shown


def test_the_interval_of_the_pool_is_carried_over() -> None:
    answers = found("8b_24gb_int4_under_load").answers
    assert [a.what for a in answers] == ["users", "rate_per_s", "context_tokens"]
    assert all(a.low < a.largest < a.high for a in answers)


def test_where_nothing_holds() -> None:
    # 64 requests of one block each and a pool of eight blocks more than one request of max_model_len takes.
    tight = ["load.shape=burst", "load.users=null", "load.requests=600", "load.output_tokens=64"]
    tight += ["load.prompt_tokens=16", "engine.max_model_len=128", "engine.num_gpu_blocks_override=17"]
    result = found("70b_8k_int4", *tight)
    assert result.answers[-1].largest == 0
    assert "Not even the smallest such load holds: " in text.render(build(result))


def test_json_is_one_document() -> None:
    ran = bench("capacity", SCENARIOS / "70b_8k_int4.yaml", "--json")
    assert ran.code == 0 and ran.err == ""
    assert ran.document == document(found())
    users, rate, context = ran.document["answers"]
    assert [a["what"] for a in (users, rate, context)] == ["users", "rate_per_s", "context_tokens"]
    at, past = users["at"], users["past"]
    assert (at["holds"], past["holds"], past["value"]) == (True, False, users["largest"] + 1)
    assert max(p["blocks_used"] for p in at["timeline"]) == at["load"]["peak_blocks_used"]
    assert at["timeline"][-1]["step"] == at["load"]["steps"]


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("70b_8k_int4.yaml", ["load=null"], "load: missing: there is no load to judge the pool under"),
        ("70b_8k.yaml", [], "no pool to judge: LOADS fails: weights 131.45 and runtime 0.51 of 79.19 GiB"),
        ("none.yaml", [], "can't be read: No such file or directory"),
    ],
)
def test_errors_are_one_clear_line(file: str, changes: list[str], says: str) -> None:
    ran = bench("capacity", Path("scenarios") / file, *(x for c in changes for x in ("--set", c)))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"bench: scenarios/{file}: ") and says in ran.err and ran.err.count("\n") == 1


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "google/gemma-2-9b-it"])
def test_windows_are_judged_but_not_compared_with_contiguous_memory(model: str) -> None:
    chosen = ("--set", f"model={model}", "--set", "weights.format=auto")
    paging = bench("paging", SCENARIOS / "70b_8k_int4.yaml", *chosen)
    assert (paging.code, paging.out) == (2, "") and paging.err.count("\n") == 1
    assert "paging is compared on full attention alone; this model has 2 KV tables (full and sliding" in paging.err
    load = [f"load.{k}" for k in ("users=4", "requests=8", "prompt_tokens=500", "output_tokens=100")]
    limits = ["engine.max_num_seqs=16", "engine.max_model_len=1024"]
    ran = bench("capacity", SCENARIOS / "70b_8k_int4.yaml", *chosen, *(x for c in load + limits for x in ("--set", c)))
    assert ran.code == 0 and "users" in ran.out


def test_a_context_of_one_length_is_told_from_lengths_that_are_drawn() -> None:
    shown = bench("capacity", SCENARIOS / "8b_24gb_poisson.yaml").out
    assert "asked: up to 7,300 tokens" in shown and "Prompts are of one length there, drawn in what is asked." in shown
    assert "asked: 8,192 tokens" in bench("capacity", SCENARIOS / "70b_8k_int4.yaml").out
