"""Number formats by name, and what a quantization_config says: read right, or refused at its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import catalog
from harness.architecture import from_config
from harness.errors import UsageError
from harness.predict import predict
from harness.predict.quantization import config_quantization, resolve
from harness.predict.quantization.methods import of_config, read_scheme
from harness.predict.settings import settings
from harness.predict.weights import stored
from harness.scenario import parse_scenario
from harness.scenario.weights import Weights

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
    "deepseek-ai--DeepSeek-V4-Flash": ("fp8-block-e8m0", ["mxfp4-pack"], None),
    "moonshotai--Kimi-K2.5": ("int4-g32", [], None),
    "moonshotai--Kimi-K3": ("mxfp4-pack", [], None),
    "nvidia--DeepSeek-V4-Pro-NVFP4": ("fp8-block-e8m0", ["nvfp4"], None),
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


# Part -> (format, layers of it) for published configs that mix; what is not named here is in the model's dtype.
LAYERS = {
    "nvidia--Kimi-K2.7-Code-NVFP4": {"experts.w13": [("nvfp4", 60)], "experts.w2": [("nvfp4", 60)]},
    "moonshotai--Kimi-K2.5": {"experts.w13": [("int4-g32", 60)], "experts.w2": [("int4-g32", 60)]},
    "moonshotai--Kimi-K3": {"experts.w13": [("mxfp4-pack", 92)], "experts.w2": [("mxfp4-pack", 92)]},
    "nvidia--Qwen3.5-122B-A10B-NVFP4": {"experts.w13": [("nvfp4", 48)], "experts.w2": [("nvfp4", 48)]},
    "nvidia--Qwen3.6-35B-A3B-NVFP4": {
        "qkv_proj.weight": [("fp8-tensor", 10)], "o_proj.weight": [("fp8-tensor", 10)],
        "in_proj_qkvz.weight": [("fp8-tensor", 30)], "out_proj.weight": [("fp8-tensor", 30)],
        "shared_experts.gate_up_proj.weight": [("nvfp4", 40)], "shared_experts.down_proj.weight": [("nvfp4", 40)],
        "experts.w13": [("nvfp4", 40)], "experts.w2": [("nvfp4", 40)], "lm_head.weight": [("nvfp4", 1)],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_each_part_of_a_published_mix_has_its_format(name: str) -> None:
    file = SHARED / f"{name}_config.json"
    if not file.is_file():
        pytest.skip("the published configs are not here")
    stated = json.loads(file.read_text(encoding="utf-8"))
    architecture = from_config(stated)
    found = config_quantization(stated, architecture)
    told = {
        c.name: [(f.name, n) for f, n in found.of(c, range(architecture.layers)) if f is not None]
        for c in architecture.components
    }
    assert {part: row for part, row in told.items() if row} == LAYERS[name]


# -- GGUF ------------------------------------------------------------------------------------------


def test_blocks_are_as_large_as_in_ggufs_own_table() -> None:
    constants = pytest.importorskip("gguf.constants")
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        weights, size = constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType[name]]
        found = catalog.weight_format(f"gguf-{name}")
        assert (found.group_size, found.bits_per_weight * weights / 8) == (weights, size), name


# Bytes of https://huggingface.co/bartowski/Meta-Llama-3.1-8B-Instruct-GGUF and Llama-3.2-1B, -3B-Instruct-GGUF.
FILES = {
    "q2_k": 3_179_136_416, "q3_k_s": 3_664_504_224, "q3_k_m": 4_018_922_912, "q3_k_l": 4_321_961_376,
    "q4_k_m": 4_920_739_232, "q5_k_s": 5_599_298_976, "q5_k_m": 5_732_992_416, "q6_k": 6_596_011_424,
    "q8_0": 8_540_775_840,
}  # fmt: skip


def gguf_bytes(model: str, file_type: str) -> int:
    """Of all tensors; what is not quantized is float32 in such a file."""
    config = catalog.model_config(model)
    architecture = from_config(config)
    found = resolve(Weights(format=f"gguf-{file_type}"), config, architecture)
    return sum(
        copies * size
        for c in architecture.components
        for kind, copies in found.of(c, range(architecture.layers))
        for _, size in stored(c, architecture, kind, 4)
    )


@pytest.mark.parametrize("file_type", FILES)
def test_published_gguf_files_are_the_tensors_and_the_same_metadata(file_type: str) -> None:
    assert FILES[file_type] - gguf_bytes("llama-3.1-8b", file_type) == 7_841_184


def test_tied_embeddings_are_stored_as_the_output() -> None:
    for model, size in (("llama-3.2-1b", 807_694_464), ("llama-3.2-3b", 2_019_377_696)):
        assert 0 < size - gguf_bytes(model, "q4_k_m") < 8_000_000  # the vocabulary


def test_rows_that_do_not_divide_fall_back_as_in_llama_cpp() -> None:
    config = catalog.model_config("smollm2-135m")  # hidden 576, intermediate 1,536
    found = resolve(Weights(format="gguf-q4_k_m"), config, from_config(config))
    assert [f and f.name for f in found.formats["gate_up_proj.weight"]] == ["gguf-q5_0"] * 30
    assert {f and f.name for f in found.formats["down_proj.weight"]} == {"gguf-q6_k", "gguf-q4_k"}
    assert {f and f.values for f in found.formats["qkv_proj.weight"]} == {"gguf-q8_0", "gguf-q5_0"}


@pytest.mark.parametrize("model", ["mixtral-8x7b", "deepseek-v2-lite", "falcon-7b", "gpt2"])
def test_a_mix_of_another_kind_of_model_is_refused(model: str) -> None:
    config = catalog.model_config(model)
    with pytest.raises(UsageError, match=r"weights.format gguf-q4_k_m: llama.cpp's mixes are known here for dense"):
        resolve(Weights(format="gguf-q4_k_m"), config, from_config(config))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("weights: {format: gptq-int4-act-g128}", "GPTQ group activation ordering (desc_act=True) is no longer"),
        ("weights: {format: gptq-int4-asym-g128}", "Unsupported quantization config: bits=4, sym=False"),
        ("weights: {format: bnb-nf4}", "vLLM has no bitsandbytes any more"),
    ],
)
def test_what_newer_engines_dropped_is_refused_there(text: str, said: str) -> None:
    base = f"name: x\nmodel: llama-3.1-8b\ngpu: {{name: h100-sxm-80gb}}\n{text}\n"
    with pytest.raises(UsageError) as caught:
        settings(parse_scenario(base))
    assert said in str(caught.value)
    assert settings(parse_scenario(base + "engine: {vllm: '0.19'}")).weight_format.name in text


def test_gguf_needs_its_plugin_in_newer_engines() -> None:
    base = "name: x\nmodel: llama-3.1-8b\ngpu: {name: h100-sxm-80gb}\nweights: {format: gguf-q4_k_m}\n"
    said = "vllm-gguf-plugin"
    assert any(said in note for note in predict(parse_scenario(base)).notes)
    assert not any(said in note for note in predict(parse_scenario(base + "engine: {vllm: '0.19'}")).notes)
