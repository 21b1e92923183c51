"""Tokens of a block: what the GPU's attention backend prefers, and what a recurrent state needs.

Source: ``_get_backend_priorities`` (vllm/platforms/cuda.py), ``get_supported_kernel_block_sizes`` of the backends
(vllm/v1/attention/backends) and ``_align_hybrid_block_size`` (vllm/platforms/interface.py), 0.32.
"""

from __future__ import annotations

from fractions import Fraction

from harness.architecture import INDEXER, MLA, STATE, Architecture

_LATENT_KERNELS = 128  # of a model with latent attention and states, a block is a multiple of this


def aligned(
    architecture: Architecture, block_size: int, tp: int, kv_bytes: int | Fraction, dtype_bytes: int, state_bytes: int
) -> int:
    """The block of a model with states: so many tokens that a page of attention is no smaller than a state.

    vLLM does it whatever the user asked for. Bytes are those of an element, of a row, the model and a state.
    """
    states = [k.state for k in architecture.kv_kinds if k.state]
    rows = [k for k in architecture.kv_kinds if k.kind not in (STATE, INDEXER)]
    if not states or not rows:
        return block_size
    needed = max(s.bytes_on_rank(tp, dtype_bytes, state_bytes) for s in states)
    step = max(block_size, _LATENT_KERNELS) if rows[0].kind == MLA else block_size
    return max(block_size, step * -(-needed // (step * rows[0].bytes_per_token(tp, kv_bytes))))
