"""The words: why idle fit differs from loaded fit here, in a few sentences with the run's own numbers."""

from __future__ import annotations

from harness.compare import Comparison, FigureRow, limiting
from harness.ledger import Account, Term
from harness.scenario import Load, Scenario
from harness.traffic import requests
from harness.units import gib, human


def explain(scenario: Scenario, predicted: Account, comparison: Comparison) -> list[str]:
    """Three or four sentences."""
    verdicts = {r.rung: r.measured if r.measured is not None else r.predicted for r in comparison.rungs}
    if verdicts["LOADS"] is False or verdicts["ADMITS"] is False or verdicts["STARTS"] is False:
        return _not_started(scenario, predicted, comparison)
    return _started(scenario, predicted, comparison)


def _device(scenario: Scenario) -> str:
    if scenario.on_cpu:
        return "this computer"
    assert scenario.gpu is not None
    name = scenario.gpu.name or f"a GPU of {human(scenario.gpu.memory)}"
    return f"{scenario.gpu.count} x {name}" if scenario.gpu.count > 1 else name


def _not_started(scenario: Scenario, predicted: Account, comparison: Comparison) -> list[str]:
    weights = predicted.ledger.bytes_of(Term.WEIGHTS)
    rung = next(r for r in comparison.rungs if False in (r.measured, r.predicted))
    words = [f"It does not get as far as a load: {rung.rung} fails on {_device(scenario)}."]
    if weights is not None:
        words.append(
            f"The weights take {gib(weights)} GiB for each device"
            + (f", {gib(-rung.margin)} GiB more than there is room for." if rung.margin is not None and rung.margin < 0
               and rung.rung == "LOADS" else ".")
        )  # fmt: skip
    reason = rung.measured_reason or rung.reason
    if reason and rung.rung != "LOADS":
        words.append(f"The reason: {reason.rstrip('.')}.")
    if rung.rung == "LOADS":
        words.append(
            "No memory is left for a KV cache, so no load can be admitted; fewer bits for each weight, "
            "a larger GPU or more of them is what changes that."
        )
    return words


def _started(scenario: Scenario, predicted: Account, comparison: Comparison) -> list[str]:
    kv, load = predicted.kv, scenario.load
    words = [_idle_sentence(scenario, predicted)]
    if load is None or kv.usable_blocks is None or kv.block_size is None or kv.bytes_per_token is None:
        return words
    if predicted.load.steps is None and comparison.mode == "analytic":
        return words  # HOLDS was not judged, and its rung says why
    words.append(_need_sentence(load, predicted))
    words.append(_outcome_sentence(comparison))
    if limiting(comparison) == "kv_cache":
        words.append(
            "Idle memory can't show this: the pool is set aside when the engine starts and reads the same whether "
            "its blocks are empty or all taken; blocks in use, the queue and preemptions are what tell."
        )
    return words


def _idle_sentence(scenario: Scenario, predicted: Account) -> str:
    pool = predicted.ledger.bytes_of(Term.KV_AVAILABLE)
    weights = predicted.ledger.bytes_of(Term.WEIGHTS)
    tokens = predicted.kv.usable_tokens
    each = predicted.kv.bytes_per_token if predicted.kv.one_table else None
    return (
        f"Idle it fits: beside {human(weights)} of weights {_device(scenario)} has room for a KV pool of "
        + f"{human(pool)}, "
        + (f"{tokens:,} tokens" if tokens is not None else "of unknown size")
        + (f" ({human(each)} for each token)." if each else ".")
    )


def _need_sentence(load: Load, predicted: Account) -> str:
    work = requests(load)
    mean = sum(r.prompt_tokens + r.output_tokens for r in work) / len(work)
    kv, needed = predicted.kv, predicted.load.peak_blocks_needed
    assert kv.block_size is not None and kv.usable_blocks is not None
    who = f"{load.users} users" if load.users else f"{load.requests} requests at once"
    text = f"Under load {who} with {mean:,.0f} tokens each"
    if needed is None:
        return text + " fill it step by step."
    share = needed / kv.usable_blocks if kv.usable_blocks else float("inf")
    return text + (
        f" want {needed * kv.block_size:,} tokens at their peak, {share:.2f} times the pool"
        + (f" ({human(needed * (kv.bytes_per_block or 0))})." if kv.bytes_per_block else ".")
    )


def _outcome_sentence(comparison: Comparison) -> str:
    figures = {f.figure: f for f in comparison.figures}

    def both(name: str) -> str:
        row: FigureRow = figures[name]
        if row.measured is None:
            return f"{row.gpu:,.0f}" if row.gpu is not None else "an unknown number of"
        return f"{row.measured:,.0f}"

    how = {"rehearsal": "In the rehearsal on real vLLM", "measured": "Measured"}.get(comparison.mode, "Simulated")
    holds = next(r for r in comparison.rungs if r.rung == "HOLDS")
    if comparison.mode != "analytic" and comparison.outcome not in ("completed",):
        return f"{how} the run ended before the load did ({comparison.outcome}): {holds.measured_reason}."
    preemptions = figures["preemptions"]
    count = preemptions.measured if preemptions.measured is not None else preemptions.gpu
    text = (
        f"{how}, at most {both('peak_running')} ran at once while up to {both('peak_waiting')} waited, and "
        f"{both('preemptions')} running requests were preempted"
    )
    tokens = figures["tokens_scheduled"]
    total = tokens.measured if tokens.measured is not None else tokens.gpu
    if count and total is not None:
        text += f" and computed again ({total:,.0f} tokens scheduled in all)"
    verdict = holds.measured if holds.measured is not None else holds.predicted
    return text + (": it holds." if verdict else ": it does not hold." if verdict is False else ".")
