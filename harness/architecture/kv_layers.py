"""Which caches each layer keeps: rows of keys and values, a window of them, a latent row, a recurrent state.

Source: ``get_kv_cache_spec`` of attention/attention.py, mla_attention.py, chunked_local_attention.py and
mamba/abstract.py (vllm/model_executor/layers), and what each model class hands to it, 0.32.
tests/test_vllm_planner.py asks vLLM's own classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from harness.architecture.families import Family
from harness.architecture.parts import Mla
from harness.architecture.reader import Reader, show
from harness.errors import UsageError

FULL, SLIDING, CHUNKED, MLA, INDEXER, STATE = "full", "sliding", "chunked", "mla", "indexer", "state"
_TYPES = {"full_attention": FULL, "sliding_attention": SLIDING}
# A family whose sliding_window counts only where use_sliding_window says so.
_NEEDS_FLAG = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")


@dataclass(frozen=True)
class State:
    """What a state-space or linear-attention layer keeps of a request, however long that is. Elements, unsplit.

    ``conv``: the last inputs of the convolution, in the model's dtype; ``conv_group``: of each of ``groups`` more that
    are copied where ranks don't divide them. ``recurrent``: the state proper, in ``recurrent_dtype``, the config's own
    word for it; None: in the model's dtype.
    Source: ``MambaStateShapeCalculator`` of vllm/model_executor/layers/mamba/mamba_utils.py, 0.32.
    """

    conv: int
    recurrent: int
    conv_group: int = 0
    groups: int = 1
    recurrent_dtype: str | None = None

    def bytes_on_rank(self, tp: int, dtype_bytes: int, recurrent_bytes: int) -> int:
        """Bytes on one of ``tp`` ranks; ``recurrent_bytes``: of an element of the recurrent state."""
        groups = self.groups if self.groups % tp == 0 else tp
        conv = (self.conv + self.conv_group * groups) // tp
        return conv * dtype_bytes + self.recurrent // tp * recurrent_bytes


@dataclass(frozen=True)
class KvLayer:
    """One cache of one layer. ``row``: elements of one token in one head, key and value together.

    ``window``: tokens, of a sliding layer; of a chunked one the chunk. MLA and the indexer of sparse attention have one
    row for all heads, whole on each rank. ``row_bytes``: the row's bytes where kv_cache_dtype does not decide them.
    ``state``: of a layer that keeps a state and no rows.
    """

    kind: str
    heads: int
    row: int
    window: int | None = None
    row_bytes: int | None = None
    state: State | None = None

    def heads_on_rank(self, tp: int) -> int:
        """KV heads on one of ``tp`` ranks: copied where ranks outnumber heads."""
        return 1 if self.kind in (MLA, INDEXER) else max(1, self.heads // tp)

    def bytes_per_token(self, tp: int, dtype_bytes: int | Fraction) -> int:
        """Bytes that one token adds on one of ``tp`` ranks; none to a state."""
        if self.state is not None:
            return 0
        row = self.row_bytes if self.row_bytes is not None else int(self.row * dtype_bytes)
        return self.heads_on_rank(tp) * row


def kv_layers(
    name: str, family: Family, read: Reader, layers: int, heads: int, head_dim: int, mla: Mla | None
) -> tuple[tuple[KvLayer, ...], ...]:
    """The caches of each layer, first to last: one, none or two of them."""
    if mla is not None:
        return ((KvLayer(MLA, 1, mla.kv_rank + mla.rope),),) * layers
    full = KvLayer(FULL, heads, 2 * head_dim)
    given = read.config.get("layer_types")
    kinds = None if given is None else _given(given, layers)
    window = _window(name, family, read)
    if window is None:
        if kinds and SLIDING in kinds and read.flag("use_sliding_window", True):
            raise UsageError("config: sliding_window: missing, but layer_types has sliding_attention")
        return ((full,),) * layers
    sliding = KvLayer(SLIDING, heads, 2 * head_dim, window)
    return tuple((sliding if kind == SLIDING else full,) for kind in kinds or _kinds(family, read, layers))


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
