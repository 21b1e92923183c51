"""predict(): worked examples by hand, properties, and that nothing but a clear error ever comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import bench
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from harness import catalog
from harness.architecture import from_config
from harness.errors import LoadfitError, UsageError
from harness.ledger import STATED, Account, Phase, RungName, Term
from harness.predict import predict, settings
from harness.predict.activations import sampler_state
from harness.predict.weights import allocated
from harness.scenario import Scenario, load_scenario, parse_scenario
from harness.units import GIB, MIB
from tests.hybrid_configs import CONFIGS

LOAD = "load: {shape: closed, users: 32, requests: 64, prompt_tokens: 7168, output_tokens: 1024, seed: 1}"


def scenario(
    model: str = "llama-3.1-70b",
    fmt: str = "auto",
    gpu: str = "name: h100-sxm-80gb",
    engine: str = "",
    load: str = LOAD,
) -> Scenario:
    return parse_scenario(f"""
name: x
model: {model}
weights: {{format: {fmt}}}
gpu: {{{gpu}}}
engine: {{max_model_len: 8192, {engine}}}
{load}
""")


def rung(account: Account, name: str) -> Any:
    found = account.rung(name)
    assert found is not None
    return found


# -- the two examples of docs/memory-model.md ------------------------------------------------------


def test_70b_in_int4_loads_admits_starts_but_does_not_hold_32_users():
    account = predict(scenario(fmt="awq-int4-g128"))
    linear = 80 * (8192 * 10240 + 8192 * 8192 + 3 * 8192 * 28672)
    by_hand = (
        linear // 2  # 4 bits
        + linear // 128 * 2 + linear // 128 // 2  # a scale of 16 and a zero point of 4 bits for 128 weights
        + 2 * 128256 * 8192 * 2  # embedding and lm_head in bf16
        + (80 * 2 + 1) * 8192 * 2  # norms
        + 131072 * 128 * 2  # rotary cache
    )  # fmt: skip
    weights = account.ledger.bytes_of(Term.WEIGHTS)
    assert by_hand == 39_801_339_904
    assert by_hand <= weights <= by_hand * 1.0005  # the allocator's rounding
    assert account.kv.bytes_per_token == 2 * 80 * 8 * 128 * 2 == 327_680
    assert account.highest == RungName.STARTS
    holds = rung(account, RungName.HOLDS)
    assert (holds.holds, holds.limited_by) == (False, "kv_cache")
    assert holds.margin_bytes < 0
    # 32 requests of up to 8192 tokens ask for 80 GiB; a block of the last, partial step is never taken.
    assert account.load.peak_blocks_needed == pytest.approx(32 * 8192 / 16, rel=0.01)
    assert account.load.peak_blocks_used == account.kv.num_blocks - 1
    assert account.ledger.bytes_of(Term.KV_USED, Phase.LOAD) == account.load.peak_blocks_used * 327_680 * 16


def test_70b_in_bf16_does_not_load_on_80_gb():
    account = predict(scenario())
    assert account.ledger.bytes_of(Term.WEIGHTS) == pytest.approx(131.45 * GIB, rel=1e-3)
    loads = rung(account, RungName.LOADS)
    assert (loads.holds, loads.limited_by) == (False, "weights")
    assert account.highest is None
    assert [r.reason for r in account.rungs[1:]] == ["not reached: a rung below it fails"] * 3
    assert account.engine_says[0].startswith("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate ")
    assert "has a total capacity of 79.19 GiB of which " in account.engine_says[0]
    assert any("reconstruction" in note for note in account.notes)
    assert account.kv.num_blocks is None


def test_70b_in_fp8_loads_but_is_not_admitted():
    account = predict(scenario(fmt="fp8"))
    assert account.highest == RungName.LOADS
    admits = rung(account, RungName.ADMITS)
    assert (admits.holds, admits.limited_by) == (False, "kv_cache")
    assert account.engine_says[-1].startswith(
        "ValueError: To serve at least one request with the model's max seq len (8192), "
        "(2.5 GiB KV cache is needed"
    )


# -- the engine's words ----------------------------------------------------------------------------


def test_the_log_takes_the_form_of_its_version():
    new = predict(scenario("llama-3.1-8b", engine="vllm: '0.32.0'"))
    assert [line.split(":")[0] for line in new.engine_says] == [
        "Available KV cache memory",
        "GPU KV cache size",
    ]
    assert (
        f"{new.kv.tokens:,} tokens, Maximum concurrency for 8,192 tokens per request: " in new.engine_says[1]
    )
    old = predict(scenario("llama-3.1-8b", engine="vllm: '0.19.0'"))
    assert [line.split(":")[0] for line in old.engine_says] == [
        "Available KV cache memory", "GPU KV cache size", "Maximum concurrency for 8,192 tokens per request",
    ]  # fmt: skip


def test_a_share_that_the_context_leaves_no_room_for_is_refused_before_anything_is_loaded():
    account = predict(scenario("llama-3.1-8b", engine="gpu_memory_utilization: 1.0"))
    assert account.engine_says == (
        "ValueError: Free memory on device cuda:0 (78.68/79.19 GiB) on startup is less than desired GPU "
        "memory utilization (1.0, 79.19 GiB). Decrease GPU memory utilization or reduce GPU memory used by "
        "other processes.",
    )
    assert rung(account, RungName.ADMITS).limited_by == "runtime_at_init"
    assert account.highest == RungName.LOADS


def test_no_memory_for_blocks():
    account = predict(scenario("llama-3.1-8b", engine="gpu_memory_utilization: 0.2"))
    assert account.engine_says[0].startswith("Available KV cache memory: -")
    assert account.engine_says[1].startswith("ValueError: No available memory for the cache blocks.")
    assert rung(account, RungName.ADMITS).limited_by == "weights"
    assert account.ledger.bytes_of(Term.KV_AVAILABLE) == 0


# -- the pool, set by hand -------------------------------------------------------------------------


def test_an_override_sets_the_blocks():
    account = predict(scenario("llama-3.1-8b", engine="num_gpu_blocks_override: 600"))
    assert account.kv.num_blocks == 600
    assert account.ledger.bytes_of(Term.KV_AVAILABLE) == 600 * account.kv.bytes_per_block
    assert any("with num_gpu_blocks_override=600" in line for line in account.engine_says)


def test_kv_cache_memory_bytes_sets_the_pool_and_too_much_of_it_does_not_start():
    fine = predict(scenario("llama-3.1-8b", engine="kv_cache_memory_bytes: 16 GiB"))
    assert fine.ledger.bytes_of(Term.KV_AVAILABLE) == 16 * GIB
    assert fine.highest == RungName.STARTS or rung(fine, RungName.HOLDS).holds is not None
    assert not any("Available KV" in line for line in fine.engine_says)
    much = predict(scenario("llama-3.1-8b", engine="kv_cache_memory_bytes: 70 GiB"))
    starts = rung(much, RungName.STARTS)
    assert (starts.holds, starts.limited_by) == (False, "kv_cache")


# -- settings --------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_gpu_and_the_version():
    s = settings(scenario("llama-3.1-8b"))
    assert (s.max_num_seqs, s.max_num_batched_tokens, s.block_size) == (1024, 8192, 16)
    assert (s.gpu_memory_utilization, s.model_runner, s.dtype) == (0.92, "v2", "bfloat16")
    t4 = settings(scenario("llama-3.2-1b", gpu="name: t4"))
    assert (t4.max_num_seqs, t4.max_num_batched_tokens, t4.dtype) == (256, 2048, "float16")
    short = settings(scenario("llama-3.1-8b", engine="max_num_seqs: 2", load=""))
    assert short.max_num_batched_tokens == 8192
    assert settings(scenario("starcoder")).dtype == "bfloat16"  # a float32 config


@pytest.mark.parametrize(
    ("version", "model", "fmt", "runner"),
    [
        ("0.7.3", "llama-3.1-8b", "auto", "v0"),
        ("0.21.0", "qwen3-8b", "auto", "v1"),
        ("0.22.0", "llama-3.1-8b", "auto", "v1"),
        ("0.22.0", "qwen3-8b", "auto", "v2"),
        ("0.23.0", "llama-3.1-8b", "auto", "v2"),
        ("0.23.0", "llama-3.1-8b", "awq-int4", "v1"),
        ("0.23.0", "qwen2.5-7b", "auto", "v1"),
        ("0.24.0", "llama-3.1-8b", "awq-int4", "v2"),
        ("0.24.0", "qwen2.5-7b", "auto", "v1"),
        ("0.25.0", "qwen2.5-7b", "awq-int4", "v2"),
        ("0.28.0", "qwen3-30b-a3b", "auto", "v1"),
        ("0.29.0", "qwen3-30b-a3b", "auto", "v2"),
    ],
)
def test_the_model_runner_by_version(version: str, model: str, fmt: str, runner: str):
    assert settings(scenario(model, fmt, engine=f"vllm: '{version}'")).model_runner == runner


def test_the_second_runner_keeps_counts_for_every_sequence_and_token():
    chosen = settings(scenario("llama-3.1-8b"))
    state = sampler_state(from_config(catalog.model_config("llama-3.1-8b")), chosen)
    assert 1024 * 128256 * 4 < state < 1024 * 128256 * 4 * 1.1


@pytest.mark.parametrize(
    ("given_config", "name"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "awq-int4-g64"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq-int4-g128"),
        ({"quant_method": "fp8"}, "fp8-tensor"),
        ({"quant_method": "compressed-tensors", "config_groups":
            {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}}, "fp8"),
        ({"quant_method": "compressed-tensors", "config_groups":
            {"group_0": {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}}}, "int8"),
        ({"quant_method": "compressed-tensors", "config_groups":
            {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}}}, "int4-g128"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, None),
        ({"quant_method": "mxfp4"}, None),
        ({"quant_method": "compressed-tensors"}, None),
        ([], None),
    ],
)  # fmt: skip
def test_the_configs_own_quantization_is_read_or_refused(given_config: Any, name: str | None):
    s = scenario("llama-3.1-8b")
    config = {**s.config(), "quantization_config": given_config}
    inline = s.model_copy(update={"model": config})
    if name is None:
        with pytest.raises(UsageError, match="quantization_config"):
            predict(inline)
    else:
        assert settings(inline).weight_format.name == name


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: scenario("llama-2-7b", load=""),
         "is greater than the derived max_model_len (max_position_embeddings=4096"),
        (lambda: scenario("llama-3.1-8b", gpu="name: t4", engine="dtype: bfloat16"),
         "Bfloat16 is only supported on GPUs"),
        (lambda: scenario("llama-3.1-8b", engine="max_num_seqs: 512, max_num_batched_tokens: 256"),
         "max_num_batched_tokens (256) must be greater than or equal to max_num_seqs (512)."),
        (lambda: scenario("llama-3.1-8b", engine="enable_expert_parallel: true"),
         "Number of experts in the model must be greater than 0 when expert parallelism is enabled."),
        (lambda: scenario("llama-3.1-8b", engine="vllm: '0.6.3'"), "versions before 0.6.4"),
        (lambda: scenario("llama-3.1-8b", gpu="name: h100, count: 64"),
         "must be divisible by tensor parallel size"),
        (lambda: scenario("llama-3.1-8b", gpu="memory: 9000000000 TiB"), "gpu.memory"),
    ],
)  # fmt: skip
def test_what_vllm_would_refuse_is_one_usage_error(build: Any, said: str):
    with pytest.raises(UsageError) as caught:
        predict(build())
    assert said in str(caught.value)


def test_a_step_holds_a_whole_prompt_where_prompts_are_not_cut():
    # Source: _set_default_max_num_seqs_and_batched_tokens_args, vllm/engine/arg_utils.py, 0.32.
    whole = scenario("llama-3.1-8b", gpu="name: l4", engine="enable_chunked_prefill: false")
    assert settings(whole).max_num_batched_tokens == 8192  # 2,048 where they are


def test_a_window_shrinks_what_a_request_takes():
    sliding = predict(scenario("mistralai/Mistral-7B-v0.1", engine="max_num_batched_tokens: 2048"))
    full = predict(scenario("mistralai/Mistral-7B-Instruct-v0.3", engine="max_num_batched_tokens: 2048"))
    # A window of 4,096 and two batches of 2,048 in flight: 8,191 tokens, 512 blocks, and one.
    assert sliding.kv.num_blocks / sliding.kv.max_concurrency == 513
    assert full.kv.num_blocks / full.kv.max_concurrency == 512
    assert full.rung("HOLDS").holds is not None
    # The load's requests reach 8,192 tokens, twice the window.
    assert 2 * sliding.load.peak_blocks_needed < 1.1 * full.load.peak_blocks_needed
    assert sliding.rung("HOLDS").holds is not None


def test_a_hybrid_is_reported_without_a_load_that_nobody_simulates(tmp_path: Any):
    path = tmp_path / "x.yaml"
    path.write_text(f"""
name: x
model: {json.dumps({**CONFIGS["qwen3.5"], "max_position_embeddings": 8192})}
gpu: {{name: h100-sxm-80gb}}
engine: {{max_model_len: 8192, enforce_eager: true}}
{LOAD}
""")
    done = bench("run", str(path), "--analytic-only", "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert "Over the load" not in done.out and "want" not in done.out
    words = " ".join(done.out.split())
    assert "HOLDS does the load hold? – – – KV cache" in words
    assert "HOLDS is not judged: prefix caching of layers that keep a state is not simulated" in words
    judged = predict(load_scenario(path, ["engine.enable_prefix_caching=false"]))
    assert judged.rung("HOLDS").holds is True and judged.load.preemptions == 0
    kv = predict(load_scenario(path)).kv
    assert not kv.one_table and kv.usable_tokens == kv.tokens == int(kv.max_concurrency * 8192)
    assert f" GiB, {kv.tokens:,} tokens." in words


# -- properties ------------------------------------------------------------------------------------


def test_the_allocator_counts_large_tensors_in_steps():
    assert allocated(1) == 512
    assert allocated(9 * MIB) == 9 * MIB
    assert allocated(31 * MIB + MIB // 2) == 32 * MIB  # half a MiB would be left: it goes with the tensor
    assert allocated(24 * MIB + MIB // 2) == 24 * MIB + MIB // 2  # 1.5 MiB would be left: it is split off


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    model=st.sampled_from(catalog.model_names()),
    fmt=st.sampled_from(["auto", "fp8", "int8", "awq-int4-g128", "gptq-int4-g64", "fp32", "int4"]),
    gpu=st.sampled_from([g.name for g in catalog.gpus()]),
    count=st.sampled_from([1, 2, 3, 4, 8]),
    version=st.sampled_from(["0.10", "0.19.0", "0.23.0", "0.33"]),
    length=st.sampled_from([1, 17, 512, 2048, 32768]),
    share=st.sampled_from([0.01, 0.5, 0.9, 0.98, 1.0]),
    pp=st.booleans(),
)
def test_any_scenario_gives_a_consistent_account_or_a_clear_error(
    model: str, fmt: str, gpu: str, count: int, version: str, length: int, share: float, pp: bool
):
    text = f"""
name: x
model: {model}
weights: {{format: {fmt}}}
gpu: {{name: {gpu}, count: {count}}}
engine:
  vllm: "{version}"
  max_model_len: {length}
  gpu_memory_utilization: {share}
  pipeline_parallel_size: {count if pp else 1}
"""
    try:
        account = predict(parse_scenario(text))
    except LoadfitError as error:
        assert "\n" not in str(error)
        return
    idle = {e.term: e for e in account.ledger if e.phase == Phase.IDLE}
    assert set(idle) == {*STATED, Term.TOTAL}
    assert idle[Term.TOTAL].bytes == sum(idle[t].bytes for t in STATED)
    for entry in idle.values():
        assert entry.source
        assert entry.low <= entry.bytes <= entry.high, entry
    for r in account.rungs:
        assert r.holds is not None or r.reason
        if r.margin_low is not None:
            assert r.margin_low <= r.margin_bytes <= r.margin_high, r
    reached = [r.holds for r in account.rungs[:3]]
    assert reached == sorted(reached, reverse=True)
    assert (account.kv.num_blocks is None) == (account.rungs[1].holds is False and not account.kv.num_blocks)
    assert Account.from_dict(account.as_dict()).rungs == account.rungs


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from([
            "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "vocab_size", "intermediate_size", "max_position_embeddings", "rope_scaling",
            "quantization_config", "torch_dtype",
        ]),
        st.integers(-1, 10**12)
        | st.sampled_from([1, 2, 64, 4096, None, "x", 1.5, {}, [], {"factor": 1e6, "type": "linear"}]),
        max_size=4,
    ),
    memory=st.integers(2**28, 2**50),
    length=st.none() | st.integers(1, 10**7),
    extra=st.sampled_from(
        ["", "num_gpu_blocks_override: 1000000000000", "kv_cache_memory_bytes: 1", "enforce_eager: true"]
    ),
)  # fmt: skip
def test_a_strange_model_on_a_strange_device_gives_an_account_or_a_clear_error(
    changes: dict[str, Any], memory: int, length: int | None, extra: str
):
    base = scenario("llama-3.1-8b", gpu=f"memory: {memory}", engine=extra)
    engine = base.engine.model_copy(update={"max_model_len": length})
    strange = base.model_copy(update={"model": {**base.config(), **changes}, "engine": engine})
    try:
        account = predict(strange)
    except LoadfitError as error:
        assert "\n" not in str(error)
        return
    assert len(account.rungs) == 4


def test_more_ranks_never_weigh_more_and_never_hold_more_for_a_token():
    sizes = []
    for count in (1, 2, 4, 8, 16, 32):
        account = predict(scenario("llama-3.1-70b", gpu=f"name: b200, count: {count}", load=""))
        sizes.append((account.ledger.bytes_of(Term.WEIGHTS), account.kv.bytes_per_token))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[3][1] == sizes[4][1] == sizes[5][1]  # 8 KV heads: beyond 8 ranks they are copied


def test_fp8_kv_holds_twice_the_tokens():
    plain = predict(scenario("llama-3.1-8b", load=""))
    small = predict(scenario("llama-3.1-8b", engine="kv_cache_dtype: fp8", load=""))
    assert small.kv.num_blocks == pytest.approx(2 * plain.kv.num_blocks, abs=1)


def test_without_a_load_the_last_rung_is_not_judged():
    holds = rung(predict(scenario("llama-3.1-8b", load="")), RungName.HOLDS)
    assert (holds.holds, holds.reason) == (None, "the scenario states no load")


def test_a_gpu_known_by_its_memory_is_estimated_with_a_note():
    account = predict(scenario("llama-3.2-1b", gpu="memory: 24 GiB"))
    assert account.highest is not None
    assert any("CUDA's total for gpu is estimated" in note for note in account.notes)
    total = account.ledger.find(Term.TOTAL)
    assert total is not None and total.bytes < 24 * GIB


def test_a_total_without_a_pool_to_take_up_the_rest_has_every_terms_interval():
    ledger = predict(scenario("llama-3.1-70b")).ledger
    total, terms = ledger.find(Term.TOTAL), [e for e in ledger.entries if e.phase == "idle" and e.term != Term.TOTAL]
    assert total is not None and ledger.bytes_of(Term.KV_AVAILABLE) == 0
    assert (total.low, total.high) == (sum(e.low for e in terms), sum(e.high for e in terms))


def test_the_analytic_half_starts_without_the_heavy_packages(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path\n"
        "from harness.scenario import load_scenario; from harness.predict import predict\n"
        "predict(load_scenario(Path(sys.argv[1])))\n"
        "bad = {'torch', 'vllm', 'numpy', 'pandas', 'transformers', 'pynvml'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    text = "name: x\nmodel: llama-3.1-8b\ngpu: {name: h100}\nengine: {max_model_len: 8192}\n" + LOAD + "\n"
    path = tmp_path / "x.yaml"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr


def test_a_rank_without_any_cache_is_refused_as_vllm_breaks_on_it():
    text = (
        "name: x\nmodel: nvidia/Llama-3_3-Nemotron-Super-49B-v1\ngpu: {name: h100-sxm-80gb, count: 8}\n"
        "engine: {max_model_len: 2048, pipeline_parallel_size: 8}\n"
    )
    with pytest.raises(UsageError, match=r"no layer of stage \d keeps a cache"):
        predict(parse_scenario(text))
