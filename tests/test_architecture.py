"""config.json -> parts. The counts are held against transformers' own models and published figures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness import catalog
from harness.architecture import FAMILIES, Architecture, from_config, padded_vocab, stage_layers
from harness.errors import ScenarioError, UsageError
from harness.ledger import Account, Term
from harness.predict import predict
from harness.predict import settings as resolved
from harness.scenario import parse_scenario
from tests.hybrid_configs import CONFIGS, NOT_IN_TRANSFORMERS
from tools.catalogue import meta_parameters as counted_by_transformers

# Parameter counts as the hub's model pages state them (safetensors metadata) or the papers.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.1-405B-Instruct": 405_853_388_800,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "microsoft/phi-2": 2_779_683_840,
    "google/gemma-2b": 2_506_172_416,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "facebook/opt-125m": 125_239_296,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen1.5-MoE-A2.7B-Chat": 14_315_784_192,
    "openai/gpt-oss-20b": 20_914_757_184,
    "openai/gpt-oss-120b": 116_829_156_672,
    "deepseek-ai/DeepSeek-V2-Lite-Chat": 15_706_484_224,
    "microsoft/Phi-3.5-MoE-instruct": 41_873_153_344,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-1b-it": 999_885_952,
    "microsoft/phi-4": 14_659_507_200,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "openai-community/gpt2": 124_439_808,
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": 49_867_145_216,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_937_344,
}


def meta_parameters(config: dict[str, Any]) -> int:
    """Parameters of transformers' own model, built without memory."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return counted_by_transformers(config)


# In tests/test_vllm_planner.py and test_hybrids.py: transformers has no such class.
COUNTED_ELSEWHERE = ("nvidia/Llama-3_3-Nemotron-Super-49B-v1", "moonshotai/Kimi-K3")


@pytest.mark.parametrize("name", [n for n in catalog.model_names() if n not in COUNTED_ELSEWHERE])
def test_counts_equal_those_of_transformers(name: str):
    config = catalog.model_config(name)
    assert from_config(config).parameters == catalog.model_facts(name)["parameters"] == meta_parameters(config)


SMALL = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    ("name", "kind", "extra"),
    [
        ("LlamaForCausalLM", "llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
        ("Qwen3ForCausalLM", "qwen3", {"attention_bias": True, "head_dim": 32}),
        ("GPTNeoXForCausalLM", "gpt_neox", {"num_key_value_heads": None, "tie_word_embeddings": False}),
        ("GPTNeoXForCausalLM", "gpt_neox", {"num_key_value_heads": None, "attention_bias": False}),
        ("StableLmForCausalLM", "stablelm", {"use_qkv_bias": True}),
        ("StableLmForCausalLM", "stablelm", {}),
        ("OlmoForCausalLM", "olmo", {}),
        ("Starcoder2ForCausalLM", "starcoder2", {"use_bias": True}),
        ("Starcoder2ForCausalLM", "starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
        ("GPTBigCodeForCausalLM", "gpt_bigcode",
         {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "multi_query": False}),
        ("FalconForCausalLM", "falcon", {"multi_query": True, "intermediate_size": None}),
        ("OPTForCausalLM", "opt", {"ffn_dim": 160, "word_embed_proj_dim": 64, "tie_word_embeddings": True}),
    ],
)  # fmt: skip
def test_switches_of_a_family_change_the_count_as_in_transformers(
    name: str, kind: str, extra: dict[str, Any]
):
    given_config = {k: v for k, v in {**SMALL, **extra}.items() if v is not None}
    config = {"architectures": [name], "model_type": kind, **given_config}
    assert from_config(config).parameters == meta_parameters(config)


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_counts_equal_the_published_ones(name: str, count: int):
    assert from_config(catalog.model_config(name)).parameters == count


def llama(**changes: Any) -> dict[str, Any]:
    config = {**catalog.model_config("llama-3.1-8b"), **changes}
    return {k: v for k, v in config.items() if v is not ...}


def rank_elements(a: Architecture, tp: int) -> dict[str, int]:
    sizes = {}
    for c in a.components:
        total = 1
        for n in c.on_rank(tp):
            total *= n
        sizes[c.name] = total
    return sizes


def test_the_ranks_together_hold_the_model_once_and_copies_where_it_must_be_copied():
    a = from_config(llama())
    whole, half = rank_elements(a, 1), rank_elements(a, 2)
    for name in whole:
        assert half[name] * (1 if "norm" in name else 2) == whole[name], name
    # 8 KV heads on 32 ranks: each holds one query head, one key head, one value head of 128.
    assert rank_elements(a, 32)["qkv_proj.weight"] == 3 * 128 * 4096
    assert [a.kv_heads_on_rank(n) for n in (1, 2, 8, 16, 32)] == [8, 4, 1, 1, 1]


def test_the_vocabulary_is_padded_to_64():
    assert (padded_vocab(128256), padded_vocab(49155), padded_vocab(1)) == (128256, 49216, 64)


def test_pipeline_stages():
    assert stage_layers(80, 3) == [27, 27, 26] or sum(stage_layers(80, 3)) == 80
    assert stage_layers(32, 4) == [8, 8, 8, 8]
    assert stage_layers(28, 8) == [3, 3, 3, 4, 4, 4, 4, 3]


def test_pipeline_stages_equal_vllm():
    utils = pytest.importorskip("vllm.distributed.utils")
    for layers in range(1, 90):
        for stages in range(1, min(layers, 12) + 1):
            bounds = [utils.get_pp_indices(layers, rank, stages) for rank in range(stages)]
            assert stage_layers(layers, stages) == [end - start for start, end in bounds]


@pytest.mark.parametrize("partition", [[40, 40], [44, 36], [1, 79], [30, 30, 10, 10]])
def test_a_partition_of_the_layers_is_taken_as_vllm_takes_it(partition: list[int], monkeypatch: pytest.MonkeyPatch):
    utils = pytest.importorskip("vllm.distributed.utils")
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", ",".join(map(str, partition)))
    stages = len(partition)
    chosen = resolved(parse_scenario(
        f"name: x\nmodel: llama-3.1-70b\ngpu: {{name: h100, count: {stages}}}\n"
        f"engine: {{pipeline_parallel_size: {stages}, pp_layer_partition: {partition}}}\n"
    ))  # fmt: skip
    architecture = from_config(catalog.model_config("llama-3.1-70b"))
    for rank in range(stages):
        held = architecture.stage(rank, chosen.stages)
        assert (held.start, held.stop) == utils.get_pp_indices(80, rank, stages)


def test_a_partition_moves_weights_and_pool_and_is_refused_in_vllms_words():
    def predicted(more: str = "") -> Account:
        return predict(parse_scenario(
            "name: x\nmodel: llama-3.1-70b\nweights: {format: awq-int4}\ngpu: {name: h100, count: 2}\n"
            f"engine: {{max_model_len: 8192, pipeline_parallel_size: 2{more}}}\n"
        ))  # fmt: skip

    even, skewed = predicted(), predicted(", pp_layer_partition: [50, 30]")
    before, after = (a.ledger.bytes_of(Term.WEIGHTS) for a in (even, skewed))
    # By hand: ten layers of 68.451e9 / 80 weights in 4.15625 bits.
    assert before and after and after - before == pytest.approx(10 * 855_638_016 * 4.15625 / 8, rel=0.05)
    assert even.kv.num_blocks and skewed.kv.num_blocks and skewed.kv.num_blocks < 0.8 * even.kv.num_blocks
    with pytest.raises(UsageError, match=r"sum\(partitions\)=79 does not match num_hidden_layers=80"):
        predicted(", pp_layer_partition: [40, 39]")
    with pytest.raises(ScenarioError, match=r"len\(partitions\)=3 does not match pp_size=2"):
        predicted(", pp_layer_partition: [40, 20, 20]")


def test_a_split_that_vllm_refuses_is_refused_in_its_words():
    a = from_config(catalog.model_config("Qwen/Qwen3-14B"))
    with pytest.raises(
        UsageError,
        match=r"Total number of attention heads \(40\) must be divisible by tensor parallel size \(3\)",
    ):
        a.check_split(3)
    with pytest.raises(UsageError, match="is not divisible by"):
        from_config(catalog.model_config("falcon-7b")).check_split(71)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["MixtralForCausal"]},
         "'MixtralForCausal' is not supported yet; did you mean 'MixtralForCausalLM'?"),
        ({"architectures": ["MixtralForCausalLM"]}, "num_local_experts: missing"),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 5},
         "num_experts_per_tok: 5 of 4 experts can't be chosen"),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "kv_lora_rank: missing"),
        ({"architectures": ["RwkvForCausalLM"]}, "'RwkvForCausalLM' is not supported yet"),
        ({"intermediate_size": ...}, "intermediate_size: missing"),
        ({"architectures": ...}, "architectures: missing"),
        ({"architectures": "LlamaForCausalLM"}, "architectures: expected a list"),
        ({"hidden_size": ...}, "hidden_size: missing"),
        ({"hidden_size": "4096"}, "hidden_size: expected a whole number, got '4096'"),
        ({"hidden_size": True}, "hidden_size: expected a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected 1 to"),
        ({"vocab_size": -1}, "vocab_size: expected 1 to"),
        ({"intermediate_size": 10**13}, "intermediate_size: expected 1 to"),
        ({"num_key_value_heads": 5}, "num_key_value_heads: 32 attention heads can't share 5"),
        ({"hidden_size": 4100}, "hidden_size: 4100 is not a multiple of num_attention_heads 32"),
        ({"torch_dtype": "int8"}, "torch_dtype: expected one of"),
        ({"rope_scaling": {"rope_type": "wavy"}}, "rope_scaling: 'wavy' is not supported"),
        ({"rope_scaling": [1]}, "rope_scaling: expected a mapping"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: expected a list of 32 names"),
        ({"layer_types": ["linear_attention"] * 32}, "layer_types: 'linear_attention' is not supported yet"),
        ({"layer_types": ["sliding_attention"] * 32}, "sliding_window: missing"),
        ({"kv_lora_rank": 512}, "kv_lora_rank: LlamaForCausalLM with kv_lora_rank is not supported yet"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false"),
    ],
)  # fmt: skip
def test_a_bad_config_is_one_line_that_names_the_key(changes: dict[str, Any], said: str):
    with pytest.raises(UsageError) as caught:
        from_config(llama(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sliding_window_counts_only_where_it_is_used():
    assert windows(catalog.model_config("mistralai/Mistral-7B-v0.1")) == {4096: 32}
    qwen = catalog.model_config("qwen2.5-7b")
    assert windows({**qwen, "sliding_window": 4096}) == {None: 28}
    assert windows({**qwen, "sliding_window": 4096, "use_sliding_window": True}) == {4096: 28}
    with pytest.raises(UsageError, match="max_window_layers: vLLM refuses"):
        windows({**qwen, "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 2})


def windows(config: dict[str, Any]) -> dict[int | None, int]:
    """Window -> number of layers."""
    return dict(Counter(layer.window for (layer,) in from_config(config).kv_layers))


MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 2, "n_group": 1, "topk_group": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "extra"),
    [
        ("MixtralForCausalLM", "mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
        ("Qwen3MoeForCausalLM", "qwen3_moe", {**MIXTURE, "head_dim": 32}),
        ("Qwen3MoeForCausalLM", "qwen3_moe", {**MIXTURE, "mlp_only_layers": [1]}),
        ("Qwen3MoeForCausalLM", "qwen3_moe", {**MIXTURE, "decoder_sparse_step": 2}),
        ("Qwen2MoeForCausalLM", "qwen2_moe", {**MIXTURE, "shared_expert_intermediate_size": 48}),
        ("OlmoeForCausalLM", "olmoe", MIXTURE),
        ("GraniteMoeForCausalLM", "granitemoe", {"num_local_experts": 8, "num_experts_per_tok": 2}),
        ("PhiMoEForCausalLM", "phimoe",
         {"num_local_experts": 8, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True}),
        ("GptOssForCausalLM", "gpt_oss",
         {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 64, "head_dim": 16}),
        ("Glm4MoeForCausalLM", "glm4_moe",
         {**LATENT, "kv_lora_rank": ..., "n_shared_experts": 1, "use_qk_norm": True, "attention_bias": True,
          "head_dim": 16, "first_k_dense_replace": 1}),
        ("MiniMaxM2ForCausalLM", "minimax_m2", {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 32}),
        ("DeepseekV2ForCausalLM", "deepseek_v2", {**LATENT, "q_lora_rank": None, "first_k_dense_replace": 1}),
        ("DeepseekV3ForCausalLM", "deepseek_v3", {**LATENT, "q_lora_rank": 24, "first_k_dense_replace": 2}),
        ("Gemma2ForCausalLM", "gemma2", {"head_dim": 32, "sliding_window": 64}),
        ("Gemma3ForCausalLM", "gemma3_text", {"head_dim": 32, "sliding_window": 64}),
        ("Cohere2ForCausalLM", "cohere2", {"sliding_window": 64}),
        ("CohereForCausalLM", "cohere", {}),
        ("Exaone4ForCausalLM", "exaone4", {"sliding_window": 64, "sliding_window_pattern": 4}),
        ("Olmo2ForCausalLM", "olmo2", {}),
        ("Olmo3ForCausalLM", "olmo3", {"sliding_window": 64}),
        ("SmolLM3ForCausalLM", "smollm3", {"pad_token_id": 0}),
        ("SeedOssForCausalLM", "seed_oss", {"head_dim": 32, "attention_out_bias": False}),
        ("GlmForCausalLM", "glm", {"head_dim": 32, "attention_bias": True, "pad_token_id": 0}),
        ("Glm4ForCausalLM", "glm4", {"head_dim": 32, "attention_bias": True, "pad_token_id": 0}),
        ("NemotronForCausalLM", "nemotron", {}),
        ("Ernie4_5ForCausalLM", "ernie4_5", {"use_bias": True, "head_dim": 16}),
        ("GPT2LMHeadModel", "gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    ],
)  # fmt: skip
def test_mixtures_latent_attention_and_hybrids_count_as_in_transformers(
    name: str, kind: str, extra: dict[str, Any]
):
    small = {k: v for k, v in {**SMALL, "pad_token_id": 0, **extra}.items() if v is not ...}
    tied = FAMILIES[name].tied
    config = {"architectures": [name], "model_type": kind, "tie_word_embeddings": tied, **small}
    assert from_config(config).parameters == meta_parameters(config)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in NOT_IN_TRANSFORMERS])
def test_hybrids_count_as_in_transformers(name: str):
    assert from_config(CONFIGS[name]).parameters == meta_parameters(CONFIGS[name])


def test_experts_are_split_by_width_and_the_latent_row_is_copied():
    config = {
        **SMALL, **LATENT, "q_lora_rank": 24, "first_k_dense_replace": 1, "architectures": ["DeepseekV3ForCausalLM"]
    }  # fmt: skip
    a = from_config(config)
    whole, half = rank_elements(a, 1), rank_elements(a, 2)
    for name in ("experts.w13", "experts.w2", "q_b_proj.weight", "kv_b_proj.weight", "shared_experts.down_proj.weight"):
        assert half[name] * 2 == whole[name], name
    for name in ("qkv_a_proj.weight", "router.weight", "e_score_correction_bias"):
        assert half[name] == whole[name], name
    assert a.kv_layers[0][0].bytes_per_token(1, 2) == a.kv_layers[0][0].bytes_per_token(4, 2) == (32 + 8) * 2
    assert [a.copies(c) for c in a.components if c.name in ("experts.w2", "down_proj.weight")] == [1, 2]
    assert a.active_parameters == a.parameters - 2 * 6 * 3 * 64 * 32


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([
    "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings", "torch_dtype", "dtype",
    "rope_scaling", "rope_parameters",
    "sliding_window", "use_sliding_window", "tie_word_embeddings", "attention_bias",
    "mlp_bias",
    "partial_rotary_factor", "layer_types", "num_experts", "position_embedding_type", "hybrid_override_pattern",
    "layers_block_type", "block_configs", "attn_type_list", "linear_attn_config", "hybrid_layer_pattern",
    "moe_layer_freq", "index_topk_pattern", "index_topk_freq", "num_kv_shared_layers", "attention_chunk_size",
    "no_rope_layers", "attn_layer_indices", "mamba_dt_rank", "mamba_ssm_cache_dtype", "global_head_dim",
    "moe_layers_enum", "attention_other_setting", "partial_rotary_factors", "max_seq_len", "num_attention_groups",
])  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.dictionaries(KEYS, JSON | st.integers(-2, 10**14), max_size=5))
@example("Cohere2ForCausalLM", {"layer_types": [None, None, None]})
def test_whatever_it_is_fed_it_gives_an_architecture_or_a_usage_error(name: str, changes: dict[str, Any]):
    config = {**SMALL, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "ffn_dim": 128,
              "moe_num_experts": 8, "moe_top_k": 2, "moe_intermediate_size": 32, "architectures": [name],
              **changes}  # fmt: skip
    try:
        architecture = from_config(config)
    except UsageError as error:
        assert str(error).startswith("config: ")
        return
    assert architecture.parameters > 0
