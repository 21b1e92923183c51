"""Where the bytes of a model sit: its parts with their parameters and bytes, and its KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.architecture import CROSS, Architecture, from_config
from harness.predict.kv_format import DTYPE_BYTES
from harness.predict.quantization import Quantization, own_quantization
from harness.predict.weights import stored


@dataclass(frozen=True)
class Part:
    """A part of the model, all layers together; ``parameters`` is 0 for what is held but not learned,
    ``bytes`` for what the checkpoint has and vLLM does not make."""

    kind: str
    name: str
    copies: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Inventory:
    """All parts of a model on one device, in the config's own format, and its KV cache in the model's dtype."""

    architecture: Architecture
    quantization: Quantization
    dtype: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all parts, before the allocator rounds them."""
        return sum(p.bytes for p in self.parts)

    @property
    def kv_dtype(self) -> str:
        """The numbers of the cache where kv_cache_dtype is auto."""
        return self.dtype if self.architecture.compressed is None else "fp8"

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token writes to the cache, all layers together."""
        kinds = self.architecture.kv_kinds.items()
        return int(sum(k.bytes_per_token(1, DTYPE_BYTES[self.dtype]) * len(layers) for k, layers in kinds))

    @property
    def encoder_bytes(self) -> int:
        """Bytes of the keys and values that a request's encoder leaves, all layers together."""
        kinds, size = self.architecture.kv_kinds.items(), DTYPE_BYTES[self.dtype]
        rows = sum(k.row_bytes_on_rank(1, size) * len(layers) for k, layers in kinds if k.kind == CROSS)
        return self.architecture.encoder_tokens * rows

    @property
    def state_bytes(self) -> int:
        """Bytes of a request's recurrent states, all layers together."""
        size = DTYPE_BYTES[self.dtype]
        return sum(
            k.state.bytes_on_rank(1, size, DTYPE_BYTES[k.state.recurrent_dtype or self.dtype]) * len(layers)
            for k, layers in self.architecture.kv_kinds.items() if k.state
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """The document of ``bench models NAME --json``."""
        a = self.architecture
        return {
            "architecture": a.name,
            "parameters": a.parameters,
            "active_parameters": a.active_parameters,
            "bytes": self.bytes,
            "format": self.quantization.name,
            "source": f"{a.source}, {self.quantization.source}",
            "components": [{"name": p.name, "parameters": p.parameters, "bytes": p.bytes} for p in self.parts],
            "kv": {
                "kinds": list(dict.fromkeys(k.kind for k in a.kv_kinds)),
                "layers": [
                    {"kind": k.kind, "window": k.window, "tokens_per_row": k.tokens_per_row, "layers": len(n)}
                    for k, n in a.kv_kinds.items()
                ],
                "bytes_per_token": self.kv_bytes_per_token,
                "state_bytes": self.state_bytes,
                "encoder_bytes": self.encoder_bytes,
            },
        }


def inventory(config: dict[str, Any], folder: Path | None = None) -> Inventory:
    """The inventory of the model that ``config`` describes, in the formats that the checkpoint in ``folder`` holds.

    Raises UsageError for a model that is not known.
    """
    a = from_config(config)
    quantization = own_quantization(config, a, folder)
    dtype = quantization.main.dtype or ("bfloat16" if a.dtype == "float32" else a.dtype)
    size = DTYPE_BYTES[dtype]
    parts = []
    for c in a.components:
        held = quantization.of(c, range(a.layers)) if c.held else []
        bytes_ = sum(copies * n for kind, copies in held for _, n in stored(c, a, kind, size))
        parts.append(Part(c.kind, c.name, a.copies(c), c.elements * a.copies(c) if c.counted else 0, bytes_))
    for positions, dims in a.rotary_shapes:
        bytes_ = positions * dims * (4 if a.rotary_float32 else size)
        parts.append(Part("rotary", "rotary cos_sin_cache", 1, 0, bytes_))
    return Inventory(a, quantization, dtype, tuple(parts))
