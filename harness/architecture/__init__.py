"""What a model is made of: its parts, how ranks share them, the KV cache of each layer. Pure arithmetic."""

from harness.architecture.component import Component, padded_vocab
from harness.architecture.families import FAMILIES
from harness.architecture.family import Family
from harness.architecture.kv_layers import (
    CHUNKED,
    COMPRESSED,
    COMPRESSOR,
    CROSS,
    FULL,
    INDEXER,
    MLA,
    SLIDING,
    STATE,
    KvLayer,
    State,
)
from harness.architecture.model import CLOSED, Architecture, from_config, model_dtype, stage_layers
from harness.architecture.mtp import mtp
from harness.architecture.multimodal import text_config
from harness.architecture.parts import Mixture

__all__ = [
    "CHUNKED", "CLOSED", "COMPRESSED", "COMPRESSOR", "CROSS", "FAMILIES", "FULL", "INDEXER", "MLA", "SLIDING", "STATE",
    "Architecture", "Component", "Family", "KvLayer", "Mixture", "State", "from_config", "model_dtype", "mtp",
    "padded_vocab", "stage_layers", "text_config",
]  # fmt: skip
