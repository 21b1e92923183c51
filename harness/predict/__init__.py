"""Scenario -> Account: every term of the device's memory, the pool, the four rungs, the engine's words.

Pure arithmetic: no torch, no vLLM, no GPU.
"""

from __future__ import annotations

from dataclasses import replace

from harness import catalog
from harness.architecture import CLOSED, Architecture, from_config
from harness.catalog import Gpu
from harness.errors import UsageError
from harness.ledger import Account, Entry, Ledger, LoadFigures, Phase, Term
from harness.predict.admission import Grant, grant, start_oom
from harness.predict.calibrated import changed
from harness.predict.compressed_profile import READ_SINCE
from harness.predict.estimate import Estimate
from harness.predict.fit import rungs
from harness.predict.settings import Settings, device_gpu, settings
from harness.predict.step_time import compared
from harness.predict.unprofiled import slack
from harness.scenario import Scenario
from harness.units import gib

__all__ = ["Settings", "predict", "settings"]

_ASYNC_SINCE = (0, 14)  # https://github.com/vllm-project/vllm/pull/27614
DEVICE = "gpu0"


def predict(scenario: Scenario) -> Account:
    """What ``scenario`` would take and whether it fits, without running it.

    Raises UsageError where the scenario can't be judged: an unsupported architecture, arguments that vLLM
    would refuse.
    """
    if scenario.kind == "finetune":
        from harness.predict.finetune import predict_finetune

        account = predict_finetune(scenario)
        return replace(account, notes=(*_model_notes(scenario), *account.notes))
    if scenario.on_cpu:
        from harness.predict.cpu import predict_cpu

        account = predict_cpu(scenario)
        return replace(account, notes=(*_model_notes(scenario), *account.notes))
    gpu = device_gpu(scenario)
    if gpu is None:
        raise UsageError("gpu: missing: name a GPU or say device: cpu")
    architecture = from_config(scenario.config())
    chosen = settings(scenario, architecture)
    given = grant(architecture, chosen, gpu)
    verdicts, figures = rungs(architecture, chosen, scenario, given)
    broken = verdicts[1].holds is True and verdicts[2].holds is False
    return Account(
        ledger=_ledger(chosen, given, figures),
        kv=given.pool,
        rungs=verdicts,
        load=figures,
        engine_says=given.log if not broken else (*given.log, start_oom(architecture, chosen, given.budget)),
        calibration=changed(architecture, chosen, gpu, given.budget),
        notes=(
            *(f"{r.rung} is {r.reason}." for r in verdicts if r.holds is None and scenario.load is not None),
            *_model_notes(scenario),
            *_notes(architecture, chosen, gpu, given, broken),
            *_simulation_notes(scenario, figures),
            *_time_notes(figures, gpu, scenario),
        ),
    )


def _ledger(chosen: Settings, given: Grant, figures: LoadFigures) -> Ledger:
    b = given.budget
    terms = [
        (Term.WEIGHTS, b.weights),
        (Term.RUNTIME_AT_INIT, b.init),
        (Term.NON_TORCH_INCREASE, b.non_torch),
        (Term.ACTIVATION_PEAK, b.activation),
        (Term.CUDA_GRAPHS, b.graphs),
        (Term.KV_AVAILABLE, _granted(given)),
    ]
    if b.others:
        terms.append((Term.OTHER_PROCESSES, Estimate.exact(b.others, "gpu.in_use")))
    entries = [Entry(Phase.IDLE, DEVICE, t, e.bytes, e.low, e.high, e.source) for t, e in terms]
    entries.append(_total(given, [e for _, e in terms]))
    if figures.peak_blocks_used is not None:
        used = figures.peak_blocks_used * b.block_bytes
        entries.append(
            Entry(Phase.LOAD, DEVICE, Term.KV_USED, used, source="blocks in use at the simulated peak")
        )
        e = slack(chosen)
        entries.append(Entry(Phase.LOAD, DEVICE, Term.ALLOCATOR_SLACK, e.bytes, e.low, e.high, e.source))
    return Ledger(tuple(entries))


def _granted(given: Grant) -> Estimate:
    available = given.budget.available
    if given.refusal is not None:
        return Estimate.exact(0, f"no pool is granted: {available.source} = {available.bytes:,} B")
    return available


def _total(given: Grant, terms: list[Estimate]) -> Entry:
    """The sum; its interval is that of what lies outside the budget, for the pool takes up the rest, where there is
    one that can: none is granted, or it was set by hand, and every term's interval counts."""
    b, total = given.budget, sum(e.bytes for e in terms)
    pool = _granted(given)
    outside = [b.init, b.graphs] if pool.low < pool.high else terms
    low = total - sum(e.bytes - e.low for e in outside)
    high = total + sum(e.high - e.bytes for e in outside)
    return Entry(Phase.IDLE, DEVICE, Term.TOTAL, total, low, high, "sum of the terms above")


def _notes(
    architecture: Architecture, chosen: Settings, gpu: Gpu, given: Grant, broken: bool
) -> list[str]:  # fmt: skip
    notes = []
    if architecture.source != CLOSED:
        notes.append(
            f"The parts of {architecture.name} are read from {architecture.source}: what vLLM's own class does "
            "otherwise, such as a longer window, is not in them."
        )
    kind = chosen.weight_format
    if kind.plugin_from and catalog.version_key(chosen.vllm) >= catalog.version_key(kind.plugin_from):
        notes.append(f"vLLM {chosen.vllm} reads {kind.name} by its plugin alone: pip install {kind.plugin}.")
    if gpu.cuda_total_bytes is None:
        notes.append(
            f"CUDA's total for {gpu.name} is estimated from NVML's: {given.budget.cuda_total.source}."
        )
    if chosen.pipeline_parallel_size > 1:
        stage = given.budget.stage
        notes.append(
            f"The terms are those of pipeline stage {stage} (from 0), which is left the fewest blocks."
        )
    if chosen.model_runner == "v2" and given.refusal is None and not chosen.defaults.v2_sampler_profiled:
        notes.append(
            "Model Runner V2 profiles its sampler without top-k, top-p and logprobs: a load that asks for "
            f"them takes up to {gib(chosen.max_num_seqs * architecture.vocab * 4)} GiB for each float32 copy "
            "of the logits, which no term holds."
        )
    if broken or (given.refusal is not None and given.refusal.reconstructed):
        notes.append(
            "The out-of-memory line is a reconstruction: which allocation fails depends on the allocator's "
            "history."
        )
    if architecture.compressed and catalog.version_key(chosen.vllm) < catalog.version_key(READ_SINCE):
        notes.append(
            f"The profile of {architecture.name} is read in vLLM {READ_SINCE}: what {chosen.vllm} takes otherwise is "
            "not known."
        )
    if catalog.version_key(chosen.vllm) > catalog.version_key(catalog.checked_version()):
        notes.append(f"vLLM {chosen.vllm} is predicted with the rules read in {catalog.rules_of(chosen.vllm)}.")
    elif catalog.version_key(chosen.vllm) < (0, 30) and given.refusal is not None:
        notes.append("The refusal is worded as in vLLM 0.32; older versions say the same in other words.")
    return notes


def _model_notes(scenario: Scenario) -> tuple[str, ...]:
    if scenario.model_folder is not None or not isinstance(scenario.model, str):
        return ()
    checked = catalog.model_facts(scenario.model)["checked"]
    return (f"The catalogue's entry for {scenario.model} is {catalog.CHECKED['count']}.",) if checked == "count" else ()


def _time_notes(figures: LoadFigures, gpu: Gpu, scenario: Scenario) -> tuple[str, ...]:
    if figures.duration_s is None:
        return ()
    reached = scenario.calibration.step_times if scenario.calibration else None
    if reached is None:
        return (f"Latencies come of a roofline of {gpu.name}: {compared(gpu)}.",)
    runs = "1 run" if reached.runs == 1 else f"{reached.runs} runs"
    off = reached.after if reached.held_out is None else reached.held_out
    which = "these themselves" if reached.held_out is None else "runs left out"
    return (
        f"Latencies come of a roofline of {gpu.name} with the shares that {runs} of this GPU reached: steps of {which} "
        f"were {100 * off:.0f} % off on the median ({100 * reached.before:.0f} % with the published shares).",
    )


def _simulation_notes(scenario: Scenario, figures: LoadFigures) -> tuple[str, ...]:
    if figures.steps is None or scenario.engine.async_scheduling:
        return ()
    ahead = "; a GPU's vLLM schedules one step ahead by default (engine.async_scheduling: true simulates that)"
    since = catalog.version_key(scenario.engine.vllm) >= _ASYNC_SINCE
    said = f"The load is simulated with the synchronous scheduler of vLLM {catalog.checked_version()}"
    return (f"{said}{ahead if since else ''}.",)
