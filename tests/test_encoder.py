"""The profile of vision towers: what public logs say of it, and what moves it."""

from __future__ import annotations

from typing import Any

import pytest
from test_vision import CASES, config_of

from harness.architecture import from_config, images
from harness.architecture.reader import Reader
from harness.errors import UsageError
from harness.predict.activations import activation_peak
from harness.predict.encoder import Encoder, encoder
from harness.predict.settings import device_gpu, settings
from harness.scenario import Scenario, parse_scenario


def run(model: Any, version: str = "0.19.0", count: int = 1, **engine: Any) -> Scenario:
    more = "".join(f"  {k}: {v}\n" for k, v in {"max_model_len": 8192, **engine}.items())
    return parse_scenario(
        f'name: a\nmodel: {model}\ngpu: {{name: h100, count: {count}}}\nengine:\n  vllm: "{version}"\n{more}'
    )


def seen(model: Any, version: str = "0.19.0", stage: int = 0, **more: Any) -> Encoder | None:
    scenario = run(model, version, **more)
    a = from_config(scenario.config())
    return encoder(a, settings(scenario, a), stage)


@pytest.mark.parametrize(
    ("model", "budget", "count"),
    [
        ("google/gemma-3-4b-it", 8192, 32), ("google/gemma-3-12b-it", 8192, 32), ("google/gemma-3-27b-it", 8192, 32),
        ("ibm-granite/granite-vision-3.3-2b", 8289, 1),
    ],
)  # fmt: skip
def test_the_profiled_images_are_those_of_the_logs(model: str, budget: int, count: int):
    """Runs h100-019-17, -13, -15 and -23: "a budget of N tokens, and profiled with K image items"."""
    a, found = from_config(run(model).config()), seen(model)
    assert found is not None and a.tower is not None
    ((_, item),) = a.tower.items
    assert found.words == f"{count} x image of {item.tokens:,} tokens"
    assert max(8192, item.tokens) == budget


def test_llama4s_images_are_those_of_its_log():
    """Run h100-019-40: 3 image items at a budget of 8,192."""
    item = images.llama4(Reader({"image_size": 336, "patch_size": 14}, {}), Reader({}, {}))["image"]
    assert item.tokens == 17 * 144 and 8192 // item.tokens == 3


def test_what_is_kept_is_pixels_and_embeddings():
    found = seen("gemma-3-12b")
    assert found is not None
    assert found.kept.bytes == 32 * 3 * 896**2 * 2 + 8192 * 3840 * 2
    assert found.tower.bytes == found.kept.bytes + 32 * 4096 * 2 * (1152 + 4304) * 2
    newer = seen("gemma-3-12b", "0.33")
    assert newer is not None and newer.kept.bytes == 8192 * 3840 * 2


def test_the_tower_adds_to_the_peak_unless_it_is_not_profiled():
    def peak(**engine: Any) -> int:
        scenario = run("gemma-3-12b", **engine)
        a, gpu = from_config(scenario.config()), device_gpu(scenario)
        assert gpu is not None
        return activation_peak(a, settings(scenario, a), gpu).bytes

    whole, bare = peak(), peak(skip_mm_profiling="true")
    assert whole - bare == 32 * 3 * 896**2 * 2 + 8192 * 3840 * 2
    assert peak(language_model_only="true") == peak(limit_mm_per_prompt="{image: 0}") == bare
    # With few sequences the sampler is small, and the tower's own pass decides.
    found = seen("gemma-3-12b", max_num_seqs=16)
    assert found is not None and peak(max_num_seqs=16) > found.tower.bytes > peak(max_num_seqs=16) - 2**27


def test_limits_and_lengths_bound_the_images():
    for engine, count in (
        ({"max_num_seqs": 2, "limit_mm_per_prompt": "{image: 3}"}, 6),
        ({"max_num_seqs": 2, "max_model_len": 1024}, 8),
        ({"max_num_seqs": 1, "max_model_len": 128}, 1),
        ({"max_num_batched_tokens": 2048, "max_num_seqs": 64}, 8),
    ):
        found = seen("gemma-3-12b", **engine)
        assert found is not None and found.words.startswith(f"{count} x image"), engine


def test_a_video_of_qwen2_vl_grows_with_the_model_length():
    case = config_of(CASES[1])
    case["text_config"] = {**case["text_config"], "max_position_embeddings": 131_072}
    for length, words in ((8192, "video of 16,384"), (65_536, "video of 65,536"), (131_072, "video of 114,688")):
        found = seen(case, max_model_len=length)
        assert found is not None and found.words == f"1 x {words} tokens"
    found = seen(case, max_model_len=131_072, limit_mm_per_prompt="{video: 0}")
    assert found is not None and found.words == "1 x image of 16,384 tokens"


def test_deepstack_widens_the_embeddings():
    plain, deep = config_of(CASES[2]), config_of(CASES[2])
    plain["vision_config"] = {**plain["vision_config"], "deepstack_visual_indexes": []}
    less, more = seen(plain, "0.33", max_model_len=512), seen(deep, "0.33", max_model_len=512)
    assert less is not None and more is not None and more.kept.bytes == 3 * less.kept.bytes


def test_ranks_share_the_pass_and_model_runner_v2_runs_it_on_the_first_stage():
    case = config_of(CASES[5])
    one, two = (seen(case, count=n, tensor_parallel_size=n, max_model_len=512) for n in (1, 2))
    assert one is not None and two is not None
    assert two.kept == one.kept and two.tower.bytes < one.tower.bytes
    staged = {"count": 2, "pipeline_parallel_size": 2, "max_model_len": 512}
    assert seen(case, "0.33", stage=1, **staged) is None
    assert seen(case, "0.19", stage=1, **staged) is not None


@pytest.mark.parametrize(
    ("find", "vision", "outer", "kind", "tokens"),
    [
        (images.qwen3, {"patch_size": 16, "spatial_merge_size": 2}, {}, "image", 16_384),
        (images.qwen3, {"patch_size": 16, "spatial_merge_size": 2}, {}, "video", 12_288),
        (images.gemma4, {"patch_size": 16, "pooling_kernel_size": 3}, {}, "video", 2496),
        (images.mistral3, {"patch_size": 14, "image_size": 1540}, {"spatial_merge_size": 2}, "image", 3025),
        (images.llava, {"patch_size": 14, "image_size": 336}, {}, "image", 576),
        (images.kimi_k25, {"patch_size": 14}, {}, "vision_chunk", 4225),
    ],
)
def test_tokens_of_the_largest_item(find: Any, vision: Any, outer: Any, kind: str, tokens: int):
    assert find(Reader(vision, {}), Reader(outer, {}))[kind].tokens == tokens


def test_an_image_whose_limit_is_not_known_is_refused_with_the_way_out():
    glm = next(config_of(c) for c in CASES if c[0].startswith("Glm4v"))
    with pytest.raises(UsageError, match="how large an item Glm4vForConditionalGeneration takes is not known here"):
        seen(glm, max_model_len=512)
    assert seen(glm, max_model_len=512, skip_mm_profiling="true") is None


def test_bad_pinpoints_are_one_line():
    vision = Reader({"image_size": 384, "patch_size": 14}, {})
    for value in (None, [], [[384]], [[384, "768"]], "all"):
        with pytest.raises(UsageError, match="image_grid_pinpoints: expected pairs"):
            images.llava_next(vision, Reader({"image_grid_pinpoints": value}, {}))
