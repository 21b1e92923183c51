"""The stand-in of a rehearsal: a model of one thin layer whose KV blocks behave like the real one's.

vLLM's scheduler and block pool see tokens and blocks, never bytes. With as many tokens in the pool as the
prediction grants the real GPU, the same request lengths and the same limits, a computer without a GPU
meets the queueing and the preemptions of a 70B.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import MachineError
from harness.simulate import Limits

CPU_BLOCK_MULTIPLE = 32  # vLLM 0.32: "No common block size for 16 (CPU_ATTN: [MultipleOf(32)])"
VOCAB_SIZE = 8192
HEAD_DIM = 64
BYTES_PER_TOKEN = 2 * HEAD_DIM * 2  # K and V, one head, bfloat16


@dataclass(frozen=True)
class StandIn:
    """``limits`` of the rehearsal in its own blocks; ``kv_cache_memory_bytes`` that give exactly that pool."""

    limits: Limits
    kv_cache_memory_bytes: int
    notes: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write the model's config.json into ``folder`` (its weights are made up by vLLM)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config(self.limits.max_model_len), indent=1), encoding="utf-8")


def config(max_model_len: int) -> dict[str, Any]:
    """A Llama of one layer and one head."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HEAD_DIM,
        "intermediate_size": HEAD_DIM,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": max_model_len,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }


def stand_in(real: Limits) -> StandIn:
    """The rehearsal of ``real``: the same tokens for requests, in blocks that the CPU backend can have."""
    block = math.lcm(real.block_size, CPU_BLOCK_MULTIPLE)
    tokens = (real.num_blocks - 1) * real.block_size
    usable = tokens // block
    if usable * block < real.max_model_len:
        raise MachineError(
            f"a pool of {tokens:,} tokens holds no request of {real.max_model_len:,}: there is nothing to rehearse"
        )
    notes = []
    if block != real.block_size:
        lost = tokens - usable * block
        notes.append(
            f"The rehearsal pages in blocks of {block} tokens where the GPU pages in {real.block_size}: a request's "
            f"last block is {block // 2} tokens empty on average instead of {real.block_size // 2}, so it holds up to "
            f"{block - real.block_size} tokens more"
            + (f"; {lost} tokens of the pool do not fill a block and are left out." if lost else ".")
        )
    if real.async_scheduling:
        notes.append("The rehearsal schedules synchronously, as vLLM does on a CPU: an end is seen one step earlier.")
    limits = replace(real, num_blocks=usable + 1, block_size=block, async_scheduling=False)
    return StandIn(limits, limits.num_blocks * block * BYTES_PER_TOKEN, tuple(notes))
