"""Adds models to the catalogue from config.json files, each checked against transformers on the meta device.

    python tools/catalogue.py FOLDER     published configs named ORG--MODEL_config.json. In one may stand "_aliases",
                                         further names; "_copy", the public copy that it is; "_checked", what else than
                                         the published file it was compared with.
    python tools/catalogue.py            checks the whole catalogue again, changes nothing

Only facts that decide memory are kept. A model whose parts do not add up to transformers' own count is not written.
Needs torch and transformers (`make test` brings them).
"""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from harness.architecture import from_config, mtp  # noqa: E402
from harness.architecture.checkpoint import module_names  # noqa: E402
from harness.architecture.multimodal import WRAPPERS  # noqa: E402
from harness.errors import UsageError  # noqa: E402
from harness.predict.inventory import inventory  # noqa: E402
from harness.predict.quantization.methods import of_config  # noqa: E402

CATALOGUE = ROOT / "harness" / "catalog" / "models.json"
KEPT = [
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings",
    "torch_dtype", "attention_bias", "attention_out_bias", "mlp_bias", "use_bias", "qkv_bias", "use_qkv_bias",
    "lm_head_bias", "use_qk_norm", "qk_layernorm", "use_parallel_residual", "partial_rotary_factor", "rotary_pct",
    "rotary_dim", "rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window", "max_window_layers",
    "sliding_window_pattern", "layer_types", "multi_query", "parallel_attn", "new_decoder_architecture", "alibi",
    "bias", "n_embd", "n_layer", "n_head", "n_positions", "n_inner", "activation_function", "hidden_act",
    "do_layer_norm_before", "word_embed_proj_dim", "ffn_dim", "num_experts", "num_local_experts",
    "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size",
    "n_shared_experts", "first_k_dense_replace", "moe_layer_freq", "decoder_sparse_step", "mlp_only_layers",
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_group", "topk_group",
    "topk_method", "scoring_func", "routed_scaling_factor", "norm_topk_prob", "original_max_position_embeddings",
    "quantization_config", "pad_token_id", "attention_chunk_size", "no_rope_layers", "interleave_moe_layer_step",
    "intermediate_size_mlp", "moe_layers", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
    "linear_value_head_dim", "linear_conv_kernel_dim", "full_attention_interval", "mamba_ssm_dtype",
    "hybrid_override_pattern", "layers_block_type", "mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups",
    "conv_kernel", "expand", "use_conv_bias", "mamba_proj_bias", "mamba_ssm_cache_dtype", "moe_latent_size",
    "moe_shared_expert_intermediate_size", "hybrid_layer_pattern", "swa_num_attention_heads",
    "swa_num_key_value_heads", "swa_head_dim", "swa_v_head_dim", "index_n_heads", "index_head_dim", "index_topk",
    "index_topk_freq", "index_topk_pattern", "index_skip_topk_offset", "indexer_types", "mlp_layer_types",
    "block_configs", "global_head_dim", "num_global_key_value_heads", "attention_k_eq_v", "num_kv_shared_layers",
    "use_double_wide_mlp", "enable_moe_block", "top_k_experts", "hidden_size_per_layer_input",
    "vocab_size_per_layer_input", "mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv",
    "mamba_expand", "mamba_conv_bias", "mamba_d_ssm", "mamba_rms_norm", "projectors_bias", "attn_layer_indices",
    "attn_layer_period", "attn_layer_offset", "expert_layer_period", "expert_layer_offset", "mamba_dt_rank",
    "shared_intermediate_size", "conv_L_cache", "conv_bias", "block_auto_adjust_ff_dim", "linear_attn_config",
    "num_experts_per_token", "num_shared_experts", "laurel_rank", "altup_num_inputs", "mtp_num_hidden_layers",
    "num_nextn_predict_layers", "attn_output_gate", "num_attention_groups", "moe_num_experts", "moe_top_k",
    "share_expert_dim", "moe_layers_enum", "use_head_wise_attn_gate", "attention_other_setting",
    "partial_rotary_factors", "max_seq_len", "compress_ratios", "o_groups", "o_lora_rank", "num_hash_layers",
    "hc_mult", "expert_dtype", "dense_intermediate_size", "sparse_attention_config", "num_mtp_modules",
    "mtp_layers_block_type", "mtp_hybrid_override_pattern", "moe_k", "moe_num_shared_experts", "moe_layer_start_index",
    "moe_layer_end_index", "moe_layer_interval", "mla_use_nope", "mla_use_output_gate", "attn_res_block_size",
    "routed_expert_hidden_size", "latent_moe_use_norm",
]  # fmt: skip
# Of a vision_config, and beside the two configs of a multimodal model.
KEPT_OF_VISION = [
    "model_type", "hidden_size", "embed_dim", "intermediate_size", "num_hidden_layers", "depth", "num_attention_heads",
    "num_heads", "num_key_value_heads", "head_dim", "mlp_ratio", "in_channels", "num_channels", "image_size",
    "patch_size", "spatial_merge_size", "temporal_patch_size", "out_hidden_size", "num_position_embeddings",
    "deepstack_visual_indexes", "vision_use_head", "vision_output_dim", "projector_input_dim", "projector_output_dim",
    "pixel_shuffle_ratio", "multi_modal_projector_bias", "position_embedding_size", "pooling_kernel_size",
    "default_output_length", "standardize", "use_clipped_linears", "vt_hidden_size", "vt_intermediate_size",
    "vt_num_attention_heads", "vt_num_hidden_layers", "init_pos_emb_height", "init_pos_emb_width", "merge_kernel_size",
    "width", "layers", "heads", "ls_init_value", "use_cls_token", "use_ln_pre", "use_ln_post", "use_abs_posemb",
    "img_token_compression_config", "patch_merge_bias", "qkv_hidden_size", "norm_type", "attn_bias", "linear_bias",
    "patch_embed_proj_bias", "mlp_type", "mm_projector_type",
]  # fmt: skip
KEPT_BESIDE = [
    "vision_feature_layer", "vision_feature_select_strategy", "image_grid_pinpoints", "multimodal_projector_bias",
    "spatial_merge_size", "mm_tokens_per_image", "audio_config", "is_encoder_decoder", "projector_bias",
    "projector_hidden_size",
]  # fmt: skip
# Of an encoder of audio, and of Whisper as a whole.
KEPT_OF_AUDIO = [
    "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "decoder_layers",
    "decoder_attention_heads", "decoder_ffn_dim", "num_mel_bins", "max_source_positions", "max_target_positions",
    "n_window", "output_dim", "downsample_hidden_size",
]  # fmt: skip
# Of a quantization_config, what tells the format.
KEPT_OF_QUANTIZATION = (
    "quant_method", "bits", "group_size", "weight_block_size", "config_groups", "format", "ignore", "ignored_layers",
    "modules_to_not_convert", "exclude_modules", "quant_algo", "moe_quant_algo", "quantized_layers", "quantization",
    "kv_cache_scheme", "kv_cache_quant_algo", "desc_act", "sym", "zero_point", "lm_head", "dynamic", "producer",
    "modules_in_block_to_quantize", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "llm_int8_skip_modules",
)  # fmt: skip
# Of a quantization_config: lists of modules, of which those are kept that name a part of ours.
MODULES = ("modules_to_not_convert", "ignore", "quantized_layers")
# Of these classes transformers has none; tests/test_vllm_planner.py counts them in vLLM's.
NOT_IN_TRANSFORMERS = ("DeciLMForCausalLM", "KimiK3ForConditionalGeneration")
# Classes in copies that another project has put into words of its own: what is published has another class.
RETOLD = ("MiniMaxM3ForCausalLM", "Step3p7FlashForCausalLM")
UNSAID_OF_EXPERTS = (
    "no public copy of its config.json says in what its experts are stored (expert_dtype): name the model that it was "
    "made from"
)
UNSAID = (
    "no public copy says how all of it is quantized (hf_quant_config.json beside its config.json does): name the model "
    "that it was made from, and weights.format"
)


def trimmed(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the kept keys alone, dtype under its older name, long rope factors left out."""
    if "dtype" in config and "torch_dtype" not in config:
        config["torch_dtype"] = config["dtype"]
    kept = {k: config[k] for k in (*KEPT, *KEPT_BESIDE, *KEPT_OF_AUDIO) if k in config}
    if isinstance(config.get("vision_config"), dict):
        kept["vision_config"] = {k: config["vision_config"][k] for k in KEPT_OF_VISION if k in config["vision_config"]}
    if isinstance(config.get("audio_config"), dict):
        own = config["audio_config"]
        kept["audio_config"] = {k: own[k] for k in (*KEPT_OF_AUDIO, *KEPT_OF_VISION) if k in own}
    if isinstance(config.get("text_config"), dict):
        kept["text_config"] = trimmed(config["text_config"])
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(kept.get(key), dict):
            kept[key] = {k: v for k, v in kept[key].items() if not isinstance(v, list)}
    if kept.get("block_configs"):
        kept["block_configs"] = [
            {part: {k: v for k, v in what.items() if v not in (None, False)} for part, what in block.items()}
            for block in kept["block_configs"]
        ]
    return kept


def shortened(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what its quantization_config says of parts of ours alone."""
    own = config.get("quantization_config")
    if not own:
        return config
    patterns = [name for key in MODULES for name in own.get(key) or ()]
    made = [from_config(config)]
    with suppress(UsageError):  # few have MTP layers
        made.append(mtp(config))
    known = {
        name.format(layer)
        for model in made for part in model.components if part.quantizable or part.kind in ("lm_head", "embedding")
        for name in module_names(part, patterns) for layer in range(model.layers)
    }  # fmt: skip
    short = {k: own[k] for k in KEPT_OF_QUANTIZATION if own.get(k) is not None}
    if isinstance(own.get("producer"), dict):
        short["producer"] = {"name": own["producer"].get("name")}
    for key in MODULES:
        if isinstance(own.get(key), list):
            short[key] = [n for n in own[key] if n in known or "*" in n or n.startswith("re:")]
        elif isinstance(own.get(key), dict):
            short[key] = {n: v for n, v in own[key].items() if n in known or "*" in n}
    return {**config, "quantization_config": short}


def meta_parameters(config: dict[str, Any]) -> int:
    """Parameters of transformers' own model, built without memory."""
    import torch
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    # vLLM, where it is in the same process, has put configs of its own in the place of transformers'.
    CONFIG_MAPPING._extra_content.clear()
    kind = {"kimi_k2": "deepseek_v3"}.get(config["model_type"], config["model_type"])
    hf = AutoConfig.for_model(kind, **_plain(config))
    with torch.device("meta"):
        if config["architectures"][0] in WRAPPERS:
            name = config["architectures"][0].replace("KimiK25", "Kimi_K25")
            model = getattr(transformers, name)._from_config(hf)
        else:
            model = AutoModelForCausalLM.from_config(hf)
    model.tie_weights()
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """What tells the parameters: no dtype, no rope, no quantization; of the inner configs too."""
    left_out = ("architectures", "torch_dtype", "dtype", "quantization_config", "rope_scaling", "rope_parameters")
    plain = {k: v for k, v in config.items() if k not in (*left_out, "model_type")}
    if isinstance(config.get("text_config"), dict):
        plain["text_config"] = {k: v for k, v in config["text_config"].items() if k not in left_out}
    return plain


def check(name: str, config: dict[str, Any]) -> int:
    """The parameter count on which both sides agree. Raises SystemExit where they don't."""
    ours = from_config(config).parameters
    theirs = ours if config["architectures"][0] in NOT_IN_TRANSFORMERS else meta_parameters(config)
    if ours != theirs:
        raise SystemExit(f"{name}: {ours:,} parameters here, {theirs:,} in transformers")
    return ours


def add(data: dict[str, Any], path: Path) -> None:
    """Put the config at ``path`` among the models, or its name among the refused."""
    name = path.name.removesuffix("_config.json").replace("--", "/")
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["architectures"][0] in RETOLD:
        return
    beside = path.with_name(path.name.replace("_config.json", "_hf_quant_config.json"))
    if beside.exists() and not of_config(config):  # as vLLM reads it (vllm/transformers_utils/config.py, 0.32)
        quantization = json.loads(beside.read_text(encoding="utf-8"))
        if quantization["quantization"].get("exclude_modules"):  # a copy without them doesn't say what is quantized
            config["quantization_config"] = quantization
    models, source = data["models"], f"https://huggingface.co/{name}/blob/main/config.json"
    if "text_config" in config and "vision_config" not in config and name in models:
        config["vision_config"] = models[name]["config"]["vision_config"]  # a copy that leaves the tower out
    reason = None
    if re.search("FP8|FP4", name) and not of_config(config):
        if of_config(models.get(name, {}).get("config", {})):  # from a fuller copy
            return
        reason = UNSAID
    if config.get("model_type") == "deepseek_ref":  # as one who copied a V4 config calls it, and leaves keys out
        reason = UNSAID_OF_EXPERTS
    data["refused"].pop(name, None)
    if reason is not None:
        models.pop(name, None)
        data["refused"][name] = {"source": source, "reason": reason}
        return
    for other, row in models.items():  # a name of its own goes before another's alias
        row["aliases"] = [a for a in row["aliases"] if other == name or a.lower() != name.lower()]
    taken = {alias for other, row in models.items() if other != name for alias in row["aliases"]}
    aliases = models[name]["aliases"] if name in models else {name.split("/")[1].lower()} - taken
    whole = trimmed(config)
    kept = shortened(whole)
    if inventory(whole).bytes != inventory(kept).bytes:
        raise SystemExit(f"{name}: what is kept of its quantization_config tells other bytes")
    models[name] = {
        "checked": config.get("_checked", "config"),
        "source": source,
        **({"copy": config["_copy"]} if "_copy" in config else {}),
        "recorded": time.strftime("%Y-%m-%d"),
        "parameters": check(name, kept),
        "aliases": config.get("_aliases", [*aliases]),
        "config": kept,
    }


def _by_name(item: tuple[str, Any]) -> str:
    return item[0].lower()


def write(data: dict[str, Any]) -> None:
    """One line a model, by name."""
    parts = [json.dumps(data["about"])]
    for key in ("models", "refused"):
        lines = ",\n".join(f"{json.dumps(n)}: {json.dumps(m)}" for n, m in sorted(data[key].items(), key=_by_name))
        parts.append(f'{{\n{lines}\n}}')
    about, models, refused = parts
    CATALOGUE.write_text(
        f'{{\n"about": {about},\n"models": {models},\n"refused": {refused}\n}}\n', encoding="utf-8"
    )


def main() -> None:
    """Add the models of a folder, or check all."""
    data = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    data.setdefault("refused", {})
    if sys.argv[1:]:
        for path in sorted(Path(sys.argv[1]).glob("*_config.json")):
            if "_hf_quant_config" not in path.name:
                add(data, path)
        write(data)
    else:
        for name, row in data["models"].items():
            assert check(name, row["config"]) == row["parameters"], name
    print(f"{len(data['models'])} models, all counted as in transformers")


if __name__ == "__main__":
    main()
