"""What a model is made of: its parts, how ranks share them, the KV cache of each layer. Pure arithmetic."""

from harness.architecture.families import FAMILIES, Family
from harness.architecture.kv_layers import CHUNKED, FULL, INDEXER, MLA, SLIDING, STATE, KvLayer, State
from harness.architecture.model import Architecture, from_config, model_dtype, padded_vocab, stage_layers
from harness.architecture.multimodal import text_config
from harness.architecture.parts import Component, Mixture

__all__ = [
    "CHUNKED", "FAMILIES", "FULL", "INDEXER", "MLA", "SLIDING", "STATE", "Architecture", "Component", "Family",
    "KvLayer", "Mixture", "State", "from_config", "model_dtype", "padded_vocab", "stage_layers", "text_config",
]  # fmt: skip
