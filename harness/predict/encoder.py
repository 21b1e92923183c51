"""What a tower of images or audio adds to the profile run: its own pass, and what is kept of that under the decoder's.

vLLM runs the tower once with as many of the largest items as its budget holds, then the decoder:

    budget = max(T, t)               T = max_num_batched_tokens, t tokens of the largest item (architecture/images.py)
    n      = min(budget // t, S * max(1, min(limit, L // t)))         at least 1; S = max_num_seqs, L = max_model_len
    kept   = n * (elements + rows * H * (1 + levels)) * d             pixels or mel bands, and the embeddings
    pass   = kept + max(n * patches * (2w + 2F), 2 * front) * d       w wide, F of its widest matrix on one rank

- The embeddings lie in the encoder's cache and the pixels in the batch while the decoder is profiled
  (``profile_run``, vllm/v1/worker/gpu_model_runner.py, 0.19); Model Runner V2 keeps the embeddings alone, and runs the
  tower on the first stage alone (vllm/v1/worker/gpu/model_runner.py, 0.32). No constant is fitted: what it leaves on
  h100-019-13, -15, -17, -23 and -40 is 0.013 GiB or less.
- The pass: the residual and the normed input, the widest matrix's output and what comes of it. In no public run does it
  decide the peak, so its ends are w + F and 3w + 3F. Pixels may be a byte each (low end): from some release on they are
  normalized on the device.
- What convolutions make of sound before the blocks, and its activation: two of them, three at the high end. In one
  public run they decide: 28.0 GiB were left for KV, 28.6 are predicted (Qwen3-ASR-1.7B on an L20 of 48 GB,
  https://github.com/QwenLM/Qwen3-ASR/issues/54); without them it would be 30.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.architecture import Architecture
from harness.architecture.images import Item
from harness.errors import UsageError
from harness.predict.estimate import Estimate
from harness.predict.settings import Settings


@dataclass(frozen=True)
class Encoder:
    """Bytes. ``kept``: what lies under the decoder's profile; ``tower``: the peak of the tower's own pass."""

    kept: Estimate
    tower: Estimate
    words: str


def encoder(architecture: Architecture, settings: Settings, stage: int) -> Encoder | None:
    """What the tower adds on one rank of ``stage``; None where it is not profiled.

    Raises UsageError for a class whose largest image is not known.
    """
    alone = settings.model_runner == "v2" and stage > 0
    if architecture.tower is None or not settings.sees or settings.skip_mm_profiling or alone:
        return None
    kind, item = _largest(architecture, settings)
    count = _items(item, settings, dict(settings.mm_limits).get(kind, 999))
    d = settings.dtype_bytes
    rows = count * item.rows * architecture.hidden * (1 + architecture.tower.levels) * d
    pixels = count * item.elements * d
    v1 = settings.model_runner != "v2"
    kept = Estimate(rows + pixels * v1, rows + pixels // d * v1, rows + pixels * v1, "")
    width, widest = _widths(architecture, settings.tower_ranks)
    patches = count * item.patches
    if settings.tower_ranks == 1:  # each rank takes its share of the images, where there are several
        patches = -(-patches // (settings.tensor_parallel_size if count > 1 else 1))
    unit, front = patches * d * (width + widest), min(count * item.front[0], item.front[1]) * d
    tower = Estimate(
        rows + pixels + 2 * max(unit, front), rows + pixels // d + max(unit, 2 * front),
        rows + pixels + 3 * max(unit, front), "",
    )  # fmt: skip
    return Encoder(kept, tower, f"{count} x {kind} of {item.tokens:,} tokens")


def _largest(architecture: Architecture, settings: Settings) -> tuple[str, Item]:
    """The modality with the most tokens an item, among those that a prompt may have."""
    tower, limits = architecture.tower, dict(settings.mm_limits)
    assert tower is not None
    held = [(kind, item.largest(settings.max_model_len)) for kind, item in tower.items if limits.get(kind, 999)]
    if not held:
        raise UsageError(
            f"config: architectures: how large an item {architecture.name} takes is not known here, so its profile is "
            "not; engine.skip_mm_profiling or engine.language_model_only predicts it without"
        )
    return max(held, key=lambda pair: (pair[1].tokens, pair[0]))


def _items(item: Item, settings: Settings, limit: int) -> int:
    budget = max(settings.max_num_batched_tokens, item.tokens)
    in_prompts = settings.max_num_seqs * max(1, min(limit, settings.max_model_len // item.tokens))
    return max(1, min(budget // item.tokens, in_prompts))


def _widths(architecture: Architecture, ranks: int) -> tuple[int, int]:
    """(width of the tower's blocks, width of the widest output in one on each of ``ranks`` ranks)."""
    blocks = [c for c in architecture.components if c.place == "tower" and c.times > 1 and len(c.shape) == 2]
    widest = max(blocks, key=lambda c: c.on_rank(ranks)[0])
    return widest.shape[1], widest.on_rank(ranks)[0]
