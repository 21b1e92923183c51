"""Bytes and unquantized modules against vLLM's own quantization methods (0.32): its model classes on the meta device.

vLLM makes the parameters of each layer as its quantization_config says (``create_weights``); a CPU has no kernels for
most formats, so the choice of a kernel is taken out, which is not asked for a shape.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

from harness.architecture import from_config
from harness.predict.quantization import config_quantization
from harness.predict.weights import stored

SMALL = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 64, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
DENSE = {**SMALL, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MIXTURE = {
    **SMALL, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 128, "decoder_sparse_step": 1, "mlp_only_layers": [0],
}  # fmt: skip
GATES = [f"model.layers.{i}.mlp.gate" for i in range(3)]
# Of one number each, or one for each expert: what a format keeps once for a matrix is not counted.
SMALL_CHANGE = (
    "weight_shape", "_scale_2", "global_scale", "input_scale", "k_scale", "v_scale", "q_scale", "prob_scale",
    "_zero_point", "w13_bias", "w2_bias",
)  # fmt: skip


def compressed(packing: str, ignore: list[str], **weights: Any) -> dict[str, Any]:
    """A quantization_config as llm-compressor writes it."""
    active = {"num_bits": 8, "type": weights["type"], "dynamic": True, "strategy": "token", "symmetric": True}
    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}}
    if weights["num_bits"] == 8 and "pack" not in packing and weights.get("group_size") is None:
        group["input_activations"] = active
    return {
        "quant_method": "compressed-tensors", "format": packing, "ignore": ["lm_head", *ignore],
        "config_groups": {"group_0": group},
    }  # fmt: skip


def modelopt(algo: str, ignore: list[str], method: str = "modelopt") -> dict[str, Any]:
    return {"quant_method": method, "quant_algo": algo, "ignore": ignore, "group_size": 16}


GPTQ = {"quant_method": "gptq", "desc_act": False, "sym": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
CASES: dict[str, dict[str, Any]] = {
    "awq-int4-g128": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True,
                      "modules_to_not_convert": ["mlp.gate"]},
    "gptq-int4-g64": {**GPTQ, "bits": 4, "group_size": 64, "dynamic": {r"-:.*mlp\.gate$": {}}},
    "gptq-int8-channel": {**GPTQ, "bits": 8, "group_size": -1, "dynamic": {r"-:.*mlp\.gate$": {}}},
    "fp8-tensor": {**FP8, "modules_to_not_convert": GATES},
    "fp8-block": {**FP8, "weight_block_size": [128, 128], "ignored_layers": GATES},
    "fp8-block, one layer's attention and another's experts not": {
        **FP8, "weight_block_size": [128, 128],
        "modules_to_not_convert": [*GATES, "model.layers.1.self_attn.o_proj",
                                   *(f"model.layers.2.mlp.experts.{e}.{w}_proj" for e in range(8)
                                     for w in ("gate", "up", "down")),
                                   *(f"model.layers.0.self_attn.{w}_proj" for w in "qkv")]},
    "fp8": compressed("float-quantized", [r"re:.*mlp\.gate$"], num_bits=8, type="float", strategy="channel"),
    "int8": compressed("int-quantized", [r"re:.*mlp\.gate$"], num_bits=8, type="int", strategy="channel"),
    "int4-g32": compressed("pack-quantized", [r"re:.*mlp\.gate$"], num_bits=4, type="int", strategy="group",
                           group_size=32),
    "int4-asym-g64": compressed("pack-quantized", [r"re:.*mlp\.gate$"], num_bits=4, type="int", strategy="group",
                                group_size=64, symmetric=False),
    "int8-pack-g128": compressed("pack-quantized", [r"re:.*mlp\.gate$"], num_bits=8, type="int", strategy="group",
                                 group_size=128),
    "nvfp4": compressed("nvfp4-pack-quantized", ["re:.*self_attn.*", r"re:.*mlp\.gate$"], num_bits=4, type="float",
                        strategy="tensor_group", group_size=16),
    "mxfp4-pack": compressed("mxfp4-pack-quantized", [r"re:.*mlp\.gate$"], num_bits=4, type="float", strategy="group",
                             group_size=32),
    "fp8-tensor of ModelOpt": modelopt("FP8", ["lm_head", *GATES]),
    "nvfp4 of ModelOpt": modelopt("NVFP4", ["*.mlp.gate", "model.layers.1.self_attn*"], "modelopt_fp4"),
    "mxfp8": {"quant_method": "mxfp8", "ignored_layers": ["*.mlp.gate"]},
    "nvfp4 + fp8-tensor": {
        "quant_method": "modelopt_mixed", "quant_algo": "MIXED_PRECISION", "ignore": [], "quantized_layers": {
            "lm_head": {"quant_algo": "FP8"},
            **{f"model.layers.{i}.self_attn.{w}_proj": {"quant_algo": "FP8"} for i in (0, 2) for w in "qkvo"},
            **{f"model.layers.{i}.mlp.{w}_proj": {"quant_algo": "NVFP4"} for i in range(3)
               for w in ("gate", "up", "down")},
        }},
}  # fmt: skip


@pytest.fixture(scope="module")
def vllm_tensors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """tensors(config) -> {name: bytes} of vLLM's own model with that config's quantization, on the meta device."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    import vllm.model_executor.layers.quantization as methods
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    def configured(config: dict[str, Any]) -> Any:
        folder = tmp_path_factory.mktemp("config")
        (folder / "config.json").write_text(json.dumps(config))
        return EngineArgs(
            model=str(folder), skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, max_model_len=512,
            block_size=32,
        ).create_engine_config()  # fmt: skip

    def tensors(config: dict[str, Any]) -> dict[str, int]:
        plain = {k: v for k, v in config.items() if k != "quantization_config"}
        vllm = configured(plain)
        if "quantization_config" in config:
            quantization = json.loads(json.dumps(config["quantization_config"]))
            vllm.quant_config = methods.get_quantization_config(quantization["quant_method"]).from_config(quantization)
        with set_current_vllm_config(vllm), torch.device("meta"):
            torch.set_default_dtype(torch.bfloat16)
            try:
                model = initialize_model(vllm_config=vllm)
            finally:
                torch.set_default_dtype(torch.float32)
        return {n: p.numel() * p.element_size() for n, p in model.named_parameters()}

    with set_current_vllm_config(configured(MIXTURE)):
        started = not parallel_state.model_parallel_is_initialized()
        if started:
            parallel_state.init_distributed_environment(1, 0, f"file://{tmp_path_factory.mktemp('s') / 's'}", 0, "gloo")
            parallel_state.initialize_model_parallel(1, 1)
    with pytest.MonkeyPatch.context() as patched:
        without_kernels(methods, patched)
        yield tensors
    if started:
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()


def without_kernels(methods: Any, patched: pytest.MonkeyPatch) -> None:
    for found in pkgutil.walk_packages(methods.__path__, methods.__name__ + "."):
        if any(word in found.name for word in ("modelopt", "compressed_tensors", "auto_", "fp8", "mxfp4", "wna16")):
            try:
                importlib.import_module(found.name)
            except ImportError:
                continue
    for name, module in list(sys.modules.items()):
        for attribute in list(vars(module)) if name.startswith(methods.__name__) else ():
            if attribute.startswith("init_") and attribute.endswith("_linear_kernel"):
                patched.setattr(module, attribute, lambda *_, **__: MagicMock())
            elif attribute.startswith("select_") and attribute.endswith("_moe_backend"):
                patched.setattr(module, attribute, lambda *_, **__: (MagicMock(), MagicMock()))
            elif attribute in ("choose_mp_linear_kernel", "select_linear_kernel"):
                patched.setattr(module, attribute, lambda *_, **__: MagicMock(__name__="none"))
            elif attribute in ("verify_marlin_supported", "check_moe_marlin_supports_layer"):
                patched.setattr(module, attribute, lambda *_, **__: True)


def is_per_tensor(name: str, size: int) -> bool:
    """Whether it is the scale of a whole matrix: loading makes one of those of q, k and v."""
    return name.endswith("weight_scale") and size <= 8 * 2 * 4


def ours(config: dict[str, Any]) -> int:
    architecture = from_config(config)
    quantization = config_quantization(config, architecture)
    return sum(
        copies * size
        for component in architecture.components
        if component.counted or component.dtype
        for kind, copies in quantization.of(component, range(architecture.layers))
        for tensor, size in stored(component, architecture, kind, 2)
        if not (tensor.endswith(" scales") and kind is not None and kind.scale_per == "tensor")
    )


@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("name", CASES)
def test_a_models_bytes_equal_those_of_vllms_own(vllm_tensors: Any, name: str, model: dict[str, Any]) -> None:
    config = {**model, "quantization_config": CASES[name]}
    theirs = vllm_tensors(config)
    zero_points = {n: b for n, b in theirs.items() if n.endswith("weight_zero_point")}
    counted = {n: b for n, b in theirs.items() if not n.endswith(SMALL_CHANGE) and not is_per_tensor(n, b)}
    assert ours(config) == sum({**counted, **zero_points}.values())
    if "," not in name:
        assert set(name.split(" of ")[0].split(" + ")) >= {config_quantization(config, from_config(config)).main.name}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Ministral3ForCausalLM", "ministral3"), ("ArceeForCausalLM", "arcee"),
        ("HyperCLOVAXForCausalLM", "hyperclovax"), ("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense"),
    ],
)  # fmt: skip
def test_a_class_read_from_transformers_weighs_what_vllms_does(vllm_tensors: Any, name: str, kind: str) -> None:
    config = {**DENSE, "architectures": [name], "model_type": kind, "pad_token_id": 0}
    architecture = from_config(config)
    assert architecture.source == "transformers on the meta device"
    mine = sum(c.elements * architecture.copies(c) * 2 for c in architecture.components)
    assert mine == sum(vllm_tensors(config).values())
