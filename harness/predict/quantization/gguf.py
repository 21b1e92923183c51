"""The file types of GGUF: which tensor llama.cpp puts into which block format, layer by layer.

Source: ``llama_tensor_get_type_impl`` and ``tensor_type_fallback``,
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp, for dense decoders.
Norms and biases stay plain; the embedding and the output are quantized too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from harness import catalog
from harness.architecture import Architecture, Component
from harness.catalog import WeightFormat
from harness.errors import UsageError

Row = tuple[WeightFormat | None, ...]
Rule = Callable[[int, int], str]  # (layer, layers) -> a block format
SUPERBLOCK = 256
# Where a row does not divide into superblocks.
_FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
# Classes whose q, k and v are one tensor in GGUF, or whose rules are others.
_OTHERS = ("Phi3ForCausalLM", "GPT2LMHeadModel", "GPTBigCodeForCausalLM", "GPTNeoXForCausalLM", "FalconForCausalLM")
# Of these, a model of 80 layers is what llama.cpp calls a 70B.
_SEVENTY = ("LlamaForCausalLM", "Qwen2ForCausalLM")


def _more(layer: int, layers: int) -> bool:
    """Whether a layer is among those that the mixes spend more bits on."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _more_in(most: str) -> Rule:
    return lambda i, n: "q6_k" if _more(i, n) else most


def _first(count: Callable[[int], int], then: str) -> Rule:
    """q5_k in the first layers, ``count`` of so many, ``then`` in the others."""
    return lambda i, n: "q5_k" if i < count(n) else then


def _always(name: str) -> Rule:
    return lambda i, n: name


# File type -> (of most tensors, of v, of down, of o); None: as of most.
_MIXES: dict[str, tuple[str, Rule | None, Rule | None, Rule | None]] = {
    "q2_k": ("q2_k", _always("q3_k"), _always("q3_k"), _always("q3_k")),
    "q3_k_s": ("q3_k", None, None, None),
    "q3_k_m": ("q3_k", _first(lambda n: 2, "q4_k"), _first(lambda n: n // 16, "q4_k"), _always("q4_k")),
    "q3_k_l": ("q3_k", _always("q5_k"), _always("q5_k"), _always("q5_k")),
    "q4_k_s": ("q4_k", _first(lambda n: 4, "q4_k"), _first(lambda n: n // 8, "q4_k"), None),
    "q4_k_m": ("q4_k", _more_in("q4_k"), _more_in("q4_k"), None),
    "q5_k_s": ("q5_k", None, None, None),
    "q5_k_m": ("q5_k", _more_in("q5_k"), _more_in("q5_k"), None),
    **{same: (same, None, None, None) for same in ("q4_0", "q4_1", "q5_0", "q5_1", "q6_k", "q8_0")},
}
_MIXES |= {f"q{n}_k": _MIXES[f"q{n}_k_m"] for n in (3, 4, 5)}  # as llama.cpp reads the short name


def formats(file_type: str, architecture: Architecture) -> dict[str, Row]:
    """Part -> its format in each layer, in a file of ``file_type``. Raises UsageError for models with other rules."""
    a = architecture
    if a.mixture is not None or a.mla is not None or a.name in _OTHERS or any(c.place == "tower" for c in a.components):
        raise UsageError(
            f"weights.format gguf-{file_type}: llama.cpp's mixes are known here for dense decoders with q, k and v of "
            f"their own, not for {a.name}"
        )
    most, value, down, out = _MIXES[file_type]
    found: dict[str, Row] = {}
    for c in a.components:
        base = c.name.removesuffix(".weight")
        rule = {"down_proj": down, "o_proj": out}.get(base)
        if base == "embed_tokens":
            found[c.name] = (_blocks(_output(most) if a.tied else most, c),)
        elif c.kind == "lm_head" and base == "lm_head":
            found[c.name] = (_blocks(_output(most), c),)
        elif base == "qkv_proj" and c.quantizable:
            found[c.name] = tuple(
                replace(_blocks(most, c), values=_blocks(_value(file_type, value, most, i, a), c).name)
                for i in range(a.layers)
            )
        elif c.quantizable:
            found[c.name] = tuple(_blocks(rule(i, a.layers) if rule else most, c) for i in range(a.layers))
    return found


def _output(most: str) -> str:
    return "q8_0" if most == "q8_0" else "q6_k"


def _value(file_type: str, rule: Rule | None, most: str, layer: int, a: Architecture) -> str:
    name = rule(layer, a.layers) if rule else most
    if file_type == "q2_k" and a.heads // a.kv_heads >= 4:
        name = "q4_k"
    if a.name in _SEVENTY and a.layers == 80 and name in ("q3_k", "q4_k"):
        name = "q5_k"
    return name


def _blocks(name: str, component: Component) -> WeightFormat:
    if name in _FALLBACK and component.shape[-1] % SUPERBLOCK:
        name = _FALLBACK[name]
    return catalog.weight_format(f"gguf-{name}")
