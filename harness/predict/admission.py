"""vLLM's own grant: how many bytes it gives to the KV cache, or the error with which it refuses.

    requested = ceil(cuda_total x gpu_memory_utilization)
    available = requested - weights - non_torch - activation_peak - graphs     (graphs from 0.21 on)
    num_blocks = available // bytes_per_block

Source: ``request_memory`` (vllm/v1/worker/utils.py), ``determine_available_memory`` (vllm/v1/worker/gpu_worker.py),
``get_kv_cache_configs`` and ``_check_enough_kv_cache_memory`` (vllm/v1/core/kv_cache_utils.py), vLLM 0.32; the same
arithmetic in 0.19, whose one difference (the null block is not set aside in the check) is at most one block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.architecture import Architecture
from harness.catalog import Gpu
from harness.ledger import KvPool, Term
from harness.predict import activations, kv_cache, overhead
from harness.predict.estimate import Estimate
from harness.predict.settings import Settings
from harness.predict.weights import tensors, weights
from harness.units import GIB, MIB

DOCS = "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."


@dataclass(frozen=True)
class Budget:
    """The terms of one rank, in bytes. ``available`` may be negative: nothing is left for the KV cache."""

    stage: int
    cuda_total: Estimate
    init: Estimate
    weights: Estimate
    non_torch: Estimate
    activation: Estimate
    graphs: Estimate
    requested: Estimate
    available: Estimate
    token_bytes: int
    block_bytes: int

    @property
    def blocks(self) -> int:
        """Blocks that ``available`` buys, none where it is negative."""
        return max(self.available.bytes // self.block_bytes, 0)


@dataclass(frozen=True)
class Refusal:
    """Why there is no pool: vLLM's words, and the term that is to blame."""

    text: str
    term: str
    reconstructed: bool = False


@dataclass(frozen=True)
class Grant:
    """The pool of the fullest rank, or the refusal. ``check_bytes`` is what one request must fit into."""

    budget: Budget
    pool: KvPool
    refusal: Refusal | None
    needed_bytes: int
    check_bytes: int
    log: tuple[str, ...]


def format_gib(size: int) -> str:
    """Bytes as vLLM prints GiB (``format_gib``, vllm/utils/mem_utils.py, 0.32): ``58.11``, ``69.8``."""
    return f"{round(size / GIB, 2)}"


def budget(architecture: Architecture, settings: Settings, gpu: Gpu, stage: int) -> Budget:
    """The terms of one rank of pipeline stage ``stage``."""
    total = overhead.cuda_total(gpu)
    parts = (
        weights(architecture, settings, stage),
        overhead.non_torch_increase(architecture, settings, gpu, stage),
        activations.activation_peak(architecture, settings, gpu, stage),
        overhead.cuda_graphs(architecture, settings, stage),
    )
    requested = _requested(total, settings.gpu_memory_utilization)
    token = kv_cache.bytes_per_token(architecture, settings, stage)
    return Budget(
        stage, total, overhead.runtime_at_init(settings, gpu), *parts, requested,
        _available(requested, parts, settings, token * settings.block_size), token, token * settings.block_size,
    )  # fmt: skip


def _requested(total: Estimate, share: float) -> Estimate:
    likely, low, high = (math.ceil(n * share) for n in (total.bytes, total.low, total.high))
    return Estimate(likely, low, high, f"ceil(cuda_total x {share})")


def _available(
    requested: Estimate, parts: tuple[Estimate, ...], settings: Settings, block_bytes: int
) -> Estimate:
    if settings.num_gpu_blocks_override is not None:
        return Estimate.exact(settings.num_gpu_blocks_override * block_bytes, "num_gpu_blocks_override")
    if settings.kv_cache_memory_bytes is not None:
        return Estimate.exact(settings.kv_cache_memory_bytes, "kv_cache_memory_bytes")
    counted = parts if settings.defaults.graphs_in_budget else parts[:-1]
    source = "requested - weights - non_torch_increase - activation_peak"
    return Estimate(
        requested.bytes - sum(p.bytes for p in counted),
        requested.low - sum(p.high for p in counted),
        requested.high - sum(p.low for p in counted),
        source + (" - cuda_graphs" if settings.defaults.graphs_in_budget else ""),
    )


def grant(architecture: Architecture, settings: Settings, gpu: Gpu) -> Grant:
    """What the fullest rank is granted: every rank gets as many blocks as the poorest can hold."""
    stages = settings.pipeline_parallel_size
    # Stages between the first and the last differ in their layers only: the fullest of each length will do.
    budgets = [budget(architecture, settings, gpu, stage) for stage in _distinct(architecture, stages)]
    fullest = min(budgets, key=lambda b: (b.available.bytes // b.block_bytes, -b.weights.bytes))
    needed = kv_cache.blocks_for(settings.max_model_len, settings.block_size) * fullest.block_bytes
    check = fullest.available.bytes - fullest.block_bytes  # one block is the null block
    refusal = _refusal(architecture, settings, fullest, needed, check)
    pool = KvPool(fullest.token_bytes, fullest.block_bytes, settings.block_size)
    if refusal is None:
        pool = kv_cache.pool(fullest.blocks, fullest.token_bytes, settings)
    return Grant(fullest, pool, refusal, needed, check, _log(settings, fullest, pool, refusal))


def _distinct(architecture: Architecture, stages: int) -> list[int]:
    from harness.architecture import stage_layers

    layers = stage_layers(architecture.layers, stages)
    seen: dict[tuple[int, bool, bool], int] = {}
    for stage, count in enumerate(layers):
        seen.setdefault((count, stage == 0, stage == stages - 1), stage)
    return sorted(seen.values())


# -- refusals, in the order in which vLLM comes to them --------------------------------------------


def _refusal(
    architecture: Architecture, settings: Settings, b: Budget, needed: int, check: int
) -> Refusal | None:
    free = b.cuda_total.bytes - b.init.bytes
    if free < b.requested.bytes:
        return Refusal(_not_free(settings, b, free), Term.RUNTIME_AT_INIT)
    if b.weights.bytes > free:
        return Refusal(load_oom(architecture, settings, b), Term.WEIGHTS, reconstructed=True)
    if b.weights.bytes + b.non_torch.bytes + b.activation.bytes > free:
        return Refusal(profile_oom(architecture, settings, b), _largest(b), reconstructed=True)
    if check <= 0:
        return Refusal(no_memory(), _largest(b))
    if needed > check:
        longest = kv_cache.longest_that_fits(
            check, b.block_bytes, settings.block_size, settings.max_model_len
        )
        return Refusal(not_enough(settings.max_model_len, needed, check, longest), "kv_cache")
    return None


def _largest(b: Budget) -> str:
    terms = {
        Term.WEIGHTS: b.weights, Term.NON_TORCH_INCREASE: b.non_torch,
        Term.ACTIVATION_PEAK: b.activation, Term.CUDA_GRAPHS: b.graphs,
    }  # fmt: skip
    return max(terms, key=lambda t: terms[t].bytes)


def _not_free(settings: Settings, b: Budget, free: int) -> str:
    return (
        f"ValueError: Free memory on device cuda:0 ({format_gib(free)}/{format_gib(b.cuda_total.bytes)} GiB) on startup "
        f"is less than desired GPU memory utilization ({settings.gpu_memory_utilization}, "
        f"{format_gib(b.requested.bytes)} GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
        "processes."
    )


def no_memory() -> str:
    """vLLM's refusal where nothing is left for the KV cache."""
    return (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
        "the engine (this flag also controls CPU memory reservation on the CPU backend, despite its name). "
        + DOCS
    )


def not_enough(max_model_len: int, needed: int, check: int, longest: int) -> str:
    """vLLM's refusal where one request of ``max_model_len`` tokens needs more than ``check`` bytes."""
    estimate = (
        f"Based on the available memory, the estimated maximum model length is {longest}. " if longest else ""
    )
    return (
        f"ValueError: To serve at least one request with the model's max seq len ({max_model_len}), "
        f"({format_gib(needed)} GiB KV cache is needed, which is larger than the available KV cache memory "
        f"({format_gib(check)} GiB). {estimate}Try increasing `gpu_memory_utilization` (which also controls CPU memory on "
        "the CPU backend) or decreasing `max_model_len` when initializing the engine. " + DOCS
    )


# -- out of memory, as PyTorch words it ------------------------------------------------------------


def _torch_size(size: int) -> str:
    """``format_size`` of PyTorch's CUDACachingAllocator.cpp."""
    for unit, scale in (("GiB", GIB), ("MiB", MIB), ("KiB", 1024)):
        if size > scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} bytes"


def _segment(size: int) -> int:
    """Bytes that the allocator asks CUDA for (``get_allocation_size`` there)."""
    if size <= MIB:
        return 2 * MIB
    return 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB


def _oom(total: int, outside: int, allocated: int, tried: int) -> str:
    used = outside + allocated
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {_torch_size(_segment(tried))}. GPU 0 has a "
        f"total capacity of {_torch_size(total)} of which {_torch_size(max(total - used, 0))} is free. Including "
        f"non-PyTorch memory, this process has {_torch_size(used)} memory in use. Of the allocated memory "
        f"{_torch_size(allocated)} is allocated by PyTorch, and 0 bytes is reserved by PyTorch but unallocated."
    )


def load_oom(architecture: Architecture, settings: Settings, b: Budget) -> str:
    """The error of the first weight that finds no room, in the order in which vLLM makes them."""
    free, allocated = b.cuda_total.bytes - b.init.bytes, 0
    parts = list(tensors(architecture, settings, b.stage))
    layers = max((t.count for t in parts), default=1)
    once_before = [t for t in parts if t.count < layers and t.name.startswith("embed")]
    repeated = [t for t in parts if t.count == layers and t not in once_before]
    once_after = [t for t in parts if t not in once_before and t not in repeated]
    for tensor in (*once_before, *repeated * layers, *once_after):
        if allocated + _segment(tensor.bytes) > free:
            return _oom(b.cuda_total.bytes, b.init.bytes, allocated, tensor.bytes)
        allocated += tensor.bytes
    return _oom(b.cuda_total.bytes, b.init.bytes, allocated, parts[-1].bytes)


def profile_oom(architecture: Architecture, settings: Settings, b: Budget) -> str:
    """The error of a profile run that finds no room: the largest tensor of its path is taken for the last straw."""
    width = architecture.intermediate // settings.tensor_parallel_size * (2 if architecture.gated else 1)
    mlp = settings.max_num_batched_tokens * width * settings.dtype_bytes
    logits = (
        activations.profiled_rows(settings) * architecture.vocab * (4 if settings.model_runner == "v1" else 2)
    )
    tried, free = max(mlp, logits), b.cuda_total.bytes - b.init.bytes - b.non_torch.bytes
    allocated = min(max(free - tried + 1, b.weights.bytes), free)
    return _oom(b.cuda_total.bytes, b.init.bytes + b.non_torch.bytes, allocated, tried)


# -- the log ---------------------------------------------------------------------------------------


def _log(settings: Settings, b: Budget, pool: KvPool, refusal: Refusal | None) -> tuple[str, ...]:
    """The lines that the engine prints about its memory, in its version's form, the refusal last."""
    lines = []
    before_the_pool = refusal is not None and (refusal.reconstructed or refusal.term == Term.RUNTIME_AT_INIT)
    pinned = settings.kv_cache_memory_bytes is not None or settings.num_gpu_blocks_override is not None
    if not before_the_pool and not pinned:
        lines.append(f"Available KV cache memory: {format_gib(b.available.bytes)} GiB")
    if refusal is not None:
        return (*lines, refusal.text)
    size = f"GPU KV cache size: {pool.tokens:,} tokens"
    concurrency = (
        f"Maximum concurrency for {settings.max_model_len:,} tokens per request: {pool.max_concurrency:.2f}x"
    )
    return (
        (*lines, f"{size}, {concurrency}")
        if settings.defaults.one_line_kv_log
        else (*lines, size, concurrency)
    )
