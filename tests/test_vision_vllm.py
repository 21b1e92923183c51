"""The tensors of vision towers against those of vLLM's own classes (0.32, on the meta device), shape for shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from inspect import signature
from typing import Any

import pytest
from hybrid_configs import K3_TEXT, K3_TOWER
from test_vision import CASES, EXPERTS, GEMMA4, IDS, LLAMA4, TEXT, config_of
from vllm_oracle import Vllm, build, vllm_on_meta

from harness.architecture import images, multimodal
from harness.architecture.reader import Reader

SCOUT = {
    **TEXT, "model_type": "llama4_text", "intermediate_size_mlp": 160, "num_local_experts": 4, "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1, "head_dim": 16, "attention_chunk_size": 64,
}  # fmt: skip
GEMMA = {**TEXT, "model_type": "gemma4_text", "head_dim": 16, "global_head_dim": 16, "hidden_size_per_layer_input": 0}
TESTED = [c for c in CASES if c[2]] + [
    ("Llama4ForConditionalGeneration", "llama4", SCOUT, LLAMA4, {}),
    ("Gemma4ForConditionalGeneration", "gemma4", GEMMA, GEMMA4, {}),
    ("KimiK3ForConditionalGeneration", "kimi_k3", K3_TEXT, K3_TOWER, {"tie_word_embeddings": False}),
]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    mixture = {**TEXT, **EXPERTS, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
    folder = tmp_path_factory.mktemp("model")
    with vllm_on_meta(folder, {**mixture, "max_position_embeddings": 4096}) as ready:
        yield ready


def theirs(vllm: Vllm, config: dict[str, Any], tp: int, mode: str) -> Counter[tuple[int, ...]]:
    """Shapes of all parameters outside the language model, on one of ``tp`` ranks."""
    import torch
    from vllm.distributed import parallel_state

    with pytest.MonkeyPatch.context() as patched:
        # vLLM moves Kimi's tower to its device; on the meta device there is nothing to move.
        patched.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
        patched.setattr(parallel_state.get_tp_group(), "world_size", tp)
        model, _ = build(vllm, config, mm_encoder_tp_mode=mode)
    return Counter(
        tuple(p.shape) for n, p in model.named_parameters() if not n.startswith(("language_model.", "lm_head"))
    )


def test_steps_blocks_keep_their_angles_as_in_vllm(vllm: Vllm):
    case = next(c for c in TESTED if c[0].startswith("Step"))
    _, parts = multimodal.tower(config_of(case), 64)
    (angles,) = [p for p in parts if p.kind == "rotary"]
    model, _ = build(vllm, config_of(case), max_model_len=512)
    kept = [b for n, b in model.named_buffers() if n.startswith("vision_model.")]
    assert {str(b.dtype) for b in kept} == {f"torch.{angles.dtype}"}
    assert sum(b.numel() for b in kept) == angles.elements * angles.times


def test_steps_largest_image_is_vllms(vllm: Vllm):
    from vllm.transformers_utils.processors.step3_vl import MAX_IMAGE_SIZE, ImagePatcher, Step3VLImageProcessor

    taken = {k: p.default for k, p in signature(Step3VLImageProcessor).parameters.items()}
    processor = Step3VLImageProcessor.__new__(Step3VLImageProcessor)  # what it makes of pixels needs torchvision
    vars(processor).update(taken, patcher=ImagePatcher())
    item = images.step3p7(Reader({"patch_size": 14}, {}), Reader({}, {}))["image"]
    crops, _ = processor.patcher.get_num_patches(MAX_IMAGE_SIZE, MAX_IMAGE_SIZE)
    assert item.tokens == processor.get_num_image_tokens(MAX_IMAGE_SIZE, MAX_IMAGE_SIZE)
    assert item.rows == taken["num_image_feature_size"] + crops * taken["num_patch_feature_size"]
    assert item.elements == 3 * (taken["image_size"] ** 2 + crops * taken["patch_size"] ** 2)


def test_minimax_m3s_largest_image_and_video_are_vllms(vllm: Vllm):
    from vllm.models.minimax_m3.common.mm_preprocess import MiniMaxM3VLProcessingInfo
    from vllm.transformers_utils.processors import minimax_m3 as processors

    info = MiniMaxM3VLProcessingInfo.__new__(MiniMaxM3VLProcessingInfo)  # a processor wants a checkpoint's files
    vars(info).update(
        get_image_processor=lambda: processors.MiniMaxM3VLImageProcessor,
        get_video_processor=lambda: processors.MiniMaxM3VLVideoProcessor,
    )
    items = images.minimax_m3(Reader({"patch_size": 14, "num_channels": 3}, {}), Reader({}, {}))
    for length in (2048, 32_768, 1 << 20):
        theirs = info.get_mm_max_tokens_per_item(length, {"image": 1, "video": 1})
        assert {kind: item.largest(length).tokens for kind, item in items.items()} == theirs


def test_what_kimi_k3s_tower_leaves_out_is_what_vllm_takes():
    pytest.importorskip("vllm")
    from vllm.transformers_utils.configs.kimi_k3 import KimiK3VisionConfig

    taken = vars(KimiK3VisionConfig())
    names = {"pos_emb_height": "init_pos_emb_height", "pos_emb_width": "init_pos_emb_width"}
    ours = multimodal.DEFAULTS["kimi_k3_vision"]
    assert {k: taken[names.get(k, k)] for k in ours} == ours


def test_kimi_k3s_largest_image_is_vllms():
    pytest.importorskip("vllm")
    from vllm.models.kimi_k3.common.mm_preprocess import KimiK3ProcessingInfo, navit_resize_image

    limits = (14, 2, 65_536, 512, None)  # of its published preprocessor_config.json
    size = KimiK3ProcessingInfo.get_max_image_size(*limits)
    item = images.kimi_k3(Reader({"patch_size": 14}, {}), Reader({}, {}))["image"]
    assert item.tokens == navit_resize_image(size.width, size.height, *limits)["num_tokens"]
    assert images.kimi_k3(Reader({"patch_size": 16}, {}), Reader({}, {})) == {}


def ours(config: dict[str, Any], tp: int, mode: str) -> Counter[tuple[int, ...]]:
    vision, parts = multimodal.tower(config, config["text_config"]["hidden_size"])
    shapes: Counter[tuple[int, ...]] = Counter()
    for part in parts:
        if part.held and part.counted:
            shapes[part.on_rank(vision.ranks(tp, mode) if part.place == "tower" else tp)] += part.times
    return shapes


@pytest.mark.parametrize(("tp", "mode"), [(1, "weights"), (2, "weights"), (2, "data")])
@pytest.mark.parametrize("case", TESTED, ids=[*IDS[: len(TESTED) - 3], "Llama4", "Gemma4", "KimiK3"])
def test_a_tower_has_the_tensors_of_vllms_own_class(vllm: Vllm, case: Any, tp: int, mode: str):
    config = config_of(case)
    config["text_config"] = {**config["text_config"], "max_position_embeddings": 4096}
    assert ours(config, tp, mode) == theirs(vllm, config, tp, mode)
