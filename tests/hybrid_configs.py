"""A small config of each class whose layers are not all alike, for both referees: transformers and vLLM."""

from __future__ import annotations

from typing import Any

SMALL = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
DELTA_NET = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 24,
    "linear_conv_kernel_dim": 4, "head_dim": 32,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}  # fmt: skip
EXPERTS = {
    "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48
}  # fmt: skip
MAMBA2 = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_d_conv": 4,
    "mamba_expand": 2,
}  # fmt: skip
NEMOTRON_H = {
    "hybrid_override_pattern": "MM*-", "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16,
    "n_groups": 2, "conv_kernel": 4, "head_dim": 32,
}  # fmt: skip
ROUTED = {
    "n_routed_experts": 8, "moe_intermediate_size": 32, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
}  # fmt: skip


LATENT = {
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
INDEXER = {
    "q_lora_rank": 24, "index_n_heads": 4, "index_head_dim": 128, "index_topk": 16, "first_k_dense_replace": 1,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
}  # fmt: skip


GEMMA4 = {
    "head_dim": 16, "global_head_dim": 32, "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}  # fmt: skip

STEP_TYPES = ["sliding_attention" if i % 4 else "full_attention" for i in range(8)]
# As published: lists go on for MTP layers, layers with experts are text, sliding layers have heads of their own.
STEP = {
    **{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, "num_hidden_layers": 5, "num_attention_groups": 2,
    "max_seq_len": 512, "head_dim": 16, "moe_num_experts": 8, "moe_top_k": 2, "moe_intermediate_size": 32,
    "share_expert_dim": 48, "moe_layers_enum": "2,3,4", "sliding_window": 64, "layer_types": STEP_TYPES,
    "use_head_wise_attn_gate": True,
    "attention_other_setting": {
        "attention_type": "sliding_attention", "num_attention_heads": 8, "num_attention_groups": 2, "head_dim": 16
    },
    "partial_rotary_factors": [1.0 if i % 4 else 0.5 for i in range(8)],
    "rope_theta": [1e4 if i % 4 else 5e6 for i in range(8)],
    "rope_scaling": {
        "rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 256, "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
    },
    "yarn_only_types": ["full_attention"], "num_nextn_predict_layers": 3, "use_moe_router_bias": True,
    "need_fp32_gate": True, "att_impl_type": "GQA", "moe_router_activation": "sigmoid", "rms_norm_eps": 1e-5,
}  # fmt: skip

M3_TEXT = {
    **SMALL, "architectures": ["MiniMaxM3SparseForCausalLM"], "intermediate_size": 32, "dense_intermediate_size": 160,
    "shared_intermediate_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128,
    "rotary_dim": 64, "partial_rotary_factor": 0.5, "num_local_experts": 8, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "moe_layer_freq": [0, 1, 1, 1], "use_routing_bias": True, "hidden_act": "swigluoai",
    "scoring_func": "sigmoid", "num_mtp_modules": 7, "max_position_embeddings": 4096,
    "sparse_attention_config": {
        "use_sparse_attention": True, "sparse_index_dim": 128, "sparse_num_index_heads": 4, "sparse_topk_blocks": 16,
        "sparse_block_size": 128, "sparse_score_type": "max", "sparse_init_block": 0, "sparse_local_block": 1,
        "sparse_attention_freq": [0, 1, 1, 1], "sparse_disable_index_value": [0, 1, 1, 1],
    },
}  # fmt: skip
M3_TOWER = {
    "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 100, "patch_size": 14,
    "num_channels": 3, "layer_norm_eps": 1e-5, "model_type": "clip_vision_model",
    "img_token_compression_config": {"spatial_merge_size": 2, "temporal_patch_size": 2},
}  # fmt: skip

# Kimi K3: every fourth layer and the last are attention; in the small tower heads are wider than the blocks too.
K3_TEXT = {
    **SMALL, **LATENT, "architectures": ["KimiLinearForCausalLM"], "model_type": "kimi_linear", "num_hidden_layers": 6,
    "q_lora_rank": 24, "mla_use_nope": True, "mla_use_output_gate": True, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_experts": 8, "num_experts_per_token": 2, "moe_intermediate_size": 512,
    "routed_expert_hidden_size": 32, "latent_moe_use_norm": True, "num_shared_experts": 2, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "moe_router_activation_func": "sigmoid", "moe_renormalize": True, "use_grouped_topk": True,
    "num_expert_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "attn_res_block_size": 4,
    "hidden_act": "situ", "activation_situ_beta": 4.0, "activation_situ_linear_beta": 25.0,
    "num_nextn_predict_layers": 0, "max_position_embeddings": 4096,
    "linear_attn_config": {
        "kda_layers": [1, 2, 3, 5], "full_attn_layers": [4, 6], "num_heads": 16, "head_dim": 128,
        "short_conv_kernel_size": 4, "use_full_rank_gate": True, "gate_lower_bound": -5.0,
    },
}  # fmt: skip
K3_TOWER = {
    "vt_hidden_size": 48, "vt_intermediate_size": 100, "vt_num_attention_heads": 4, "vt_num_hidden_layers": 3,
    "qkv_hidden_size": 64, "patch_size": 14, "merge_kernel_size": [2, 2], "init_pos_emb_height": 8,
    "init_pos_emb_width": 8, "init_pos_emb_time": 4, "norm_type": "rmsnorm", "attn_bias": False, "linear_bias": False,
    "patch_embed_proj_bias": False, "mlp_type": "mlp2", "mm_projector_type": "patchmergerv2", "mm_hidden_size": 48,
    "text_hidden_size": 64, "projector_ln_eps": 1e-5,
}  # fmt: skip


def _config(name: str, kind: str, **own: Any) -> dict[str, Any]:
    return {**SMALL, "architectures": [name], "model_type": kind, **own}


def _block(heads_in_group: int | None, multiple: float | None) -> dict[str, Any]:
    """One of a DeciLM's layers: without attention or without an MLP where None."""
    return {
        "attention": {"n_heads_in_group": heads_in_group, "no_op": heads_in_group is None},
        "ffn": {"ffn_mult": multiple, "no_op": multiple is None},
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3-next": _config("Qwen3NextForCausalLM", "qwen3_next", **DELTA_NET, **EXPERTS),
    "qwen3.5": _config("Qwen3_5ForCausalLM", "qwen3_5_text", **DELTA_NET, mamba_ssm_dtype="float32"),
    "qwen3.5-moe": _config("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", **DELTA_NET, **EXPERTS),
    "nemotron-h": _config("NemotronHForCausalLM", "nemotron_h", **NEMOTRON_H),
    "nemotron-3": _config(
        "NemotronHForCausalLM", "nemotron_h",
        **{**NEMOTRON_H, **ROUTED, "hybrid_override_pattern": "MEM*", "moe_shared_expert_intermediate_size": 48,
           "moe_latent_size": 24, "mamba_ssm_cache_dtype": "float16"},
    ),
    "granite-4": _config(
        "GraniteMoeHybridForCausalLM", "granitemoehybrid", **MAMBA2, num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=48, layer_types=["mamba", "attention", "mamba", "mamba"],
    ),
    "granite-4-dense": _config(
        "GraniteMoeHybridForCausalLM", "granitemoehybrid", **MAMBA2, num_local_experts=0, num_experts_per_tok=0,
        shared_intermediate_size=48, layer_types=["mamba", "attention", "mamba", "mamba"],
    ),
    "falcon-h1": _config(
        "FalconH1ForCausalLM", "falcon_h1", **MAMBA2, mamba_d_ssm=128, mamba_rms_norm=False, head_dim=16
    ),
    "jamba": _config(
        "JambaForCausalLM", "jamba", mamba_d_state=16, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=8,
        attn_layer_period=4, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, num_experts=4,
        num_experts_per_tok=2,
    ),
    "lfm2": _config(
        "Lfm2ForCausalLM", "lfm2", layer_types=["conv", "full_attention", "conv", "conv"],
        block_auto_adjust_ff_dim=False, block_dim=64, conv_dim=64, conv_bias=False, block_ff_dim=160,
        block_ffn_dim_multiplier=1.0, block_multiple_of=1, norm_eps=1e-5, theta=1e4, tie_word_embeddings=True,
    ),
    "bamba": _config("BambaForCausalLM", "bamba", **MAMBA2, attn_layer_indices=[1]),
    "minimax-m1": _config(
        "MiniMaxForCausalLM", "minimax", num_local_experts=4, num_experts_per_tok=2, head_dim=32,
        layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    ),
    "llama-4": _config(
        "Llama4ForCausalLM", "llama4_text", num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=96,
        interleave_moe_layer_step=2, attention_chunk_size=64, head_dim=16,
    ),
    "mimo-v2": _config(
        "MiMoV2FlashForCausalLM", "mimo_v2_flash", **ROUTED, hybrid_layer_pattern=[0, 1, 1, 0],
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        moe_layer_freq=[0, 1, 1, 1], mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        swa_num_attention_heads=4, swa_num_key_value_heads=4, head_dim=24, v_head_dim=16, swa_head_dim=24,
        swa_v_head_dim=16, sliding_window=64, sliding_window_size=64, layernorm_epsilon=1e-5, scoring_func="sigmoid",
        add_swa_attention_sink_bias=True, norm_topk_prob=True, rope_theta=1e4, swa_rope_theta=1e4, attention_bias=False,
    ),
    "gemma-4-moe": _config(
        "Gemma4ForCausalLM", "gemma4_text", **GEMMA4, tie_word_embeddings=True, enable_moe_block=True, num_experts=8,
        top_k_experts=2, moe_intermediate_size=32, attention_k_eq_v=True, num_global_key_value_heads=1,
        hidden_size_per_layer_input=0, num_kv_shared_layers=0,
    ),
    "gemma-4-e": _config(
        "Gemma4ForCausalLM", "gemma4_text", **GEMMA4, tie_word_embeddings=True, hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=1024, num_kv_shared_layers=2, use_double_wide_mlp=True,
    ),
    "gemma-3n": _config(
        "Gemma3nForCausalLM", "gemma3n_text", tie_word_embeddings=True, head_dim=32, sliding_window=64,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        num_kv_shared_layers=2, hidden_size_per_layer_input=16, vocab_size_per_layer_input=1024, laurel_rank=8,
        altup_num_inputs=3, activation_sparsity_pattern=[0.0] * 4,
    ),
    "nemotron-nas": _config(
        "DeciLMForCausalLM", "nemotron-nas", num_key_value_heads=None, intermediate_size=None, attention_bias=False,
        mlp_bias=False, hidden_act="silu", auto_map={"AutoConfig": "configuration_own.OwnConfig"},
        block_configs=[
            _block(2, 4.0), _block(None, 2.0), _block(1, 12.0), _block(2, None),
        ],
    ),
    "kimi-linear": _config(
        "KimiLinearForCausalLM", "kimi_linear", **LATENT, q_lora_rank=None, num_experts=8, num_experts_per_token=2,
        moe_intermediate_size=32, num_shared_experts=1, first_k_dense_replace=1, moe_layer_freq=1, head_dim=24,
        moe_router_activation_func="sigmoid", moe_renormalize=True, num_expert_group=1, topk_group=1,
        routed_scaling_factor=1.0, num_key_value_heads=4, mla_use_nope=True, hidden_act="silu",
        linear_attn_config={
            "kda_layers": [1, 2, 3], "full_attn_layers": [4], "num_heads": 4, "head_dim": 16,
            "short_conv_kernel_size": 4,
        },
    ),
    "step-3.5": {
        **STEP, "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5",
        "attention_other_setting": {**STEP["attention_other_setting"], "num_attention_groups": 4},
    },
    "minimax-m3": {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"], "model_type": "minimax_m3_vl",
        "torch_dtype": "bfloat16", "projector_hidden_size": 40, "text_config": M3_TEXT, "vision_config": M3_TOWER,
    },
    "kimi-k3": K3_TEXT,
    "ernie-4.5-moe": _config(
        "Ernie4_5_MoeForCausalLM", "ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=32,
        moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=2, moe_layer_interval=1, use_bias=False,
        head_dim=16, num_nextn_predict_layers=1,
    ),
    "deepseek-v3.2": _config("DeepseekV32ForCausalLM", "deepseek_v32", **LATENT, **ROUTED, **INDEXER),
    "glm-5": _config("GlmMoeDsaForCausalLM", "glm_moe_dsa", **LATENT, **ROUTED, **INDEXER),
    "glm-5.2": _config(
        "GlmMoeDsaForCausalLM", "glm_moe_dsa", **LATENT, **ROUTED, **INDEXER, index_topk_freq=2,
        index_skip_topk_offset=2, indexer_types=["full", "full", "shared", "full"],
    ),
    "glm-4.7-flash": _config(
        "Glm4MoeLiteForCausalLM", "glm4_moe_lite", **LATENT, **ROUTED, q_lora_rank=24, first_k_dense_replace=1
    ),
}  # fmt: skip
# Of these one of the two has no class of its own any more, or none that reads this config (Step's text: see
# tests/test_vision.py, with the tower around it); ERNIE's there has the routers' biases among its parameters.
NOT_IN_TRANSFORMERS = ("nemotron-nas", "step-3.5", "kimi-k3", "ernie-4.5-moe")
NOT_IN_VLLM = ("bamba", "minimax-m1")
