"""Random weights of the right size: the config that makes vLLM build the scenario's layers, without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.catalog import WeightFormat
from harness.errors import MachineError


def config(model: dict[str, Any], stored: WeightFormat, wanted: WeightFormat) -> dict[str, Any]:
    """The config of ``model``, ``stored`` as it says itself, with its layers in ``wanted``. Raises MachineError where
    no plain config says that format."""
    if stored == wanted:
        return model
    plain = {k: v for k, v in model.items() if k != "quantization_config"}
    return plain if wanted.dtype is not None else {**plain, "quantization_config": quantization(wanted)}


def quantization(weights: WeightFormat) -> dict[str, Any]:
    """``quantization_config`` as checkpoints of that format state it. Raises MachineError."""
    base, group, bits = weights.name.rsplit("-g", 1)[0], weights.group_size, weights.bits
    if base == "awq-int4":
        return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    if base in ("gptq-int4", "gptq-int8"):
        return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": True}
    if base == "fp8-block":
        return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [group, group]}
    if base == "mxfp4":
        return {"quant_method": "mxfp4"}
    each = {"strategy": "channel"} if base in ("fp8", "int8") else {"strategy": "group", "group_size": group}
    packed = "pack-quantized"
    shapes = {"fp8": "float-quantized", "int8": "int-quantized", "int4": packed, "int8-pack": packed}
    if base not in shapes:
        raise MachineError(
            f"weights: {{load: dummy}}: {weights.name} is not to be had from a plain config; name a repository or "
            "folder whose config.json states it, with weights.format left at auto"
        )
    kind = "float" if base == "fp8" else "int"
    activations = {"num_bits": 8, "type": kind, "symmetric": True, "dynamic": True, "strategy": "token"}
    stored = {"num_bits": bits, "type": kind, "symmetric": True, "dynamic": False, **each}
    only_weights = base in ("int4", "int8-pack")
    return {
        "quant_method": "compressed-tensors",
        "format": shapes[base],
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"], "weights": stored, "input_activations": None if only_weights else activations,
            }
        },
    }  # fmt: skip


def write(model: dict[str, Any], folder: Path) -> None:
    """``model`` as config.json of a new ``folder``."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
