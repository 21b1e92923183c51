"""A Hugging Face config.json of a dense decoder -> its weights, part by part, and its KV heads.

The parts are shaped as vLLM makes them (q, k and v in one matrix, gate and up in one), because that is
what its allocator sees. What tells the families apart is the table :data:`FAMILIES`; a class that is not
in it is refused, never approximated.
Source of each family's parts: the module of its name in vllm/model_executor/models, 0.32. The counts are
held against transformers' own models by tests/test_architecture.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError, nearest

LARGEST = 10**12  # no count of a config may exceed it
VOCAB_PADDING = 64  # DEFAULT_VOCAB_PADDING_SIZE, vllm/model_executor/layers/vocab_parallel_embedding.py


@dataclass(frozen=True)
class Family:
    """What tells one model class from another. A ``str`` where a bool may stand names the config key."""

    kv_heads: str = "num_key_value_heads"  # or "multi_query" (a flag: one or all), or "all": as many as heads
    layer_norms: int = 2
    norm_bias: bool = False
    norm_weight: bool = True
    gated: bool = True
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    lm_head_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    rotary: float | None = 1.0  # default share of a head that is rotated; None: no rotary embedding
    position_offset: int | None = None  # learned positions: this many rows more than positions
    keys: tuple[tuple[str, str], ...] = ()  # our name -> the family's own config key
    must_be: tuple[tuple[str, Any], ...] = ()  # config keys that have one supported value


_GPT2_KEYS = (
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("max_position_embeddings", "n_positions"),
    ("intermediate_size", "n_inner"),
)

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "MistralForCausalLM": Family(),
    "Qwen2ForCausalLM": Family(qkv_bias=True),
    "Qwen3ForCausalLM": Family(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm=True),
    "GraniteForCausalLM": Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "GemmaForCausalLM": Family(tied=True),
    "Phi3ForCausalLM": Family(),
    "PhiForCausalLM": Family(
        layer_norms=1, norm_bias=True, gated=False, qkv_bias=True, o_bias=True, mlp_bias=True,
        lm_head_bias=True, rotary=0.5, must_be=(("qk_layernorm", False),),
    ),
    "OPTForCausalLM": Family(
        kv_heads="all", norm_bias=True, gated=False, qkv_bias=True, o_bias=True, mlp_bias=True, tied=True,
        rotary=None, position_offset=2, keys=(("intermediate_size", "ffn_dim"),),
        must_be=(
            ("do_layer_norm_before", True), ("enable_bias", True),
            ("layer_norm_elementwise_affine", True), ("_remove_final_layer_norm", False),
        ),
    ),
    "FalconForCausalLM": Family(
        kv_heads="multi_query", layer_norms=1, norm_bias=True, gated=False, tied=True,
        must_be=(
            ("parallel_attn", True), ("new_decoder_architecture", False), ("alibi", False), ("bias", False),
        ),
    ),
    "GPTBigCodeForCausalLM": Family(
        kv_heads="multi_query", norm_bias=True, gated=False, qkv_bias=True, o_bias=True, mlp_bias=True,
        tied=True, rotary=None, position_offset=0, keys=_GPT2_KEYS,
    ),
    "GPTNeoXForCausalLM": Family(
        kv_heads="all", norm_bias=True, gated=False, qkv_bias="attention_bias", o_bias="attention_bias",
        mlp_bias=True, rotary=0.25,
    ),
    "StableLmForCausalLM": Family(
        norm_bias=True, qkv_bias="use_qkv_bias", rotary=0.25,
        must_be=(("qk_layernorm", False), ("use_parallel_residual", False)),
    ),
    "OlmoForCausalLM": Family(norm_weight=False, qkv_bias="attention_bias", o_bias="attention_bias"),
    "Starcoder2ForCausalLM": Family(
        norm_bias=True, gated=False, qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True,
    ),
}  # fmt: skip
# What a bias key means where the config leaves it out (transformers' configuration classes).
_BIAS_DEFAULTS = {"use_bias": True}
_BIAS_DEFAULTS_OF = {("GPTNeoXForCausalLM", "attention_bias"): True}
# Keys that make a model something else than a dense decoder of text.
_OTHER_KINDS = (
    "num_experts", "num_local_experts", "n_routed_experts", "kv_lora_rank", "text_config", "vision_config",
)  # fmt: skip
# A family whose sliding_window counts only where use_sliding_window says so.
_SLIDING_NEEDS_FLAG = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True)
class Component:
    """One tensor of the model, unsplit. ``shape`` counts elements.

    ``split``: how tensor parallelism divides it: "column" (outputs), "row" (inputs), "qkv" (outputs, by
    head, a KV head copied where ranks outnumber heads), "vocab" (rows, padded), "replicated".
    ``place``: "layer" (once a layer), "first", "last" (pipeline stage) or "every" (each stage).
    """

    name: str
    shape: tuple[int, ...]
    split: str
    place: str = "layer"
    quantizable: bool = False

    @property
    def elements(self) -> int:
        """Elements of the unsplit tensor."""
        total = 1
        for n in self.shape:
            total *= n
        return total


@dataclass(frozen=True)
class Architecture:
    """A dense decoder. Counts; ``max_model_len`` is vLLM's derived limit in tokens."""

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
    sliding_window: int | None
    rotary_shape: tuple[int, int] | None  # (positions, dims) of the cos/sin cache that vLLM keeps
    components: tuple[Component, ...]

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, as transformers counts them: a tied embedding once, no padding."""
        return sum(c.elements * (self.layers if c.place == "layer" else 1) for c in self.components)

    def check_split(self, tp: int, pp: int = 1) -> None:
        """Raises UsageError, in vLLM's own words, where ``tp`` x ``pp`` ranks can't share this model."""
        if self.heads % tp:
            raise UsageError(
                f"Total number of attention heads ({self.heads}) must be divisible by "
                f"tensor parallel size ({tp})."
            )
        larger, smaller = max(self.kv_heads, tp), min(self.kv_heads, tp)
        # In the order in which vLLM builds the model: embedding, attention, MLP.
        for whole, part in ((padded_vocab(self.vocab), tp), (larger, smaller), (self.intermediate, tp)):
            if whole % part:
                raise UsageError(f"{whole} is not divisible by {part} ({self.name}, {tp} ranks)")
        if pp > self.layers:
            raise UsageError(f"pipeline_parallel_size {pp} is more than the model's {self.layers} layers")

    def kv_heads_on_rank(self, tp: int) -> int:
        """KV heads that one rank holds: at least one, copied where ranks outnumber heads."""
        return max(1, self.kv_heads // tp)

    def rank_shape(self, component: Component, tp: int) -> tuple[int, ...]:
        """The shape of ``component`` on one of ``tp`` ranks, the vocabulary padded as vLLM pads it."""
        first, *rest = component.shape
        if component.split == "column":
            return (first // tp, *rest)
        if component.split == "row":
            return (first, rest[0] // tp)
        if component.split == "vocab":
            return (padded_vocab(first) // tp, *rest)
        if component.split == "qkv":
            return ((self.heads // tp + 2 * self.kv_heads_on_rank(tp)) * self.head_dim, *rest)
        return component.shape


def padded_vocab(vocab: int) -> int:
    """Rows of the embedding as vLLM pads it (``pad_vocab_size``, vocab_parallel_embedding.py, 0.32)."""
    return -(-vocab // VOCAB_PADDING) * VOCAB_PADDING


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
    name = _class_name(config)
    family = FAMILIES[name]
    read = _Reader(config, dict(family.keys))
    _refuse_variants(name, family, config)
    hidden = read.count("hidden_size")
    layers = read.count("num_hidden_layers", largest=100_000)
    heads = read.count("num_attention_heads")
    kv_heads = _kv_heads(family, read, heads)
    head_dim = _head_dim(read, hidden, heads)
    intermediate = read.count("intermediate_size", default=4 * hidden)
    vocab = read.count("vocab_size")
    tied = read.flag("tie_word_embeddings", family.tied)
    limit, default_len, rotary_positions = _positions(read)
    rotary = None
    if family.rotary is not None:
        rotary = (rotary_positions, _rotary_dim(read, family.rotary, head_dim))
    parts = _components(
        family, read, name, hidden, heads, kv_heads, head_dim, intermediate, vocab, tied, read.positions
    )
    return Architecture(
        name=name, layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        intermediate=intermediate, vocab=vocab, max_model_len=limit, default_model_len=default_len,
        max_len_key=read.key("max_position_embeddings"), tied=tied, gated=family.gated,
        dtype=_dtype(config), sliding_window=_sliding_window(name, read), rotary_shape=rotary,
        components=tuple(parts),
    )  # fmt: skip


def _components(
    family: Family, read: _Reader, name: str, hidden: int, heads: int, kv_heads: int, head_dim: int,
    intermediate: int, vocab: int, tied: bool, positions: int,
) -> Iterator[Component]:  # fmt: skip
    def biased(key: bool | str) -> bool:
        if isinstance(key, bool):
            return key
        return read.flag(key, _BIAS_DEFAULTS_OF.get((name, key), _BIAS_DEFAULTS.get(key, False)))

    qkv, attention = (heads + 2 * kv_heads) * head_dim, heads * head_dim
    first_mlp = ("gate_up_proj", 2 * intermediate) if family.gated else ("up_proj", intermediate)
    yield Component("embed_tokens", (vocab, hidden), "vocab", "first")
    if family.position_offset is not None:
        yield Component(
            "embed_positions", (positions + family.position_offset, hidden), "replicated", "first"
        )
    for layer, out, inner, split, bias in (
        ("qkv_proj", qkv, hidden, "qkv", biased(family.qkv_bias)),
        ("o_proj", hidden, attention, "row", biased(family.o_bias)),
        (*first_mlp, hidden, "column", biased(family.mlp_bias)),
        ("down_proj", hidden, intermediate, "row", biased(family.mlp_bias)),
    ):
        yield Component(f"{layer}.weight", (out, inner), split, quantizable=True)
        if bias:
            # The bias of a row-split layer is added once, after the ranks are summed: each keeps it whole.
            yield Component(f"{layer}.bias", (out,), "replicated" if split == "row" else split)
    yield from _norms(family, hidden, head_dim)
    if not tied:
        yield Component("lm_head.weight", (vocab, hidden), "vocab", "last")
    if family.lm_head_bias:
        yield Component("lm_head.bias", (vocab,), "vocab", "last")


def _norms(family: Family, hidden: int, head_dim: int) -> Iterator[Component]:
    if family.qk_norm:
        yield Component("q_norm.weight", (head_dim,), "replicated")
        yield Component("k_norm.weight", (head_dim,), "replicated")
    if not family.norm_weight:
        return
    tensors = ("weight", "bias") if family.norm_bias else ("weight",)
    for tensor in tensors:
        for i in range(family.layer_norms):
            yield Component(f"norm{i + 1}.{tensor}", (hidden,), "replicated")
        yield Component(f"final_norm.{tensor}", (hidden,), "replicated", "last")


def _class_name(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    if names is None or names == []:
        raise UsageError("config: architectures: missing: the model's class, such as [LlamaForCausalLM]")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UsageError(f"config: architectures: expected a list of class names, got {_show(names)}")
    name = names[0]
    if name not in FAMILIES:
        raise UsageError(
            f"config: architectures: {name[:80]!r} is not supported yet{nearest(name, FAMILIES)} (this "
            "version knows dense decoders; mixtures of experts, MLA, sliding-window hybrids, state-space and "
            f"multimodal models come in a later version; known: {', '.join(FAMILIES)})"
        )
    return str(name)


def _refuse_variants(name: str, family: Family, config: dict[str, Any]) -> None:
    """A known class with a switch that changes its parts in a way that is not in the table."""
    for key, value in family.must_be:
        if key in config and config[key] is not value:
            raise UsageError(
                f"config: {key}: {name} with {key}={_show(config[key])} is not supported yet "
                f"(only {_show(value)})"
            )
    for key in _OTHER_KINDS:
        if config.get(key) not in (None, 0):
            raise UsageError(
                f"config: {key}: {name} with {key} is not supported yet: this version knows dense decoders"
            )
    if config.get("position_embedding_type", "absolute") not in ("absolute", "rope"):
        raise UsageError(
            f"config: position_embedding_type: {_show(config['position_embedding_type'])} is not supported"
        )
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(k != "full_attention" for k in kinds)):
        raise UsageError(
            "config: layer_types: only layers of full_attention are supported yet; hybrids come later"
        )
    if name == "OPTForCausalLM" and config.get("word_embed_proj_dim") not in (
        None,
        config.get("hidden_size"),
    ):
        raise UsageError(
            "config: word_embed_proj_dim: an OPT whose embeddings are projected is not supported yet"
        )


def _kv_heads(family: Family, read: _Reader, heads: int) -> int:
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


def _head_dim(read: _Reader, hidden: int, heads: int) -> int:
    given = read.count("head_dim", default=0)
    if not given and hidden % heads:
        raise UsageError(f"config: hidden_size: {hidden} is not a multiple of num_attention_heads {heads}")
    return given or hidden // heads


def _sliding_window(name: str, read: _Reader) -> int | None:
    window = read.count("sliding_window", default=0)
    used = read.flag("use_sliding_window", name not in _SLIDING_NEEDS_FLAG)
    return window if window and used else None


def _dtype(config: dict[str, Any]) -> str:
    value = config.get("dtype", config.get("torch_dtype"))
    if value is None:
        return "float32"  # as transformers and vLLM read a config that doesn't say
    known = ("float32", "float16", "bfloat16")
    plain = value.removeprefix("torch.") if isinstance(value, str) else value
    if plain not in known:
        raise UsageError(f"config: torch_dtype: expected one of {', '.join(known)}, got {_show(value)}")
    return str(plain)


# -- positions -------------------------------------------------------------------------------------


def _rope(read: _Reader) -> dict[str, Any]:
    for key in ("rope_parameters", "rope_scaling"):
        value = read.config.get(key)
        if value is not None:
            if not isinstance(value, dict):
                raise UsageError(f"config: {key}: expected a mapping or null, got {_show(value)}")
            return value
    return {}


def _positions(read: _Reader) -> tuple[int, int, int]:
    """(longest max_model_len, default max_model_len, rows of the rotary cache).

    Source: ``_get_and_verify_max_len`` (vllm/config/model.py) and ``get_rope``
    (vllm/model_executor/layers/rotary_embedding), 0.32.
    """
    rope, positions = _rope(read), read.positions
    inner = _Reader(rope, {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "llama3", "mrope"):
        return positions, positions, positions
    if kind in ("linear", "dynamic"):
        longer = int(positions * inner.factor())
        return longer, longer, longer
    if kind == "yarn":
        original = inner.count("original_max_position_embeddings", default=positions)
        return positions, positions, int(original * inner.factor())
    if kind in ("longrope", "su"):
        original = read.count(
            "original_max_position_embeddings",
            default=inner.count("original_max_position_embeddings", default=positions),
        )
        # Two tables, for short and for long prompts, in one cache.
        return positions, original, original + positions
    raise UsageError(f"config: rope_scaling: {_show(kind)} is not supported yet")


def _rotary_dim(read: _Reader, default: float, head_dim: int) -> int:
    share = read.config.get("partial_rotary_factor", read.config.get("rotary_pct", default))
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise UsageError(f"config: partial_rotary_factor: expected a share from 0 to 1, got {_show(share)}")
    return int(head_dim * share)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Reader:
    """Typed access to a config whose values may be anything."""

    def __init__(self, config: dict[str, Any], keys: dict[str, str]) -> None:
        self.config = config
        self._keys = keys

    def key(self, name: str) -> str:
        """The family's own name of ``name``."""
        return self._keys.get(name, name)

    @property
    def positions(self) -> int:
        """Positions that the model was trained for."""
        return self.count("max_position_embeddings", largest=10**9)

    def count(self, name: str, default: int | None = None, largest: int = LARGEST) -> int:
        """A whole number of at least 1; ``default`` where the key is missing or null."""
        key = self.key(name)
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise UsageError(f"config: {key}: missing")
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"config: {key}: expected a whole number, got {_show(value)}")
        if not 1 <= value <= largest:
            raise UsageError(f"config: {key}: expected 1 to {largest:,}, got {_show(value)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """true or false; ``default`` where the key is missing or null."""
        value = self.config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise UsageError(f"config: {name}: expected true or false, got {_show(value)}")
        return value

    def factor(self) -> float:
        """The rope factor: a number from 1 to a million."""
        value = self.config.get("factor", 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 10**6:
            raise UsageError(
                f"config: rope_scaling.factor: expected a number of 1 or more, got {_show(value)}"
            )
        return float(value)
