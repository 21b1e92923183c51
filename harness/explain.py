"""The words: why idle fit differs from loaded fit here, in a few sentences with the run's own numbers."""

from __future__ import annotations

from harness.compare import Comparison
from harness.ledger import Account, RungName, Term
from harness.scenario import Load, Scenario
from harness.traffic import arrivals_s, stream
from harness.units import human

_IDLE = (RungName.LOADS, RungName.ADMITS, RungName.STARTS)


def heading(comparison: Comparison) -> str:
    """The title over the sentences."""
    verdicts = _verdicts(comparison)
    if any(verdicts[rung] is False for rung in _IDLE):
        return "Why it does not get as far as a load"
    if verdicts[RungName.HOLDS] is False:
        return "Why idle fit differs from loaded fit here"
    return "Idle fit and loaded fit here"


def explain(scenario: Scenario, predicted: Account, comparison: Comparison) -> list[str]:
    """Three or four sentences; each number is the run's own, or the prediction's where it says so."""
    verdicts = _verdicts(comparison)
    if any(verdicts[rung] is False for rung in _IDLE):
        return _not_started(scenario, predicted, comparison)
    if verdicts[RungName.STARTS] is None:
        return ["The folder holds no prediction that can be read, so there is nothing to compare with."]
    if predicted.ledger.bytes_of(Term.WEIGHTS) is None:
        return ["It started. Nothing is predicted for it, and the notes say why."]
    words = [_idle_sentence(scenario, predicted)]
    if scenario.load is None:
        return [*words, "The scenario states no load, so nobody asked whether it holds one."]
    if predicted.load.steps is None and comparison.mode == "analytic":
        return words  # HOLDS was not judged, and its rung says why
    words += [_need_sentence(scenario.load, predicted), _outcome_sentence(comparison)]
    if verdicts[RungName.HOLDS] is False and _limit(comparison) == "kv_cache":
        words.append(
            "Idle memory can't show this: the pool is set aside when the engine starts and reads the same whether "
            "its blocks are empty or all taken; blocks in use, the queue and preemptions are what tell."
        )
    elif verdicts[RungName.HOLDS]:
        words += _room_sentence(scenario.load, predicted)
    return [w for w in words if w]


def _verdicts(comparison: Comparison) -> dict[str, bool | None]:
    return {r.rung: r.measured if r.measured is not None else r.predicted for r in comparison.rungs}


def _limit(comparison: Comparison) -> str | None:
    return next(r for r in comparison.rungs if r.rung == RungName.HOLDS).limited_by


def _device(scenario: Scenario) -> str:
    if scenario.on_cpu:
        return "this computer"
    assert scenario.gpu is not None
    name = scenario.gpu.name or f"GPU of {human(scenario.gpu.memory)}"
    return f"each of {scenario.gpu.count} {name}" if scenario.gpu.count > 1 else f"one {name}"


def _count(n: float, thing: str) -> str:
    return f"{n:,.0f} {thing}" + ("" if n == 1 else "s")


def _not_started(scenario: Scenario, predicted: Account, comparison: Comparison) -> list[str]:
    verdicts = _verdicts(comparison)
    row = next(r for r in comparison.rungs if r.rung in _IDLE and verdicts[r.rung] is False)
    words = [f"It does not get as far as a load: {row.rung} fails on {_device(scenario)}."]
    weights = predicted.ledger.bytes_of(Term.WEIGHTS)
    if row.measured is False:
        return [*words, f"The engine's reason: {row.measured_reason.rstrip('.')}."]
    if row.rung == RungName.LOADS and weights is not None and row.margin is not None:
        return [
            *words,
            f"The weights take {human(weights)}, {human(-row.margin)} more than there is room for.",
            "No memory is left for a KV cache, so no load can be admitted; fewer bits for each weight, a larger GPU "
            "or more of them is what changes that.",
        ]
    words.append(f"{row.reason[:1].upper()}{row.reason[1:].rstrip('.')}.")
    if row.rung == RungName.ADMITS:
        words.append(
            "A smaller max_model_len or max_num_batched_tokens, an fp8 KV cache or fewer bits for each weight leave "
            "more for the pool."
        )
    elif scenario.engine.num_gpu_blocks_override or scenario.engine.kv_cache_memory_bytes:
        words.append("The pool was set by hand, without regard to what else the device has to hold.")
    return words


def _idle_sentence(scenario: Scenario, predicted: Account) -> str:
    kv, pool = predicted.kv, predicted.ledger.bytes_of(Term.KV_AVAILABLE)
    weights = human(predicted.ledger.bytes_of(Term.WEIGHTS))
    by_hand = scenario.engine.num_gpu_blocks_override or scenario.engine.kv_cache_memory_bytes
    room = "was given" if by_hand else "has room for"
    tokens = "" if kv.usable_tokens is None else f", {kv.usable_tokens:,} tokens"
    each = f" ({human(kv.bytes_per_token)} for each token)" if kv.bytes_per_token and kv.one_table else ""
    pool_of = f"a KV pool of {human(pool)}{tokens}{each}"
    return f"Idle it fits: beside {weights} of weights {_device(scenario)} {room} {pool_of}."


def _need_sentence(load: Load, predicted: Account) -> str:
    kv, needed = predicted.kv, predicted.load.peak_blocks_needed
    if needed is None or kv.block_size is None or not kv.usable_blocks:
        return ""
    who = _count(load.concurrency, "user" if load.users else "request") + ("" if load.users else " at once")
    if load.open:
        who = f"requests that come {_rate(load)} a second"
    tokens = sum(r.prompt_tokens + r.output_tokens for r in stream(load)) / load.requests
    size = f" ({human(needed * kv.bytes_per_block)})" if kv.bytes_per_block else ""
    taken = f"blocks for {needed * kv.block_size:,} tokens" if kv.one_table else f"{needed:,} blocks"
    return (
        f"Under load {who} with {tokens:,.0f} tokens each would take {taken} at the peak, "
        f"{_times(needed / kv.usable_blocks)} the pool{size}."
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio >= 0.01 else "less than a hundredth of"


def _rate(load: Load) -> str:
    """Requests per second, on the whole."""
    if load.rate is not None:
        return f"{load.rate:g}" + (f" to {load.end_rate:g}" if load.end_rate is not None else "")
    times = list(arrivals_s(load) or ())
    return f"{len(times) / times[-1]:.3g}" if times[-1:] > [0.0] else "many"


def _outcome_sentence(comparison: Comparison) -> str:
    holds = next(r for r in comparison.rungs if r.rung == RungName.HOLDS)
    how = {"rehearsal": "In the rehearsal on real vLLM", "measured": "Measured"}.get(comparison.mode, "Simulated")
    if comparison.outcome != "completed":
        return f"{how}: the load did not run to its end ({comparison.outcome.replace('_', ' ')})."
    side = "gpu" if comparison.mode == "analytic" else "measured"
    figures = {f.figure: getattr(f, side) for f in comparison.figures}
    running, waiting, preemptions = (figures[k] for k in ("peak_running", "peak_waiting", "preemptions"))
    if running is None or waiting is None or preemptions is None:
        return f"{how}: {holds.measured_reason or holds.reason}."
    queue = f"at most {waiting:,.0f} waited at one time" if waiting else "nobody waited"
    told = f"{how}: at most {_count(running, 'request')} ran at once, {queue}"
    if not preemptions:
        verdict = holds.measured if holds.measured is not None else holds.predicted
        end = "somebody waited for blocks: it does not hold" if verdict is False else "none was preempted: it holds"
        return f"{told}, and {end}."
    again = figures["tokens_scheduled"]
    total = f" ({again:,.0f} tokens scheduled in all)" if again is not None else ""
    one = preemptions == 1
    return (
        f"{told}, and there {'was' if one else 'were'} {_count(preemptions, 'preemption')}, "
        f"{'' if one else 'each '}computed again{total}: it does not hold."
    )


def _room_sentence(load: Load, predicted: Account) -> list[str]:
    """How much more of the same would fit, by the peak of this load."""
    usable, needed = predicted.kv.usable_blocks, predicted.load.peak_blocks_needed
    if usable is None or not needed or load.open:
        return []
    more = (usable - needed) * load.concurrency // needed
    thing = "user" if load.users else "request at once"
    if more < 1:
        return [f"There is no room for one more {thing}."]
    return [f"By its blocks the pool has room for about {more:,} more such {thing.replace('user', 'users')}."]
