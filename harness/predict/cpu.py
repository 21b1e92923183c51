"""The same account for a scenario whose device is this computer.

The engine's processes share the computer's memory, so there is no budget and no profile: the pool is what
the scenario sets, and what a process takes before it holds a model is measured, not derived
(harness/catalog/cpu_runtime.json). Source: ``CPUWorker`` of vllm/v1/worker/cpu_worker.py, vLLM 0.32.
"""

from __future__ import annotations

import math
from pathlib import Path

from harness import catalog
from harness.architecture import Architecture, from_config
from harness.errors import UsageError
from harness.ledger import Account, Entry, Ledger, LoadFigures, Phase, Rung, RungName, Term
from harness.predict import activations, fit, kv_cache
from harness.predict.admission import KV_CACHE, Budget, Grant, Refusal, no_room
from harness.predict.estimate import Estimate
from harness.predict.settings import Settings, settings
from harness.predict.weights import tensors, weights_source
from harness.scenario import Scenario
from harness.units import MIB, gib

DEVICE = "cpu"
# Above the layers' weights, the runs left 8 to 22 MiB unattributed.
UNEXPLAINED = 32 * MIB


def predict_cpu(scenario: Scenario) -> Account:
    """What ``scenario`` takes of this computer. Raises UsageError where vLLM would refuse its arguments."""
    chosen = settings(scenario)
    if chosen.tensor_parallel_size * chosen.pipeline_parallel_size > 1:
        raise UsageError("device: cpu: tensor and pipeline parallelism are not supported on this computer")
    architecture = from_config(scenario.config())
    given = _grant(architecture, chosen, scenario)
    verdicts, figures = _rungs(architecture, chosen, scenario, given)
    return Account(
        ledger=_ledger(given, figures, _unattributed(architecture, chosen)),
        kv=given.pool,
        rungs=verdicts,
        load=figures,
        engine_says=given.log,
        notes=("On a CPU the pool is resident from the start, as on a GPU: memory tells the flag, blocks the need.",),
    )


# -- the terms -----------------------------------------------------------------------------------------


def _grant(architecture: Architecture, chosen: Settings, scenario: Scenario) -> Grant:
    memory = _memory()
    block = kv_cache.bytes_per_block(architecture, chosen)
    weights = _weights(architecture, chosen)
    runtime = _runtime(scenario)
    available = _pool(scenario, chosen, block, memory, weights)
    nothing = Estimate.exact(0, "no such term on a CPU")
    budget = Budget(
        stage=0, cuda_total=memory, init=runtime, weights=weights, non_torch=_late_growth(scenario),
        activation=_activations(architecture, chosen, scenario), graphs=nothing, reserved=nothing,
        requested=memory, others=0, profiled=available, available=available, block_bytes=block,
    )  # fmt: skip
    needed = kv_cache.request_blocks(architecture, chosen, chosen.max_model_len) * block
    check = available.bytes - block
    words = no_room(architecture, chosen, needed, check, block)
    if words:
        refusal = Refusal(words, KV_CACHE)
        return Grant(budget, kv_cache.pool(architecture, chosen, None), refusal, needed, check, (words,))
    pool = kv_cache.pool(architecture, chosen, budget.blocks)
    said = (
        f"CPU KV cache size: {pool.tokens:,} tokens, Maximum concurrency for {chosen.max_model_len:,} tokens per "
        f"request: {pool.max_concurrency:.2f}x"
    )
    return Grant(budget, pool, None, needed, check, (said,))


def _memory() -> Estimate:
    """What vLLM's CPU worker counts with: the memory of its NUMA node (``get_memory_node_info``,
    vllm/utils/cpu_resource_utils.py, 0.32), never more than the computer's."""
    import psutil

    total = psutil.virtual_memory().total
    try:
        first = sorted(Path("/sys/devices/system/node").glob("node[0-9]*/meminfo"))[0].read_text(encoding="ascii")
        node = int(first.split("MemTotal:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return Estimate.exact(total, "memory of this computer")
    return Estimate.exact(min(total, node), "memory of this computer's first NUMA node")


def _weights(architecture: Architecture, chosen: Settings) -> Estimate:
    """Parameters, rotary cache and each attention layer's four float32 scales (``Attention``,
    vllm/model_executor/layers/attention, 0.32), without the rounding of a GPU's allocator."""
    total = sum(t.bytes * t.count for t in tensors(architecture, chosen, 0)) + 16 * architecture.layers
    return Estimate.exact(total, f"{weights_source(architecture, chosen)}, rotary cache and attention scales")


def _measured(scenario: Scenario) -> catalog.CpuRuntime:
    """A server is started without a tokenizer where its weights are made up (harness/sessions.py)."""
    return catalog.cpu_runtime(tokenizer=scenario.weights.load != "dummy")


def _runtime(scenario: Scenario) -> Estimate:
    """Python, PyTorch and vLLM in the engine's three processes, before a model is loaded."""
    known = _measured(scenario)
    parts = known.processes.values()
    return Estimate(
        sum(p[1] for p in parts), sum(p[0] for p in parts), sum(p[2] for p in parts),
        "PSS of " + ", ".join(known.processes) + f" before a model is loaded: {known.source}",
    )  # fmt: skip


def _late_growth(scenario: Scenario) -> Estimate:
    """What the API server and the engine core still grow by while the worker loads."""
    known = _measured(scenario)
    low, likely, high = known.late_growth
    return Estimate(likely, low, high, f"growth of api_server and engine_core until idle: {known.source}")


def _unattributed(architecture: Architecture, chosen: Settings) -> Estimate:
    """What no reading explains: as much again as the layers' weights. The CPU backend repacks these; that the
    C library keeps what the originals leave would explain it, but has not been shown."""
    layers = sum(t.bytes * t.count for t in tensors(architecture, chosen, 0) if t.in_layer)
    source = "as much as the layers' weights, seen in runs of two models (docs/runs.md); the cause is not proven"
    return Estimate(layers, 0, layers + UNEXPLAINED, source)


def step_tensors(architecture: Architecture, chosen: Settings, scenario: Scenario) -> int:
    """Bytes of one step's tensors at their largest: the layers' path or the sampler's, as on a GPU
    (harness/predict/activations.py), with the tokens and rows that the load can bring."""
    load = scenario.load
    rows = min(chosen.max_num_seqs, load.concurrency if load else 1)
    tokens = chosen.max_num_batched_tokens
    hidden = tokens * architecture.hidden * chosen.dtype_bytes
    mlp = (3 if architecture.gated else 2) * tokens * architecture.dense_width * chosen.dtype_bytes
    mlp += activations.experts_workspace(architecture, chosen)
    return max(3 * hidden + mlp, hidden + rows * architecture.vocab * (12 + chosen.dtype_bytes))


def _activations(architecture: Architecture, chosen: Settings, scenario: Scenario) -> Estimate:
    """The growth under load. Nothing is profiled at start, and the C library keeps freed pieces, so the
    interval is measured, not derived."""
    known = _measured(scenario)
    low, likely, high = known.growth_under_load
    step = step_tensors(architecture, chosen, scenario)
    return Estimate(
        step + likely, low, step + high,
        f"max(3THd + MLP, THd + logits) at T={chosen.max_num_batched_tokens}, and what the processes grow by "
        f"beside it: {known.source}",
    )  # fmt: skip


def _pool(scenario: Scenario, chosen: Settings, block: int, memory: Estimate, weights: Estimate) -> Estimate:
    if chosen.num_gpu_blocks_override is not None:
        return Estimate.exact(chosen.num_gpu_blocks_override * block, "num_gpu_blocks_override")
    if chosen.kv_cache_memory_bytes is not None:
        whole = chosen.kv_cache_memory_bytes // block * block
        return Estimate.exact(whole, "kv_cache_memory_bytes, in whole blocks")
    # vLLM takes the worker's resident memory off, the shared pages included.
    low, worker, high = _measured(scenario).processes["worker"]
    left = math.ceil(memory.bytes * chosen.gpu_memory_utilization) - weights.bytes
    return Estimate(left - worker, left - 2 * high, left - low, "ceil(memory x gpu_memory_utilization) - worker RSS")


# -- the rungs -----------------------------------------------------------------------------------------


def _rungs(
    architecture: Architecture, chosen: Settings, scenario: Scenario, given: Grant
) -> tuple[tuple[Rung, ...], LoadFigures]:
    b = given.budget
    loads = _room(RungName.LOADS, b, 0, Term.WEIGHTS)
    admits = fit.judge_admission(given, chosen) if loads.holds else fit.not_reached(RungName.ADMITS)
    room = _room(RungName.STARTS, b, b.available.bytes, KV_CACHE)
    starts = room if admits.holds else fit.not_reached(RungName.STARTS)
    if scenario.load is None:
        return (loads, admits, starts, Rung(RungName.HOLDS, None, reason="the scenario states no load")), LoadFigures()
    if not starts.holds:
        return (loads, admits, starts, fit.not_reached(RungName.HOLDS)), LoadFigures()
    holds, figures = fit.judge_load(scenario, scenario.load, architecture, chosen, given)
    return (loads, admits, starts, holds), figures


def _room(name: str, b: Budget, pool: int, term: str) -> Rung:
    margin = b.cuda_total.bytes - b.init.bytes - b.weights.bytes - pool
    return Rung(
        name, margin >= 0, margin, term, margin - (b.init.high - b.init.bytes), margin + (b.init.bytes - b.init.low),
        f"{gib(b.cuda_total.bytes - margin)} of {gib(b.cuda_total.bytes)} GiB of {b.cuda_total.source}",
    )  # fmt: skip


# -- the ledger ----------------------------------------------------------------------------------------


def _ledger(given: Grant, figures: LoadFigures, rest: Estimate) -> Ledger:
    b = given.budget
    pool = b.blocks * b.block_bytes if given.refusal is None else 0
    terms = (Term.WEIGHTS, Term.RUNTIME_AT_INIT, Term.NON_TORCH_INCREASE, Term.UNATTRIBUTED)
    standing = list(zip(terms, (b.weights, b.init, b.non_torch, rest), strict=True))
    none = "no such term on a CPU"
    rows = []
    for phase in (Phase.IDLE, Phase.LOAD):
        known = [*standing, (Term.ACTIVATION_PEAK, b.activation)] if phase is Phase.LOAD else standing
        rows += [Entry(phase, DEVICE, t, e.bytes, e.low, e.high, e.source) for t, e in known]
        if phase is Phase.IDLE:
            rows.append(Entry(phase, DEVICE, Term.ACTIVATION_PEAK, None, source="nothing is profiled on a CPU"))
        rows.append(Entry(phase, DEVICE, Term.CUDA_GRAPHS, None, source=none))
        low, high = (pool, pool) if given.refusal else (b.available.low, b.available.high)
        rows.append(Entry(phase, DEVICE, Term.KV_AVAILABLE, pool, low, high, b.available.source))
        total, least, most = (sum(getattr(e, end) for _, e in known) for end in ("bytes", "low", "high"))
        source = "sum of the terms above"
        rows.append(Entry(phase, DEVICE, Term.TOTAL, pool + total, low + least, high + most, source))
    if figures.peak_blocks_used is not None:
        used = figures.peak_blocks_used * b.block_bytes
        rows.append(Entry(Phase.LOAD, DEVICE, Term.KV_USED, used, source="blocks in use at the simulated peak"))
    return Ledger(tuple(rows))
