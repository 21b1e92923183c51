"""compressed-tensors and ModelOpt: formats by group of modules, with a list of what is left out."""

from __future__ import annotations

from typing import Any

from harness import catalog
from harness.architecture.reader import Reader, show
from harness.catalog import WeightFormat
from harness.errors import UsageError
from harness.predict.quantization.modules import Modules, globs, names_or_regexes
from harness.predict.quantization.scheme import KEY, Scheme, names, one_of

Rule = tuple[Modules, WeightFormat | None]
_KIMI_K3 = "KimiK3ForConditionalGeneration"
# quant_algo of ModelOpt -> the format (``LINEAR_ALGOS``, modelopt.py, 0.32).
_ALGOS = {
    "FP8": "fp8-tensor", "FP8_PER_CHANNEL_PER_TOKEN": "fp8", "FP8_PB_WO": "fp8-block", "FP8_BLOCK_SCALES": "fp8-block",
    "NVFP4": "nvfp4", "W4A16_NVFP4": "nvfp4", "MXFP8": "mxfp8",
}  # fmt: skip


# -- compressed-tensors ----------------------------------------------------------------------------


def compressed_tensors(read: Reader, config: dict[str, Any]) -> Scheme:
    """Source: ``CompressedTensorsConfig``, vllm/.../compressed_tensors/compressed_tensors.py, 0.32.

    Of Kimi K3 vLLM reads the packed experts alone (``KimiK3ForConditionalGenerationConfig``, models/config.py).
    """
    if _KIMI_K3 in (config.get("architectures") or ()) and read.config.get("format") == "mxfp4-pack-quantized":
        return Scheme("mxfp4", catalog.weight_format("mxfp4-pack"), only="experts")
    ignored = names(read, "ignore")
    rules: list[Rule] = [(names_or_regexes(ignored, f"{KEY}.ignore"), None)]
    default, patterns = None, list(ignored)
    for key, group in _groups(read).items():
        where = f"{KEY}.config_groups.{key}."
        targets = names(Reader(group, {}, where), "targets") or ["Linear"]
        if len(targets) == 1 and targets[0].endswith("Attention"):
            continue  # it is the cache's, and vLLM reads that elsewhere
        weights = group.get("weights")
        if not isinstance(weights, dict):
            raise UsageError(f"config: {where}weights: expected a mapping, got {show(weights)}")
        packing = str(group.get("format") or read.config.get("format") or "")
        found = _weights_format(Reader(weights, {}, f"{where}weights."), packing)
        named = [t for t in targets if t.startswith("re:") or "." in t or t == "lm_head"]
        if named:
            rules.append((names_or_regexes(named, f"{where}targets"), found))
            patterns += named
        if len(named) < len(targets):
            default = found
    scheme = read.config.get("kv_cache_scheme")
    return Scheme(
        "compressed-tensors", default, tuple(rules), tuple(patterns), kv_cache_dtype="fp8" if scheme else None
    )


def _groups(read: Reader) -> dict[str, dict[str, Any]]:
    groups = read.config.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(g, dict) for g in groups.values()):
        raise UsageError(f"config: {KEY}.config_groups: expected a mapping of groups, got {show(groups)}")
    return groups


def _weights_format(read: Reader, packing: str) -> WeightFormat:
    """What ``QuantizationArgs`` mean for the layout: bits, type, strategy, group, symmetry."""
    bits = one_of(read, "num_bits", (4, 8))
    kind = one_of(read, "type", ("int", "float"), "int")
    size = read.config.get("group_size")
    if read.flag("dynamic", False):
        raise UsageError("config: " + read.within + "dynamic: expected false: weights are quantized once")
    plain = "tensor" if size is None else "channel" if size == -1 else "group"
    known = ("tensor", "channel", "group", "block", "tensor_group")
    strategy = one_of(read, "strategy", known, plain) if read.config.get("strategy") else plain
    if kind == "float":
        return catalog.weight_format(_float(read, bits, strategy, size))
    if "pack" not in packing and bits == 8:
        return catalog.weight_format("int8-tensor" if strategy == "tensor" else "int8")
    base = f"int{bits}-pack" if bits == 8 else "int4" if read.flag("symmetric", True) else "int4-asym"
    if strategy == "channel":
        return catalog.weight_format(f"{base}-channel")
    return catalog.weight_format(f"{base}-g{read.count('group_size', largest=4096)}")


def _float(read: Reader, bits: int, strategy: str, size: Any) -> str:
    if bits == 4:
        return {16: "nvfp4", 32: "mxfp4-pack"}[one_of(read, "group_size", (16, 32))]
    if strategy == "group":
        one_of(read, "group_size", (32,))
        return "mxfp8"
    if strategy == "block" and read.config.get("block_structure") != [128, 128]:
        raise UsageError(
            f"config: {read.within}block_structure: expected [128, 128], got {show(read.config.get('block_structure'))}"
        )
    return {"tensor": "fp8-tensor", "channel": "fp8", "block": "fp8-block"}[strategy]


# -- ModelOpt --------------------------------------------------------------------------------------


def modelopt(read: Reader, config: dict[str, Any]) -> Scheme:
    """Both of its shapes: hf_quant_config.json's ``quantization``, and a quantization_config of its own.

    Source: ``ModelOptQuantConfigBase`` and ``ModelOptMixedPrecisionConfig``, vllm/.../modelopt.py, 0.32. What it
    quantizes it quantizes in the lm_head too, unless that is excluded.
    """
    inner = read.config.get("quantization")
    if isinstance(inner, dict):
        read = Reader(inner, {}, f"{KEY}.quantization.")
    excluded = names(read, "exclude_modules", "ignore")
    rules: list[Rule] = [(globs(excluded), None)]
    algo = _algo(read, read.config.get("quant_algo"))
    default = None
    patterns = list(excluded)
    if algo == "MIXED_PRECISION":
        rules += _layers(read)
        patterns += list(read.config["quantized_layers"])
    else:
        default = _sized(read, algo)
    return Scheme("modelopt", default, tuple(rules), tuple(patterns), lm_head=True, kv_cache_dtype=_kv_dtype(read))


def _algo(read: Reader, value: Any) -> str:
    algo = value.upper() if isinstance(value, str) else value
    known = (*_ALGOS, "MIXED_PRECISION")
    if algo not in known:
        raise UsageError(f"config: {read.within}quant_algo: expected one of {', '.join(known)}, got {show(value)}")
    return str(algo)


def _sized(read: Reader, algo: str) -> WeightFormat:
    if _ALGOS[algo] == "nvfp4" and read.config.get("group_size") is not None:
        one_of(read, "group_size", (16,))
    return catalog.weight_format(_ALGOS[algo])


def _layers(read: Reader) -> list[Rule]:
    """The format of each module in ``quantized_layers``; experts not among them have that of what lies beside them."""
    layers = read.config.get("quantized_layers")
    if not isinstance(layers, dict) or not layers or not all(isinstance(v, dict) for v in layers.values()):
        raise UsageError(f"config: {read.within}quantized_layers: expected a mapping of modules, got {show(layers)}")
    stated: dict[str, WeightFormat] = {}
    beside: dict[str, WeightFormat] = {}
    for name, recipe in layers.items():
        inner = Reader(recipe, {}, f"{read.within}quantized_layers.{name[:80]}.")
        algo = _algo(inner, recipe.get("quant_algo"))
        if algo == "MIXED_PRECISION":
            raise UsageError(f"config: {inner.within}quant_algo: expected that of one layer, got {algo}")
        found = _sized(inner, algo)
        stated[name] = found
        above = name.split(".")
        for depth in range(1, len(above)):
            if not above[depth - 1].isdigit():  # a block of a layer, and not the layer
                beside.setdefault(".".join([*above[:depth], "experts"]), found)
            if above[depth] == "experts":
                stated.setdefault(".".join(above[: depth + 1]), found)
    return [*_by_format(stated), *_by_format(beside)]


def _by_format(modules: dict[str, WeightFormat]) -> list[Rule]:
    return [(Modules(frozenset(n for n in modules if modules[n] == f)), f) for f in dict.fromkeys(modules.values())]


def _kv_dtype(read: Reader) -> str | None:
    """Source: ``get_kv_cache_quant_algo_string``, vllm/utils/torch_utils.py, 0.32."""
    found = read.config.get("kv_cache_scheme") or read.config.get("kv_cache_quant_algo")
    if isinstance(found, dict):
        if found.get("type") == "float" and found.get("num_bits") == 8 and found.get("dynamic") is False:
            return "fp8"
        return "nvfp4" if found.get("type") == "float" and found.get("num_bits") == 4 else None
    return {"fp8": "fp8", "fp8_e4m3": "fp8", "nvfp4": "nvfp4"}.get(str(found).lower())


def mxfp8(read: Reader, config: dict[str, Any]) -> Scheme:
    """Checkpoints that name the format as the method; read as ModelOpt's (``ModelOptMxFp8Config``)."""
    ignored = names(read, "ignored_layers")
    rules: tuple[Rule, ...] = ((globs(ignored), None),)
    return Scheme("mxfp8", catalog.weight_format("mxfp8"), rules, tuple(ignored), lm_head=True)
