"""A local checkpoint: its safetensors headers tell the format of each layer, and its bytes are those of the parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import bench

from harness import catalog
from harness.architecture import from_config
from harness.architecture.folder import read_config, read_headers
from harness.errors import UsageError
from harness.predict import predict
from harness.predict.inventory import inventory
from harness.predict.quantization import own_quantization
from harness.scenario import parse_scenario

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

SMALL = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 64, "tie_word_embeddings": False,
}  # fmt: skip
DENSE = {**SMALL, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MIXTURE = {
    **SMALL, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 128, "decoder_sparse_step": 1, "mlp_only_layers": [0],
}  # fmt: skip


def model_of(config: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    plain = {k: v for k, v in config.items() if k not in ("architectures", "model_type", "quantization_config")}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **plain)).to(torch.bfloat16)


def on_disk(folder: Path) -> int:
    return sum(t.bytes for t in read_headers(folder).values())


def parts(folder: Path) -> int:
    """Bytes of the parts, without what no checkpoint holds."""
    shown = inventory(read_config(folder), folder)
    return sum(p.bytes for p in shown.parts if p.kind != "rotary")


@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("shard", ["50MB", "1MB"])
def test_a_plain_checkpoint_as_transformers_writes_it(tmp_path: Path, config: dict[str, Any], shard: str) -> None:
    model_of(config).save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "1MB")
    found = own_quantization(read_config(tmp_path), from_config(read_config(tmp_path)), tmp_path)
    assert (found.name, found.source) == ("bf16", "safetensors headers")
    assert parts(tmp_path) == on_disk(tmp_path)


COMPRESSED = {
    "int4-g32": ("W4A16", {"num_bits": 4, "group_size": 32, "strategy": "group"}),
    "int4-asym-g64": ("W4A16", {"num_bits": 4, "group_size": 64, "strategy": "group", "symmetric": False}),
    "int8-pack-g128": ("W8A16", {}),
    "int8": ("W8A8", {}),
    "fp8": ("FP8_DYNAMIC", {}),
    "fp8-block": ("FP8_BLOCK", {}),
    "nvfp4": ("NVFP4A16", {}),
    "mxfp4-pack": ("MXFP4A16", {}),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_checkpoint_as_compressed_tensors_writes_it(tmp_path: Path, name: str) -> None:
    tools = pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )  # fmt: skip

    preset, changes = COMPRESSED[name]
    scheme = preset_name_to_scheme(preset, ["Linear"])
    weights = QuantizationArgs(**{**scheme.weights.model_dump(), **changes})
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=scheme.input_activations)
    ignored = ["lm_head", "model.layers.1.mlp.down_proj"]
    model = model_of(DENSE)
    apply_quantization_config(
        model,
        QuantizationConfig(config_groups={"group_0": scheme}, ignore=ignored,
                           quantization_status=QuantizationStatus.FROZEN),
    )  # fmt: skip
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("_scale"):
            parameter.data.fill_(1)
    compressor = tools.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    config = read_config(tmp_path)
    found = own_quantization(config, from_config(config), tmp_path)
    stated = own_quantization(config, from_config(config))
    assert found.source == "safetensors headers" and stated.source == "its quantization_config"
    assert found.formats == stated.formats and found.name == name
    assert [f and f.name for f in found.formats["down_proj.weight"]] == [name, None, name]
    once = ("weight_shape", "global_scale", "input_scale")  # for a matrix: a few bytes, not counted
    small = sum(t.bytes for n, t in read_headers(tmp_path).items() if n.endswith(once))
    # vLLM holds the scales of 8-bit formats in float32, whatever they are saved in.
    wide = "weight_scale" if name in ("fp8", "fp8-block", "int8") else "nothing"
    widened = sum(t.bytes for n, t in read_headers(tmp_path).items() if n.endswith(wide))
    assert parts(tmp_path) == on_disk(tmp_path) - small + widened


def written(folder: Path, tensors: dict[str, Any], config: dict[str, Any]) -> Path:
    from safetensors.torch import save_file

    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def packed(method: str, outputs: int, inputs: int, bits: int, group: int) -> dict[str, Any]:
    """The tensors of one layer as GPTQModel and AutoAWQ write them (their pack functions)."""
    groups, each = inputs // group, 32 // bits
    integers = (torch.zeros(inputs // each, outputs, dtype=torch.int32) if method == "gptq"
                else torch.zeros(inputs, outputs // each, dtype=torch.int32))  # fmt: skip
    held = {
        "qweight": integers,
        "qzeros": torch.zeros(groups, outputs // each, dtype=torch.int32),
        "scales": torch.zeros(groups, outputs, dtype=torch.float16),
    }
    if method == "gptq":
        held["g_idx"] = torch.zeros(inputs, dtype=torch.int32)
    return held


@pytest.mark.parametrize(
    ("method", "bits", "group", "order", "name"),
    [
        ("gptq", 4, 128, False, "gptq-int4-g128"), ("gptq", 4, 32, False, "gptq-int4-g32"),
        ("gptq", 8, 128, False, "gptq-int8-g128"), ("gptq", 4, 64, True, "gptq-int4-act-g64"),
        ("awq", 4, 64, False, "awq-int4-g64"),
    ],
)  # fmt: skip
def test_gptq_and_awq(tmp_path: Path, method: str, bits: int, group: int, order: bool, name: str) -> None:
    tensors: dict[str, Any] = {}
    for n, p in model_of(DENSE).state_dict().items():
        if n.endswith("_proj.weight"):
            made = packed(method, *p.shape, bits, group)
            tensors |= {n.replace("weight", suffix): t for suffix, t in made.items()}
        else:
            tensors[n] = p
    quantization = {"quant_method": method, "bits": bits, "group_size": group, "desc_act": order, "zero_point": True}
    config = {**DENSE, "torch_dtype": "float16", "quantization_config": quantization}
    folder = written(tmp_path, tensors, config)
    found = own_quantization(config, from_config(config), folder)
    assert found.name == name
    order_bytes = sum(t.bytes for n, t in read_headers(folder).items() if n.endswith("g_idx"))
    held = on_disk(folder) - order_bytes
    if order:  # fused layers share one order of inputs: q, k, v and gate, up; and its inverse beside it
        held += 3 * 4 * 2 * (256 + 256 + 256 + 512)
    assert parts(folder) == held


@pytest.mark.parametrize(("nested", "name"), [(False, "bnb-nf4"), (True, "bnb-nf4-double")])
def test_bitsandbytes(tmp_path: Path, nested: bool, name: str) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    tensors: dict[str, Any] = {}
    for n, p in model_of(DENSE).state_dict().items():
        if n.endswith("_proj.weight"):
            tensors[n], state = functional.quantize_4bit(p, quant_type="nf4", compress_statistics=nested, blocksize=64)
            tensors |= {f"{n}.{k}": t for k, t in state.as_dict(packed=True).items()}
        else:
            tensors[n] = p
    config = {**DENSE, "torch_dtype": "bfloat16", "quantization_config": {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": nested}}  # fmt: skip
    folder = written(tmp_path, tensors, config)
    found = own_quantization(config, from_config(config), folder)
    assert found.name == name == own_quantization(config, from_config(config)).name
    tables = ("quant_map", "nested_quant_map", "bitsandbytes__nf4")
    assert parts(folder) == sum(t.bytes for n, t in read_headers(folder).items() if not n.endswith(tables))


def test_headers_win_over_a_config_that_says_nothing(tmp_path: Path) -> None:
    tensors = {n: p.to(torch.float8_e4m3fn) if n.endswith("_proj.weight") else p
               for n, p in model_of(DENSE).state_dict().items()}  # fmt: skip
    folder = written(tmp_path, tensors, {**DENSE, "torch_dtype": "bfloat16"})
    text = f"name: x\nmodel: {folder}\ngpu: {{name: h100-sxm-80gb}}\nengine: {{max_model_len: 512}}"
    entry = predict(parse_scenario(text)).ledger.find("weights")
    assert entry is not None
    assert entry.source.startswith("closed formulas on config.json (fp8-tensor: safetensors headers)")
    shown = bench("models", "--config", folder)
    assert "weights fp8-tensor" in shown.out and "formats from safetensors headers" in shown.out


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    written(tmp_path, model_of(DENSE).state_dict(), {**DENSE, "intermediate_size": 1024})
    done = bench("models", "--config", tmp_path)
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert "mlp.gate_proj, model.layers.0.mlp.up_proj: 262,144 weights, but the config makes 524,288" in done.err


def test_modelopts_file_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(catalog.model_config("llama-3.1-8b")))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16,
                         "exclude_modules": ["lm_head"]},
    }))  # fmt: skip
    config = read_config(tmp_path)
    found = own_quantization(config, from_config(config), tmp_path)
    assert (found.name, found.kv_cache_dtype, "lm_head.weight" in found.formats) == ("nvfp4", "fp8", False)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"", "model.safetensors: not a safetensors file: no safetensors header"),
        ("model.safetensors", b"\xff" * 64, "not a safetensors file: no safetensors header"),
        ("model.safetensors", (8).to_bytes(8, "little") + b"nonsense", "not a safetensors file"),
        ("model.safetensors", (30).to_bytes(8, "little") + b'{"a": {"dtype": "X1"}}' + b" " * 8, "not a safetensors"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b"}}', "weight_map: expected a file beside it"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "x.safetensors"}}', "x.safetensors: No such file"),
    ],
)  # fmt: skip
def test_a_broken_checkpoint_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    (tmp_path / name).write_bytes(content)
    done = bench("models", "--config", tmp_path)
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1


def test_a_layout_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {"model.layers.0.self_attn.q_proj.qweight": torch.zeros(3, 5, dtype=torch.int32)}
    folder = written(tmp_path, tensors, DENSE)
    with pytest.raises(UsageError, match=r"checkpoint: model\.layers\.0\.self_attn\.q_proj: a layout that is not"):
        own_quantization(DENSE, from_config(DENSE), folder)
