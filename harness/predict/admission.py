"""vLLM's own grant: how many bytes it gives to the KV cache, or the error with which it refuses.

    requested = ceil(cuda_total x gpu_memory_utilization)
    available = requested - weights - non_torch - activation_peak - graphs     (graphs from 0.20 on)
    num_blocks = available // bytes_per_block

Source: ``request_memory`` (vllm/v1/worker/utils.py), ``determine_available_memory``
(vllm/v1/worker/gpu_worker.py), ``get_kv_cache_configs`` and ``_check_enough_kv_cache_memory``
(vllm/v1/core/kv_cache_utils.py), vLLM 0.32. Older versions of V1 check without setting the null block aside: a
difference of one block, not modelled. V0: ``determine_num_available_blocks``, vllm/worker/worker.py, 0.7.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

from harness.architecture import Architecture
from harness.catalog import Gpu
from harness.errors import UsageError
from harness.ledger import KvPool, Term
from harness.predict import activations, graphs, kv_cache, overhead
from harness.predict.estimate import Estimate
from harness.predict.settings import Settings
from harness.predict.weights import tensors, weights
from harness.units import GIB, MIB

KV_CACHE = "kv_cache"
DOCS = "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."


@dataclass(frozen=True)
class Budget:
    """The terms of one rank, in bytes. ``profiled`` may be negative: nothing is left for the KV cache."""

    stage: int
    cuda_total: Estimate
    init: Estimate
    others: int  # other processes on the device
    weights: Estimate
    non_torch: Estimate
    activation: Estimate
    graphs: Estimate
    reserved: Estimate  # for them in the budget
    requested: Estimate
    profiled: Estimate  # what the profile leaves for KV
    available: Estimate  # the same, unless the pool is set by hand
    block_bytes: int

    @property
    def free(self) -> int:
        """What is free when vLLM reads it, before the weights; negative where there is not room for as much."""
        return self.cuda_total.bytes - self.init.bytes - self.others

    @property
    def outside(self) -> int:
        """What is on the device and not of PyTorch's allocator, once the engine has profiled."""
        return self.init.bytes + self.others + self.non_torch.bytes

    @property
    def blocks(self) -> int:
        """Blocks that ``available`` buys; none where it is negative."""
        return max(self.available.bytes // self.block_bytes, 0)


@dataclass(frozen=True)
class Refusal:
    """Why there is no pool: vLLM's words, and the term that is to blame."""

    text: str
    term: str
    reconstructed: bool = False


@dataclass(frozen=True)
class Grant:
    """The pool of the fullest rank, or the refusal.

    A request of max_model_len needs ``needed_bytes``; it must fit into ``check_bytes``, the grant less the
    null block.
    """

    budget: Budget
    pool: KvPool
    refusal: Refusal | None
    needed_bytes: int
    check_bytes: int
    log: tuple[str, ...]


def grant(architecture: Architecture, settings: Settings, gpu: Gpu) -> Grant:
    """What the fullest rank is granted: every rank gets as many blocks as the poorest can hold.

    Raises UsageError where a rank has no cache at all (``get_kv_cache_config_from_groups``, 0.32).
    """
    budgets = [
        budget(architecture, settings, gpu, stage) for stage in _distinct_stages(architecture, settings)
    ]
    for b in budgets:
        if not b.block_bytes:
            raise UsageError(
                f"pipeline_parallel_size {settings.pipeline_parallel_size}: no layer of stage {b.stage} keeps a cache, "
                "and vLLM divides that rank's memory by the bytes of a block (ZeroDivisionError)"
            )
    fullest = min(budgets, key=lambda b: (b.available.bytes // b.block_bytes, -b.weights.bytes))
    charged = kv_cache.charged_per_block(architecture, settings, fullest.stage, fullest.block_bytes)
    needed = kv_cache.request_blocks(architecture, settings, settings.max_model_len) * charged
    # V0 has no null block, and grants whole blocks.
    check = fullest.blocks * fullest.block_bytes if settings.model_runner == "v0" else (
        fullest.available.bytes - fullest.block_bytes
    )
    refusal = _refusal(architecture, settings, fullest, needed, check, charged)
    pool = kv_cache.pool(architecture, settings, fullest.blocks if refusal is None else None, fullest.stage)
    return Grant(fullest, pool, refusal, needed, check, _log(settings, fullest, pool, refusal))


def budget(architecture: Architecture, settings: Settings, gpu: Gpu, stage: int) -> Budget:
    """The terms of one rank of pipeline stage ``stage`` (from 0)."""
    total = overhead.cuda_total(gpu)
    parts = (
        weights(architecture, settings, stage),
        overhead.non_torch_increase(architecture, settings, gpu, stage),
        activations.activation_peak(architecture, settings, gpu, stage),
        graphs.cuda_graphs(architecture, settings, gpu, stage),
    )
    requested = _requested(total, settings.gpu_memory_utilization)
    reserved = graphs.graphs_reserved(architecture, settings, gpu, stage)
    init = overhead.runtime_at_init(settings, gpu)
    profiled = _profiled(requested, (*parts[:-1], reserved), init, settings)
    block = kv_cache.bytes_per_block(architecture, settings, stage)
    available = _by_hand(settings, block) or profiled
    return Budget(stage, total, init, settings.in_use, *parts, reserved, requested, profiled, available, block)


def _requested(total: Estimate, share: float) -> Estimate:
    likely, low, high = (math.ceil(n * share) for n in (total.bytes, total.low, total.high))
    return Estimate(likely, low, high, f"ceil(cuda_total x {share})")


def _profiled(requested: Estimate, parts: tuple[Estimate, ...], init: Estimate, settings: Settings) -> Estimate:
    in_budget, all_in_use, counted = settings.graphs_in_budget, settings.defaults.counts_all_in_use, parts
    words = "requested - weights - non_torch_increase - activation_peak"
    if all_in_use:
        # V1 before 0.9.1 subtracts all that is not PyTorch's, whosever it is.
        counted = (*counted, init, Estimate.exact(settings.in_use, "gpu.in_use"))
        words += " - runtime_at_init - other_processes"
    return Estimate(
        requested.bytes - sum(p.bytes for p in counted),
        requested.low - sum(p.high for p in counted),
        requested.high - sum(p.low for p in counted),
        words + (" - cuda_graphs" if in_budget else ""),
    )


def _by_hand(settings: Settings, block_bytes: int) -> Estimate | None:
    if settings.num_gpu_blocks_override is not None:
        return Estimate.exact(settings.num_gpu_blocks_override * block_bytes, "num_gpu_blocks_override")
    if settings.kv_cache_memory_bytes is not None:
        return Estimate.exact(settings.kv_cache_memory_bytes, "kv_cache_memory_bytes")
    return None


def _distinct_stages(architecture: Architecture, settings: Settings) -> list[int]:
    """One stage of each kind: those between the first and the last differ in their layers only."""
    stages = settings.pipeline_parallel_size
    if stages == 1:
        return [0]
    seen: dict[tuple[object, ...], int] = {}
    for stage in range(stages):
        layers = architecture.stage(stage, settings.stages)
        parts = tuple(architecture.copies(c, layers) for c in architecture.components)
        tables = kv_cache.bytes_per_block(architecture, settings, stage)
        seen.setdefault((parts, tables, stage == 0, stage == stages - 1), stage)
    return sorted(seen.values())


# -- refusals, in the order in which vLLM comes to them --------------------------------------------


def _refusal(
    architecture: Architecture, settings: Settings, b: Budget, needed: int, check: int, charged: int
) -> Refusal | None:
    free = b.free
    if free < b.requested.bytes and settings.defaults.checks_free_memory:
        return Refusal(_not_free(settings, b, free), Term.RUNTIME_AT_INIT)
    if b.weights.bytes > free:
        return Refusal(load_oom(architecture, settings, b), Term.WEIGHTS, reconstructed=True)
    if b.weights.bytes + b.non_torch.bytes + b.activation.bytes > free:
        return Refusal(profile_oom(architecture, settings, b), _largest(b), reconstructed=True)
    words = no_room(architecture, settings, needed, check, charged)
    return Refusal(words, _largest(b) if check <= 0 else KV_CACHE) if words else None


def _largest(b: Budget) -> str:
    terms = {
        Term.WEIGHTS: b.weights,
        Term.NON_TORCH_INCREASE: b.non_torch,
        Term.ACTIVATION_PEAK: b.activation,
        Term.CUDA_GRAPHS: b.graphs,
    }
    return max(terms, key=lambda t: terms[t].bytes)


def format_gib(size: int) -> str:
    """Bytes as vLLM prints GiB (``format_gib``, vllm/utils/mem_utils.py, 0.32): ``58.11``, ``69.8``."""
    return f"{round(size / GIB, 2)}"


def _not_free(settings: Settings, b: Budget, free: int) -> str:
    return (
        f"ValueError: Free memory on device cuda:0 ({format_gib(free)}/{format_gib(b.cuda_total.bytes)} GiB) "
        f"on startup is less than desired GPU memory utilization ({settings.gpu_memory_utilization}, "
        f"{format_gib(b.requested.bytes)} GiB). Decrease GPU memory utilization or reduce GPU memory used "
        "by other processes."
    )


def no_room(architecture: Architecture, settings: Settings, needed: int, check: int, charged: int) -> str | None:
    """vLLM's refusal where ``check`` bytes do not hold one request, which needs ``needed``; None where they do.

    ``charged``: bytes that a request is charged for a block.
    """
    if check <= 0:
        return no_memory()
    if needed <= check:
        return None
    longest = kv_cache.longest_that_fits(architecture, settings, check, charged)
    return not_enough(settings.max_model_len, needed, check, longest)


def no_memory() -> str:
    """vLLM's refusal where nothing is left for the KV cache."""
    return (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        "initializing the engine (this flag also controls CPU memory reservation on the CPU backend, despite "
        "its name). " + DOCS
    )


def not_enough(max_model_len: int, needed: int, check: int, longest: int) -> str:
    """vLLM's refusal where one request of ``max_model_len`` tokens needs more than ``check`` bytes."""
    estimate = ""
    if longest:
        estimate = f"Based on the available memory, the estimated maximum model length is {longest}. "
    return (
        f"ValueError: To serve at least one request with the model's max seq len ({max_model_len}), "
        f"({format_gib(needed)} GiB KV cache is needed, which is larger than the available KV cache memory "
        f"({format_gib(check)} GiB). {estimate}Try increasing `gpu_memory_utilization` (which also controls "
        "CPU memory on the CPU backend) or decreasing `max_model_len` when initializing the engine. " + DOCS
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
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {_torch_size(_segment(tried))}. "
        f"GPU 0 has a total capacity of {_torch_size(total)} of which {_torch_size(max(total - used, 0))} is "
        f"free. Including non-PyTorch memory, this process has {_torch_size(used)} memory in use. Of the "
        f"allocated memory {_torch_size(allocated)} is allocated by PyTorch, and 0 bytes is reserved by "
        "PyTorch but unallocated."
    )


def load_oom(architecture: Architecture, settings: Settings, b: Budget) -> str:
    """The error of the first weight that finds no room: embeddings, layer after layer, then the rest."""
    free, allocated = b.free, 0
    parts = list(tensors(architecture, settings, b.stage))
    layer = [t for t in parts if t.in_layer]
    before = [t for t in parts if t.name.startswith("embed")]
    after = [t for t in parts if not t.in_layer and t not in before]
    most = max(t.count for t in layer)
    each = ((t for t in layer if t.count > n) for n in range(most))
    for tensor in chain(before, chain.from_iterable(each), after):
        if allocated + _segment(tensor.bytes) > free:
            break
        allocated += tensor.bytes
    return _oom(b.cuda_total.bytes, b.init.bytes + b.others, allocated, tensor.bytes)


def profile_oom(architecture: Architecture, settings: Settings, b: Budget) -> str:
    """The error of a profile run that finds no room, its largest tensor taken for the last straw."""
    width = architecture.dense_width // settings.tensor_parallel_size * (2 if architecture.gated else 1)
    mlp = settings.max_num_batched_tokens * width * settings.dtype_bytes
    per_logit = 4 if settings.model_runner == "v1" else settings.dtype_bytes
    logits = activations.profiled_rows(settings) * architecture.vocab * per_logit
    outside = b.outside
    free = max(b.cuda_total.bytes - outside, 0)
    tried = max(mlp, logits)
    allocated = min(max(free - tried + 1, b.weights.bytes), free)
    return _oom(b.cuda_total.bytes, outside, allocated, tried)


def start_oom(architecture: Architecture, settings: Settings, b: Budget) -> str:
    """The error of a start that takes more than the device has: a layer's KV tensor where the pool alone does
    not fit, else the sampler's float32 logits, tried when all the rest is there."""
    outside = b.outside
    free = max(b.cuda_total.bytes - outside, 0)
    pool = b.blocks * b.block_bytes
    tensor = pool // max(len(architecture.stage(b.stage, settings.stages)), 1)
    if b.weights.bytes + pool > free:
        held = b.weights.bytes + (free - b.weights.bytes) // max(tensor, 1) * tensor
        return _oom(b.cuda_total.bytes, outside, held, tensor)
    tried = activations.profiled_rows(settings) * architecture.vocab * 4
    return _oom(b.cuda_total.bytes, outside, min(b.weights.bytes + pool + b.graphs.bytes, free), tried)


# -- the log ---------------------------------------------------------------------------------------


def _log(settings: Settings, b: Budget, pool: KvPool, refusal: Refusal | None) -> tuple[str, ...]:
    """The lines that the engine prints about its memory, in its version's form, the refusal last."""
    lines = []
    if refusal is None or not (refusal.reconstructed or refusal.term == Term.RUNTIME_AT_INIT):
        lines += _profile_lines(settings, b)
    if refusal is not None:
        return (*lines, refusal.text)
    size = f"GPU KV cache size: {pool.tokens:,} tokens"
    per_request = f"for {settings.max_model_len:,} tokens per request: {pool.max_concurrency:.2f}x"
    if settings.defaults.one_line_kv_log:
        return (*lines, f"{size}, Maximum concurrency {per_request}")
    return (*lines, size, f"Maximum concurrency {per_request}")


def _profile_lines(settings: Settings, b: Budget) -> list[str]:
    lines = []
    if settings.kv_cache_memory_bytes is None:
        lines.append(f"Available KV cache memory: {format_gib(b.profiled.bytes)} GiB")
    if settings.num_gpu_blocks_override is not None:
        found, override = settings.kv_cache_memory_bytes or b.profiled.bytes, settings.num_gpu_blocks_override
        lines.append(
            f"Overriding num_gpu_blocks={found // b.block_bytes} with num_gpu_blocks_override={override}"
        )
    return lines
