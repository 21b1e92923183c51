"""Configs that say in a way of their own what the tables of families read under one name.

Source: the class's own reading of its config, in the module of that class (vLLM 0.32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.architecture.reader import Reader, show
from harness.errors import UsageError

_OTHER = "attention_other_setting"


def step(config: dict[str, Any]) -> dict[str, Any]:
    """Step 3.5: numbers of layers as text, lists that go on for MTP layers, heads of sliding layers in a mapping.

    step3p5.py: ``Step3p5DecoderLayer``, and ``Step3p5Config`` of vllm/transformers_utils/configs.
    """
    read = Reader(config, {})
    layers = read.count("num_hidden_layers", largest=100_000)
    types = _listed(config, "layer_types", layers)
    if types is None:  # a window on every other layer, with the heads of the others
        types = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    flat: dict[str, Any] = {"layer_types": types, "max_seq_len": read.count("max_seq_len", default=4096)}
    if config.get("share_expert_dim") is None:
        flat["share_expert_dim"] = read.count("moe_intermediate_size") * read.count("moe_top_k")
    flat["partial_rotary_factor"] = _rotated(_listed(config, "partial_rotary_factors", layers), types)
    flat["moe_layers_enum"] = numbers(config.get("moe_layers_enum"), layers)
    if config.get(_OTHER):
        other = read.inner(_OTHER)
        if other.config.get("attention_type") != "sliding_attention":
            raise UsageError(
                f"config: {_OTHER}.attention_type: expected 'sliding_attention', got "
                f"{show(other.config.get('attention_type'))}"
            )
        for key in ("num_attention_heads", "num_attention_groups", "head_dim"):
            flat[f"swa_{key}"] = other.count(key)
    return {**config, **flat}


def _listed(config: dict[str, Any], key: str, layers: int) -> list[Any] | None:
    """One entry a layer; those behind belong to MTP layers."""
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) < layers:
        raise UsageError(f"config: {key}: expected a list of {layers}, one a layer, got {show(value)}")
    return value[:layers]


def _rotated(shares: list[Any] | None, types: list[Any]) -> Any:
    """The share of a head that full layers rotate; sliding ones rotate all of it."""
    if shares is None:
        return 1.0
    full, sliding = ({s for s, kind in zip(shares, types, strict=True) if (kind == "full_attention") == f}
                     for f in (True, False))  # fmt: skip
    if len(full) > 1 or not sliding <= {1}:
        raise UsageError(
            "config: partial_rotary_factors: only one share for full layers and 1.0 for others is modelled"
        )
    return next(iter(full), 1.0)


def numbers(value: Any, layers: int) -> list[int]:
    """The layers with experts, ``"3,4,5"``; all but the first where the config doesn't say."""
    if value is None:
        return list(range(1, layers))
    try:
        words = value.split(",") if isinstance(value, str) else list(value)
        return [int(word) for word in words]
    except (TypeError, ValueError):
        raise UsageError(f"config: moe_layers_enum: expected numbers of layers, got {show(value)}") from None


def minimax_m3(config: dict[str, Any]) -> dict[str, Any]:
    """MiniMax M3: the indexer's numbers in a mapping of their own, as many heads as KV heads and as wide.

    ``MinimaxM3QKVParallelLinearWithIndexer`` of vllm/model_executor/layers/linear.py.
    """
    read = Reader(config, {})
    sparse = read.inner("sparse_attention_config")
    flat = {
        "index_n_heads": sparse.count("sparse_num_index_heads"), "index_head_dim": sparse.count("sparse_index_dim"),
        "index_layers": sparse.config.get("sparse_attention_freq"),
    }  # fmt: skip
    for key, ours, theirs in (
        ("sparse_num_index_heads", "index_n_heads", "num_key_value_heads"),
        ("sparse_index_dim", "index_head_dim", "head_dim"),
    ):
        if flat[ours] != read.count(theirs):
            raise UsageError(
                f"config: sparse_attention_config.{key}: expected {theirs} ({read.count(theirs)}), got {flat[ours]}"
            )
    if not isinstance(config.get("moe_layer_freq"), list):
        raise UsageError(f"config: moe_layer_freq: expected a list, got {show(config.get('moe_layer_freq'))}")
    return {**config, **flat}


def ernie(config: dict[str, Any]) -> dict[str, Any]:
    """ERNIE 4.5: the first and the last layer with experts, and every how many (``Ernie4_5_MoeDecoderLayer``)."""
    read = Reader(config, {})
    layers, every = read.count("num_hidden_layers", largest=100_000), read.count("moe_layer_interval", default=1)
    last = config.get("moe_layer_end_index")
    if last is not None and (isinstance(last, bool) or not isinstance(last, int)):
        raise UsageError(f"config: moe_layer_end_index: expected a whole number, got {show(last)}")
    end = layers - 1 if last in (None, -1) else min(last, layers - 1)
    start = read.number("moe_layer_start_index", 1)
    return {**config, "moe_layers_enum": [i for i in range(start, end + 1) if (i + 1) % every == 0]}


SPELLINGS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "step": step, "minimax_m3": minimax_m3, "ernie": ernie,
}  # fmt: skip
