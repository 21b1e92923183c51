"""The four rungs: LOADS, ADMITS, STARTS, HOLDS. Each names its limiting term and its margin in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from harness.architecture import Architecture
from harness.errors import UsageError
from harness.ledger import LoadFigures, Rung, RungName, Term
from harness.predict.activations import profiled_rows
from harness.predict.admission import Budget, Grant
from harness.predict.settings import Settings
from harness.scenario import Load, longest_request
from harness.units import gib

KV_CACHE = "kv_cache"


@dataclass(frozen=True)
class Held:
    """What the simulated load says: its rung and its figures."""

    rung: Rung
    figures: LoadFigures


def rungs(
    architecture: Architecture, settings: Settings, load: Load | None, grant: Grant
) -> tuple[tuple[Rung, ...], LoadFigures]:
    """The four rungs in order, and the figures of the load (empty where it can't be judged)."""
    made = [_loads(grant.budget)]
    made.append(_admits(grant, settings) if made[-1].holds else _not_reached(RungName.ADMITS))
    made.append(_starts(architecture, settings, grant) if made[-1].holds else _not_reached(RungName.STARTS))
    if load is None:
        return (*made, Rung(RungName.HOLDS, None, reason="the scenario states no load")), LoadFigures()
    if not made[-1].holds:
        return (*made, _not_reached(RungName.HOLDS)), LoadFigures()
    held = _holds(load, settings, grant)
    return (*made, held.rung), held.figures


def _not_reached(name: str) -> Rung:
    return Rung(name, False, reason="not reached: a rung below it fails")


def _loads(b: Budget) -> Rung:
    margin = b.cuda_total.bytes - b.init.bytes - b.weights.bytes
    holds = margin >= 0
    return Rung(
        RungName.LOADS, holds, margin, Term.WEIGHTS,
        b.cuda_total.low - b.init.high - b.weights.high, b.cuda_total.high - b.init.low - b.weights.low,
        f"weights {gib(b.weights.bytes)} and runtime {gib(b.init.bytes)} GiB, device {gib(b.cuda_total.bytes)} GiB",
    )  # fmt: skip


def _admits(grant: Grant, settings: Settings) -> Rung:
    b, refusal = grant.budget, grant.refusal
    margin = grant.check_bytes - grant.needed_bytes
    low, high = (
        margin - (b.available.bytes - b.available.low),
        margin + (b.available.high - b.available.bytes),
    )
    if refusal is None:
        reason = f"{gib(b.available.bytes)} GiB for KV, one request of {settings.max_model_len:,} tokens needs {gib(grant.needed_bytes)}"
        return Rung(RungName.ADMITS, True, margin, KV_CACHE, low, high, reason)
    if refusal.term == Term.RUNTIME_AT_INIT:
        margin = b.cuda_total.bytes - b.init.bytes - b.requested.bytes
        low, high = margin - (b.init.high - b.init.bytes), margin + (b.init.bytes - b.init.low)
        reason = (
            f"{gib(b.requested.bytes)} GiB requested, {gib(b.cuda_total.bytes - b.init.bytes)} free at start"
        )
    elif refusal.term == KV_CACHE:
        reason = f"one request of {settings.max_model_len:,} tokens needs {gib(grant.needed_bytes)} GiB, {gib(grant.check_bytes)} are left"
    else:
        reason = f"of {gib(b.requested.bytes)} GiB requested, {gib(b.available.bytes)} are left for KV"
    return Rung(RungName.ADMITS, False, margin, refusal.term, low, high, reason)


def _starts(architecture: Architecture, settings: Settings, grant: Grant) -> Rung:
    """Whether all that the device holds after the start fits, what lies outside the budget included.

    Model Runner V1 warms the sampler up once the pool is taken; freed pieces of the profile are not always of
    use to it, so one float32 copy of the logits (S x V x 4 B) is counted on top: the allocation at which
    gpt-oss-20b died on an 80 GB H100 at 0.95 (h100-019-51). The upper margin leaves it out.
    Source: ``compile_or_warm_up_model``, vllm/v1/worker/gpu_worker.py, 0.19 and 0.32.
    """
    b = grant.budget
    pool = (grant.pool.num_blocks or 0) * b.block_bytes
    parts = (b.init, b.weights, b.non_torch, b.activation, b.graphs)
    on_last = b.stage == settings.pipeline_parallel_size - 1
    warm_up = (
        profiled_rows(settings) * architecture.vocab * 4 if settings.model_runner == "v1" and on_last else 0
    )
    margin = b.cuda_total.bytes - pool - warm_up - sum(p.bytes for p in parts)
    low, high = _starts_interval(b, settings, pool, warm_up)
    outside = {
        Term.RUNTIME_AT_INIT: b.init.bytes,
        Term.CUDA_GRAPHS: b.graphs.bytes,
        Term.ACTIVATION_PEAK: warm_up,
    }
    if settings.kv_cache_memory_bytes or settings.num_gpu_blocks_override:
        limited = KV_CACHE  # the pool was set by hand: it is what can be made smaller
    else:
        limited = max(outside, key=lambda t: outside[t])
    reason = (
        f"{gib(b.cuda_total.bytes - margin)} of {gib(b.cuda_total.bytes)} GiB after graph capture and warm-up"
    )
    return Rung(RungName.STARTS, margin >= 0, margin, limited, low, high, reason)


def _starts_interval(b: Budget, settings: Settings, pool: int, warm_up: int) -> tuple[int, int]:
    """A granted pool shrinks as the profiled terms grow, so only what lies outside the budget is uncertain."""
    if settings.kv_cache_memory_bytes or settings.num_gpu_blocks_override:
        inside_low = inside_high = pool
        parts = (b.init, b.weights, b.non_torch, b.activation, b.graphs)
        return (
            b.cuda_total.low - inside_high - warm_up - sum(p.high for p in parts),
            b.cuda_total.high - inside_low - sum(p.low for p in parts),
        )
    low = b.cuda_total.low - b.init.high - b.requested.low - warm_up
    high = b.cuda_total.high - b.init.low - b.requested.high
    if settings.defaults.graphs_in_budget:
        # The budget holds the estimate; what the capture takes more or less lies outside.
        return low - (b.graphs.high - b.graphs.bytes), high + (b.graphs.bytes - b.graphs.low)
    return low - b.graphs.high, high - b.graphs.low


def _holds(load: Load, settings: Settings, grant: Grant) -> Held:
    from harness.simulate import Limits, simulate

    if longest_request(load) > settings.max_model_len:
        raise UsageError(
            f"load: prompt and output reach {longest_request(load):,} tokens, above max_model_len {settings.max_model_len:,}"
        )
    blocks = grant.pool.num_blocks or 0
    simulation = simulate(
        load,
        Limits(
            blocks, settings.block_size, settings.max_num_seqs, settings.max_num_batched_tokens,
            settings.max_model_len, settings.enable_prefix_caching,
        ),
    )  # fmt: skip
    figures = simulation.figures
    holds = not figures.preemptions and not simulation.waited_for_kv
    return Held(_held_rung(holds, figures, settings, grant, blocks), figures)


def _held_rung(holds: bool, figures: LoadFigures, settings: Settings, grant: Grant, blocks: int) -> Rung:
    b, needed = grant.budget, figures.peak_blocks_needed
    if needed is None:
        return Rung(RungName.HOLDS, holds, limited_by=KV_CACHE, reason=f"{figures.preemptions} preemptions")

    def margin(count: int) -> int:
        return (count - 1 - needed) * b.block_bytes

    reason = f"the load needs {needed:,} blocks at its peak, {blocks - 1:,} can be used; {figures.preemptions or 0} preemptions"
    low, high = (margin(max(n // b.block_bytes, 0)) for n in (b.available.low, b.available.high))
    if low < 0 <= high:
        reason += "; within the prediction's interval it could go either way"
    return Rung(RungName.HOLDS, holds, margin(blocks), KV_CACHE, low, high, reason)
