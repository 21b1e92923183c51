"""How long a model's context may be, and how long its rotary cache is.

Source: ``_get_and_verify_max_len`` (vllm/config/model.py) and ``get_rope``
(vllm/model_executor/layers/rotary_embedding), 0.32.
"""

from __future__ import annotations

from typing import Any

from harness.architecture.reader import Reader, show
from harness.errors import UsageError


def _rope(read: Reader) -> dict[str, Any]:
    for key in ("rope_parameters", "rope_scaling"):
        value = read.config.get(key)
        if value is not None:
            if not isinstance(value, dict):
                raise UsageError(f"config: {key}: expected a mapping or null, got {show(value)}")
            # One mapping for each kind of layer: the full layers' decides.
            inner = value.get("full_attention")
            return inner if isinstance(inner, dict) else value
    return {}


def positions(name: str, read: Reader) -> tuple[int, int, int]:
    """(longest max_model_len, default max_model_len, rows of the rotary cache)."""
    rope, trained = _rope(read), read.positions
    inner = Reader(rope, {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "llama3", "mrope", "proportional"):
        limit = min(trained, read.count("max_seq_len", default=trained))
        return limit, limit, trained
    if kind in ("linear", "dynamic"):
        longer = int(trained * inner.factor())
        if name.startswith("Gemma3"):  # its own limit counts the scaling already
            return trained, trained, longer
        return longer, longer, longer
    if kind in ("yarn", "deepseek_yarn"):
        original = inner.count("original_max_position_embeddings", default=trained)
        return trained, trained, int(original * inner.factor())
    if kind in ("longrope", "su"):
        original = read.count(
            "original_max_position_embeddings",
            default=inner.count("original_max_position_embeddings", default=trained),
        )
        # Two tables, for short and for long prompts, in one cache.
        return trained, original, original + trained
    raise UsageError(f"config: rope_scaling: {show(kind)} is not supported yet")


def rotary_dim(read: Reader, default: float, head_dim: int) -> int:
    """Elements of a head that are rotated; ``default``: the family's share of them."""
    if _rope(read).get("rope_type") == "proportional":
        return head_dim  # what is not rotated turns by nothing
    default = _rope(read).get("partial_rotary_factor", default)
    share = read.config.get("partial_rotary_factor", read.config.get("rotary_pct", default))
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise UsageError(f"config: partial_rotary_factor: expected a share from 0 to 1, got {show(share)}")
    return read.count("rotary_dim", default=int(head_dim * share))
