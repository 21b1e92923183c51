"""Which KV cache each layer keeps: full attention, a sliding window, or the latent row of MLA.

Source: ``get_kv_cache_spec`` of vllm/model_executor/layers/attention/attention.py and mla_attention.py, and what each
model class hands to it, 0.32. tests/test_vllm_planner.py asks vLLM's own classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.architecture.families import Family
from harness.architecture.parts import Mla
from harness.architecture.reader import Reader, show
from harness.errors import UsageError

FULL, SLIDING, MLA = "full", "sliding", "mla"
_TYPES = {"full_attention": FULL, "sliding_attention": SLIDING}
# A family whose sliding_window counts only where use_sliding_window says so.
_NEEDS_FLAG = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")


@dataclass(frozen=True)
class KvLayer:
    """The KV cache of one layer. ``row``: elements of one token in one head, key and value together.

    ``window`` is in tokens, of a sliding layer only. MLA has one row for all heads, whole on each rank.
    """

    kind: str
    heads: int
    row: int
    window: int | None = None

    def bytes_per_token(self, tp: int, dtype_bytes: int) -> int:
        """Bytes of one token on one of ``tp`` ranks; KV heads are copied where ranks outnumber them."""
        heads = 1 if self.kind == MLA else max(1, self.heads // tp)
        return heads * self.row * dtype_bytes


def kv_layers(
    name: str, family: Family, read: Reader, layers: int, heads: int, head_dim: int, mla: Mla | None
) -> tuple[KvLayer, ...]:
    """The KV cache of each layer, first to last."""
    if mla is not None:
        return (KvLayer(MLA, 1, mla.kv_rank + mla.rope),) * layers
    full = KvLayer(FULL, heads, 2 * head_dim)
    given = read.config.get("layer_types")
    kinds = None if given is None else _given(given, layers)
    window = _window(name, family, read)
    if window is None:
        if kinds and SLIDING in kinds and read.flag("use_sliding_window", True):
            raise UsageError("config: sliding_window: missing, but layer_types has sliding_attention")
        return (full,) * layers
    sliding = KvLayer(SLIDING, heads, 2 * head_dim, window)
    return tuple(sliding if kind == SLIDING else full for kind in kinds or _kinds(family, read, layers))


def _window(name: str, family: Family, read: Reader) -> int | None:
    window = read.count("sliding_window", default=0)
    used = read.flag("use_sliding_window", name not in _NEEDS_FLAG)
    return window + family.window_extra if window and used else None


def _kinds(family: Family, read: Reader, layers: int) -> list[str]:
    if family.pattern is None:
        if 0 < read.count("max_window_layers", default=layers + 1) < layers:
            raise UsageError("config: max_window_layers: vLLM refuses a window on some layers but not on all of them")
        return [SLIDING] * layers
    pattern = read.count("sliding_window_pattern", default=family.pattern)
    return [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(layers)]


def _given(kinds: object, layers: int) -> list[str]:
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise UsageError(f"config: layer_types: expected a list of {layers} names, one a layer")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise UsageError(f"config: layer_types: {show(kind)} is not supported yet (known: {', '.join(_TYPES)})")
    return [_TYPES[k] for k in kinds]
