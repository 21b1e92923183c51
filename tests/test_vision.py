"""Vision towers: their parts against transformers' own models, how ranks share them, what is refused."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest

from harness.architecture import Architecture, from_config, multimodal
from harness.errors import UsageError
from harness.predict import settings, weights
from harness.scenario import parse_scenario
from tests.hybrid_configs import M3_TEXT, M3_TOWER, STEP

TEXT = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16",
}  # fmt: skip
MROPE = {"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]}}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4, "moe_layer_freq": 1,
}  # fmt: skip
QWEN = {
    "depth": 5, "hidden_size": 48, "intermediate_size": 100, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": 64, "num_position_embeddings": 16, "deepstack_visual_indexes": [1, 3],
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 5,
    "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
CLIP = {**SIGLIP, "model_type": "clip_vision_model"}
PIXTRAL = {k: v for k, v in {**SIGLIP, "model_type": "pixtral", "head_dim": 12}.items() if k != "vision_use_head"}
GLM = {
    "depth": 3, "hidden_size": 48, "intermediate_size": 100, "num_heads": 4, "image_size": 56, "patch_size": 14,
    "out_hidden_size": 64,
}  # fmt: skip
LLAMA4 = {
    "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56,
    "patch_size": 14, "vision_output_dim": 80, "projector_input_dim": 80, "projector_output_dim": 80,
    "rope_theta": 10000,
}  # fmt: skip
GEMMA4 = {
    "model_type": "gemma4_vision", "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12, "patch_size": 16, "pooling_kernel_size": 3,
    "position_embedding_size": 40, "standardize": True, "use_clipped_linears": False,
}  # fmt: skip
KIMI = {
    "hidden_size": 48, "intermediate_size": 100, "num_attention_heads": 4, "num_hidden_layers": 3, "patch_size": 14,
    "merge_kernel_size": [2, 2], "pos_emb_height": 8, "pos_emb_width": 8, "pos_emb_time": 4,
}  # fmt: skip

STEP_TOWER = {
    "model_type": "perception_encoder", "width": 48, "layers": 3, "heads": 4, "image_size": 56, "patch_size": 14,
    "mlp_ratio": 8960 / 1536, "ls_init_value": 0.1, "use_ln_pre": True, "use_ln_post": False, "use_abs_posemb": True,
    "use_cls_token": False, "use_rope2d": True, "hidden_act": "quick_gelu", "output_dim": None,
}  # fmt: skip

# (class, model_type, its text_config, its vision_config, keys beside)
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("Qwen2VLForConditionalGeneration", "qwen2_vl", {**TEXT, **MROPE}, {
        "depth": 3, "embed_dim": 48, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 4}, {}),
    ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", {**TEXT, **MROPE}, QWEN, {}),
    ("Qwen3VLForConditionalGeneration", "qwen3_vl", {**TEXT, "head_dim": 16}, QWEN, {}),
    ("Qwen3VLForConditionalGeneration", "qwen3_vl", {**TEXT, "head_dim": 16, "tie_word_embeddings": True}, {
        **QWEN, "deepstack_visual_indexes": []}, {"tie_word_embeddings": True}),
    ("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe", {**TEXT, **EXPERTS, "head_dim": 16}, QWEN, {}),
    ("Gemma3ForConditionalGeneration", "gemma3", {
        **TEXT, "head_dim": 32, "sliding_window": 64, "model_type": "gemma3_text"}, SIGLIP, {"mm_tokens_per_image": 4}),
    ("Mistral3ForConditionalGeneration", "mistral3", {**TEXT, "head_dim": 16, "model_type": "mistral"}, PIXTRAL, {
        "spatial_merge_size": 2, "tie_word_embeddings": False}),
    ("LlavaForConditionalGeneration", "llava", {**TEXT, "model_type": "llama"}, CLIP, {
        "vision_feature_layer": -2, "tie_word_embeddings": False}),
    ("LlavaForConditionalGeneration", "llava", {**TEXT, "model_type": "mistral"}, PIXTRAL, {
        "vision_feature_layer": -1, "multimodal_projector_bias": False, "tie_word_embeddings": False}),
    ("LlavaNextForConditionalGeneration", "llava_next", {**TEXT, "model_type": "granite"}, SIGLIP, {
        "vision_feature_layer": [-4, -1], "tie_word_embeddings": False, "image_grid_pinpoints": [[56, 112]]}),
    ("LlavaForConditionalGeneration", "llava", {**TEXT, "model_type": "qwen2"}, {**SIGLIP, "vision_use_head": True}, {
        "tie_word_embeddings": False}),
    ("Glm4vForConditionalGeneration", "glm4v", {**TEXT, "attention_bias": True, "pad_token_id": 0}, GLM, {}),
    ("KimiK25ForConditionalGeneration", "kimi_k25", {**TEXT, **LATENT, "model_type": "deepseek_v3"}, KIMI, {
        "projection_hidden_size": 48, "tie_word_embeddings": False}),
    ("Step3p7ForConditionalGeneration", "step3p7", {
        **STEP, "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5", "max_seq_len": 4096}, STEP_TOWER, {
        "projector_bias": False, "tie_word_embeddings": False,
        "auto_map": {"AutoConfig": "configuration_own.StepConfig"}}),
    ("MiniMaxM3SparseForConditionalGeneration", "minimax_m3_vl", M3_TEXT, M3_TOWER, {
        "projector_hidden_size": 40, "tie_word_embeddings": False}),
    ("Llama4ForConditionalGeneration", "llama4", {}, LLAMA4, {}),
    ("Gemma4ForConditionalGeneration", "gemma4", {}, GEMMA4, {}),
]  # fmt: skip
IDS = [f"{c[0]}-{i}" for i, c in enumerate(CASES)]


def config_of(case: tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    name, kind, text, vision, more = case
    return {"architectures": [name], "model_type": kind, "text_config": text, "vision_config": vision, **more}


def counted_by_transformers(config: dict[str, Any], tower_alone: bool) -> int:
    """Parameters of transformers' own model on the meta device, of its tower and projector alone where asked."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.CONFIG_MAPPING._extra_content.clear()  # configs of vLLM's own, where it is in the same process
    hf = transformers.AutoConfig.for_model(
        config["model_type"], **{k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    )
    name = {"KimiK25ForConditionalGeneration": "Kimi_K25ForConditionalGeneration"}.get(
        config["architectures"][0], config["architectures"][0]
    )
    with torch.device("meta"):
        model = getattr(transformers, name)._from_config(hf)
    model.tie_weights()
    found = {
        id(p): p.numel()
        for n, p in model.named_parameters()
        if not (tower_alone and ("language_model" in n or "lm_head" in n))
    }
    return sum(found.values())


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_towers_count_as_in_transformers(case: Any):
    config = config_of(case)
    hidden = config["text_config"].get("hidden_size", 64)
    if not config["text_config"]:
        config["text_config"] = {"hidden_size": 64, "num_hidden_layers": 2}
    _, parts = multimodal.tower(config, hidden)
    ours = sum(c.elements * c.times for c in parts if c.counted)
    assert ours == counted_by_transformers(config, tower_alone=True)


@pytest.mark.parametrize("case", [c for c in CASES if c[2]], ids=[n for n, c in zip(IDS, CASES, strict=True) if c[2]])
def test_whole_models_count_as_in_transformers(case: Any):
    config = config_of(case)
    a = from_config(config)
    assert a.name == case[0] and a.tower is not None
    assert a.parameters == counted_by_transformers(config, tower_alone=False)
    assert a.active_parameters < a.parameters


@pytest.mark.parametrize("kind", multimodal.DEFAULTS)
def test_what_a_config_leaves_out_is_what_transformers_takes(kind: str):
    transformers = pytest.importorskip("transformers")
    if kind in ("perception_encoder", "kimi_k3_vision"):
        pytest.skip("its published class is not transformers': the next test, and that of Kimi K3's tower")
    special = {"qwen2_vl": "Qwen2VLVisionConfig", "qwen2_5_vl": "Qwen2_5_VLVisionConfig"}
    if kind in special:
        module = importlib.import_module(f"transformers.models.{kind}.configuration_{kind}")
        config = getattr(module, special[kind])()
    else:
        config = transformers.AutoConfig.for_model(kind)
    for key, value in multimodal.DEFAULTS[kind].items():
        assert getattr(config, key) == value, key


def test_what_steps_tower_leaves_out_is_what_transformers_takes():
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model("step3p5_vision")
    names = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
             "ls_init_value": "layer_scale_init_value"}  # fmt: skip
    taken = {k: v for k, v in multimodal.DEFAULTS["perception_encoder"].items() if not k.startswith("use_")}
    assert {k: getattr(config, names.get(k, k)) for k in taken} == taken
    # It has what the flags say: a norm before the blocks, positions, no summary token, no norm behind.
    step = next(c for c in CASES if c[0].startswith("Step"))
    bare = {k: v for k, v in STEP_TOWER.items() if not k.startswith("use_")}
    assert multimodal.tower({**config_of(step), "vision_config": bare}, 64) == multimodal.tower(config_of(step), 64)


def test_a_flat_config_is_read_as_a_nested_one():
    name, kind, text, vision, _ = CASES[0]
    flat = {"architectures": [name], "model_type": kind, **text, "vision_config": vision}
    assert from_config(flat) == from_config(config_of(CASES[0]))


def test_kimis_published_names_are_those_of_its_class():
    config = config_of(CASES[12])
    names = {"hidden_size": "vt_hidden_size", "num_hidden_layers": "vt_num_hidden_layers"}
    names |= {"num_attention_heads": "vt_num_attention_heads", "pos_emb_height": "init_pos_emb_height"}
    prefixed = {names.get(k, k): v for k, v in KIMI.items()}
    assert multimodal.tower({**config, "vision_config": prefixed}, 64) == multimodal.tower(config, 64)


def test_the_rotary_cache_of_qwen2_vl_is_four_times_as_long():
    assert from_config(config_of(CASES[0])).rotary_shapes == ((4 * 512, 16),)
    assert from_config(config_of(CASES[2])).rotary_shapes == ((512, 16),)


# -- ranks -----------------------------------------------------------------------------------------


def on_a_rank(
    case: int, tp: int = 1, pp: int = 1, stage: int = 0, **engine: Any
) -> tuple[Architecture, dict[str, int]]:
    """The architecture, and the bytes by tensor of its tower and projector on one rank."""
    config = config_of(CASES[case])
    more = "".join(f"  {k}: {v}\n" for k, v in engine.items())
    run = parse_scenario(f"""
name: a
model: {config}
gpu: {{name: h100, count: {tp * pp}}}
engine:
  tensor_parallel_size: {tp}
  pipeline_parallel_size: {pp}
{more}""")
    a = from_config(config)
    names = {c.name for c in a.components if c.place in ("tower", "projector")}
    held = weights.tensors(a, settings(run, a), stage)
    return a, {t.name: t.bytes * t.count for t in held if t.name in names}


def test_ranks_split_the_matrices_and_copy_the_rest():
    _, whole = on_a_rank(2)
    _, half = on_a_rank(2, tp=2)
    for name in ("visual.blocks.attn.qkv.weight", "visual.blocks.mlp.fc2.weight", "visual.merger.linear_fc1.weight"):
        assert 2 * half[name] == whole[name], name
    for name in ("visual.patch_embed.proj.weight", "visual.blocks.mlp.fc2.bias", "visual.pos_embed.weight"):
        assert half[name] == whole[name], name


def test_data_mode_copies_the_tower_where_the_class_knows_it():
    for case, knows in ((2, True), (5, False)):
        whole, split = on_a_rank(case)[1], on_a_rank(case, tp=2)[1]
        asked = on_a_rank(case, tp=2, mm_encoder_tp_mode="data")[1]
        assert asked == (whole if knows else split) and split != whole


def test_gemma4_and_kimi_where_heads_do_not_divide_hold_it_whole():
    kimi = multimodal.WRAPPERS["KimiK25ForConditionalGeneration"]
    vision = multimodal.Tower(4, kimi.modalities, kimi.data, kimi.falls_back)
    assert [vision.ranks(n, "weights") for n in (1, 2, 4, 8)] == [1, 2, 4, 1]
    gemma4, _ = multimodal.tower(config_of(CASES[-1]), 64)
    assert gemma4.ranks(8, "weights") == 1


def test_every_stage_of_a_pipeline_holds_the_tower():
    whole = on_a_rank(2)[1]
    assert whole and on_a_rank(2, pp=2, stage=0)[1] == whole == on_a_rank(2, pp=2, stage=1)[1]


def test_layers_above_the_features_are_not_made():
    a, held = on_a_rank(7)
    named = {c.name: c for c in a.components if c.held}
    assert named["vision_tower.encoder.layers.attn.qkv.weight"].times == 4
    assert "vision_tower.post_layernorm.weight" not in held


@pytest.mark.parametrize(
    ("engine", "held"),
    [
        ({"language_model_only": "true"}, False),
        ({"limit_mm_per_prompt": "{image: 0, video: 0}"}, False),
        ({"limit_mm_per_prompt": "{image: 0}"}, True),
        ({"limit_mm_per_prompt": "{image: 2}"}, True),
    ],
)
def test_a_server_of_text_alone_makes_no_tower(engine: dict[str, str], held: bool):
    assert bool(on_a_rank(2, **engine)[1]) is held


def test_a_tower_whose_heads_do_not_divide_is_refused():
    config = config_of(CASES[2])
    config["vision_config"] = {**QWEN, "num_heads": 3}
    a = from_config(config)
    a.check_split(2, tower_ranks=1)
    with pytest.raises(UsageError, match="3 is not divisible by 2"):
        a.check_split(2, tower_ranks=2)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        (2, {"vision_config": None}, "vision_config: expected a mapping, got None"),
        (2, {"vision_config": {**QWEN, "depth": "5"}}, "vision_config.depth: expected a whole number, got '5'"),
        (2, {"vision_config": {k: v for k, v in QWEN.items() if k != "num_heads"}}, "vision_config.num_heads: missing"),
        (2, {"vision_config": {**QWEN, "deepstack_visual_indexes": 3}}, "deepstack_visual_indexes: expected a list"),
        (2, {"text_config": [1]}, "text_config: expected a mapping, got [1]"),
        (6, {"text_config": {**TEXT, "model_type": "rwkv"}}, "text_config.model_type: 'rwkv' is not supported yet"),
        (7, {"vision_config": {**CLIP, "model_type": "dino"}}, "vision_config.model_type: 'dino' is not supported"),
        (7, {"vision_feature_layer": 9}, "vision_feature_layer: expected layers of 5, got 9"),
        (12, {"vision_config": {**KIMI, "merge_kernel_size": 2}}, "merge_kernel_size: expected two small"),
        (15, {"audio_config": {}}, "audio_config: the audio tower of Llama4ForConditionalGeneration is not"),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_key(case: int, changes: dict[str, Any], said: str):
    with pytest.raises(UsageError) as caught:
        config = {**config_of(CASES[case]), **changes}
        multimodal.text_config(config)
        multimodal.tower(config, 64)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_class_whose_decoder_is_not_known_is_refused_by_its_name():
    unknown = replace(multimodal.WRAPPERS["Gemma3ForConditionalGeneration"], text="NobodyForCausalLM")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(multimodal.WRAPPERS, "NobodyForConditionalGeneration", unknown)
        with pytest.raises(UsageError, match="'NobodyForCausalLM' is not supported yet"):
            from_config({**config_of(CASES[5]), "architectures": ["NobodyForConditionalGeneration"]})
