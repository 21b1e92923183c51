"""The largest image or video that a tower may be handed: what vLLM profiles it with.

Sources: ``get_mm_max_tokens_per_item`` and the dummy inputs of each class in vllm/model_executor/models, 0.32. How
large an image may be is often not in config.json but in the processor's: those limits are the families' published
preprocessor_config.json's, and a checkpoint that changed them is profiled otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, isqrt, sqrt

from harness.architecture.reader import Reader, show
from harness.errors import UsageError


@dataclass(frozen=True)
class Item:
    """One image, video or clip. ``tokens``: of the budget; ``rows``: embeddings that it becomes in the decoder.

    ``elements``: its pixels as the tower takes them; ``patches``: rows inside the tower. ``steps``: how often a video
    may repeat that, while it fits max_model_len. ``front``: elements of what convolutions make of it before the blocks,
    where that is much, and how many of those they make at once.
    """

    tokens: int
    rows: int
    elements: int
    patches: int
    steps: int = 1
    front: tuple[int, int] = (0, 0)

    def largest(self, max_model_len: int) -> Item:
        """The item with as many steps as fit ``max_model_len``, at least one."""
        n = max(1, min(self.steps, max_model_len // self.tokens))
        return replace(self, tokens=n * self.tokens, rows=n * self.rows, elements=n * self.elements,
                       patches=n * self.patches, steps=1)  # fmt: skip


def _image(tokens: int, elements: int, patches: int, steps: int = 1) -> Item:
    return Item(tokens, tokens, elements, patches, steps)


# Pixels of the largest image (Qwen2-VL, Qwen2.5-VL: max_pixels; Qwen3-VL, Qwen3.5: size.longest_edge), and of the
# largest video of Qwen3-VL, both frames of a step together.
_QWEN2_PIXELS, _QWEN3_PIXELS, _QWEN3_VIDEO_PIXELS = 12_845_056, 16_777_216, 25_165_824
_QWEN2_FRAMES = 14  # _MAX_FRAMES_PER_VIDEO, qwen2_vl.py


def _qwen(vision: Reader, pixels: int, steps: int = 1) -> Item:
    patch, merge, frames = vision.count("patch_size"), vision.count("spatial_merge_size"), 2
    tokens = pixels // (patch * merge) ** 2
    patches = tokens * merge**2
    return _image(tokens, patches * vision.count("in_channels", default=3) * frames * patch**2, patches, steps)


def qwen2(vision: Reader, outer: Reader) -> dict[str, Item]:
    """Qwen2-VL and 2.5-VL: a video has as many frames as fit max_model_len, two a step, 14 at most."""
    return {"image": _qwen(vision, _QWEN2_PIXELS), "video": _qwen(vision, _QWEN2_PIXELS, _QWEN2_FRAMES // 2)}


def qwen3(vision: Reader, outer: Reader) -> dict[str, Item]:
    """Qwen3-VL and Qwen3.5: a video's pixels are those of all its frames."""
    return {"image": _qwen(vision, _QWEN3_PIXELS), "video": _qwen(vision, _QWEN3_VIDEO_PIXELS // 2)}


def gemma3(vision: Reader, outer: Reader) -> dict[str, Item]:
    """Gemma 3: every image is one square, pooled to 256 tokens."""
    size, patch = vision.count("image_size"), vision.count("patch_size")
    tokens = outer.count("mm_tokens_per_image", default=256)
    return {"image": _image(tokens, 3 * size**2, (size // patch) ** 2)}


# gemma4_mm.py: frames of a video, tokens of a frame, marks around it.
_GEMMA4_FRAMES, _GEMMA4_FRAME_TOKENS, _GEMMA4_AROUND = 32, 70, 8


def gemma4(vision: Reader, outer: Reader) -> dict[str, Item]:
    """Gemma 4: 280 tokens an image, 32 frames of 70 a video."""
    tokens, pool = vision.count("default_output_length", default=280), vision.count("pooling_kernel_size") ** 2
    pixels, frames, frame = 3 * vision.count("patch_size") ** 2, _GEMMA4_FRAMES, _GEMMA4_FRAME_TOKENS
    patches = frames * frame * pool
    return {
        "image": _image(tokens, tokens * pool * pixels, tokens * pool),
        "video": Item(frames * (frame + _GEMMA4_AROUND), frames * frame, patches * pixels, patches),
    }


_LLAMA4_TILES = 16  # max_patches of its processor


def llama4(vision: Reader, outer: Reader) -> dict[str, Item]:
    """Llama 4: 16 tiles and a small picture of the whole, each pooled by four."""
    size, patch, tiles = vision.count("image_size"), vision.count("patch_size"), _LLAMA4_TILES + 1
    grid = (size // patch) ** 2
    return {"image": _image(tiles * (grid // 4), tiles * 3 * size**2, tiles * (grid + 1))}


def mistral3(vision: Reader, outer: Reader) -> dict[str, Item]:
    """Mistral Small 3: one square of the largest size; a token for each merged patch."""
    size, patch = vision.count("image_size"), vision.count("patch_size")
    merge = outer.count("spatial_merge_size", default=2)
    side = ceil(size / (patch * merge))
    return {"image": _image(side**2, 3 * (side * patch * merge) ** 2, (side * merge) ** 2)}


def llava(vision: Reader, outer: Reader) -> dict[str, Item]:
    """LLaVA: one square; the class token of CLIP is dropped."""
    size, patch = vision.count("image_size"), vision.count("patch_size")
    grid = (size // patch) ** 2
    return {"image": _image(grid, 3 * size**2, grid + 1)}


def llava_next(vision: Reader, outer: Reader) -> dict[str, Item]:
    """LLaVA-NeXT: tiles of the largest pinpoint, a mark at the end of each row, and the whole once more."""
    size, patch = vision.count("image_size"), vision.count("patch_size")
    side = size // patch
    best = max(_pinpoints(outer), key=lambda p: _tiles(p, size)[0] * (_tiles(p, size)[1] * side + 1))
    rows, columns = _tiles(best, size)
    tokens = side**2 + rows * side * (columns * side + 1)
    tiles = rows * columns + 1
    return {"image": _image(tokens, tiles * 3 * size**2, tiles * (side**2 + 1))}


def _tiles(pinpoint: tuple[int, int], size: int) -> tuple[int, int]:
    return pinpoint[0] // size, pinpoint[1] // size


def _pinpoints(outer: Reader) -> list[tuple[int, int]]:
    value = outer.config.get("image_grid_pinpoints")
    if not isinstance(value, list) or not value or not all(
        isinstance(p, list) and len(p) == 2 and all(type(n) is int and n > 0 for n in p) for p in value
    ):  # fmt: skip
        raise UsageError(f"config: image_grid_pinpoints: expected pairs of height and width, got {show(value)}")
    return [(p[0], p[1]) for p in value]


_KIMI_PATCHES, _KIMI_SIDE = 16_384, 3000  # in_patch_limit; MaxImageTokenMeta of kimi_k25.py


def kimi_k25(vision: Reader, outer: Reader) -> dict[str, Item]:
    """Kimi K2.5: a square of 3,000 pixels, scaled down to the patch limit and padded to whole tokens."""
    patch = vision.count("patch_size")
    scaled = int(_KIMI_SIDE * min(1.0, sqrt(_KIMI_PATCHES) / (_KIMI_SIDE // patch)))
    side = ceil(scaled / (2 * patch))
    patches = (2 * side) ** 2
    return {"vision_chunk": _image(side**2, patches * 3 * patch**2, patches)}


# The most tokens that a padded image of in_patch_limit (65,536) patches of 14 pixels becomes (``get_max_image_size``,
# vllm/models/kimi_k3/common/mm_preprocess.py, 0.32): a strip of 67 by 251.
_K3_TOKENS, _K3_PATCH = 67 * 251, 14


def kimi_k3(vision: Reader, outer: Reader) -> dict[str, Item]:
    """Kimi K3: the image that padding makes the most of."""
    if vision.count("patch_size") != _K3_PATCH:
        return {}
    patches = 4 * _K3_TOKENS
    return {"image": _image(_K3_TOKENS, patches * 3 * _K3_PATCH**2, patches)}


# Step3VLImageProcessor and ImagePatcher (vllm/transformers_utils/processors/step3_vl.py, 0.32): the largest image, the
# picture of the whole and a crop, each with the tokens that it becomes.
_STEP_SIDE, _STEP_WHOLE, _STEP_CROP = 3024, (728, 169), (504, 81)


def step3p7(vision: Reader, outer: Reader) -> dict[str, Item]:
    """Step 3.7: a small picture of the whole, and crops of the largest square; the crops go through the tower alone."""
    patch, (whole, whole_tokens), (crop, crop_tokens) = vision.count("patch_size"), _STEP_WHOLE, _STEP_CROP
    rows = _STEP_SIDE // crop if vision.flag("enable_patch", True) else 0
    crops = rows**2
    embeddings = whole_tokens + crops * crop_tokens
    marks = 2 + 2 * crops + max(0, rows - 1)  # around each picture, and between the rows of crops
    elements = 3 * (whole**2 + crops * crop**2)
    patches = max((whole // patch) ** 2, crops * (crop // patch) ** 2)
    return {"image": Item(embeddings + marks, embeddings, elements, patches)}


# MiniMaxM3VLImageProcessor and MiniMaxM3VLVideoProcessor (vllm/transformers_utils/processors/minimax_m3.py, 0.32):
# pixels of the largest image and of a frame; frames of the longest video (mm_preprocess.py of vllm/models/minimax_m3).
_M3_PIXELS, _M3_FRAME_PIXELS, _M3_FRAMES = 451_584, 602_112, 500


def minimax_m3(vision: Reader, outer: Reader) -> dict[str, Item]:
    """MiniMax M3: one square; a video has as many frames as fit max_model_len, two a step, 500 at most."""
    patch, merge, frames = vision.count("patch_size"), 2, 2
    pixels = vision.count("num_channels") * frames * patch**2
    found = {}
    for kind, tokens, steps in (
        ("image", (isqrt(_M3_PIXELS) // (patch * merge)) ** 2, 1),
        ("video", _M3_FRAME_PIXELS // (patch * merge) ** 2, _M3_FRAMES // frames),
    ):
        patches = tokens * merge**2
        found[kind] = _image(tokens, patches * pixels, patches, steps)
    return found
