"""What a model is made of: its parts, how ranks share them, the KV cache of each layer. Pure arithmetic."""

from harness.architecture.families import FAMILIES, Family
from harness.architecture.kv_layers import FULL, MLA, SLIDING, KvLayer
from harness.architecture.model import Architecture, from_config, model_dtype, padded_vocab, stage_layers
from harness.architecture.parts import Component, Mixture

__all__ = [
    "FAMILIES", "FULL", "MLA", "SLIDING", "Architecture", "Component", "Family", "KvLayer", "Mixture", "from_config",
    "model_dtype", "padded_vocab", "stage_layers",
]  # fmt: skip
