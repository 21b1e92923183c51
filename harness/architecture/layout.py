"""What each layer of a decoder does: attention of one kind or another, a state, an MLP, experts.

Source: the model classes of vllm/model_executor/models, 0.32, each named where it decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.architecture.family import Experts, Family
from harness.architecture.kv_layers import CHUNKED, FULL, SLIDING, STATE
from harness.architecture.reader import Reader, show
from harness.errors import UsageError

BOTH, MLP, EXPERTS = "full and state", "mlp", "experts"  # beside the kinds of a cache
CHOSEN = "chosen blocks"  # full attention that looks at the blocks which an indexer of the layer's own chooses
_TYPES = {
    "full_attention": FULL, "attention": FULL, "deepseek_sparse_attention": FULL, "sliding_attention": SLIDING,
    "chunked_attention": CHUNKED,
    "linear_attention": STATE, "mamba": STATE,
    "conv": STATE,
}  # fmt: skip
# A family whose sliding_window counts only where use_sliding_window says so.
_NEEDS_FLAG = ("Qwen2ForCausalLM", "MiMoForCausalLM", "Qwen3ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")


@dataclass(frozen=True)
class Attention:
    """Layers whose attention is alike. Counts, elements, tokens.

    ``own_kv``: False where the keys and values are another layer's; ``values``: False where a key serves as value;
    ``index``: (heads, elements of one) of an indexer's queries, made with q, k and v, as is its one key.
    """

    layers: tuple[int, ...]
    kind: str
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    own_kv: bool = True
    values: bool = True
    index: tuple[int, int] | None = None

    @property
    def query_and_kv(self) -> tuple[tuple[int, int], ...]:
        """(heads, elements of one) of q, k and v, as far as these layers make them."""
        q, k, v = (self.heads, self.head_dim), (self.kv_heads, self.head_dim), (self.kv_heads, self.value_dim)
        index = (self.index, (1, self.index[1])) if self.index else ()
        return (q, k, v, *index) if self.own_kv else (q,)


@dataclass(frozen=True)
class Layout:
    """Which layers have what."""

    attention: tuple[Attention, ...]
    states: tuple[int, ...]
    mlps: tuple[tuple[int, tuple[int, ...]], ...]  # each width of a dense MLP, and the layers that have such a one
    experts: tuple[int, ...]

    @property
    def width(self) -> int:
        """Width of the widest dense MLP; 0 where there is none."""
        return max((width for width, _ in self.mlps), default=0)


def layout(name: str, family: Family, read: Reader, layers: int, hidden: int, attention: Attention) -> Layout:
    """The layers of a decoder; ``attention``: the family's usual one, of no layers yet."""
    if family.scheme == "blocks":
        return _blocks(read, layers, hidden, attention)
    kinds = _SCHEMES[family.scheme](name, family, read, layers)
    experts = _expert_layers(family, read, layers)
    beside = family.experts is not None and family.experts.beside
    dense = [i for i in range(layers) if beside or i not in set(experts)]
    if family.alone:
        experts = [i for i, kind in enumerate(kinds) if kind == EXPERTS]
        dense = [i for i, kind in enumerate(kinds) if kind == MLP]
    window = _window(name, family, read)
    if SLIDING in kinds and window is None:
        if read.flag("use_sliding_window", True):
            raise UsageError("config: sliding_window: missing, but layer_types has sliding_attention")
        kinds = [FULL if k == SLIDING else k for k in kinds]
    return Layout(
        tuple(_groups(family, read, kinds, window, attention)),
        tuple(i for i, kind in enumerate(kinds) if kind in (STATE, BOTH)),
        _mlps(family, read, dense, layers, hidden), tuple(experts),
    )  # fmt: skip


def _mlps(
    family: Family, read: Reader, dense: list[int], layers: int, hidden: int
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    if not dense:
        return ()
    given = read.config.get(read.key("intermediate_size"))
    if isinstance(given, list):
        if len(given) != layers or not all(isinstance(n, int) and n > 0 for n in given):
            raise UsageError(f"config: intermediate_size: expected {layers} numbers, one a layer, got {show(given)}")
        widths = {i: given[i] for i in dense}
    else:
        width = read.count("intermediate_size", default=family.mlp_multiple * hidden or None)
        double = layers - _wide(family, read)
        widths = {i: width * (2 if i >= double else 1) for i in dense}
    return by_width(widths)


def by_width(widths: dict[int, int]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Each width of ``widths`` (layer: width), and the layers that have it."""
    return tuple((w, tuple(i for i, n in widths.items() if n == w)) for w in dict.fromkeys(widths.values()))


def _blocks(read: Reader, layers: int, hidden: int, usual: Attention) -> Layout:
    """``block_configs``: each layer with KV heads and a width of its own, or without one of them (nemotron_nas.py)."""
    blocks = read.config.get("block_configs")
    if not isinstance(blocks, list) or len(blocks) != layers or not all(isinstance(b, dict) for b in blocks):
        raise UsageError(f"config: block_configs: expected a list of {layers} mappings, one a layer")
    heads: dict[int, list[int]] = {}
    widths: dict[int, int] = {}
    for i, block in enumerate(blocks):
        for part in ("attention", "ffn"):
            inner = Reader(block, {}, f"block_configs[{i}].").inner(part)
            if any(inner.config.get(key) for key in ("replace_with_linear", "window_length", "sparsify")):
                raise UsageError(f"config: block_configs[{i}].{part}: vLLM 0.32 makes plain layers or none alone")
            if inner.flag("no_op", False):
                continue
            if part == "attention":
                heads.setdefault(usual.heads // inner.count("n_heads_in_group"), []).append(i)
            else:
                widths[i] = _ffn_width(inner, hidden)
    groups = (replace(usual, kv_heads=n, layers=tuple(where)) for n, where in heads.items())
    return Layout(tuple(groups), (), by_width(widths), ())


def _ffn_width(ffn: Reader, hidden: int) -> int:
    if ffn.config.get("ffn_mult") is None:
        return ffn.count("intermediate_size")
    times = ffn.config["ffn_mult"]
    if isinstance(times, bool) or not isinstance(times, (int, float)) or not 0 < times < 1000:
        raise UsageError(f"config: {ffn.within}ffn_mult: expected a number above 0, got {show(times)}")
    return -(-int(2 * times * hidden / 3) // 256) * 256


# -- the kind of each layer ------------------------------------------------------------------------


def _by_window(name: str, family: Family, read: Reader, layers: int) -> list[str]:
    """``layer_types`` where there is one, else the family's own pattern, else all alike."""
    given = read.config.get("layer_types")
    if given is not None:
        return _given(given, layers, (FULL, SLIDING))
    if _window(name, family, read) is None:
        return [FULL] * layers
    if family.pattern is None:
        if 0 < read.count("max_window_layers", default=layers + 1) < layers:
            raise UsageError("config: max_window_layers: vLLM refuses a window on some layers but not on all of them")
        return [SLIDING] * layers
    return _every(read, "sliding_window_pattern", family.pattern, layers, SLIDING)


def _by_types(_: str, family: Family, read: Reader, layers: int) -> list[str]:
    """``layer_types``, states among them; without it every so-many-th layer is full."""
    given = read.config.get(read.key("layer_types"))
    if given is not None:
        return _given(given, layers, (FULL, STATE))
    return _every(read, "full_attention_interval", family.pattern or 1, layers, STATE)


_ALONE = {"M": STATE, "*": FULL, "-": MLP, "E": EXPERTS}
_ALONE_TYPES = {
    "mamba": STATE, "linear_attention": STATE, "attention": FULL, "full_attention": FULL, "mlp": MLP, "moe": EXPERTS
}  # fmt: skip


def pattern(read: Reader) -> list[str]:
    """What each layer of a Nemotron-H is (nemotron_h.py): a list of names, or one letter a layer."""
    for key, kinds in (("layers_block_type", _ALONE_TYPES), ("hybrid_override_pattern", _ALONE)):
        given = read.config.get(key)
        if given is not None:
            words = list(given) if isinstance(given, (str, list)) else []
            found = [kinds.get(word) for word in words if isinstance(word, str)]
            if not words or len(found) < len(words) or None in found:
                raise UsageError(f"config: {key}: expected one of {', '.join(kinds)} for each layer, got {show(given)}")
            return [kind for kind in found if kind]
    raise UsageError("config: hybrid_override_pattern: missing")


def _by_pattern(_: str, __: Family, read: Reader, layers: int) -> list[str]:
    found = pattern(read)
    if len(found) != layers:
        raise UsageError(f"config: num_hidden_layers: {layers}, but {len(found)} layers are described")
    return found


def _by_offset(_: str, __: Family, read: Reader, layers: int) -> list[str]:
    """Attention at one place of a period (jamba.py)."""
    period, offset = read.count("attn_layer_period", default=8), read.number("attn_layer_offset", 4)
    return [FULL if i % period == offset else STATE for i in range(layers)]


def _by_indices(_: str, __: Family, read: Reader, layers: int) -> list[str]:
    """The numbers of the layers with attention (bamba.py)."""
    full = layer_list(read, "attn_layer_indices")
    return [FULL if i in full else STATE for i in range(layers)]


def _by_flags(_: str, family: Family, read: Reader, layers: int) -> list[str]:
    """A list of 0 and 1, one a layer: what 0 and 1 mean is the family's (minimax_text_01.py, mimo_v2_flash.py)."""
    zero, one = family.flag_kinds
    return [one if flag else zero for flag in flag_list(read, read.key("layer_flags"), layers)]


def _by_chunks(_: str, __: Family, read: Reader, layers: int) -> list[str]:
    """Chunks where positions are rotated, all tokens where they are not (llama4.py)."""
    given = read.config.get("no_rope_layers")
    rotated = flag_list(read, "no_rope_layers", layers) if given else [int((i + 1) % 4 != 0) for i in range(layers)]
    chunk = read.count("attention_chunk_size", default=0)
    return [CHUNKED if chunk and flag else FULL for flag in rotated]


def _by_numbers(_: str, __: Family, read: Reader, layers: int) -> list[str]:
    """The numbers, from 1, of the layers with a state (kimi_linear.py)."""
    states = layer_list(read.inner("linear_attn_config"), "kda_layers")
    return [STATE if i + 1 in states else FULL for i in range(layers)]


def _by_blocks(_: str, __: Family, read: Reader, layers: int) -> list[str]:
    """Which layers have an indexer (minimax_m3)."""
    return [CHOSEN if flag else FULL for flag in flag_list(read, "index_layers", layers)]


def _all_both(_: str, __: Family, ___: Reader, layers: int) -> list[str]:
    return [BOTH] * layers


_SCHEMES: dict[str, Callable[[str, Family, Reader, int], list[str]]] = {
    "window": _by_window, "types": _by_types, "pattern": _by_pattern, "offset": _by_offset, "indices": _by_indices,
    "flags": _by_flags, "chunks": _by_chunks, "kda": _by_numbers, "both": _all_both,
    "blocks_of_keys": _by_blocks,
}  # fmt: skip


def _every(read: Reader, key: str, default: int, layers: int, other: str) -> list[str]:
    every = read.count(key, default=default)
    return [FULL if (i + 1) % every == 0 else other for i in range(layers)]


def _given(kinds: object, layers: int, known: tuple[str, ...]) -> list[str]:
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise UsageError(f"config: layer_types: expected a list of {layers} names, one a layer")
    words = [word for word, kind in _TYPES.items() if kind in known]
    for kind in kinds:
        if not isinstance(kind, str) or kind not in words:
            raise UsageError(f"config: layer_types: {show(kind)} is not supported yet (known: {', '.join(words)})")
    return [_TYPES[k] for k in kinds]


def _window(name: str, family: Family, read: Reader) -> int | None:
    window = read.count("sliding_window", default=0)
    used = read.flag("use_sliding_window", name not in _NEEDS_FLAG)
    return window + family.window_extra if window and used else None


def _wide(family: Family, read: Reader) -> int:
    """How many layers, the last ones, have an MLP twice as wide."""
    wide = family.wide_when_shared is not None and read.flag(family.wide_when_shared, False)
    return read.number("num_kv_shared_layers", 0) if wide else 0


# -- layers whose attention is alike ---------------------------------------------------------------


def _groups(
    family: Family, read: Reader, kinds: list[str], window: int | None, usual: Attention
) -> list[Attention]:
    alike: dict[tuple[str, bool], list[int]] = {}
    own = len(kinds) - read.number("num_kv_shared_layers", 0)  # the layers from here on read another one's cache
    for i, kind in enumerate(kinds):
        if kind not in (STATE, MLP, EXPERTS):
            alike.setdefault((FULL if kind == BOTH else kind, i < own), []).append(i)
    found: dict[Attention, list[int]] = {}
    for (kind, own_kv), numbers in alike.items():
        found.setdefault(_alike(family, read, kind, own_kv, window, usual), []).extend(numbers)
    return [replace(group, layers=tuple(sorted(numbers))) for group, numbers in found.items()]


def _alike(
    family: Family, read: Reader, kind: str, own_kv: bool, window: int | None, usual: Attention
) -> Attention:
    """The attention of the layers of one kind, of no layers yet."""
    windows = {SLIDING: window, CHUNKED: read.count("attention_chunk_size", default=0)}
    key_is_value = family.key_is_value is not None and read.flag(family.key_is_value, False)
    keys = dict(family.sliding_keys if kind == SLIDING else family.full_keys)
    if family.key_is_value and not key_is_value:
        keys.pop("kv_heads", None)
    heads, kv_heads, head_dim, value_dim = (
        read.count(keys[name], default=default) if name in keys else default
        for name, default in (
            ("heads", usual.heads), ("kv_heads", usual.kv_heads), ("head_dim", usual.head_dim),
            ("value_dim", usual.value_dim),
        )
    )  # fmt: skip
    values = not (key_is_value and kind == FULL)
    index = (read.count("index_n_heads"), read.count("index_head_dim")) if kind == CHOSEN else None
    kind = FULL if kind == CHOSEN else kind
    return Attention((), kind, heads, kv_heads, head_dim, value_dim, windows.get(kind), own_kv, values, index)


# -- experts ---------------------------------------------------------------------------------------


def _expert_layers(family: Family, read: Reader, layers: int) -> list[int]:
    keys = family.experts
    if keys is None or (keys.switch and not read.flag(keys.switch, False)):
        return []
    if keys.optional and read.number(keys.count, 0) == 0:
        return []
    if keys.flags and isinstance(read.config.get(keys.flags), list):
        return [i for i, flag in enumerate(flag_list(read, keys.flags, layers)) if flag]
    if keys.listed:
        return [i for i in layer_list(read, keys.listed) if 0 <= i < layers]
    first = read.number(keys.first_dense, 0) if keys.first_dense else 0
    every = read.count(keys.every, default=1) if keys.every else 1
    dense = layer_list(read, keys.dense_layers) if keys.dense_layers else []
    return [i for i in range(first, layers) if i % every == _offset(keys, read, every) and i not in dense]


def _offset(keys: Experts, read: Reader, every: int) -> int:
    """DeepSeek counts every-th layers from 0, Qwen from 1; Jamba's config says from where."""
    if keys.offset:
        return read.number(keys.offset, 1) % every
    return 0 if keys.first_dense else every - 1


def layer_list(read: Reader, key: str) -> list[int]:
    """A list of layer numbers; empty where it is missing."""
    value = read.config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(i, int) for i in value):
        raise UsageError(f"config: {key}: expected a list of layer numbers, got {show(value)}")
    return value


def flag_list(read: Reader, key: str, layers: int) -> list[int]:
    """A list of 0 and 1, one a layer."""
    value = read.config.get(key)
    if not isinstance(value, list) or len(value) < layers or not all(i in (0, 1) for i in value):
        raise UsageError(f"config: {key}: expected a list of {layers} numbers, each 0 or 1, got {show(value)}")
    return value[:layers]
