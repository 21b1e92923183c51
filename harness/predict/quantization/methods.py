"""A checkpoint's ``quantization_config`` -> which modules are quantized, each to which format, and the KV cache.

One function a method, as vLLM 0.32 reads it (vllm/model_executor/layers/quantization). A method or a layout that is
not known is refused at its key, never taken for another.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from harness import catalog
from harness.architecture.reader import Reader, show
from harness.catalog import WeightFormat
from harness.errors import UsageError, nearest
from harness.predict.quantization.groups import compressed_tensors, modelopt, mxfp8
from harness.predict.quantization.modules import Modules, exact, parts_of_names, regex
from harness.predict.quantization.scheme import KEY, Scheme, grouped, names, one_of

# Known to vLLM 0.32, not read here.
_ELSEWHERE = ("quark", "torchao", "inc", "auto-round", "humming", "fp_quant", "hqq", "aqlm", "quanto")


def of_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """The quantization that ``config`` states, at its own level or at its text model's. Raises UsageError."""
    inner = config.get("text_config")
    for where in (config, inner if isinstance(inner, dict) else {}):
        for key in (KEY, "compression_config"):
            found = where.get(key)
            if found is not None and not isinstance(found, dict):
                raise UsageError(f"config: {key}: expected a mapping, got {type(found).__name__}")
            if found:
                return found
    return None


def read_scheme(quantization: dict[str, Any], config: dict[str, Any]) -> Scheme:
    """What ``quantization``, a quantization_config of ``config``, says. Raises UsageError."""
    method = _method(quantization)
    if method not in METHODS:
        reason = "is not read by this version" if method in _ELSEWHERE else f"is not known{nearest(method, METHODS)}"
        raise UsageError(
            f"config: {KEY}.quant_method: {show(method)} {reason} (known: {', '.join(METHODS)}); "
            "say weights.format to choose a format"
        )
    return METHODS[method](Reader(quantization, {}, f"{KEY}."), config)


def _method(quantization: dict[str, Any]) -> str:
    producer, inner = quantization.get("producer"), quantization.get("quantization")
    made_by = producer.get("name") if isinstance(producer, dict) else None
    method = quantization.get("quant_method")
    if method is None and (made_by == "modelopt" or isinstance(inner, dict)):
        return "modelopt"
    if not isinstance(method, str):
        got = "missing" if method is None else f"expected a name, got {show(method)}"
        raise UsageError(f"config: {KEY}.quant_method: {got}")
    return method.lower()


# -- the methods -----------------------------------------------------------------------------------


def _awq(read: Reader, config: dict[str, Any]) -> Scheme:
    one_of(read, "w_bit" if "w_bit" in read.config else "bits", (4,))
    base = "awq-int4" if read.flag("zero_point", True) else "int4"
    found = grouped(read, base, "q_group_size" if "q_group_size" in read.config else "group_size")
    kept = names(read, "modules_to_not_convert")
    return Scheme("awq", found, ((parts_of_names(kept), None),), tuple(kept), read.flag("lm_head", False))


def _gptq(read: Reader, config: dict[str, Any]) -> Scheme:
    def one(inner: Reader) -> WeightFormat:
        base = f"gptq-int{one_of(inner, 'bits', (4, 8))}"
        if inner.flag("desc_act", False) and inner.config.get("group_size") != -1:
            return grouped(inner, f"{base}-act")
        return grouped(inner, base if inner.flag("sym", True) else f"{base}-asym")

    rules: list[tuple[Modules, WeightFormat | None]] = []
    dynamic = read.config.get("dynamic") or {}
    if not isinstance(dynamic, dict) or not all(isinstance(v, dict) for v in dynamic.values()):
        raise UsageError(f"config: {KEY}.dynamic: expected a mapping of patterns, got {show(dynamic)}")
    for pattern, changes in dynamic.items():
        modules = Modules(frozenset(), (regex(pattern.removeprefix("-:").removeprefix("+:"), f"{KEY}.dynamic"),))
        skipped = pattern.startswith("-:")
        inner = Reader({**read.config, **changes}, {}, f"{KEY}.dynamic.")
        rules.append((modules, None if skipped else one(inner)))
    blocks = read.config.get("modules_in_block_to_quantize")
    if blocks:
        flat = [n for b in blocks for n in (b if isinstance(b, list) else [b])] if isinstance(blocks, list) else []
        if not flat or not all(isinstance(n, str) for n in flat):
            raise UsageError(f"config: {KEY}.modules_in_block_to_quantize: expected lists of names, got {show(blocks)}")
        return Scheme("gptq", None, (*rules, (parts_of_names(flat), one(read))), tuple(dynamic))
    return Scheme("gptq", one(read), tuple(rules), tuple(dynamic), read.flag("lm_head", False))


def _fp8(read: Reader, config: dict[str, Any]) -> Scheme:
    kept = names(read, "ignored_layers", "modules_to_not_convert")
    found = _fp8_format(read)
    rules: list[tuple[Modules, WeightFormat | None]] = [(exact(kept), None)]
    if "DeepseekV4ForCausalLM" in (config.get("architectures") or ()):
        experts = _deepseek_v4_experts(read, config, found)
        if experts != found:  # then the scales of the others are exponents (``is_scale_e8m0``)
            found = catalog.weight_format("fp8-block-e8m0")
        rules.append((Modules(frozenset(), (re.compile(r"\.experts(\.|\Z)"),)), experts))
    return Scheme("fp8", found, tuple(rules), tuple(kept))


def _deepseek_v4_experts(read: Reader, config: dict[str, Any], dense: WeightFormat) -> WeightFormat:
    """Its experts are in 4 bits unless the config says otherwise (vllm/models/deepseek_v4/quant_config.py, 0.32)."""
    if str(read.config.get("moe_quant_algo") or "").upper() == "NVFP4":
        return catalog.weight_format("nvfp4")
    outer = Reader(config, {})
    if one_of(outer, "expert_dtype", ("fp4", "fp8"), "fp4") == "fp8":
        return dense
    return catalog.weight_format("mxfp4-pack")


def _fp8_format(read: Reader) -> WeightFormat:
    block = read.config.get("weight_block_size")
    if block is None:
        return catalog.weight_format("fp8-tensor")
    if block != [128, 128]:
        raise UsageError(f"config: {KEY}.weight_block_size: expected [128, 128], got {show(block)}")
    return catalog.weight_format("fp8-block")


def _fbgemm(read: Reader, config: dict[str, Any]) -> Scheme:
    kept = names(read, "modules_to_not_convert")
    return Scheme("fbgemm_fp8", catalog.weight_format("fp8"), ((exact(kept), None),), tuple(kept))


def _bitsandbytes(read: Reader, config: dict[str, Any]) -> Scheme:
    """``llm_int8_skip_modules``: a module of that name, or anything below it."""
    kept = names(read, "llm_int8_skip_modules") or ["lm_head"]
    if read.flag("load_in_8bit", False) or read.flag("_load_in_8bit", False):
        found = catalog.weight_format("bnb-int8")
    else:
        kind = one_of(read, "bnb_4bit_quant_type", ("nf4", "fp4"), "fp4")
        doubled = read.flag("bnb_4bit_use_double_quant", False)
        found = catalog.weight_format(f"bnb-{kind}-double" if doubled else f"bnb-{kind}")
    skipped = Modules(frozenset(), tuple(re.compile(rf"(\A|\.){re.escape(n)}(\.|\Z)") for n in kept))
    return Scheme("bitsandbytes", found, ((skipped, None),), tuple(kept))


def _mxfp4(read: Reader, config: dict[str, Any]) -> Scheme:
    return Scheme("mxfp4", catalog.weight_format("mxfp4"), only="experts")


METHODS: dict[str, Callable[[Reader, dict[str, Any]], Scheme]] = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "mxfp4": _mxfp4,
    "mxfp8": mxfp8,
    "compressed-tensors": compressed_tensors,
    "modelopt": modelopt,
    "modelopt_fp4": modelopt,
    "modelopt_mxfp8": modelopt,
    "modelopt_mixed": modelopt,
    "bitsandbytes": _bitsandbytes,
}
