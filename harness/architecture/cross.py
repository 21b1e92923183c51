"""Attention to an encoder's output: what a decoder's layer has for it, and the cache of the encoder's keys and values.

Source: ``WhisperCrossAttention``, vllm/model_executor/models/whisper.py, and ``CrossAttentionSpec``,
vllm/v1/kv_cache_interface.py, 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.architecture.component import Component
from harness.architecture.kv_layers import CROSS, KvLayer


def cross_parts(hidden: int) -> Iterator[Component]:
    """q, and k with v, are matrices of their own; k has no bias in a checkpoint, and one of zeros in vLLM."""
    kind, name = "attention", "encoder_attn"
    sizes = (("q_proj", hidden, "column"), ("kv_proj", 2 * hidden, "column"), ("out_proj", hidden, "row"))
    for part, outputs, split in sizes:
        yield Component(f"{name}.{part}.weight", (outputs, hidden), split, quantizable=True, kind=kind)
    yield Component(f"{name}.q_proj.bias", (hidden,), "column", kind=kind)
    yield Component(f"{name}.kv_proj.bias", (hidden,), "column", kind=kind)
    yield Component(f"{name}.kv_proj.bias, k", (hidden,), "column", kind=kind, counted=False)
    yield Component(f"{name}.out_proj.bias", (hidden,), "replicated", kind=kind)


def cross_cache(heads: int, head_dim: int) -> KvLayer:
    """A row for each position of the encoder's, written once, when a request begins."""
    return KvLayer(CROSS, heads, 2 * head_dim)
