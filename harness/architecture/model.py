"""A Hugging Face config.json of a decoder -> its weights, part by part, and the KV cache of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from harness.architecture import multimodal
from harness.architecture.component import Component, heads_on_rank, padded_vocab
from harness.architecture.compressed import Compressed, compressed, compressed_caches, rotary_shapes
from harness.architecture.cross import cross_cache
from harness.architecture.extras import residual_block
from harness.architecture.families import FAMILIES
from harness.architecture.family import Family
from harness.architecture.indexer import INDEXERS
from harness.architecture.kv_layers import FULL, MLA, STATE, KvLayer
from harness.architecture.layout import Attention, Layout, layout, pattern
from harness.architecture.mixers import MIXERS
from harness.architecture.parts import Mixture, Mla, Sizes, components
from harness.architecture.positions import positions, rotary_dim
from harness.architecture.reader import Reader, show
from harness.architecture.spellings import SPELLINGS
from harness.errors import UsageError, nearest

CLOSED = "closed formulas"
# Keys that make a model something else than a decoder of text; the families that read them are named.
_MIXTURE_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
_OTHER_KINDS = ("text_config", "vision_config")
_OF_SPARSE_ATTENTION, _OF_STATES = ("index_topk",), ("linear_attn_config", "mamba_num_heads", "mamba_n_heads")


@dataclass(frozen=True)
class Architecture:
    """A decoder, and the tower of images or audio around it. Counts.

    ``max_model_len`` is vLLM's derived limit in tokens, ``intermediate`` the width of the dense MLP. ``rotary_shapes``:
    (positions, dims) of each cos/sin cache that vLLM keeps, in float32 where ``rotary_float32`` says so.
    ``encoder_tokens``: positions of an encoder that each request attends to, as many whatever it holds; 0: none.
    ``residual_block``: layers of a block whose output later layers may choose again; 0: each adds to one sum.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_model_len: int
    default_model_len: int
    max_len_key: str
    tied: bool
    gated: bool
    dtype: str
    rotary_shapes: tuple[tuple[int, int], ...]
    rotary_float32: bool
    mla: Mla | None
    compressed: Compressed | None
    mixture: Mixture | None
    layout: Layout
    kv_layers: tuple[tuple[KvLayer, ...], ...]
    components: tuple[Component, ...]
    tower: multimodal.Tower | None = None
    encoder_tokens: int = 0
    residual_block: int = 0
    source: str = CLOSED

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, as transformers counts them: a tied embedding once, no padding."""
        return sum(c.elements * self.copies(c) for c in self.components if c.counted)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token of text meets: of the routed experts only those that it is sent to."""
        tower = (c for c in self.components if c.place in ("tower", "projector") and c.counted)
        seeing = sum(c.elements * c.times for c in tower)
        if self.mixture is None:
            return self.parameters - seeing
        idle = self.mixture.count - self.mixture.used
        routed = sum(c.elements * self.copies(c) for c in self.components if c.kind == "experts" and c.counted)
        return self.parameters - seeing - routed * idle // self.mixture.count

    @property
    def dense_width(self) -> int:
        """Width of the widest MLP that every token passes: dense or shared; 0 where all experts are routed."""
        return max(self.layout.width, self.mixture.shared if self.mixture else 0)

    @cached_property
    def kv_kinds(self) -> dict[KvLayer, tuple[int, ...]]:
        """Each kind of cache, in the order of its first layer, and the layers that keep one of it."""
        alike: dict[int, tuple[tuple[KvLayer, ...], list[int]]] = {}  # most layers keep the very same caches
        for i, caches in enumerate(self.kv_layers):
            alike.setdefault(id(caches), (caches, []))[1].append(i)
        kinds: dict[KvLayer, list[int]] = {}
        for caches, numbers in alike.values():
            for cache in caches:
                kinds.setdefault(cache, []).extend(numbers)
        for numbers in kinds.values():
            numbers.sort()
        return {layer: tuple(members) for layer, members in kinds.items()}

    def copies(self, component: Component, layers: range | None = None) -> int:
        """How often the whole model (or its ``layers``) holds a part of that name."""
        if component.place != "layer":
            return component.times
        held = range(self.layers) if layers is None else layers
        if component.layers is None:
            return len(held)
        return len(component.layers) if len(held) == self.layers else sum(i in held for i in component.layers)

    def stage(self, stage: int, split: Sequence[int]) -> range:
        """The layers of pipeline stage ``stage`` (from 0), of which each has so many as ``split`` says."""
        if len(split) == 1:
            return range(self.layers)
        start = sum(split[:stage])
        return range(start, start + split[stage])

    def check_split(self, tp: int, tower_ranks: int = 1, expert_ranks: int | None = None) -> None:
        """Raises UsageError, in vLLM's own words, where ``tp`` ranks can't share this model.

        ``tower_ranks``: those that share a vision tower; ``expert_ranks``: those that divide each expert, where they
        are not ``tp``.
        """
        if self.heads % tp:
            raise UsageError(
                f"Total number of attention heads ({self.heads}) must be divisible by tensor parallel size ({tp})."
            )
        if self.compressed is not None and self.compressed.groups % tp:
            raise UsageError(f"o_groups: {tp} ranks can't share {self.compressed.groups} groups evenly ({self.name})")
        if any(k.state and k.state.groups > 1 and k.state.groups % tp for k in self.kv_kinds):
            raise UsageError(
                "If tensor parallel world size does not divide num_groups, then num_groups must equal 1. "
                f"({self.name}, {tp} ranks)"
            )
        # In the order in which vLLM builds the model: embedding, attention, MLP.
        pairs = [(padded_vocab(self.vocab), tp)]
        for heads in dict.fromkeys(count for c in self.components for count, _ in c.units):
            pairs.append((max(heads, tp), min(heads, tp)))
        pairs += [(width, tp) for width in self._widths()]
        if self.mixture is not None:
            pairs.append((self.mixture.width, tp if expert_ranks is None else expert_ranks))
        if self.tower is not None and self.tower.heads:
            pairs.insert(0, (self.tower.heads, tower_ranks))
        for whole, part in pairs:
            if whole % part:
                raise UsageError(f"{whole} is not divisible by {part} ({self.name}, {tp} ranks)")

    def _widths(self) -> list[int]:
        widths = [width for width, _ in self.layout.mlps]
        if self.mixture is not None:
            widths.append(self.mixture.shared)
        return [w for w in widths if w]

    def kv_heads_on_rank(self, tp: int) -> int:
        """KV heads that one rank holds: at least one, copied where ranks outnumber heads."""
        return heads_on_rank(self.kv_heads, tp)


def stage_layers(layers: int, stages: int) -> list[int]:
    """Layers of each pipeline stage (``get_pp_indices``, vllm/distributed/utils.py, 0.32)."""
    split = [layers // stages] * stages
    for i in range(2, layers % stages + 2):
        split[-i] += 1
    return split


# -- reading a config ------------------------------------------------------------------------------


def from_config(config: dict[str, Any]) -> Architecture:
    """The architecture that ``config`` (a Hugging Face config.json) describes.

    Raises UsageError for a class that is not in :data:`FAMILIES` and for a key that is missing or absurd.
    """
    wrapped = multimodal.wrapper(config)
    if wrapped is not None:
        inner = from_config(multimodal.text_config(config))
        tower, parts = multimodal.tower(config, inner.hidden)
        return replace(
            inner, name=config["architectures"][0], tower=tower, components=(*inner.components, *parts),
            rotary_shapes=tuple((n * wrapped.position_factor, dims) for n, dims in inner.rotary_shapes),
        )  # fmt: skip
    name = _class_name(config)
    if name not in FAMILIES:
        return _by_transformers(name, config)
    family = FAMILIES[name]
    if family.spelling:
        config = SPELLINGS[family.spelling](config)
    read = Reader(config, dict(family.keys))
    _refuse_variants(name, family, config)
    hidden = read.count("hidden_size")
    described = len(pattern(read)) if family.scheme == "pattern" else None
    layers = read.count("num_hidden_layers", default=described, largest=100_000)
    heads = read.count("num_attention_heads")
    mla = _mla(read) if family.mla else None
    rows = compressed(read, layers) if family.compressed else None
    kv_heads = 1 if mla else _kv_heads(family, read, heads)
    head_dim = mla.nope + mla.rope if mla else _head_dim(read, hidden, heads)
    value_dim = read.count(family.value_dim, default=head_dim) if family.value_dim else head_dim
    usual = Attention((), FULL, heads, kv_heads, head_dim, value_dim)
    plan = layout(name, family, read, layers, hidden, usual)
    mixture = _mixture(family, read, plan.experts, hidden)
    size = Sizes(
        layers, hidden, heads, read.count("vocab_size"), read.flag("tie_word_embeddings", family.tied), mla, rows,
        mixture, plan,
    )  # fmt: skip
    limit, default_len, rotary_positions = positions(name, read)
    shortened = limit < rotary_positions and limit == config.get("max_seq_len")
    len_key = "max_seq_len" if shortened else read.key("max_position_embeddings")
    rotary: tuple[tuple[int, int], ...] = ()
    if rows is not None:
        rotary = rotary_shapes(read, rows, rotary_positions)
    elif family.rotary is not None:
        full = next((g.head_dim for g in plan.attention if g.kind == FULL), head_dim)
        rotary = ((rotary_positions, mla.rope if mla else rotary_dim(read, family.rotary, full)),)
        if family.rotary_local:
            rotary = (*rotary, (read.positions, head_dim))
    return Architecture(
        name=name, layers=layers, hidden=hidden, heads=heads,
        kv_heads=plan.attention[0].kv_heads if plan.attention else kv_heads, head_dim=head_dim,
        intermediate=plan.width, vocab=size.vocab, max_model_len=limit, default_model_len=default_len,
        max_len_key=len_key, tied=size.tied, gated=family.gated, dtype=model_dtype(config),
        rotary_shapes=rotary, rotary_float32=family.rotary_float32, mla=mla, compressed=rows, mixture=mixture,
        layout=plan, kv_layers=_kv_layers(family, read, size), components=tuple(components(family, read, size)),
        encoder_tokens=read.count(family.cross) if family.cross else 0,
        residual_block=residual_block(read) if family.extras == "attention_residuals" else 0,
    )  # fmt: skip


def _kv_layers(family: Family, read: Reader, size: Sizes) -> tuple[tuple[KvLayer, ...], ...]:
    """The caches of each layer, first to last: one, none or two of them."""
    caches: list[tuple[KvLayer, ...]] = [()] * size.layers
    if size.compressed is not None:
        for layers, cache in compressed_caches(read, size.compressed):
            _add(caches, layers, cache)
        return tuple(caches)
    for group in size.layout.attention:
        row = group.head_dim + group.value_dim
        cache = KvLayer(group.kind, group.kv_heads, row, group.window)
        if size.mla:
            cache = KvLayer(MLA, 1, size.mla.kv_rank + size.mla.rope)
        own = (cache,)
        for i in group.layers if group.own_kv else ():
            caches[i] = own
    if family.cross:
        _add(caches, tuple(range(size.layers)), cross_cache(size.heads, size.hidden // size.heads))
    if family.indexer:
        _add(caches, *INDEXERS[family.indexer](read, size.layers))
    if family.mixer:
        state = MIXERS[family.mixer](read, size.hidden)[1]
        state = replace(state, recurrent_dtype=state.recurrent_dtype or _state_dtype(family, read))
        _add(caches, size.layout.states, KvLayer(STATE, 0, 0, state=state))
    return tuple(caches)


def _add(caches: list[tuple[KvLayer, ...]], layers: tuple[int, ...], cache: KvLayer) -> None:
    """One more cache in ``layers``; equal ones stay the same object."""
    added: dict[int, tuple[KvLayer, ...]] = {}
    for i in layers:
        caches[i] = added.setdefault(id(caches[i]), (*caches[i], cache))


def _state_dtype(family: Family, read: Reader) -> str | None:
    """The number type of a recurrent state as the config, or the family, gives it; None: the model's."""
    value = read.config.get(family.state_dtype) if family.state_dtype else None
    value = family.state_dtype_default if value is None else value
    known = ("float32", "float16", "bfloat16")
    if value is not None and value not in known:
        raise UsageError(f"config: {family.state_dtype}: expected one of {', '.join(known)}, got {show(value)}")
    return value


def _class_name(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    if names is None or names == []:
        raise UsageError("config: architectures: missing: the model's class, such as [LlamaForCausalLM]")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UsageError(f"config: architectures: expected a list of class names, got {show(names)}")
    return str(names[0])


def _by_transformers(name: str, config: dict[str, Any]) -> Architecture:
    """A class that no table here has. Raises UsageError where transformers does not have it either."""
    from harness.architecture import by_transformers

    has = by_transformers.known_to_transformers(name, config.get("model_type"))
    if has:
        return by_transformers.read(name, config)
    known = [*FAMILIES, *multimodal.WRAPPERS]
    missing = " (pip install torch transformers, and it is looked for in transformers too)" if has is None else ""
    raise UsageError(
        f"config: architectures: {name[:80]!r} is not supported yet{nearest(name, known)}{missing} "
        f"(known: {', '.join(known)})"
    )


def _refuse_variants(name: str, family: Family, config: dict[str, Any]) -> None:
    """A known class with a switch that changes its parts in a way that is not in the table."""
    for key, value in family.must_be:
        if key in config and config[key] is not value:
            raise UsageError(
                f"config: {key}: {name} with {key}={show(config[key])} is not supported yet (only {show(value)})"
            )
    foreign = (
        *_OTHER_KINDS, *(() if family.indexer or family.compressed else _OF_SPARSE_ATTENTION),
        *(() if family.mixer else _OF_STATES), *(() if family.experts else _MIXTURE_KEYS),
        *(() if family.mla else ("kv_lora_rank",)),
    )  # fmt: skip
    for key in foreign:
        if config.get(key) not in (None, 0):
            raise UsageError(f"config: {key}: {name} with {key} is not supported yet")
    if config.get("position_embedding_type", "absolute") not in ("absolute", "rope"):
        raise UsageError(
            f"config: position_embedding_type: {show(config['position_embedding_type'])} is not supported"
        )
    if name == "OPTForCausalLM" and config.get("word_embed_proj_dim") not in (None, config.get("hidden_size")):
        raise UsageError("config: word_embed_proj_dim: an OPT whose embeddings are projected is not supported yet")


def _kv_heads(family: Family, read: Reader, heads: int) -> int:
    if family.kv_heads == "all":
        return heads
    if family.kv_heads == "multi_query":
        return 1 if read.flag("multi_query", True) else heads
    kv_heads = read.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise UsageError(
            f"config: num_key_value_heads: {heads} attention heads can't share {kv_heads} KV heads evenly"
        )
    return kv_heads


def _head_dim(read: Reader, hidden: int, heads: int) -> int:
    given = read.count("head_dim", default=0)
    if not given and hidden % heads:
        raise UsageError(f"config: hidden_size: {hidden} is not a multiple of num_attention_heads {heads}")
    return given or hidden // heads


def _mla(read: Reader) -> Mla:
    return Mla(
        read.count("q_lora_rank", default=0) or None, read.count("kv_lora_rank"), read.count("qk_nope_head_dim"),
        read.count("qk_rope_head_dim"), read.count("v_head_dim"), read.flag("mla_use_output_gate", False),
    )  # fmt: skip


def _mixture(family: Family, read: Reader, layers: tuple[int, ...], hidden: int) -> Mixture | None:
    keys = family.experts
    if keys is None or (keys.optional and not layers):
        return None
    # transformers 5 saves every family's number of experts under one name.
    renamed = keys.count not in read.config and "num_local_experts" in read.config
    number = "num_local_experts" if renamed else keys.count
    count, used, width = read.count(number), read.count(keys.used), read.count(keys.width)
    if used > count:
        raise UsageError(f"config: {keys.used}: {used} of {count} experts can't be chosen")
    shared = read.count(keys.shared_width, default=0) if keys.shared_width else 0
    if keys.shared_count:
        shared = (shared or width) * read.count(keys.shared_count, default=0)
    taken = read.count(keys.latent, default=hidden) if keys.latent else hidden
    return Mixture(count, used, width, shared, layers, taken, keys.gated)


def model_dtype(config: dict[str, Any]) -> str:
    """The number type that a config states. Raises UsageError for one that is not known."""
    value = config.get("dtype", config.get("torch_dtype"))
    if value is None:
        return "float32"  # as transformers and vLLM read a config that doesn't say
    known = ("float32", "float16", "bfloat16")
    plain = value.removeprefix("torch.") if isinstance(value, str) else value
    if plain not in known:
        raise UsageError(f"config: torch_dtype: expected one of {', '.join(known)}, got {show(value)}")
    return str(plain)
