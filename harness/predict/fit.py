"""The four rungs: LOADS, ADMITS, STARTS, HOLDS. Each names its limiting term and its margin in bytes."""

from __future__ import annotations

from harness.architecture import Architecture
from harness.errors import UsageError
from harness.ledger import LoadFigures, Rung, RungName, Term
from harness.predict import unprofiled
from harness.predict.admission import KV_CACHE, Budget, Grant
from harness.predict.estimate import Estimate
from harness.predict.settings import Settings
from harness.scenario import Load, Scenario, longest_prompt, longest_request
from harness.units import gib


def rungs(
    architecture: Architecture, settings: Settings, scenario: Scenario, grant: Grant
) -> tuple[tuple[Rung, ...], LoadFigures]:
    """The four rungs in order, and the figures of the load (empty where it is not judged)."""
    loads = _loads(grant.budget)
    admits = judge_admission(grant, settings) if loads.holds else not_reached(RungName.ADMITS)
    starts = _starts(architecture, settings, grant) if admits.holds else not_reached(RungName.STARTS)
    figures = LoadFigures()
    if scenario.load is None:
        holds = Rung(RungName.HOLDS, None, reason="the scenario states no load")
    elif starts.holds:
        holds, figures = judge_load(scenario, scenario.load, architecture, settings, grant)
        holds = _beyond_profile(scenario.load, architecture, settings, grant) or holds
    else:
        holds = not_reached(RungName.HOLDS)
    return (loads, admits, starts, holds), figures


def not_reached(name: str) -> Rung:
    """The verdict of a rung above one that fails."""
    return Rung(name, False, reason="not reached: a rung below it fails")


def _loads(b: Budget) -> Rung:
    margin = b.free - b.weights.bytes
    others = f" and {gib(b.others)} of other processes" if b.others else ""
    return Rung(
        RungName.LOADS,
        margin >= 0,
        margin,
        Term.WEIGHTS,
        b.cuda_total.low - b.init.high - b.others - b.weights.high,
        b.cuda_total.high - b.init.low - b.others - b.weights.low,
        f"weights {gib(b.weights.bytes)} and runtime {gib(b.init.bytes)}{others} of {gib(b.cuda_total.bytes)} GiB",
    )


def judge_admission(grant: Grant, settings: Settings) -> Rung:
    """ADMITS: whether the grant holds one request of max_model_len beside the null block."""
    b, refusal = grant.budget, grant.refusal
    margin = grant.check_bytes - grant.needed_bytes
    low, high = (
        margin - (b.available.bytes - b.available.low),
        margin + (b.available.high - b.available.bytes),
    )
    one = f"one request of {settings.max_model_len:,} tokens needs {gib(grant.needed_bytes)} GiB"
    if refusal is None:
        reason = f"{gib(b.available.bytes)} GiB for KV, {one}"
        return Rung(RungName.ADMITS, True, margin, KV_CACHE, low, high, reason)
    if refusal.term == Term.RUNTIME_AT_INIT:
        free = b.free
        margin = free - b.requested.bytes
        low, high = margin - (b.init.high - b.init.bytes), margin + (b.init.bytes - b.init.low)
        reason = f"{gib(b.requested.bytes)} GiB requested, {gib(free)} free at start"
    elif refusal.term == KV_CACHE:
        reason = f"{one}, {gib(grant.check_bytes)} are left"
    else:
        reason = f"of {gib(b.requested.bytes)} GiB requested, {gib(b.available.bytes)} are left for KV"
    return Rung(RungName.ADMITS, False, margin, refusal.term, low, high, reason)


def _starts(architecture: Architecture, settings: Settings, grant: Grant) -> Rung:
    """Whether all that the device holds after the start fits, what lies outside the budget included."""
    b = grant.budget
    state, warm_up = _sampling(architecture, settings, b)
    warm_up += state
    # V0 runs nothing of the profile's size once its graphs are there.
    slack = Estimate.exact(0, "") if settings.model_runner == "v0" else unprofiled.slack(settings)
    used = _on_device(b) + warm_up + slack.bytes
    margin = b.cuda_total.bytes - used
    low, high = _starts_interval(b, settings, warm_up, slack)
    graphs = b.graphs.high - b.reserved.bytes if settings.graphs_in_budget else b.graphs.bytes
    outside = {
        Term.RUNTIME_AT_INIT: b.init.bytes,
        Term.OTHER_PROCESSES: b.others,
        Term.CUDA_GRAPHS: graphs,
        Term.ACTIVATION_PEAK: warm_up,
        Term.ALLOCATOR_SLACK: slack.bytes,
    }
    # A pool that was set by hand is what can be made smaller.
    limited = KV_CACHE if _by_hand(settings) else max(outside, key=lambda t: outside[t])
    reason = f"{gib(used)} of {gib(b.cuda_total.bytes)} GiB after graph capture and warm-up"
    return Rung(RungName.STARTS, margin >= 0, margin, limited, low, high, reason)


def _on_device(b: Budget) -> int:
    """Bytes on the device when the pool is there and a step of the profile's size runs."""
    return b.others + b.blocks * b.block_bytes + sum(
        p.bytes for p in (b.init, b.weights, b.non_torch, b.activation, b.graphs)
    )


def _sampling(architecture: Architecture, settings: Settings, b: Budget) -> tuple[int, int]:
    """(state that no term counts, what the warm-up takes), bytes; on the last stage alone."""
    if b.stage != settings.pipeline_parallel_size - 1:
        return 0, 0
    return unprofiled.uncounted_state(architecture, settings), unprofiled.warm_up(architecture, settings)


def _beyond_profile(load: Load, architecture: Architecture, settings: Settings, grant: Grant) -> Rung | None:
    """HOLDS failed by a buffer of the load that no profile holds; None where all fit or none is asked for."""
    if settings.model_runner == "v0":
        return None
    buffers = []
    if load.prompt_logprobs is not None:
        buffers.append(("prompt_logprobs", unprofiled.prompt_logprobs(architecture, settings, longest_prompt(load))))
    if settings.num_speculative_tokens:
        checked = unprofiled.proposals(architecture, settings, load.concurrency)
        buffers.append(("checking proposed tokens", checked))
    b = grant.budget
    state, _ = _sampling(architecture, settings, b)
    slack = unprofiled.slack(settings)
    free = b.cuda_total.bytes - _on_device(b) - state - slack.bytes
    for name, taken in sorted(buffers, key=lambda pair: -pair[1].bytes):
        extra = max(taken.bytes - b.activation.bytes, 0)
        if extra > free:
            low = free + b.activation.low - taken.high + slack.bytes - slack.high
            high = free + b.activation.high - taken.low + slack.bytes - slack.low
            reason = (
                f"{name} takes {gib(taken.bytes)} GiB ({taken.source}), {gib(extra)} beyond the profile's peak; "
                f"{gib(free)} are free beside the pool and the allocator's slack"
            )
            return Rung(RungName.HOLDS, False, free - extra, Term.ACTIVATION_PEAK, low, high, reason)
    return None


def _by_hand(settings: Settings) -> bool:
    return settings.kv_cache_memory_bytes is not None or settings.num_gpu_blocks_override is not None


def _starts_interval(b: Budget, settings: Settings, warm_up: int, slack: Estimate) -> tuple[int, int]:
    """(low, high). A granted pool shrinks as the profiled terms grow: what lies outside is uncertain."""
    low = b.cuda_total.low - b.init.high - b.others - warm_up - slack.high
    high = b.cuda_total.high - b.init.low - b.others - slack.low
    if _by_hand(settings):
        pool, parts = b.blocks * b.block_bytes, (b.weights, b.non_torch, b.activation, b.graphs)
        return low - pool - sum(p.high for p in parts), high - pool - sum(p.low for p in parts)
    low, high = low - b.requested.low, high - b.requested.high
    if settings.graphs_in_budget:
        # The budget holds the estimate; what the capture takes more or less lies outside.
        return low - (b.graphs.high - b.reserved.bytes), high + (b.reserved.bytes - b.graphs.low)
    return low - b.graphs.high, high - b.graphs.low


def judge_load(
    scenario: Scenario, load: Load, architecture: Architecture, settings: Settings, grant: Grant
) -> tuple[Rung, LoadFigures]:
    """Whether the load runs without preemption and without waiting for blocks, by the simulated scheduler.

    Not judged (None) where the simulation lacks what the model has.
    """
    from harness.predict.limits import limits_of, not_simulated
    from harness.predict.step_time import clock
    from harness.simulate import TIMELESS, StepTime, simulate

    if longest_request(load) > settings.max_model_len:
        raise UsageError(
            f"load: prompt and output reach {longest_request(load):,} tokens, "
            f"above max_model_len {settings.max_model_len:,}"
        )
    step_time = clock(scenario, architecture, settings)
    if load.timed and not isinstance(step_time, StepTime):
        reason = f"not judged: the load comes by the clock, and {step_time}"
        return Rung(RungName.HOLDS, None, limited_by=KV_CACHE, reason=reason), LoadFigures()
    lacking = not_simulated(architecture, settings, load)
    if lacking:
        return Rung(RungName.HOLDS, None, limited_by=KV_CACHE, reason=f"not judged: {lacking}"), LoadFigures()
    limits = limits_of(scenario.engine, settings, grant.budget.blocks, architecture, load)
    timed = step_time if isinstance(step_time, StepTime) else TIMELESS
    simulation = simulate(load, limits, timed, scenario.slo.of_a_request if scenario.slo else {})
    return _held(simulation.holds, simulation.figures, grant.budget), simulation.figures


def _held(holds: bool, figures: LoadFigures, b: Budget) -> Rung:
    needed = figures.peak_blocks_needed
    if needed is None:
        return Rung(RungName.HOLDS, holds, limited_by=KV_CACHE, reason="the load's need is not known")
    margin, low, high = (
        (max(n // b.block_bytes, 0) - 1 - needed) * b.block_bytes
        for n in (b.available.bytes, b.available.low, b.available.high)
    )
    reason = (
        f"the load needs {needed:,} blocks at its peak, {b.blocks - 1:,} can be used; "
        f"{figures.preemptions or 0} preemptions"
    )
    if low < 0 <= high:
        reason += "; within the prediction's interval it could go either way"
    return Rung(RungName.HOLDS, holds, margin, KV_CACHE, low, high, reason)
