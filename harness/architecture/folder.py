"""A model's folder: its config.json, ModelOpt's file beside it, and the headers of its safetensors files."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import read_plain

LARGEST_CONFIG = 64 * 2**20
LARGEST_HEADER = 100 * 10**6  # what the safetensors library reads
INDEX = "model.safetensors.index.json"
# https://github.com/huggingface/safetensors, Dtype of safetensors/src/tensor.rs
DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "C64": 64, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: the type's name in the header, and its shape in elements of that type."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def read_config(path: Path) -> dict[str, Any]:
    """The config.json at ``path`` or in that folder; a quantization that stands in a file beside it is put in.

    Raises UsageError. ModelOpt to 0.29 wrote hf_quant_config.json (vllm/transformers_utils/config.py, 0.32).
    """
    file = path / "config.json" if path.is_dir() else path
    config = _mapping(file)
    beside = file.parent / "hf_quant_config.json"
    if path.is_dir() and config.get("quantization_config") is None and beside.is_file():
        config["quantization_config"] = _mapping(beside)
    return config


def read_headers(folder: Path) -> dict[str, Stored]:
    """Tensor -> what is stored of it, from the headers alone; nothing where ``folder`` has no safetensors files.

    As vLLM: the files that the index names, else all but Mistral's consolidated ones. Raises UsageError.
    """
    index = folder / INDEX
    if index.is_file():
        where = _mapping(index).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(f, str) and Path(f).name == f for f in where.values()):
            raise UsageError(f"{index}: weight_map: expected a file beside it for each tensor")
        files = [folder / name for name in dict.fromkeys(where.values())]
    else:
        files = sorted(f for f in folder.glob("*.safetensors") if not f.name.startswith("consolidated"))
    found: dict[str, Stored] = {}
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from None
        if not stat.S_ISREG(state.st_mode):
            raise UsageError(f"{file}: not a plain file")
        found.update(_header(file, state.st_mtime_ns, state.st_size))
    return found


@lru_cache(maxsize=512)
def _header(file: Path, changed_ns: int, size: int) -> dict[str, Stored]:
    """A length of 8 bytes, little end first, and so many bytes of JSON (https://huggingface.co/docs/safetensors)."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise ValueError("no safetensors header")
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            return {name: _stored(row) for name, row in header.items()}
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise UsageError(f"{file}: not a safetensors file: {str(error)[:80]}") from None


def _stored(row: dict[str, Any]) -> Stored:
    shape = tuple(row["shape"])
    if row["dtype"] not in DTYPE_BITS or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"a tensor of {row['dtype']} {shape}")
    return Stored(row["dtype"], shape)


def _mapping(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_plain(file, LARGEST_CONFIG).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise UsageError(f"{file}: {why}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{file}: expected a mapping, got {type(data).__name__}")
    return data
