"""Number formats by name, and what a quantization_config says: read right, or refused at its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import catalog
from harness.architecture import from_config
from harness.errors import UsageError
from harness.predict.quantization import config_quantization
from harness.predict.quantization.methods import of_config, read_scheme
from harness.predict.settings import settings
from harness.scenario import parse_scenario

SHARED = Path(__file__).resolve().parents[2] / "shared" / "configs"


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("bf16", 16), ("fp8", 8), ("fp8-tensor", 8), ("fp8-block", 8 + 32 / 128**2), ("mxfp8", 8 + 8 / 32),
        ("int8", 8), ("int8-pack-g128", 8 + 16 / 128), ("int4-g128", 4 + 16 / 128), ("int4-g32", 4.5),
        ("int4-channel", 4), ("int4-asym-g64", 4 + 20 / 64), ("awq-int4-g128", 4 + 20 / 128),
        ("gptq-int4-g32", 4 + 20 / 32), ("gptq-int8-g128", 8 + 24 / 128), ("mxfp4", 4.25), ("mxfp4-pack", 4.25),
        ("nvfp4", 4.5), ("bnb-nf4", 4.5),
    ],
)  # fmt: skip
def test_bits_for_each_weight_follow_from_the_layout(name: str, bits: float) -> None:
    assert catalog.weight_format(name).bits_per_weight == bits


def test_every_format_has_its_source() -> None:
    for name in catalog.weight_format_names():
        found = catalog.weight_format(name)
        assert found.source.startswith("https://") or found.dtype or found.bits is None, name


def config(**quantization: Any) -> dict[str, Any]:
    return {**catalog.model_config("llama-3.1-8b"), "quantization_config": quantization}


def groups(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quant_method": "marvellous"}, "quantization_config.quant_method: 'marvellous' is not known"),
        ({"quant_method": "gtpq"}, "did you mean 'gptq'?"),
        ({"quant_method": "torchao"}, "quantization_config.quant_method: 'torchao' is not read by this version"),
        ({"bits": 4}, "quantization_config.quant_method: missing"),
        ({"quant_method": 4}, "quantization_config.quant_method: expected a name, got 4"),
        ({"quant_method": "awq", "bits": 8, "group_size": 128}, "quantization_config.bits: expected 4, got 8"),
        ({"quant_method": "awq", "bits": 4}, "quantization_config.group_size: missing"),
        ({"quant_method": "awq", "bits": 4, "group_size": 10**6}, "group_size: expected 1 to 4,096"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "quantization_config.bits: expected 4 or 8, got 3"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:(": {}}},
         "quantization_config.dynamic: '(' is no regular expression"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": [1]},
         "quantization_config.dynamic: expected a mapping of patterns"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "block_size: expected [128, 128], got [64, 64]"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"},
         "modules_to_not_convert: expected a list of module names"),
        ({"quant_method": "compressed-tensors"}, "quantization_config.config_groups: expected a mapping of groups"),
        (groups(num_bits=5), "config_groups.group_0.weights.num_bits: expected 4 or 8, got 5"),
        (groups(num_bits=4, type="float", group_size=8), "weights.group_size: expected 16 or 32, got 8"),
        (groups(num_bits=4, type="int", group_size=128, strategy="best"), "strategy: expected tensor or channel"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": None}}},
         "config_groups.a.weights: expected a mapping, got None"),
        ({"quant_method": "modelopt"}, "quantization_config.quant_algo: expected one of FP8,"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32}, "group_size: expected 16, got 32"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quantized_layers: expected a mapping"),
        ({"quant_method": "mxfp4"}, "weights format mxfp4 (quantization_config): for experts, and LlamaForCausalLM"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_at_its_key(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        stated = config(**given)
        config_quantization(stated, from_config(stated))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "asked", "cache"),
    [
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": "FP8"}, "auto", "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": "FP8"}, "bfloat16", "bfloat16"),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
         "auto", "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8",
          "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}}, "auto", "fp8"),
        ({**groups(num_bits=8, type="float"), "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "auto", "fp8"),
        ({**groups(num_bits=8, type="float"), "kv_cache_scheme": None}, "auto", "auto"),
        ({"quant_method": "fp8"}, "auto", "auto"),
    ],
)  # fmt: skip
def test_a_checkpoint_may_ask_for_an_fp8_cache(given: dict[str, Any], asked: str, cache: str) -> None:
    scenario = parse_scenario(
        f"name: x\nmodel: llama-3.1-8b\ngpu: {{name: h100-sxm-80gb}}\nengine: {{kv_cache_dtype: {asked}}}"
    )
    chosen = settings(scenario.model_copy(update={"model": config(**given)}))
    assert chosen.kv_cache_dtype == cache
    assert chosen.kv_dtype_bytes == (1 if cache == "fp8" else 2)


# What the published quantization_configs say: (the default, the other formats in the rules, the cache).
PUBLISHED = {
    "MiniMaxAI--MiniMax-M2.5": ("fp8-block", [], None),
    "Qwen--Qwen3-30B-A3B-FP8": ("fp8-block", [], None),
    "Qwen--Qwen3-32B-FP8-Static-PerTensor": ("fp8-tensor", [], "fp8"),
    "XiaomiMiMo--MiMo-V2-Flash": ("fp8-block", [], None),
    "deepseek-ai--DeepSeek-V3.2": ("fp8-block", [], None),
    "deepseek-ai--DeepSeek-V4-Flash": ("fp8-block", ["mxfp4-pack"], None),
    "moonshotai--Kimi-K2.5": ("int4-g32", [], None),
    "moonshotai--Kimi-K3": ("mxfp4-pack", [], None),
    "nvidia--DeepSeek-V4-Pro-NVFP4": ("fp8-block", ["nvfp4"], None),
    "nvidia--GLM-5.2-NVFP4": ("nvfp4", [], "fp8"),
    "nvidia--Gemma-4-26B-A4B-NVFP4": ("nvfp4", [], "fp8"),
    "nvidia--Kimi-K2.5-NVFP4": ("nvfp4", [], "fp8"),
    "nvidia--MiniMax-M2.5-NVFP4": ("nvfp4", [], "fp8"),
    "nvidia--Qwen3.5-122B-A10B-NVFP4": ("nvfp4", [], "fp8"),
    "nvidia--Qwen3.6-35B-A3B-NVFP4": (None, ["fp8-tensor", "nvfp4"], None),
    "openai--gpt-oss-20b": ("mxfp4", [], None),
    "zai-org--GLM-5-FP8": ("fp8-block", [], None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_quantization_configs_are_read(name: str) -> None:
    file = SHARED / f"{name}_config.json"
    if not file.is_file():
        pytest.skip("the published configs are not here")
    stated = json.loads(file.read_text(encoding="utf-8"))
    quantization = of_config(stated)
    assert quantization is not None
    scheme = read_scheme(quantization, stated)
    others = list(dict.fromkeys(f.name for _, f in scheme.rules if f is not None))
    assert (scheme.default and scheme.default.name, others, scheme.kv_cache_dtype) == PUBLISHED[name]
