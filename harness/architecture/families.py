"""What tells one model class from another: one row a class, data only.

Source of each row: the module of its class in vllm/model_executor/models, 0.32. A class that is not here is refused,
never approximated by a neighbour.
"""

from __future__ import annotations

from dataclasses import replace

from harness.architecture.family import Experts, Family
from harness.architecture.hybrids import HYBRIDS

_GPT2_KEYS = (
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("max_position_embeddings", "n_positions"),
    ("intermediate_size", "n_inner"),
)

_LLAMA = Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias")
_QWEN3 = Family(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="head")
_DEEPSEEK_EXPERTS = Experts(
    count="n_routed_experts", shared_count="n_shared_experts", first_dense="first_k_dense_replace",
    every="moe_layer_freq",
)  # fmt: skip
_DEEPSEEK_V3 = Family(mla=True, experts=replace(_DEEPSEEK_EXPERTS, correction_bias=True))

DENSE: dict[str, Family] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": Family(),
    "Qwen2ForCausalLM": Family(qkv_bias=True),
    "MiMoForCausalLM": Family(qkv_bias=True),
    "Qwen3ForCausalLM": _QWEN3,
    "GraniteForCausalLM": _LLAMA,
    "GemmaForCausalLM": Family(tied=True),
    "Gemma2ForCausalLM": Family(
        layer_norms=4, tied=True, pattern=2, qkv_bias="attention_bias", o_bias="attention_bias"
    ),
    "Gemma3ForCausalLM": Family(
        layer_norms=4, tied=True, pattern=6, qk_norm="head", rotary_local=True,
        qkv_bias="attention_bias", o_bias="attention_bias",
    ),
    "Phi3ForCausalLM": Family(),
    "PhiForCausalLM": Family(
        layer_norms=1, norm_bias=True, gated=False, qkv_bias=True, o_bias=True, mlp_bias=True,
        lm_head_bias=True, rotary=0.5, must_be=(("qk_layernorm", False),),
    ),
    "OPTForCausalLM": Family(
        kv_heads="all", norm_bias=True, gated=False, qkv_bias=True, o_bias=True, mlp_bias=True, tied=True,
        rotary=None, position_offset=2, keys=(("intermediate_size", "ffn_dim"),),
        must_be=(
            ("do_layer_norm_before", True), ("enable_bias", True),
            ("layer_norm_elementwise_affine", True), ("_remove_final_layer_norm", False),
        ),
    ),
    "FalconForCausalLM": Family(
        mlp_multiple=4, kv_heads="multi_query", layer_norms=1, norm_bias=True, gated=False, tied=True,
        must_be=(
            ("parallel_attn", True), ("new_decoder_architecture", False), ("alibi", False), ("bias", False),
        ),
    ),
    "GPT2LMHeadModel": Family(
        mlp_multiple=4, kv_heads="all", norm_bias=True, gated=False, qkv_bias=True, o_bias=True, mlp_bias=True,
        tied=True, rotary=None, position_offset=0, keys=_GPT2_KEYS,
    ),
    "GPTBigCodeForCausalLM": Family(
        mlp_multiple=4, kv_heads="multi_query", norm_bias=True, gated=False, qkv_bias=True, o_bias=True, mlp_bias=True,
        tied=True, rotary=None, position_offset=0, keys=_GPT2_KEYS,
    ),
    "GPTNeoXForCausalLM": Family(
        mlp_multiple=4, kv_heads="all", norm_bias=True, gated=False, qkv_bias="attention_bias", o_bias="attention_bias",
        mlp_bias=True, rotary=0.25, bias_defaults=(("attention_bias", True),),
    ),
    "StableLmForCausalLM": Family(
        norm_bias=True, qkv_bias="use_qkv_bias", rotary=0.25,
        must_be=(("qk_layernorm", False), ("use_parallel_residual", False)),
    ),
    "OlmoForCausalLM": Family(norm_weight=False, qkv_bias="attention_bias", o_bias="attention_bias"),
    "Olmo2ForCausalLM": Family(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="all"),
    "Olmo3ForCausalLM": Family(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="all", pattern=4),
    "Starcoder2ForCausalLM": Family(
        norm_bias=True, gated=False, qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True,
        bias_defaults=(("use_bias", True),),
    ),
    "SmolLM3ForCausalLM": replace(_LLAMA, tied=True),
    "SeedOssForCausalLM": Family(
        qkv_bias="attention_bias", o_bias="attention_out_bias", mlp_bias="mlp_bias",
        bias_defaults=(("attention_bias", True),),
    ),
    "GlmForCausalLM": Family(qkv_bias="attention_bias", rotary=0.5),
    "Glm4ForCausalLM": Family(layer_norms=4, qkv_bias="attention_bias", rotary=0.5),
    "CohereForCausalLM": Family(
        layer_norms=1, tied=True, qkv_bias="attention_bias", o_bias="attention_bias",
        must_be=(("use_qk_norm", False),),
    ),
    "Cohere2ForCausalLM": Family(
        layer_norms=1, tied=True, qkv_bias="attention_bias", o_bias="attention_bias", pattern=4, window_extra=1
    ),
    "Exaone4ForCausalLM": Family(qk_norm="head", pattern=4),
    "NemotronForCausalLM": Family(
        norm_bias=True, gated=False, qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias",
        rotary=0.5,
    ),
    "Ernie4_5ForCausalLM": Family(qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True),
}  # fmt: skip

# What attends to an encoder, by the name of vLLM's own class inside the one that a config names.
DECODERS: dict[str, Family] = {
    "WhisperDecoder": Family(
        kv_heads="all", layer_norms=3, norm_bias=True, gated=False, qkv_bias=True, key_bias=False, o_bias=True,
        mlp_bias=True, tied=True, whole_embedding=True, rotary=None, position_offset=0, cross="max_source_positions",
        keys=(
            ("hidden_size", "d_model"), ("num_hidden_layers", "decoder_layers"),
            ("num_attention_heads", "decoder_attention_heads"), ("intermediate_size", "decoder_ffn_dim"),
            ("max_position_embeddings", "max_target_positions"),
        ),
        must_be=(("tie_word_embeddings", True),),
    ),
}  # fmt: skip

MIXTURES: dict[str, Family] = {
    "MixtralForCausalLM": Family(experts=Experts(count="num_local_experts", width="intermediate_size")),
    "Qwen2MoeForCausalLM": Family(
        qkv_bias="qkv_bias", bias_defaults=(("qkv_bias", True),),
        experts=Experts(
            shared_width="shared_expert_intermediate_size", shared_gate=True, every="decoder_sparse_step",
            dense_layers="mlp_only_layers",
        ),
    ),
    "Qwen3MoeForCausalLM": replace(
        _QWEN3, experts=Experts(every="decoder_sparse_step", dense_layers="mlp_only_layers")
    ),
    "OlmoeForCausalLM": Family(
        qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="all", experts=Experts(width="intermediate_size")
    ),
    "GraniteMoeForCausalLM": Family(
        qkv_bias="attention_bias", o_bias="attention_bias",
        experts=Experts(count="num_local_experts", width="intermediate_size"),
    ),
    "PhiMoEForCausalLM": Family(
        norm_bias=True, qkv_bias="attention_bias", o_bias="attention_bias", lm_head_bias="lm_head_bias",
        experts=Experts(count="num_local_experts", width="intermediate_size"),
    ),
    "GptOssForCausalLM": Family(
        qkv_bias="attention_bias", o_bias="attention_bias", sinks=True, pattern=2, rotary_float32=True,
        bias_defaults=(("attention_bias", True),),
        experts=Experts(
            count="num_local_experts", width="intermediate_size", router_bias=True, expert_bias=True
        ),
    ),
    "Glm4MoeForCausalLM": Family(
        qkv_bias="attention_bias", qk_norm="head", qk_norm_flag="use_qk_norm", rotary=0.5,
        experts=replace(_DEEPSEEK_EXPERTS, every=None, correction_bias=True),
    ),
    "MiniMaxM2ForCausalLM": Family(
        qk_norm="all", experts=Experts(count="num_local_experts", width="intermediate_size", correction_bias=True)
    ),
    "DeepseekForCausalLM": Family(experts=_DEEPSEEK_EXPERTS),
    "DeepseekV2ForCausalLM": Family(mla=True, experts=_DEEPSEEK_EXPERTS),
    "DeepseekV3ForCausalLM": _DEEPSEEK_V3,
    "DeepseekV32ForCausalLM": replace(_DEEPSEEK_V3, indexer="tokens"),
    "DeepseekV4ForCausalLM": Family(
        compressed=True, rotary_float32=True,
        experts=Experts(count="n_routed_experts", shared_count="n_shared_experts", shared_step=128),
    ),
    "GlmMoeDsaForCausalLM": replace(_DEEPSEEK_V3, indexer="tokens"),
    "Glm4MoeLiteForCausalLM": _DEEPSEEK_V3,
}  # fmt: skip

FAMILIES: dict[str, Family] = {**DENSE, **MIXTURES, **HYBRIDS, **DECODERS}
