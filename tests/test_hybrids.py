"""Hybrids against public vLLM logs, and figures that vLLM's own planner gave for them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from harness import catalog
from harness.architecture import FULL, STATE, KvLayer, State, from_config
from harness.architecture.mixers import DECODED
from harness.errors import UsageError
from harness.predict import kv_cache
from harness.predict.activations import activation_peak
from harness.predict.inventory import inventory
from harness.predict.settings import settings
from harness.predict.unprofiled import uncounted_state
from harness.scenario import parse_scenario
from harness.units import GIB
from tests.hybrid_configs import CONFIGS


def resolved(model: str, length: int, engine: str = "", gpu: str = "{name: h100}") -> tuple[Any, Any]:
    scenario = parse_scenario(f"name: x\nmodel: {model}\ngpu: {gpu}\nengine: {{max_model_len: {length}, {engine}}}\n")
    return from_config(scenario.config()), settings(scenario)


# https://github.com/noonghunna/club-3090/issues/612 (vLLM 0.24.0, RTX 5090): Available KV cache memory: 5.98 GiB, GPU
# KV cache size: 567,978 tokens, Maximum concurrency for 131,072 tokens per request: 4.33x.
def test_a_public_log_of_a_gated_delta_net():
    # Qwen3.6-35B-A3B, whose text stack is that of Qwen3.5-35B-A3B.
    engine = 'vllm: "0.24", enable_prefix_caching: true, kv_cache_dtype: fp8'  # as its non-default args say
    architecture, chosen = resolved("Qwen/Qwen3.5-35B-A3B", 131_072, engine)
    assert chosen.block_size == 2096
    block = kv_cache.bytes_per_block(architecture, chosen)
    blocks = {int(gib * GIB) // block for gib in (5.975, 5.98, 5.985)}  # the log rounds
    pools = [kv_cache.pool(architecture, chosen, n) for n in blocks]
    assert (567_978, "4.33") in [(p.tokens, f"{p.max_concurrency:.2f}") for p in pools]


# https://github.com/ROCm/ROCm/issues/6055 (vLLM 0.18.1): Setting attention block size to 1056 tokens, padding mamba
# page size by 0.76%.
def test_a_public_log_of_the_block_that_a_state_needs():
    architecture, chosen = resolved("Qwen/Qwen3.5-35B-A3B", 8192, 'vllm: "0.18"')
    assert chosen.block_size == 1056
    state = next(k.state for k in architecture.kv_kinds if k.state)
    page = kv_cache.groups(architecture, chosen)[0].page_bytes
    assert f"{100 * (page / state.bytes_on_rank(1, 2, 4) - 1):.2f}" == "0.76"


@pytest.mark.parametrize(
    ("engine", "gpu", "block_size", "held"),
    [
        ('vllm: "0.33"', "{name: h100}", 1088, 3),
        ('vllm: "0.32"', "{name: h100}", 1056, 2),
        ('vllm: "0.33"', "{name: a100-sxm-80gb}", 1056, 2),
        ('vllm: "0.33", enable_prefix_caching: false', "{name: h100}", 1056, 1),
    ],
)
def test_flashinfers_prefill_leaves_a_state_behind_from_033_on(engine: str, gpu: str, block_size: int, held: int):
    """As read in the 0.33.0 wheel (qwen_gdn_linear_attn.py, platforms/interface.py): blocks of 64, one more."""
    architecture, chosen = resolved("Qwen/Qwen3.5-35B-A3B", 8192, engine, gpu)
    assert chosen.block_size == block_size
    assert {g.held for g in kv_cache.groups(architecture, chosen) if g.kind == STATE} == {held}


def test_states_without_aligned_blocks_as_vllms_planner_counts_them():
    """What the planner says of specs that no engine has aligned: attention's pages padded to the state's."""
    architecture, chosen = resolved("nvidia/Nemotron-H-56B-Base-8K", 8192)
    chosen = replace(chosen, block_size=16)
    needed = kv_cache.request_blocks(architecture, chosen, 8192) * kv_cache.bytes_per_block(architecture, chosen)
    assert f"{needed / GIB:.2f}" == "83.42"
    mixed = (KvLayer(FULL, 8, 256), *(KvLayer(STATE, 0, 0, state=State(12_288, 1 << 20, kernel="mamba2")),) * 3) * 12
    shape = replace(architecture, layers=48, kv_layers=tuple((cache,) for cache in mixed))
    pool = kv_cache.pool(
        shape, replace(chosen, state_dtype_bytes=2),
        20 * GIB // kv_cache.bytes_per_block(shape, replace(chosen, state_dtype_bytes=2)),
    )  # fmt: skip
    assert (pool.num_blocks, f"{pool.max_concurrency:.2f}") == (843, "1.62")


def test_an_engine_aligns_them_and_needs_one_part_in_26():
    architecture, chosen = resolved("nvidia/Nemotron-H-56B-Base-8K", 8192)
    assert chosen.block_size == 4128  # tokens of 4 KiB each in a layer: no smaller than a state of 16.1 MiB
    needed = kv_cache.request_blocks(architecture, chosen, 8192) * kv_cache.bytes_per_block(architecture, chosen)
    assert f"{needed / GIB:.2f}" == "3.15"


def test_the_number_type_of_a_state_is_the_configs_or_the_engines():
    for engine, size in (("", 4), ("mamba_ssm_cache_dtype: float16", 2)):
        assert resolved("nvidia/Nemotron-H-56B-Base-8K", 8192, engine)[1].state_dtype_bytes == size


@pytest.mark.parametrize(
    ("model", "engine", "gpu", "block_size", "row"),
    [
        ("deepseek-v3", "", "{name: h100}", 16, 1152),
        ("deepseek-v3", "kv_cache_dtype: fp8", "{name: h100}", 64, 576),  # FlashMLA's own
        ("deepseek-v3", "", "{name: b200}", 32, 1152),  # FlashInfer's
        ("deepseek-v3", "", "{name: a100-sxm-80gb}", 16, 1152),
        ("deepseek-ai/DeepSeek-V3.2", "", "{name: h100}", 64, 1152),
        ("deepseek-ai/DeepSeek-V3.2", "kv_cache_dtype: fp8", "{name: h100}", 64, 656),  # FlashMLA's packed row
        ("deepseek-ai/DeepSeek-V3.2", "kv_cache_dtype: fp8", "{name: b200}", 64, 576),
        ("zai-org/GLM-5.2", "", "{name: b200}", 64, 576),  # fp8 by default there
        ("llama-3.1-8b", "kv_cache_dtype: nvfp4", "{name: b200}", 16, 144),
    ],
)
def test_the_row_and_the_block_are_those_of_the_gpus_backend(
    model: str, engine: str, gpu: str, block_size: int, row: int
):
    architecture, chosen = resolved(model, 8192, engine, gpu)
    assert chosen.block_size == block_size
    cache = architecture.kv_layers[-1][0]
    assert cache.bytes_per_token(1, chosen.kv_dtype_bytes) == row * cache.heads_on_rank(1)


@pytest.mark.parametrize(
    ("model", "engine", "gpu", "said"),
    [
        ("deepseek-ai/DeepSeek-V3.2", "", "{name: a100-sxm-80gb}", "No valid attention backend found for cuda"),
        ("deepseek-v3", "kv_cache_dtype: nvfp4", "{name: b200}", "nvfp4 KV cache is not supported with MLA"),
        (json.dumps(CONFIGS["bamba"]), "", "{name: h100}",
         "Model architecture BambaForCausalLM was supported in vLLM until v0.23.0, and is not supported anymore."),
        ("gemma-2-9b", "decode_context_parallel_size: 2, tensor_parallel_size: 16", "{name: h100, count: 16}",
         "DCP not support sliding window"),
        ("deepseek-v3", "decode_context_parallel_size: 3, tensor_parallel_size: 8", "{name: h100, count: 8}",
         "tp_size=8 must be divisible by dcp_size=3"),
    ],
)  # fmt: skip
def test_what_vllm_refuses_is_refused(model: str, engine: str, gpu: str, said: str):
    with pytest.raises(UsageError) as caught:
        resolved(model, 512, engine, gpu)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_and_names_of_layers_say_the_same_of_minimax():
    named = CONFIGS["minimax-m1"]
    flagged = {k: v for k, v in named.items() if k != "layer_types"} | {
        "architectures": ["MiniMaxM1ForCausalLM"], "attn_type_list": [0, 1, 0, 0]
    }  # fmt: skip
    one, other = from_config(named), from_config(flagged)
    assert (one.components, one.kv_layers) == (other.components, other.kv_layers)
    assert resolved(json.dumps(flagged), 512, 'vllm: "0.23"')[1].block_size == 32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types: expected a list of 5, one a layer"),
        ({"moe_layers_enum": "2,x"}, "moe_layers_enum: expected numbers of layers, got '2,x'"),
        ({"partial_rotary_factors": [0.5] * 8}, "partial_rotary_factors: only one share for full layers"),
        ({"attention_other_setting": {"attention_type": "all"}}, "attention_type: expected 'sliding_attention'"),
        ({"moe_num_experts": None}, "moe_num_experts: missing"),
        ({"use_moe_router_bias": False}, "use_moe_router_bias=False is not supported yet"),
    ],
)
def test_a_config_of_step_that_vllm_would_not_read_is_one_line(changes: dict[str, object], said: str):
    with pytest.raises(UsageError) as caught:
        from_config({**CONFIGS["step-3.5"], **changes})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_minimax_m3_has_the_tensors_of_its_checkpoint():
    """https://huggingface.co/MiniMaxAI/MiniMax-M3: 427,040,140,160 elements in 23,416 tensors, 854,172,958,720 bytes
    (NVIDIA-NeMo/Megatron-Bridge's check of its export). In float32: routers, their biases, the patch embedding."""
    architecture, chosen = resolved("MiniMaxAI/MiniMax-M3", 8192, "tensor_parallel_size: 8", "{name: b200, count: 8}")
    assert chosen.block_size == 128
    parts = [c for c in architecture.components if c.counted or c.name == "e_score_correction_bias"]
    elements = sum(c.elements * architecture.copies(c) for c in parts)
    wide = [c for c in parts if c.dtype == "float32" or c.name.endswith("patch_embedding.weight")]  # this one in files
    assert {c.name.rpartition(".")[0] or c.name for c in wide} == {
        "router", "e_score_correction_bias", "vision_model.embeddings.patch_embedding"
    }  # fmt: skip
    assert elements == 427_040_140_160
    assert 2 * elements + 2 * sum(c.elements * architecture.copies(c) for c in wide) == 854_172_958_720


@pytest.mark.parametrize(("kv_dtype", "bytes_"), [("auto", 137_472), ("fp8", 76_032)])
def test_the_indexers_key_of_minimax_m3_is_bf16_by_hand(kv_dtype: str, bytes_: int):
    architecture, chosen = resolved("MiniMaxAI/MiniMax-M3", 8192, f"kv_cache_dtype: {kv_dtype}")
    assert kv_cache.bytes_per_token(architecture, chosen) == bytes_


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sparse_attention_config": None}, "sparse_attention_config: expected a mapping, got None"),
        ({"num_key_value_heads": 2}, "sparse_num_index_heads: expected num_key_value_heads (2), got 4"),
        ({"moe_layer_freq": None}, "moe_layer_freq: expected a list, got None"),
        ({"use_routing_bias": False}, "use_routing_bias=False is not supported yet"),
    ],
)
def test_a_config_of_minimax_m3_that_vllm_would_not_read_is_one_line(changes: dict[str, object], said: str):
    config = CONFIGS["minimax-m3"]
    with pytest.raises(UsageError) as caught:
        from_config({**config, "text_config": {**config["text_config"], **changes}})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_refused_of_minimax_m3():
    model = "MiniMaxAI/MiniMax-M3"
    with pytest.raises(UsageError, match="published checkpoint has none of the MTP layers"):
        resolved(model, 8192, "speculative_config: {method: mtp, num_speculative_tokens: 1}")
    with pytest.raises(UsageError, match="NVFP4 KV cache only with the SM100 MSA backend"):
        resolved(model, 8192, "kv_cache_dtype: nvfp4")
    assert resolved(model, 8192, "kv_cache_dtype: nvfp4", "{name: b200}")[1].block_size == 128
    with pytest.raises(UsageError, match=r"block_size: .* takes multiples of 128"):
        resolved(model, 8192, "block_size: 64")


def test_kimi_k3_is_the_published_checkpoint():
    """Its safetensors headers hold 2,779,931,837,184 elements, of them 447,358,976 of the tower and its projector, in
    1,560,860,324,864 bytes (https://huggingface.co/api/models/moonshotai/Kimi-K3?expand[]=safetensors, 2026-09-19)."""
    biases, padded = 92 * 896, 69 * 32  # no parameters elsewhere; A_log is stored as wide as a head
    architecture = from_config(catalog.model_config("kimi-k3"))
    assert architecture.parameters == 2_779_931_837_184 - biases - padded
    assert architecture.active_parameters == 105_363_937_536 - padded
    tower = [c for c in architecture.components if c.place in ("tower", "projector") and c.counted]
    assert sum(c.elements * c.times for c in tower) == 447_358_976
    made = inventory(catalog.model_config("kimi-k3"))
    copies = sum(p.bytes for p in made.parts if p.name in ("W_UK_T, W_UV", DECODED))
    assert made.bytes - copies == 1_560_860_324_864 - 4 * padded - 2 * 69 * 128  # norms of states are float32 there


def test_a_state_of_kimi_k3_by_hand():
    architecture, chosen = resolved("kimi-k3", 8192, "tensor_parallel_size: 8", "{name: h200, count: 8}")
    state = 3 * 3 * 12_288 // 8 * 2 + 12 * 128 * 128 * 4
    assert kv_cache.bytes_per_token(architecture, chosen) == 24 * 576 * 2
    assert next(k.state for k in architecture.kv_kinds if k.state).bytes_on_rank(8, 2, 4) == state
    assert chosen.block_size == 768  # the fewest 128s of tokens whose 1,152 bytes hold a state
    assert "kda" in chosen.state_checkpoints
    _, older = resolved("kimi-k3", 8192, "tensor_parallel_size: 8", "{name: a100-sxm-80gb, count: 8}")
    assert older.state_checkpoints == ("mamba2",)


@pytest.mark.parametrize(
    ("where", "changes", "said"),
    [
        ("text_config", {"mla_use_nope": False}, "mla_use_nope=False is not supported yet"),
        ("vision_config", {"norm_type": "layernorm"}, "vision_config.norm_type: expected rmsnorm, got 'layernorm'"),
    ],
)
def test_another_kimi_k3_is_one_line(where: str, changes: dict[str, object], said: str):
    config = catalog.model_config("kimi-k3")
    with pytest.raises(UsageError) as caught:
        from_config({**config, where: {**config[where], **changes}})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_blocks_that_kimi_k3_chooses_from_lie_in_the_layers_path():
    """Eight blocks of 12 layers, one row of hidden states each; on two stages four and eight."""
    gpu = catalog.gpu("h200")
    config = catalog.model_config("kimi-k3")
    plain = {**config, "text_config": {**config["text_config"], "attn_res_block_size": None}}
    row = 8192 * 7168 * 2
    for stages, blocks in ((1, [8]), (2, [4, 8])):
        engine = (
            f"tensor_parallel_size: 8, pipeline_parallel_size: {stages}, max_num_batched_tokens: 8192, "
            "max_num_seqs: 8, language_model_only: true"
        )
        machine = f"{{name: h200, count: {8 * stages}}}"
        with_blocks, without = (resolved(json.dumps(c), 8192, engine, machine) for c in (config, plain))
        for stage, count in enumerate(blocks):
            found, bare = (activation_peak(a, s, gpu, stage).bytes for a, s in (with_blocks, without))
            handed = 3 * stage  # four outputs in place of one sum
            assert found - bare == (count + handed) * row


@pytest.mark.parametrize(("tokens", "more"), [(8192, 0), (2048, 2048 * 12 * 128 * 2 + 2 * 1024 * 12 * 128**2 * 4)])
def test_flashkdas_buffers_of_kimi_k3_come_after_the_profile(tokens: int, more: int):
    """They lie where the experts' workspace is, 16 x T x 2 x 3,584 x 2 B, as far as that reaches."""
    engine = f"tensor_parallel_size: 8, max_num_seqs: 1024, max_num_batched_tokens: {tokens}"
    architecture, chosen = resolved("kimi-k3", 8192, engine, "{name: h200, count: 8}")
    assert uncounted_state(architecture, chosen) == max(0, more - 16 * tokens * 2 * 3584 * 2)
