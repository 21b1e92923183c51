"""In what numbers, and in how large blocks, a cache is kept: by the engine's arguments, the model and the GPU.

Source: ``_get_backend_priorities`` (vllm/platforms/cuda.py), what each backend of vllm/v1/attention/backends supports,
``_align_hybrid_block_size`` (vllm/platforms/interface.py) and
``verify_with_parallel_config`` (vllm/config/model.py), 0.32.
"""

from __future__ import annotations

from fractions import Fraction
from math import lcm

from harness.architecture import INDEXER, MLA, STATE, Architecture
from harness.catalog import EngineDefaults
from harness.errors import UsageError

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# nvfp4: half a byte, and one byte of scale for 16 (``nvfp4_kv_cache_full_dim``, vllm/utils/torch_utils.py).
_KV_BYTES: dict[str, int | Fraction] = {
    **DTYPE_BYTES, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "nvfp4": Fraction(9, 16),
}  # fmt: skip
# Classes that don't hand kv_cache_dtype on to their attention (vllm/model_executor/models/falcon.py, 0.32).
_IGNORES_KV_DTYPE = ("FalconForCausalLM",)
DELTA_NET_STEP = 64  # FLASHINFER_GDN_CHECKPOINT_ALIGNMENT, vllm/v1/attention/backends/gdn_attn.py, 0.33
_LATENT_STEP = 128  # of a model with latent attention and states, a block is a multiple of this
_COMPRESSED_BLOCK = 256  # the one size that DeepSeek V4's backends take
_SPARSE_ROW = 656  # fp8_ds_mla: 512 fp8 values, 4 float32 scales, 64 bf16 values of RoPE (flashmla_sparse.py)
_CHOSEN_BLOCK = 128
_HOPPER, _BLACKWELL, _SMALL_BLACKWELL = 9, 10, 12  # major compute capabilities


def is_sparse(architecture: Architecture) -> bool:
    """Whether latent attention looks at chosen tokens alone (DSA)."""
    return architecture.mla is not None and _has_indexer(architecture)


def _has_indexer(architecture: Architecture) -> bool:
    return any(k.kind == INDEXER for k in architecture.kv_kinds)


def element_bytes(asked: str, architecture: Architecture, dtype: str, capability: int | None) -> int | Fraction:
    """Bytes of an element of the cache, ``capability`` the GPU's major one. Raises UsageError where vLLM refuses."""
    if asked == "nvfp4" and architecture.mla is not None:
        raise UsageError(
            "nvfp4 KV cache is not supported with MLA (Multi-head Latent Attention) backends. Please use a different "
            "--kv-cache-dtype (e.g., 'fp8', 'auto')."
        )
    if asked == "nvfp4" and (capability or _HOPPER) < 8:
        raise UsageError("kv_cache_dtype nvfp4 needs a GPU of compute capability 8.0 or more")
    if architecture.compressed is not None:
        return _compressed_bytes(asked, architecture, capability or _HOPPER)
    if asked == "nvfp4" and _has_indexer(architecture) and capability != _BLACKWELL:
        raise UsageError(
            "MiniMax M3 sparse attention supports an NVFP4 KV cache only with the SM100 MSA backend "
            "(kv_cache_dtype=nvfp4, topk_blocks=16)"
        )
    if is_sparse(architecture):
        return _sparse_bytes(asked, architecture, capability or _HOPPER)
    return _KV_BYTES[dtype if asked == "auto" or architecture.name in _IGNORES_KV_DTYPE else asked]


def _sparse_bytes(asked: str, architecture: Architecture, capability: int) -> int | Fraction:
    """As the sparse backend of the GPU stores the latent row: FlashMLA's or FlashInfer's."""
    if capability not in (_HOPPER, _BLACKWELL, _SMALL_BLACKWELL):
        raise UsageError(
            f"{architecture.name}: No valid attention backend found for cuda: sparse attention needs compute "
            "capability 9, 10 or 12"
        )
    packed = Fraction(_SPARSE_ROW, next(k.row for k in architecture.kv_kinds if k.kind == MLA))
    if capability == _SMALL_BLACKWELL:
        return packed if asked in ("auto", "fp8", "fp8_e4m3") else _KV_BYTES[asked]
    if asked == "auto":
        # GLM's own default on Blackwell (``GlmMoeDsaForCausalLM``, vllm/model_executor/models/config.py).
        return 1 if capability == _BLACKWELL and architecture.name == "GlmMoeDsaForCausalLM" else 2
    return packed if asked == "fp8" and capability == _HOPPER else _KV_BYTES[asked]


def _compressed_bytes(asked: str, architecture: Architecture, capability: int) -> int:
    """Its rows are packed in fp8 by the backends that vLLM takes by itself (``_resolve_dsv4_kv_cache_dtype``,
    ``_select_dsv4_attn_cls``, vllm/models/deepseek_v4, 0.32)."""
    if capability not in (_HOPPER, _BLACKWELL, _SMALL_BLACKWELL):
        raise UsageError(f"{architecture.name}: its attention kernels need compute capability 9, 10 or 12")
    if asked != "auto" and not asked.startswith("fp8"):
        raise UsageError(
            f"DeepseekV4 fp8_ds_mla layout only supports fp8 kv-cache, got {asked}. Please set `--kv-cache-dtype fp8` "
            "or select a backend that supports bfloat16 KV cache."
        )
    return 1


def check_block_size(architecture: Architecture, block_size: int) -> None:
    """Raises UsageError where the kernels of ``architecture`` can't read blocks of so many tokens."""
    if architecture.compressed is not None and block_size != _COMPRESSED_BLOCK:
        raise UsageError(
            f"engine.block_size: {architecture.name} takes {_COMPRESSED_BLOCK} alone (FLASHMLA_SPARSE_DSV4, "
            f"DEEPSEEK_V4_INDEXER), got {block_size}"
        )
    if architecture.mla is None and _has_indexer(architecture) and block_size % _CHOSEN_BLOCK:
        raise UsageError(
            f"engine.block_size: {architecture.name} takes multiples of {_CHOSEN_BLOCK} (MINIMAX_M3_SPARSE), got "
            f"{block_size}"
        )


def state_bytes(asked: str, architecture: Architecture, dtype: str) -> int:
    """Bytes of an element of a recurrent state: as asked for, else as the config says, else as the model's."""
    own = next((k.state.recurrent_dtype for k in architecture.kv_kinds if k.state), None)
    return DTYPE_BYTES[(own or dtype) if asked == "auto" else asked]


def preferred_block_size(
    architecture: Architecture, kv_cache_dtype: str, capability: int | None, default: int
) -> int:
    """The block that the GPU's attention backend takes where nothing is asked for."""
    if architecture.compressed is not None:
        return _COMPRESSED_BLOCK
    if is_sparse(architecture):
        return 64
    if architecture.mla is None:
        # A block of keys that an indexer chooses is one of the cache (``MiniMaxM3SparseBackend``).
        return _CHOSEN_BLOCK if _has_indexer(architecture) else default
    if capability == _BLACKWELL:
        return 32  # FlashInfer's kernels
    # FlashAttention reads no fp8 rows: FlashMLA does, in blocks of its own. Elsewhere Triton's kernel does both.
    return 64 if (capability or _HOPPER) == _HOPPER and kv_cache_dtype.startswith("fp8") else default


def checkpoint_kernels(defaults: EngineDefaults, capability: int | None) -> tuple[str, ...]:
    """The kernels that leave a state behind during prefill: of a gated delta net FlashInfer's, of KDA FlashKDA, both
    from Hopper on.

    Source: the ``get_kv_cache_spec`` of each layer, and ``_resolve_gdn_prefill_backend`` (mamba/gdn/
    qwen_gdn_linear_attn.py), of the 0.30 to 0.33 wheels; that of 0.33 is built for CUDA 13.
    ``resolve_kda_prefill_backend`` (models/kimi_k3/nvidia/kda.py, 0.32).
    """
    recent = (capability or _HOPPER) in (_HOPPER, _BLACKWELL, _SMALL_BLACKWELL)
    return tuple(k for k in defaults.state_checkpoints if recent or k == "mamba2")


def aligned(
    architecture: Architecture, block_size: int, tp: int, kv_bytes: int | Fraction, dtype_bytes: int, state_bytes: int,
    checkpoints: tuple[str, ...] = (), proposed: int = 0,
) -> int:  # fmt: skip
    """The block of a model with states: so many tokens that a page of attention is no smaller than a state.

    vLLM does it whatever the user asked for. Bytes are those of an element, of a row, the model and a state;
    ``checkpoints``: the kernels that leave states behind, at multiples of their own; ``proposed``: tokens at once.
    """
    states = [k.state for k in architecture.kv_kinds if k.state]
    rows = [k for k in architecture.kv_kinds if k.kind not in (STATE, INDEXER)]
    if not states or not rows:
        return block_size
    multiple = DELTA_NET_STEP if any(s.kernel == "delta_net" and s.kernel in checkpoints for s in states) else 1
    needed = max(s.bytes_on_rank(tp, dtype_bytes, state_bytes, proposed) for s in states)
    step = lcm(max(block_size, _LATENT_STEP) if rows[0].kind == MLA else block_size, multiple)
    return max(block_size, step * -(-needed // (step * rows[0].row_bytes_on_rank(tp, kv_bytes))))
