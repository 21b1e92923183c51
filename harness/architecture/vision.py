"""Vision towers and their projectors, part by part, as vLLM makes them.

Every tower is a transformer of ``depth`` equal blocks (towers.py) between a patch embedding and a projector; one
function a class makes the rest.

Sources: the module of each class in vllm/model_executor/models, 0.32. tests/test_vision.py holds the counts against
transformers' own models, tests/test_vision_vllm.py the shapes against vLLM's classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.architecture import towers
from harness.architecture.reader import Reader, show
from harness.errors import UsageError

# -- Qwen ------------------------------------------------------------------------------------------

_QWEN_POSITIONS = 8192  # max_position of the tower's get_rope, in all classes of Qwen and GLM


def _qwen_patches(vision: Reader, width: int, bias: bool) -> towers.Parts:
    patch, frames = vision.count("patch_size"), vision.count("temporal_patch_size")
    shape = (width, vision.count("in_channels", default=3), frames, patch, patch)
    yield towers.part("visual.patch_embed.proj.weight", shape)
    if bias:
        yield towers.part("visual.patch_embed.proj.bias", (width,))


def _qwen_merger(
    name: str, width: int, merge: int, out: int, norm: int, norm_bias: bool, times: int = 1
) -> towers.Parts:
    yield from towers.norm(f"{name}.norm", norm, norm_bias, times)
    yield from towers.linear(f"{name}.linear_fc1", merge**2 * width, merge**2 * width, "column", times=times)
    yield from towers.linear(f"{name}.linear_fc2", out, merge**2 * width, "row", times=times)


def qwen2_vl(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Qwen2-VL: ``embed_dim`` wide; ``hidden_size`` is what it hands to the decoder."""
    width, heads, merge = vision.count("embed_dim"), vision.count("num_heads"), vision.count("spatial_merge_size")
    yield from _qwen_patches(vision, width, bias=False)
    yield from towers.blocks("visual.blocks", vision.count("depth"), width, width * vision.count("mlp_ratio"))
    yield from _qwen_merger("visual.merger", width, merge, vision.count("hidden_size"), width, norm_bias=True)
    yield from towers.rotary("visual", _QWEN_POSITIONS, width // heads // 2)


def qwen2_5_vl(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Qwen2.5-VL: gated MLP, RMS norms."""
    width, heads, merge = vision.count("hidden_size"), vision.count("num_heads"), vision.count("spatial_merge_size")
    inner, out = vision.count("intermediate_size"), vision.count("out_hidden_size")
    yield from _qwen_patches(vision, width, bias=False)
    yield from towers.blocks("visual.blocks", vision.count("depth"), width, inner, gated=True, norm_bias=False)
    yield from _qwen_merger("visual.merger", width, merge, out, width, norm_bias=False)
    yield from towers.rotary("visual", _QWEN_POSITIONS, width // heads // 2)


def qwen3_vl(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Qwen3-VL and Qwen3.5: learned positions, and a merger more for each level of deepstack."""
    width, heads, merge = vision.count("hidden_size"), vision.count("num_heads"), vision.count("spatial_merge_size")
    out, levels = vision.count("out_hidden_size"), len(deepstack_levels(vision))
    yield from _qwen_patches(vision, width, bias=True)
    yield towers.part("visual.pos_embed.weight", (vision.count("num_position_embeddings"), width))
    yield from towers.blocks("visual.blocks", vision.count("depth"), width, vision.count("intermediate_size"))
    yield from _qwen_merger("visual.merger", width, merge, out, width, norm_bias=True)
    if levels:
        norm = merge**2 * width
        yield from _qwen_merger("visual.deepstack_merger_list", width, merge, out, norm, norm_bias=True, times=levels)
    yield from towers.rotary("visual", _QWEN_POSITIONS, width // heads // 2)


def deepstack_levels(vision: Reader) -> list[int]:
    """The blocks whose features go to the decoder beside the last one's."""
    value = vision.config.get("deepstack_visual_indexes") or []  # other towers have none
    if not isinstance(value, list) or not all(isinstance(i, int) for i in value):
        raise UsageError("config: vision_config.deepstack_visual_indexes: expected a list of layer numbers")
    return value


def glm4v(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """GLM-4.1V, 4.5V, 4.6V: the blocks' MLP is as wide as the output, the merger's as ``intermediate_size``."""
    width, heads, merge = vision.count("hidden_size"), vision.count("num_heads"), vision.count("spatial_merge_size")
    out, inner = vision.count("out_hidden_size"), vision.count("intermediate_size")
    grid = vision.count("image_size") // vision.count("patch_size")
    yield from _qwen_patches(vision, width, bias=True)
    yield towers.part("visual.embeddings.position_embedding.weight", (grid**2, width))
    yield from towers.blocks(
        "visual.blocks", vision.count("depth"), width, out, bias=False, gated=True, norm_bias=False
    )  # fmt: skip
    yield from towers.norm("visual.post_conv_layernorm", width, bias=False)
    yield from towers.norm("visual.post_layernorm", width, bias=False)
    yield towers.part("visual.downsample.weight", (out, width, merge, merge))
    yield towers.part("visual.downsample.bias", (out,))
    yield from towers.linear("visual.merger.proj", out, out, "column", bias=False)
    yield from towers.norm("visual.merger.post_projection_norm", out)
    yield from towers.linear("visual.merger.gate_up_proj", 2 * inner, out, "column", bias=False)
    yield from towers.linear("visual.merger.down_proj", out, inner, "row", bias=False)
    yield from towers.rotary("visual", _QWEN_POSITIONS, width // heads // 2)


# -- towers of fixed images ------------------------------------------------------------------------


def _square_patches(name: str, vision: Reader, width: int, bias: bool) -> towers.Parts:
    patch = vision.count("patch_size")
    yield towers.part(f"{name}.weight", (width, vision.count("num_channels", default=3), patch, patch))
    if bias:
        yield towers.part(f"{name}.bias", (width,))


def siglip(vision: Reader, depth: int, post_norm: bool) -> towers.Parts:
    """``depth`` layers of SigLIP. transformers has its pooling head too, unless the config says otherwise."""
    width, inner = vision.count("hidden_size"), vision.count("intermediate_size")
    grid = vision.count("image_size") // vision.count("patch_size")
    yield from _square_patches("vision_tower.embeddings.patch_embedding", vision, width, bias=True)
    yield towers.part("vision_tower.embeddings.position_embedding.weight", (grid**2, width))
    yield from towers.blocks("vision_tower.encoder.layers", depth, width, inner)
    if post_norm:
        yield from towers.norm("vision_tower.post_layernorm", width)
    if vision.flag("vision_use_head", True):
        yield from (replace(part, held=False) for part in _siglip_head(width, inner))


def _siglip_head(width: int, inner: int) -> towers.Parts:
    yield towers.part("vision_tower.head.probe", (1, 1, width))
    yield from towers.linear("vision_tower.head.attention.in_proj", 3 * width, width, "replicated")
    yield from towers.linear("vision_tower.head.attention.out_proj", width, width, "replicated")
    yield from towers.norm("vision_tower.head.layernorm", width)
    yield from towers.linear("vision_tower.head.mlp.fc1", inner, width, "column")
    yield from towers.linear("vision_tower.head.mlp.fc2", width, inner, "row")


def gemma3(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Gemma 3: SigLIP, then one matrix; split over ranks, the matrix copied."""
    width = vision.count("hidden_size")
    yield from siglip(vision, vision.count("num_hidden_layers"), post_norm=True)
    yield towers.part("multi_modal_projector.mm_input_projection_weight", (width, hidden))
    yield from towers.norm("multi_modal_projector.mm_soft_emb_norm", width, bias=False)


def gemma4(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Gemma 4: transformers' own tower, whole on each rank."""
    width, inner = vision.count("hidden_size"), vision.count("intermediate_size")
    depth, heads = vision.count("num_hidden_layers"), vision.count("num_attention_heads")
    kv_heads, head_dim = vision.count("num_key_value_heads", default=heads), vision.count("head_dim")
    patch, name = vision.count("patch_size"), "vision_tower.encoder.layers"
    positions = vision.count("position_embedding_size")
    yield from towers.linear("vision_tower.patch_embedder.input_proj", width, 3 * patch**2, "replicated", bias=False)
    yield towers.part("vision_tower.patch_embedder.position_embedding_table", (2, positions, width))
    for part, out, source in (
        ("self_attn.q_proj", heads * head_dim, width), ("self_attn.k_proj", kv_heads * head_dim, width),
        ("self_attn.v_proj", kv_heads * head_dim, width), ("self_attn.o_proj", width, heads * head_dim),
        ("mlp.gate_proj", inner, width), ("mlp.up_proj", inner, width), ("mlp.down_proj", width, inner),
    ):  # fmt: skip
        yield from towers.linear(f"{name}.{part}", out, source, "replicated", bias=False, times=depth)
    for norm in ("q_norm", "k_norm"):
        yield from towers.norm(f"{name}.self_attn.{norm}", head_dim, bias=False, times=depth)
    for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        yield from towers.norm(f"{name}.{norm}_layernorm", width, bias=False, times=depth)
    if vision.flag("standardize", False):
        for buffer in ("std_bias", "std_scale"):
            yield towers.part(f"vision_tower.{buffer}", (width,), counted=False)
    yield from towers.linear("embed_vision.embedding_projection", hidden, width, "replicated", bias=False)


def llama4(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Llama 4: a class token, pixel shuffle, then two matrices and the projector, which is always split."""
    width, inner = vision.count("hidden_size"), vision.count("intermediate_size")
    patch, middle = vision.count("patch_size"), vision.count("projector_input_dim")
    grid = vision.count("image_size") // patch
    out, bias = vision.count("vision_output_dim"), vision.flag("multi_modal_projector_bias", False)
    channels = vision.count("num_channels", default=3)
    name = "vision_model.patch_embedding.linear"
    yield from towers.linear(name, width, channels * patch**2, "column", bias=False)
    yield towers.part("vision_model.class_embedding", (width,))
    yield towers.part("vision_model.positional_embedding_vlm", (grid**2 + 1, width))
    yield from towers.blocks("vision_model.model.layers", vision.count("num_hidden_layers"), width, inner)
    for norm in ("layernorm_pre", "layernorm_post"):
        yield from towers.norm(f"vision_model.{norm}", width)
    adapter, last = "vision_model.vision_adapter.mlp", vision.count("projector_output_dim")
    yield from towers.linear(f"{adapter}.fc1", middle, inner, "column", bias)
    yield from towers.linear(f"{adapter}.fc2", last, middle, "row", bias)
    yield from towers.linear("multi_modal_projector.linear_1", hidden, out, "column", bias=False, place="projector")


def pixtral(vision: Reader, depth: int, post_norm: bool) -> towers.Parts:
    """Pixtral's tower: gated MLP, RMS norms, no bias anywhere."""
    width, inner = vision.count("hidden_size"), vision.count("intermediate_size")
    yield from _square_patches("vision_tower.patch_conv", vision, width, bias=False)
    yield from towers.norm("vision_tower.ln_pre", width, bias=False)
    yield from towers.blocks(
        "vision_tower.transformer.layers", depth, width, inner, bias=False, gated=True, norm_bias=False
    )  # fmt: skip


def clip(vision: Reader, depth: int, post_norm: bool) -> towers.Parts:
    """CLIP's tower: a class token, a norm before the blocks."""
    width, inner = vision.count("hidden_size"), vision.count("intermediate_size")
    grid = vision.count("image_size") // vision.count("patch_size")
    yield towers.part("vision_tower.embeddings.class_embedding", (width,))
    yield from _square_patches("vision_tower.embeddings.patch_embedding", vision, width, bias=False)
    yield towers.part("vision_tower.embeddings.position_embedding.weight", (grid**2 + 1, width))
    yield from towers.norm("vision_tower.pre_layrnorm", width)
    yield from towers.blocks("vision_tower.encoder.layers", depth, width, inner)
    if post_norm:
        yield from towers.norm("vision_tower.post_layernorm", width)


_TOWERS = {"clip_vision_model": clip, "siglip_vision_model": siglip, "pixtral": pixtral}


def llava(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """LLaVA: a tower up to the deepest layer whose features are taken, then two matrices.

    transformers keeps the layers above it, and the norm at the end, which vLLM does not make.
    """
    depth, chosen = vision.count("num_hidden_layers"), _feature_layers(vision, outer, default=-2)
    tower = _tower(vision)
    held = list(tower(vision, max(chosen), False))
    yield from held
    if tower is not pixtral:
        names = {c.name: c.times for c in held}
        for part in tower(vision, depth, True):
            rest = part.times - names.get(part.name, 0)
            if rest:
                yield replace(part, times=rest, held=False)
    width, bias = vision.count("hidden_size") * len(chosen), outer.flag("multimodal_projector_bias", True)
    yield from towers.linear("multi_modal_projector.linear_1", hidden, width, "column", bias)
    yield from towers.linear("multi_modal_projector.linear_2", hidden, hidden, "row", bias)


def llava_next(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """LLaVA-NeXT: LLaVA and a vector that ends each row of an image."""
    yield from llava(vision, hidden, outer)
    yield towers.part("image_newline", (hidden,))


def mistral3(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Mistral Small 3.1 on: Pixtral's tower, a norm, a merger that is whole on each rank, two matrices."""
    width, merge = vision.count("hidden_size"), outer.count("spatial_merge_size", default=2)
    (depth,), bias = _feature_layers(vision, outer, default=-1), outer.flag("multimodal_projector_bias", False)
    yield from pixtral(vision, depth, False)
    yield from towers.norm("multi_modal_projector.norm", width, bias=False)
    yield towers.part("multi_modal_projector.patch_merger.merging_layer.weight", (width, width * merge**2))
    yield from towers.linear("multi_modal_projector.linear_1", hidden, width, "column", bias)
    yield from towers.linear("multi_modal_projector.linear_2", hidden, hidden, "row", bias)


def _tower(vision: Reader) -> Any:
    kind = vision.config.get("model_type")
    if kind not in _TOWERS:
        known = ", ".join(_TOWERS)
        raise UsageError(f"config: vision_config.model_type: {show(kind)} is not supported yet (known: {known})")
    return _TOWERS[kind]


def _feature_layers(vision: Reader, outer: Reader, default: int) -> list[int]:
    """The layers whose features are taken, counted from 1: ``vision_feature_layer``, one or several, -1 the last."""
    depth, value = vision.count("num_hidden_layers"), outer.config.get("vision_feature_layer", default)
    given = value if isinstance(value, list) else [value]
    if not given or not all(type(i) is int and -depth <= i <= depth and i for i in given):
        raise UsageError(f"config: vision_feature_layer: expected layers of {depth}, got {show(value)}")
    return [i + depth + 1 if i < 0 else i for i in given]


def kimi_k25(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """MoonViT of Kimi K2.5: its projector is whole on each rank."""
    width, inner = vision.count("hidden_size"), vision.count("intermediate_size")
    rows, columns = _pair(vision, "merge_kernel_size")
    merged = rows * columns * width
    yield from _square_patches("vision_tower.patch_embed.proj", vision, width, bias=True)
    height, across = vision.count("pos_emb_height"), vision.count("pos_emb_width")
    yield towers.part("vision_tower.patch_embed.pos_emb.weight", (height, across, width))
    yield from towers.blocks("vision_tower.encoder.blocks", vision.count("num_hidden_layers"), width, inner)
    yield from towers.norm("vision_tower.encoder.final_layernorm", width)
    yield from towers.norm("mm_projector.pre_norm", width)
    yield from towers.linear("mm_projector.linear_1", merged, merged, "replicated")
    yield from towers.linear("mm_projector.linear_2", hidden, merged, "replicated")


def kimi_k3(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Kimi K3: K2.5's tower with heads wider than its blocks, norms without a mean; no bias but where it says so."""
    for key, value in (("norm_type", "rmsnorm"), ("mlp_type", "mlp2"), ("mm_projector_type", "patchmergerv2")):
        if vision.config.get(key, value) != value:
            raise UsageError(f"config: {vision.within}{key}: expected {value}, got {show(vision.config[key])}")
    width, inner = vision.count("hidden_size"), vision.count("intermediate_size")
    depth, (rows, columns) = vision.count("num_hidden_layers"), _pair(vision, "merge_kernel_size")
    merged, looking = rows * columns * width, vision.count("qkv_hidden_size", default=1536)
    bias, name = vision.flag("attn_bias", False), "vision_tower.encoder.blocks"
    yield from _square_patches(
        "vision_tower.patch_embed.proj", vision, width, bias=vision.flag("patch_embed_proj_bias", False)
    )
    height, across = vision.count("pos_emb_height"), vision.count("pos_emb_width")
    yield towers.part("vision_tower.patch_embed.pos_emb.weight", (height, across, width))
    yield from towers.linear(f"{name}.attn.qkv", 3 * looking, width, "column", bias, depth)
    yield from towers.linear(f"{name}.attn.proj", width, looking, "row", bias, depth)
    mlp_bias = vision.flag("linear_bias", False)
    yield from towers.linear(f"{name}.mlp.fc1", inner, width, "column", mlp_bias, depth)
    yield from towers.linear(f"{name}.mlp.fc2", width, inner, "row", mlp_bias, depth)
    for which in ("norm1", "norm2"):
        yield from towers.norm(f"{name}.{which}", width, False, depth)
    yield from towers.norm("vision_tower.encoder.final_layernorm", width, False)
    yield from towers.linear("mm_projector.linear_1", merged, merged, "replicated", False)
    yield from towers.linear("mm_projector.linear_2", hidden, merged, "replicated", False)
    yield from towers.norm("mm_projector.post_norm", hidden, False)


def step3p7(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Step 3.7's perception encoder: residuals are scaled, two convolutions halve the grid, then one matrix.

    Each block keeps the cosines' angles of its own, in float32 (``PerceptionEncoderRope2D``).
    """
    width, depth, heads = vision.count("width"), vision.count("layers"), vision.count("heads")
    grid, name = vision.count("image_size") // vision.count("patch_size"), "vision_model.transformer.resblocks"
    summary = int(vision.flag("use_cls_token", False))
    yield from _square_patches("vision_model.conv1", vision, width, bias=False)
    for norm in ("ln_pre", "ln_post"):
        if vision.flag(f"use_{norm}", False):
            yield from towers.norm(f"vision_model.{norm}", width)
    yield from towers.blocks(name, depth, width, int(width * _ratio(vision, "mlp_ratio")))
    if vision.config.get("ls_init_value") is not None:
        for scale in ("ls_1", "ls_2"):
            yield towers.part(f"{name}.{scale}.gamma", (width,), times=depth)
    if summary:
        yield towers.part("vision_model.class_embedding", (width,))
    if vision.flag("use_abs_posemb", False):
        yield towers.part("vision_model.positional_embedding", (summary + grid**2, width))
    for i in (1, 2):
        yield towers.part(f"vision_model.vit_downsampler{i}.weight", (2 * i * width, i * width, 3, 3))
        yield towers.part(f"vision_model.vit_downsampler{i}.bias", (2 * i * width,))
    bias = outer.flag("projector_bias", False)
    yield from towers.linear("vit_large_projector", hidden, 4 * width, "column", bias)
    angles = (summary + grid**2, width // heads)
    yield towers.part(f"{name}.rotary freqs_cache", angles, times=depth, kind="rotary", counted=False, dtype="float32")


def minimax_m3(vision: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """MiniMax M3: CLIP's blocks over patches of two frames, two matrices, then two that join four patches."""
    width, patch, (merge, frames) = vision.count("hidden_size"), vision.count("patch_size"), compression(vision)
    middle = outer.count("projector_hidden_size", default=hidden)
    shape = (width, vision.count("num_channels"), frames, patch, patch)
    yield towers.part("vision_model.embeddings.patch_embedding.weight", shape)
    yield from towers.norm("vision_model.pre_layrnorm", width)
    depth, inner = vision.count("num_hidden_layers"), vision.count("intermediate_size")
    yield from towers.blocks("vision_model.encoder.layers", depth, width, inner)
    projector, merger = vision.flag("multimodal_projector_bias", True), vision.flag("patch_merge_bias", True)
    for name, taken, bias in (
        ("multi_modal_projector", width, projector), ("patch_merge_mlp", merge**2 * hidden, merger)
    ):  # fmt: skip
        yield from towers.linear(f"{name}.linear_1", middle, taken, "column", bias)
        yield from towers.linear(f"{name}.linear_2", hidden, middle, "row", bias)


def compression(vision: Reader) -> tuple[int, int]:
    """Patches of a side that become one token, and frames of a patch."""
    if vision.config.get("img_token_compression_config") is None:
        return 2, 2
    joined = vision.inner("img_token_compression_config")
    return joined.count("spatial_merge_size", default=2), joined.count("temporal_patch_size", default=2)


def _ratio(vision: Reader, key: str) -> float:
    value = vision.config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 100:
        raise UsageError(f"config: vision_config.{key}: expected a number above 0, got {show(value)}")
    return float(value)


def _pair(vision: Reader, key: str) -> tuple[int, int]:
    value = vision.config.get(key)
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(n) is int and 0 < n < 100 for n in value):
        raise UsageError(f"config: vision_config.{key}: expected two small whole numbers")
    return value[0], value[1]

