"""The sentences, for scenarios of many kinds: each says what is true there."""

from __future__ import annotations

import re

import pytest

from harness.compare import compare
from harness.explain import explain, heading
from harness.predict import predict
from harness.scenario import parse_scenario

BASE = """
name: x
model: meta-llama/Llama-3.1-8B-Instruct
gpu: {name: h100-sxm-80gb}
engine: {vllm: "0.32", max_model_len: 8192}
load: {shape: closed, users: 8, requests: 16, prompt_tokens: 2000, output_tokens: 300}
"""


def said(*overrides: str) -> tuple[str, str]:
    scenario = parse_scenario(BASE, overrides=overrides)
    account = predict(scenario)
    comparison = compare(account, None, mode="analytic", outcome="completed")
    return heading(comparison), " ".join(explain(scenario, account, comparison))


def test_a_load_that_holds_is_told_so() -> None:
    title, words = said()
    assert title == "Idle fit and loaded fit here"
    assert "none was preempted: it holds" in words
    more = int(re.search(r"room for about ([\d,]+) more such users", words)[1].replace(",", ""))
    assert said(f"load.users={8 + more}", f"load.requests={8 + more}")[1].count("it holds") == 1
    assert "it does not hold" in said(f"load.users={2 * (8 + more)}", f"load.requests={2 * (8 + more)}")[1]


def test_a_load_that_does_not_hold_is_told_why() -> None:
    title, words = said("load.users=400", "load.requests=400")
    assert title == "Why idle fit differs from loaded fit here"
    assert "times the pool" in words and "it does not hold" in words and "Idle memory can't show this" in words


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["load.users=1", "load.requests=1"], "1 user with"),
        (["load.shape=burst", "load.users=null", "load.requests=1"], "1 request at once"),
        (["engine.kv_cache_memory_bytes=2 GiB"], "was given a KV pool of 2.00 GiB"),
        (["gpu.count=2"], "each of 2 h100-sxm-80gb has room"),
        (["gpu={memory: 24 GiB}"], "one GPU of 24.00 GiB"),
        (["load=null"], "states no load"),
        (["weights.format=fp32", "gpu.name=t4"], "LOADS fails"),
        (["gpu.name=l4", "weights.format=fp32", "engine.max_model_len=131072", "load=null"], "fails on"),
        (["engine.num_gpu_blocks_override=110000"], "set by hand"),
    ],
)
def test_each_kind_has_its_words(overrides: list[str], word: str) -> None:
    assert word in said(*overrides)[1]


def test_no_sentence_counts_wrongly() -> None:
    for overrides in ([], ["load.users=1", "load.requests=1"], ["load.users=300", "load.requests=300"]):
        words = said(*overrides)[1]
        assert not re.search(r"\b1 (users|requests|preemptions)\b", words), words
        assert not re.search(r"\b(0|[2-9]|\d\d+) (user|request|preemption)\b", words), words


def test_a_start_that_fails_ends_in_the_error() -> None:
    account = predict(parse_scenario(BASE, overrides=["engine.num_gpu_blocks_override=110000"]))
    assert account.rung("STARTS").holds is False
    assert "CUDA out of memory" in account.engine_says[-1]
    assert any("reconstruction" in note for note in account.notes)


def test_graphs_inside_the_budget_are_not_what_limits_the_start() -> None:
    few = "engine.max_num_seqs=64"  # so that the sampler's warm-up is small
    inside = predict(parse_scenario(BASE, overrides=[few])).rung("STARTS")
    outside = predict(parse_scenario(BASE, overrides=["engine.vllm=0.19"])).rung("STARTS")
    assert (inside.limited_by, outside.limited_by) == ("runtime_at_init", "cuda_graphs")
