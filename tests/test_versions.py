"""The laws by vLLM version: what each release's profile run sees, by hand from its source."""

from __future__ import annotations

import math

import pytest
from test_predict import rung, scenario

from harness import catalog
from harness.architecture import from_config
from harness.ledger import RungName, Term
from harness.predict import kv_cache, predict, settings
from harness.predict.activations import sampler_state
from harness.predict.unprofiled import uncounted_state, warm_up
from harness.scenario import parse_scenario
from harness.units import GIB, MIB

LLAMA = from_config(catalog.model_config("llama-3.1-8b"))
LOGITS = 1024 * 128256  # sequences x vocabulary
HIDDEN = 8192 * 4096 * 2


def activation(version: str, gpu: str = "name: h100-sxm-80gb", engine: str = "", length: int = 8192) -> int:
    run = scenario("llama-3.1-8b", "fp16", gpu, f"vllm: '{version}', {engine}", load="")
    run = run.model_copy(update={"engine": run.engine.model_copy(update={"max_model_len": length})})
    found = predict(run).ledger.bytes_of(Term.ACTIVATION_PEAK)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("version", "per_logit", "rows_of_buffer"),
    [
        ("0.16.0", 36 + 2, 0),  # PyTorch sorts
        ("0.17.0", 12 + 2, 132),  # Triton
        ("0.22.0", 12 + 2, 132),  # Llama is still run by V1
        ("0.33.0", 12 + 2, 0),  # V2, the sampler profiled with FlashInfer
    ],
)
def test_the_samplers_path_by_version(version: str, per_logit: int, rows_of_buffer: int):
    assert activation(version) == HIDDEN + LOGITS * per_logit + rows_of_buffer * 128256 * 4 + 52 * MIB


@pytest.mark.parametrize("version", ["0.23.0", "0.27.0", "0.32.0"])
def test_model_runner_v2_profiled_no_sampling_before_0_33(version: str):
    layers = 3 * HIDDEN + 3 * 8192 * 14336 * 2
    assert activation(version) == layers + 52 * MIB > HIDDEN + LOGITS * 2


def test_without_flashinfer_the_second_runner_masks_in_place():
    rows = 1024 * 128256
    engine = "max_num_seqs: 1024, max_num_batched_tokens: 2048"
    # A T4 has 40 multiprocessors, an H100 is supported by FlashInfer: 12 bytes a logit, not 4 and a buffer.
    small = activation("0.33.0", "name: t4", engine)
    assert small == 2048 * 4096 * 2 + rows * (4 + 2) + 40 * 128256 * 4 + 52 * MIB


def test_v0_profiles_whole_prompts_and_sorts():
    # The report of vllm-project/vllm issue 10517: 2.07 GiB at 20,000 tokens on a card of 24 GB.
    long = activation("0.6.5", "name: rtx-3090-24gb", length=20000)
    assert long == 3 * 20000 * (4096 + 14336) * 2 + 20 * MIB
    assert long == pytest.approx(2.07 * GIB, rel=0.01)
    assert activation("0.7.3", length=65536) == 2048 * 4096 * 2 + 256 * 128256 * 38 + 20 * MIB


def test_llm_doubles_the_tokens_of_the_server():
    chosen = settings(scenario("llama-3.1-8b", engine="entrypoint: llm", load=""))
    assert (chosen.max_num_batched_tokens, chosen.max_num_seqs) == (16384, 1024)


@pytest.mark.parametrize(("version", "counted"), [("0.24.0", False), ("0.27.0", True), ("0.33.0", True)])
def test_the_state_of_the_second_runner_is_in_the_budget_or_outside(version: str, counted: bool):
    run = scenario("llama-3.1-8b", engine=f"vllm: '{version}'", load="")
    chosen, state = settings(run), sampler_state(LLAMA, settings(run))
    assert chosen.model_runner == "v2" and state > LOGITS * 4
    increase = predict(run).ledger.bytes_of(Term.NON_TORCH_INCREASE)
    assert increase == round(0.25 * GIB) + (state if counted else 0)
    assert uncounted_state(LLAMA, chosen) == (0 if counted else state)


@pytest.mark.parametrize(
    ("version", "per_logit"), [("0.7.3", 0), ("0.19.0", 0), ("0.24.0", 12), ("0.32.0", 12), ("0.33.0", 0)]
)
def test_the_warm_up_by_version(version: str, per_logit: int):
    chosen = settings(scenario("llama-3.1-8b", engine=f"vllm: '{version}', max_num_seqs: 1024", load=""))
    assert warm_up(LLAMA, chosen) == LOGITS * per_logit


def test_the_load_of_v0_is_not_judged():
    holds = rung(predict(scenario("llama-3.1-8b", engine="vllm: '0.7.3'")), RungName.HOLDS)
    assert holds.holds is None and "V0" in holds.reason


def test_graphs_are_in_the_budget_from_0_20_on():
    pools = [predict(scenario("llama-3.1-8b", engine=f"vllm: '{v}', gpu_memory_utilization: 0.9", load=""))
             for v in ("0.19.1", "0.20.0")]  # fmt: skip
    graphs = pools[1].ledger.bytes_of(Term.CUDA_GRAPHS)
    before, after = (account.ledger.bytes_of(Term.KV_AVAILABLE) for account in pools)
    assert graphs and before and after and before - after == graphs


@pytest.mark.parametrize(
    ("version", "in_budget"),
    [("0.20.0", True), ("0.22.0", True), ("0.24.0", False), ("0.28.0", False), ("0.29.0", True)],
)
def test_the_second_runner_has_an_estimate_of_its_graphs_from_0_29_on(version: str, in_budget: bool):
    """Its profile_cudagraph_memory returned 0 before (https://github.com/vllm-project/vllm/issues/49224)."""
    run = scenario("llama-3.1-8b", engine=f"vllm: '{version}', gpu_memory_utilization: 0.9", load="")
    assert settings(run).model_runner == ("v1" if version in ("0.20.0", "0.22.0") else "v2")
    account = predict(run)
    graphs = account.ledger.bytes_of(Term.CUDA_GRAPHS)
    terms = (Term.WEIGHTS, Term.NON_TORCH_INCREASE, Term.ACTIVATION_PEAK, Term.KV_AVAILABLE)
    spent = sum(account.ledger.bytes_of(t) or 0 for t in terms)
    requested = math.ceil(0.9 * 79.19 * GIB)
    assert graphs and requested - spent == pytest.approx(graphs if in_budget else 0, abs=GIB // 100)


def test_less_free_than_requested_is_refused_from_0_9_1_on():
    tight = "gpu_memory_utilization: 0.999"
    says = [predict(scenario("llama-3.1-8b", engine=f"vllm: '{v}', {tight}", load="")).engine_says[-1]
            for v in ("0.9.0", "0.9.1")]  # fmt: skip
    assert "is less than desired GPU memory utilization" not in says[0]
    assert "is less than desired GPU memory utilization" in says[1]


def test_models_with_states_cache_no_prefixes_by_default_before_0_26():
    """https://github.com/vllm-project/vllm/issues/40691: 290,864 tokens and 33.04x, so 42 + 3 blocks a request."""
    pools = {}
    for version in ("0.19", "0.25", "0.26"):
        run = parse_scenario(
            "name: x\nmodel: Qwen/Qwen3.5-27B\ngpu: {memory: 141 GiB}\nengine: {max_model_len: 32768, "
            f"max_num_seqs: 16, max_num_batched_tokens: 16384, vllm: '{version}'}}\n"
        )
        architecture, chosen = from_config(run.config()), settings(run)
        assert chosen.enable_prefix_caching is (version == "0.26")
        pools[version] = kv_cache.pool(architecture, chosen, 1487)
    assert pools["0.19"].tokens == 290_864
    assert round(pools["0.19"].max_concurrency, 2) == 33.04
    assert settings(scenario("llama-3.1-8b", "fp16", engine="vllm: '0.19',", load="")).enable_prefix_caching


def test_graphs_took_less_before_0_12():
    old, new = (
        predict(scenario("llama-3.1-8b", "fp16", engine=f"vllm: '{v}',", load="")).ledger.bytes_of(Term.CUDA_GRAPHS)
        for v in ("0.11", "0.12")
    )
    assert old == round(0.32 * GIB) and new is not None and new > 2 * old


def test_which_rules_predict_a_version_is_told() -> None:
    def told(version: str) -> list[str]:
        return [n for n in predict(scenario("llama-3.1-8b", engine=f"vllm: '{version}'")).notes if "rules read" in n]

    assert told("0.32") == told("0.19") == []
    assert told("0.32.1") == ["vLLM 0.32.1 is predicted with the rules read in 0.32."]
    changed = "is predicted with the rules read in 0.32 and the changes read in 0.33."
    assert told("0.33") == [f"vLLM 0.33 {changed}"] and told("0.99") == [f"vLLM 0.99 {changed}"]


def test_a_release_that_schedules_step_by_step_is_not_said_to_be_ahead() -> None:
    def told(version: str) -> list[str]:
        return [n for n in predict(scenario("llama-3.1-8b", engine=f"vllm: '{version}'")).notes if "synchronous" in n]

    assert told("0.13.0") == ["The load is simulated with the synchronous scheduler of vLLM 0.32."]
    assert "one step ahead by default" in told("0.14.0")[0]
