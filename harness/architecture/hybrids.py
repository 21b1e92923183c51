"""The families whose layers are not all alike: states beside attention, chunks, windows with heads of their own.

Source of each row: the module of its class in vllm/model_executor/models, 0.32.
"""

from __future__ import annotations

from dataclasses import replace

from harness.architecture.family import Experts, Family

_QWEN_MIXTURE = Experts(
    shared_width="shared_expert_intermediate_size", shared_gate=True, every="decoder_sparse_step",
    dense_layers="mlp_only_layers",
)  # fmt: skip
_QWEN3_NEXT = Family(
    qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="head", gate="element", rotary=0.25,
    scheme="types", pattern=4, mixer="gated_delta_net",
)  # fmt: skip
_QWEN3_5 = replace(_QWEN3_NEXT, state_dtype="mamba_ssm_dtype")
_MINIMAX = Family(
    scheme="types", mixer="lightning", rotary=0.5,
    experts=Experts(count="num_local_experts", width="intermediate_size"),
)  # fmt: skip
_MINIMAX_FLAGS = replace(_MINIMAX, scheme="flags", keys=(("layer_flags", "attn_type_list"),))
_MAMBA2_KEYS = (("mamba_heads", "mamba_n_heads"), ("mamba_head_dim", "mamba_d_head"))

HYBRIDS: dict[str, Family] = {
    "Qwen3NextForCausalLM": replace(_QWEN3_NEXT, experts=_QWEN_MIXTURE),
    "Qwen3_5ForCausalLM": _QWEN3_5,
    "Qwen3_5MoeForCausalLM": replace(_QWEN3_5, experts=_QWEN_MIXTURE),
    "NemotronHForCausalLM": Family(
        layer_norms=1, gated=False, mlp_bias="mlp_bias", rotary=None, scheme="pattern", alone=True, mixer="mamba2",
        state_dtype="mamba_ssm_cache_dtype", state_dtype_default="float32",
        keys=(
            ("mamba_heads", "mamba_num_heads"), ("mamba_d_state", "ssm_state_size"), ("mamba_n_groups", "n_groups"),
            ("mamba_d_conv", "conv_kernel"), ("mamba_proj_bias", "use_bias"), ("mamba_conv_bias", "use_conv_bias"),
        ),
        experts=Experts(
            count="n_routed_experts", shared_width="moe_shared_expert_intermediate_size",
            shared_count="n_shared_experts", correction_bias=True, optional=True, gated=False, latent="moe_latent_size",
        ),
    ),
    "BambaForCausalLM": Family(
        qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias", rotary=0.5, scheme="indices",
        mixer="mamba2", keys=_MAMBA2_KEYS,
    ),
    "GraniteMoeHybridForCausalLM": Family(
        qkv_bias="attention_bias", o_bias="attention_bias", scheme="types", mixer="mamba2",
        keys=(
            *_MAMBA2_KEYS, ("intermediate_size", "shared_intermediate_size"), ("expert_width", "intermediate_size")
        ),
        experts=Experts(
            count="num_local_experts", width="expert_width", shared_width="shared_intermediate_size", optional=True
        ),
    ),
    "FalconH1ForCausalLM": Family(
        qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias", scheme="both", mixer="mamba2",
        keys=(*_MAMBA2_KEYS, ("mamba_out_bias", "projectors_bias")),
    ),
    "JambaForCausalLM": Family(
        rotary=None, scheme="offset", mixer="mamba1",
        experts=Experts(
            width="intermediate_size", every="expert_layer_period", offset="expert_layer_offset", optional=True
        ),
    ),
    "Lfm2ForCausalLM": Family(qk_norm="head", tied=True, scheme="types", mixer="short_conv"),
    "MiniMaxForCausalLM": _MINIMAX,
    "MiniMaxText01ForCausalLM": _MINIMAX_FLAGS,
    "MiniMaxM1ForCausalLM": _MINIMAX_FLAGS,
    "KimiLinearForCausalLM": Family(
        mla=True, rotary=None, scheme="kda", mixer="kda", extras="attention_residuals",
        must_be=(("mla_use_nope", True),),
        experts=Experts(
            used="num_experts_per_token", shared_count="num_shared_experts", first_dense="first_k_dense_replace",
            every="moe_layer_freq", correction_bias=True, least=256, latent="routed_expert_hidden_size",
            latent_norm="latent_moe_use_norm",
        ),
    ),
    "DeciLMForCausalLM": Family(
        qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias", scheme="blocks"
    ),
    "Gemma3nForCausalLM": Family(
        layer_norms=4, tied=True, pattern=5, qk_norm="head", rotary_local=True, qkv_bias="attention_bias",
        o_bias="attention_bias", extras="gemma3n",
    ),
    "Gemma4ForCausalLM": Family(
        layer_norms=4, tied=True, pattern=6, qk_norm="head", rotary_local=True, qkv_bias="attention_bias",
        o_bias="attention_bias", key_is_value="attention_k_eq_v", wide_when_shared="use_double_wide_mlp",
        full_keys=(
            ("head_dim", "global_head_dim"), ("value_dim", "global_head_dim"),
            ("kv_heads", "num_global_key_value_heads"),
        ),
        extras="gemma4", experts=Experts(used="top_k_experts", switch="enable_moe_block", optional=True, beside=True),
    ),
    "Llama4ForCausalLM": Family(
        qkv_bias="attention_bias", o_bias="attention_bias", scheme="chunks",
        keys=(("intermediate_size", "intermediate_size_mlp"), ("expert_width", "intermediate_size")),
        experts=Experts(
            count="num_local_experts", width="expert_width", shared_width="expert_width",
            every="interleave_moe_layer_step",
        ),
    ),
    "MiniMaxM3SparseForCausalLM": Family(
        qk_norm="head", rotary=0.5, scheme="blocks_of_keys", indexer="blocks", spelling="minimax_m3",
        keys=(("intermediate_size", "dense_intermediate_size"), ("expert_width", "intermediate_size")),
        must_be=(("use_routing_bias", True), ("tie_word_embeddings", False), ("attention_output_gate", False)),
        experts=Experts(
            count="num_local_experts", width="expert_width", shared_count="n_shared_experts", correction_bias=True,
            router_float32=True, flags="moe_layer_freq",
        ),
    ),
    "Step3p5ForCausalLM": Family(
        qkv_bias="attention_bias", qk_norm="head", gate="head", gate_flag="use_head_wise_attn_gate", rotary_local=True,
        spelling="step", keys=(("num_key_value_heads", "num_attention_groups"),),
        must_be=(("use_moe_router_bias", True), ("need_fp32_gate", True)),
        sliding_keys=(
            ("heads", "swa_num_attention_heads"), ("kv_heads", "swa_num_attention_groups"),
            ("head_dim", "swa_head_dim"), ("value_dim", "swa_head_dim"),
        ),
        experts=Experts(
            count="moe_num_experts", used="moe_top_k", shared_width="share_expert_dim", correction_bias=True,
            router_float32=True, listed="moe_layers_enum",
        ),
    ),
    "Ernie4_5_MoeForCausalLM": Family(
        tied=True, spelling="ernie", must_be=(("use_bias", False), ("use_moe", True)),
        experts=Experts(
            count="moe_num_experts", used="moe_k", shared_count="moe_num_shared_experts", correction_bias=True,
            router_float32=True, listed="moe_layers_enum",
        ),
    ),
    "MiMoV2FlashForCausalLM": Family(
        qkv_bias="attention_bias", value_dim="v_head_dim", sinks="sliding", rotary=1 / 3, scheme="flags",
        flag_kinds=("full", "sliding"), keys=(("layer_flags", "hybrid_layer_pattern"),),
        sliding_keys=(
            ("heads", "swa_num_attention_heads"), ("kv_heads", "swa_num_key_value_heads"),
            ("head_dim", "swa_head_dim"), ("value_dim", "swa_v_head_dim"),
        ),
        experts=Experts(count="n_routed_experts", correction_bias=True, flags="moe_layer_freq"),
    ),
}  # fmt: skip
