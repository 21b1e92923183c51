"""RunRecord -> Account: what a run measured, in the shape of a prediction. Reads the folder's record alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from harness import device_ledger
from harness.engines import log
from harness.ledger import (
    ADDITIVE,
    QUANTILES,
    Account,
    Entry,
    KvPool,
    Ledger,
    LoadFigures,
    Phase,
    Rung,
    RungName,
    Term,
)
from harness.roofline import late_s
from harness.store import LOADING, RESUMED, RunRecord

if TYPE_CHECKING:
    import pandas as pd

CPU = "cpu"
PROCESS_COLUMNS = ("process", "at_init", "idle", "peak_under_load")
_STAND_IN = "a stand-in model was served: bytes and the first three rungs come from the prediction"
# One line from 0.32 on, two before; before 0.8 the second alone, beside "# GPU blocks".
_TOKENS = re.compile(r"KV cache size: (\d[\d,]{0,18}) tokens", re.ASCII)
_CONCURRENCY = re.compile(
    r"Maximum concurrency for (\d[\d,]{0,18}) tokens per request: (\d+(?:\.\d+)?)x", re.ASCII
)
# vLLM asks for its budget before it loads anything (request_memory, vllm/v1/worker/utils.py).
_NOT_FREE = re.compile(r"Free memory on device .* is less than desired GPU memory utilization")
_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|MemoryError|can't allocate memory|signal 9\b|exit code: -9\b", re.IGNORECASE
)


def measure(record: RunRecord) -> Account | None:
    """The measured account, or None for an analytic run."""
    if record.mode == "analytic":
        return None
    kv = _pool(record)
    load = _load(record, kv)
    ledger = Ledger(tuple(_entries(record, kv, load))) if record.real else Ledger()
    return Account(
        ledger=ledger,
        kv=kv,
        rungs=tuple(_rungs(record, kv, load)),
        load=load,
        engine_says=tuple(log.quotable(record.log_lines)),
        notes=(*_gpu_notes(record), *record.problems, *_pace(record)),
    )


def _entries(record: RunRecord, kv: KvPool, load: LoadFigures) -> Iterator[Entry]:
    if record.on_gpus:
        return device_ledger.entries(record, load.peak_blocks_used, kv.num_blocks)
    return _ledger(record)


def _gpu_notes(record: RunRecord) -> Iterator[str]:
    """What has to be said of the GPUs before any figure is believed."""
    yield from record.manifest.get("notes", ())
    for gpu in record.gpus:
        yield from (f"{stranger[:1].upper()}{stranger[1:]}." for stranger in gpu["strangers"])
        if gpu["lost"]:
            yield f"{gpu['name']} could not be read to the end: {gpu['lost']}."
        told = {what: why for what, why in gpu["missing"].items() if what != "accounting_peak_bytes"}  # off as a rule
        yield from (f"{gpu['name']}: {what} not read: {why}." for what, why in told.items())
    if record.attached:
        yield "The server was there before us: its start, its scheduler's steps and its log are not ours to see."
    elif record.mode == "imported":
        return
    elif record.on_gpus and not record.workers("idle") and str(Phase.IDLE) in record.marks:
        yield "The worker probe did not answer: the terms come from the engine's log, as far as it states them."


# -- the pool and the load --------------------------------------------------------------------------


def _pool(record: RunRecord) -> KvPool:
    """The pool as the engine states it (log line) and as the worker holds it (probe)."""
    block, told = record.block_size, record.probe.get("num_blocks") or record.cache_config.get("num_gpu_blocks")
    # Ranks that state their own: the fullest decides.
    tokens = min((_count(m[1]) for line in record.log_lines if (m := _TOKENS.search(line))), default=None)
    said = [(float(m[2]), _count(m[1])) for line in record.log_lines if (m := _CONCURRENCY.search(line))]
    concurrency, request = min(said, default=(None, None))
    # vLLM prints int(blocks / ceil(request / block) x request): not blocks x block where these don't divide.
    stated = -(-tokens * -(-request // block) // request) if block and request and tokens is not None else None
    blocks = told or stated
    held = device_ledger.pool_bytes(record)[0] if record.on_gpus else record.probe.get("kv_bytes")
    return KvPool(
        bytes_per_token=round(held / (blocks * block)) if held and blocks and block else None,
        bytes_per_block=round(held / blocks) if held and blocks else None,
        block_size=block,
        num_blocks=blocks,
        tokens=tokens,
        max_concurrency=concurrency,
        tables=record.prediction.kv.tables if record.mode == "imported" else None,
    )


def _count(text: str) -> int:
    return int(text.replace(",", ""))


def _load(record: RunRecord, kv: KvPool) -> LoadFigures:
    """Exact from the scheduler's own steps; else what /metrics showed at its samples."""
    steps = record.tables["steps"]
    if len(steps):
        return LoadFigures(
            peak_blocks_used=_most(steps, "blocks_used"),
            peak_running=_most(steps, "running"),
            peak_waiting=_most(steps, "waiting"),
            preemptions=int(steps["preempted"].sum()),
            steps=len(steps),
            tokens_scheduled=int(steps["tokens"].sum()),
            **_latencies(record),
        )
    metrics = record.tables["metrics"]
    share, usable = metrics["kv_cache_usage"].max() if len(metrics) else None, kv.usable_blocks
    return LoadFigures(
        peak_blocks_used=round(share * usable) if share is not None and share == share and usable else None,
        peak_running=_most(metrics, "running"),
        peak_waiting=_most(metrics, "waiting"),
        preemptions=_most(metrics, "preemptions"),
        **_latencies(record),
    )


def _pace(record: RunRecord) -> Iterator[str]:
    """How well a rehearsal kept to the step times that its steps were held to."""
    late = late_s(record.tables["steps"])
    if late is not None:
        yield (
            f"The steps were held to the predicted step times; this computer took {1000 * late:.1f} ms more for each "
            "on the mean, and what is predicted for here goes by that."
        )


def sent_ns(record: RunRecord, requests: pd.DataFrame) -> pd.Series[Any]:
    """When the time of each request begins: users who start together were held back until the scheduler went on."""
    return requests["sent_ns"].clip(lower=record.marks.get(RESUMED, 0))


def _latencies(record: RunRecord) -> dict[str, Any]:
    """Of the requests that were answered, as the client saw it; none where time meant nothing (a stand-in unpaced)."""
    if record.mode != "measured" and not record.manifest.get("paced"):
        return {}
    frame = record.tables["requests"]
    frame = frame[frame["status"] == "ok"]
    if frame.empty:
        return {}
    first, end, sent = frame["first_ns"], frame["end_ns"], sent_ns(record, frame)
    more = frame["tokens_out"] > 1
    seconds = float(end.max() - sent.min()) / 1e9
    figures: dict[str, Any] = {
        "duration_s": seconds,
        "requests_per_s": len(frame) / seconds,
        "output_tokens_per_s": float(frame["tokens_out"].sum()) / seconds,
    }
    told = {"ttft": first - sent, "e2e": end - sent, "tpot": ((end - first) / (frame["tokens_out"] - 1))[more]}
    for name, values in told.items():
        ordered = sorted(values.dropna().tolist())
        if ordered:
            figures[f"{name}_mean_s"] = sum(ordered) / len(ordered) / 1e9
            figures |= {f"{name}_p{q}_s": ordered[math.ceil(q / 100 * len(ordered)) - 1] / 1e9 for q in QUANTILES}
    between = record.manifest.get("itl_s", {})
    return figures | {f"itl_{which}_s": between.get(which) for which in ("mean", *(f"p{q}" for q in QUANTILES))}


def _most(frame: pd.DataFrame, column: str) -> int | None:
    value = frame[column].max() if len(frame) else None
    return None if value is None or value != value else int(value)


# -- the ledger of this computer ---------------------------------------------------------------------


def _ledger(record: RunRecord) -> Iterator[Entry]:
    weights, pool = record.probe.get("weights_bytes"), record.probe.get("kv_bytes")
    by_process = processes(record)
    runtime, runtime_source = _runtime(by_process)
    late = _late_growth(by_process)
    idle = _total(record, Phase.IDLE, Phase.LOAD, "median")
    peak = _total(record, Phase.LOAD, Phase.STOP, "max")
    growth = None if idle is None or peak is None else peak - idle
    no_probe = "the worker probe did not answer"
    for phase, total in ((Phase.IDLE, idle), (Phase.LOAD, peak)):
        rows = [
            Entry(phase, CPU, Term.WEIGHTS, weights, source=no_probe if weights is None else
                  "worker probe: tensors of the model as loaded"),
            Entry(phase, CPU, Term.RUNTIME_AT_INIT, runtime, source=runtime_source),
            Entry(phase, CPU, Term.NON_TORCH_INCREASE, late, source=
                  "no sample before the weights were loaded" if late is None
                  else "growth of the API server and the engine core while the worker loads"),
            Entry(phase, CPU, Term.ACTIVATION_PEAK, growth if phase is Phase.LOAD else None, source=
                  "growth of the engine's PSS from idle to the peak of the load" if phase is Phase.LOAD
                  else "the CPU backend runs no profile when it starts"),
            Entry(phase, CPU, Term.CUDA_GRAPHS, None, source="no CUDA on this device"),
            Entry(phase, CPU, Term.KV_AVAILABLE, pool, source=no_probe if pool is None else
                  "worker probe: tensors of the KV cache"),
        ]  # fmt: skip
        yield from rows
        if total is not None:
            known = sum(e.bytes or 0 for e in rows if e.term in ADDITIVE)
            yield Entry(phase, CPU, Term.UNATTRIBUTED, total - known, source="total less the terms above")
        yield Entry(
            phase, CPU, Term.TOTAL, total,
            source="PSS of all engine processes, " + ("median while idle" if phase is Phase.IDLE else "peak"),
        )  # fmt: skip
    used = _load(record, _pool(record)).peak_blocks_used
    per_block = _pool(record).bytes_per_block
    if used is not None and per_block is not None:
        yield Entry(Phase.LOAD, CPU, Term.KV_USED, used * per_block, source=record.blocks_source)


def processes(record: RunRecord) -> pd.DataFrame:
    """PSS in bytes of each kind of process (columns process, at_init, idle, peak_under_load).

    ``at_init``: the last sample before the worker began to load the weights; ``idle``: the median while
    idle; ``peak_under_load``: the maximum. Processes of a kind add up; missing where nothing was sampled.
    """
    import pandas as pd

    memory, marks = record.tables["memory"].dropna(subset=["pss_bytes"]), record.marks
    # A process is known by its title once it has one; before that its rows say "starting".
    titled = memory[memory["process"] != "starting"].groupby("pid")["process"].last()
    memory = memory.assign(process=memory["pid"].map(titled).fillna(memory["process"]))
    end = int(memory["time_ns"].max()) + 1 if len(memory) else 0

    def within(begin: int | None, until: int | None, how: str) -> pd.Series[float]:
        if begin is None:
            return pd.Series(dtype=float)
        inside = memory[(memory["time_ns"] >= begin) & (memory["time_ns"] < (until or end))].sort_values("time_ns")
        return inside.groupby(["process", "pid"])["pss_bytes"].agg(how).groupby("process").sum()

    loading, idle, load = (marks.get(m) for m in (LOADING, str(Phase.IDLE), str(Phase.LOAD)))
    frame = pd.DataFrame(
        {
            "at_init": within(loading - 10**9 if loading else None, loading, "last"),
            "idle": within(idle, load, "median"),
            "peak_under_load": within(load, marks.get(str(Phase.STOP)), "max"),
        }
    )
    return frame.rename_axis("process").reset_index()


def _runtime(by_process: pd.DataFrame) -> tuple[int | None, str]:
    known = by_process["at_init"].dropna()
    if known.empty:
        return None, "no sample before the weights were loaded"
    return int(known.sum()), "PSS of the engine's processes just before the weights are loaded"


def _late_growth(by_process: pd.DataFrame) -> int | None:
    """What the processes that hold no model grow by until the engine is idle."""
    others = by_process[by_process["process"].isin(("api_server", "engine_core"))]
    growth = (others["idle"] - others["at_init"]).dropna()
    return None if growth.empty else int(growth.sum())


def totals(record: RunRecord) -> pd.DataFrame:
    """The engine's PSS over time: one row for each sweep, columns time_ns and pss_bytes (all processes)."""
    import pandas as pd

    memory = record.tables["memory"].dropna(subset=["pss_bytes"]).sort_values("time_ns")
    if memory.empty:
        return pd.DataFrame({"time_ns": [], "pss_bytes": []})
    # Each process's reading stands until its next one; a process counts from its first to its last.
    wide = memory.pivot_table(index="time_ns", columns="pid", values="pss_bytes", aggfunc="last")
    return pd.DataFrame({"time_ns": wide.index, "pss_bytes": wide.ffill(limit=8).sum(axis=1).to_numpy()})


def _total(record: RunRecord, begin: Phase, end: Phase, how: str) -> int | None:
    marks, frame = record.marks, totals(record)
    if str(begin) not in marks or frame.empty:
        return None
    after = frame["time_ns"] >= marks[str(begin)]
    before = frame["time_ns"] < marks.get(str(end), frame["time_ns"].max() + 1)
    inside = frame[after & before]["pss_bytes"]
    return None if inside.empty else int(inside.agg(how))


# -- the rungs ---------------------------------------------------------------------------------------


def _rungs(record: RunRecord, kv: KvPool, load: LoadFigures) -> Iterator[Rung]:
    started = str(Phase.IDLE) in record.marks
    if record.mode == "rehearsal":
        for name in (RungName.LOADS, RungName.ADMITS, RungName.STARTS):
            yield Rung(name, None, reason=_STAND_IN)
    else:
        reason = str(record.manifest.get("reason", ""))
        granted = kv.num_blocks is not None or kv.tokens is not None
        reached = (str(Phase.WEIGHTS_LOADED) in record.marks or started, granted or started, started)
        for name, holds in zip((RungName.LOADS, RungName.ADMITS, RungName.STARTS), reached, strict=True):
            if name == RungName.LOADS and not holds and _NOT_FREE.search(reason):
                yield Rung(name, None, reason=f"refused before the weights were loaded: {reason}")
            elif holds or record.outcome in ("refused_at_start", "hung_at_start"):
                limit = Term.RUNTIME_AT_INIT if name == RungName.ADMITS and _NOT_FREE.search(reason) else None
                yield Rung(name, holds, limited_by=limit, reason="" if holds else reason)
            else:
                yield Rung(name, None, reason=f"the run ended before it could be seen: {record.outcome}")
    yield _holds(record, kv, load, started)


def _holds(record: RunRecord, kv: KvPool, load: LoadFigures, started: bool) -> Rung:
    reason = str(record.manifest.get("reason", ""))
    if not started and record.real and record.outcome in ("refused_at_start", "hung_at_start"):
        return Rung(RungName.HOLDS, False, reason="not reached")
    if not started:
        return Rung(RungName.HOLDS, None, reason=f"the run ended before the load: {record.outcome}")
    if record.outcome == "died_under_load":
        limited_by = "memory" if _OUT_OF_MEMORY.search(reason) else "engine"
        return Rung(RungName.HOLDS, False, limited_by=limited_by, reason=reason)
    if record.outcome in ("load_timed_out", "no_answers", "requests_failed"):
        return Rung(RungName.HOLDS, False, limited_by="engine", reason=reason)
    if record.mode == "imported":
        return Rung(RungName.HOLDS, None, reason="the log was read for its start alone")
    if record.outcome != "completed":
        return Rung(RungName.HOLDS, None, reason=f"the load did not run to its end: {record.outcome}")
    steps = record.tables["steps"]
    waited = bool(steps["blocked_on_kv"].max()) if len(steps) else None
    usable, used = kv.usable_blocks, load.peak_blocks_used
    if load.preemptions is None:
        return Rung(RungName.HOLDS, None, reason="neither the scheduler nor /metrics told of preemptions")
    margin = None
    if usable is not None and used is not None and kv.bytes_per_block is not None:
        margin = (usable - used) * kv.bytes_per_block
    if load.preemptions or waited:
        told = f"{load.preemptions} preemptions" + ("; requests waited for blocks" if waited else "")
        return Rung(RungName.HOLDS, False, margin_bytes=margin, limited_by="kv_cache", reason=told)
    if waited is None:
        return Rung(RungName.HOLDS, None, reason="no preemption; who waited for blocks is told by steps.csv alone")
    return Rung(RungName.HOLDS, True, margin_bytes=margin, reason="no preemption, nobody waited for blocks")
