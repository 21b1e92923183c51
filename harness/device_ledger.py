"""RunRecord -> the ledger of its GPUs: what the workers told, what NVML saw, and what nothing explains.

For each phase and device the terms add up to NVML's use above the quiet baseline, the device's own figure:

    runtime at init     used as CUDA saw it when the worker began, less PyTorch's part and the baseline
    weights             what vLLM's loader found consumed
    non-torch increase  consumed after the profile less the weights; under load, with what has come since
    activation peak     of the profile run; under load, of the load itself
    CUDA graphs         what their capture took
    KV pool             the tensors of the cache
    allocator slack     reserved by PyTorch beside its tensors, less the activation peak, which lives in there: negative
                        where the peak is not resident just then. Graphs' own pools are left out.
    unattributed        the rest

A worker's attributes count before its log lines (two decimals of a GiB), and what neither tells is None.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.engines import log_figures
from harness.ledger import ADDITIVE, STATED, Entry, Phase, Term
from harness.store import RunRecord

if TYPE_CHECKING:
    import pandas as pd

Figures = dict[str, int]
_NO_FIGURE = "neither the worker's attributes nor its log lines tell it"


@dataclass(frozen=True)
class Rank:
    """One worker and its GPU. ``device`` is "gpu0" for the first of the engine's devices, "worker0" where NVML did not
    read its GPU (``uuid`` is None then). ``idle`` and ``loaded``: what the worker told before and after the load;
    ``logged``: its log."""

    device: str
    uuid: str | None
    idle: Figures
    loaded: Figures
    logged: Figures

    def figure(self, name: str) -> tuple[int | None, str]:
        """(bytes, where from) of a figure of the start."""
        if name in self.idle:
            return self.idle[name], "worker's attributes"
        if name in self.logged:
            return self.logged[name], "log line"
        return None, _NO_FIGURE


def ranks(record: RunRecord) -> list[Rank]:
    """The workers with their GPUs, the fullest first: the one that is left room for the fewest blocks."""
    told, later, logged = record.workers("idle"), record.workers("load"), log_figures.read(record.log_lines)
    gpus, taken = record.gpus, set()
    found = []
    for n in range(max(len(told), len(gpus)) or len(logged)):
        worker = told[n] if n < len(told) else {}
        at = _gpu_of(worker, n, gpus)
        at = None if at in taken else at
        taken.add(at)
        found.append(
            Rank(
                device=f"worker{n}" if at is None and gpus else f"gpu{n if at is None else at}",
                uuid=gpus[at]["uuid"] if at is not None else None,
                idle=_whole(worker),
                loaded=_whole(next((w for w in later if w.get("rank") == worker.get("rank")), {}) if worker else {}),
                logged=logged[n] if n < len(logged) else {},
            )
        )
    return sorted(found, key=lambda r: (_room(r), r.device))


def _room(rank: Rank) -> float:
    """What decides which rank is the fullest: how many blocks it could hold, as a share of those that all of them have;
    where a rank's own blocks are not known, the bytes that it was left."""
    available, held = rank.figure("available_bytes")[0], rank.idle.get("kv_bytes")
    if available is None:
        return float("inf")
    return available / held if held else float(available)


def _whole(worker: dict[str, Any]) -> Figures:
    return {k: v for k, v in worker.items() if type(v) is int}


def _gpu_of(worker: dict[str, Any], n: int, gpus: list[dict[str, Any]]) -> int | None:
    """The index of the worker's GPU: by UUID; by order where the worker does not tell its own."""
    uuid = worker.get("uuid")
    if isinstance(uuid, str) and not any(g["mig"] for g in gpus):  # PyTorch names the whole GPU of an instance
        bare = uuid.lower().removeprefix("gpu-")
        return next((i for i, g in enumerate(gpus) if g["uuid"].lower().removeprefix("gpu-") == bare), None)
    return n if n < len(gpus) else None


def pool_bytes(record: RunRecord) -> tuple[int | None, str]:
    """Bytes of the fullest rank's pool."""
    everybody = ranks(record)
    return _pool(everybody[0]) if everybody else (None, _NO_FIGURE)


def entries(record: RunRecord, blocks_used: int | None, num_blocks: int | None) -> Iterator[Entry]:
    """The ledger, the fullest rank first in each phase; ``blocks_used``: at the peak, of the pool's ``num_blocks``."""
    everybody = ranks(record)
    for phase in (Phase.WEIGHTS_LOADED, Phase.IDLE, Phase.LOAD, Phase.DRAIN):
        if str(phase) in record.marks or (phase is Phase.IDLE and (not record.marks or record.mode == "imported")):
            for rank in everybody:
                yield from _of_phase(record, rank, phase)
    if blocks_used is not None and num_blocks:
        for rank in everybody:
            pool, _ = _pool(rank)
            used = None if pool is None else round(blocks_used * pool / num_blocks)
            yield Entry(Phase.LOAD, rank.device, Term.KV_USED, used, source=record.blocks_source)


def _of_phase(record: RunRecord, rank: Rank, phase: Phase) -> Iterator[Entry]:
    samples = device_samples(record, rank.uuid)
    quiet = baseline(record, samples)
    # Where the scenario states what others hold, that is a term; else the device's figure begins above it.
    stated = quiet is not None and record.prediction.ledger.find(Term.OTHER_PROCESSES) is not None
    base = 0 if stated else quiet
    terms = [(Term.WEIGHTS, *rank.figure("model_bytes")), (Term.RUNTIME_AT_INIT, *_runtime(rank, quiet))]
    if stated:
        terms.append((Term.OTHER_PROCESSES, quiet, "NVML, used before the engine was started"))
    if phase is not Phase.WEIGHTS_LOADED:
        activation = _activation(rank, phase)
        terms += [
            (Term.NON_TORCH_INCREASE, *_non_torch(rank, phase)),
            (Term.ACTIVATION_PEAK, *activation),
            (Term.CUDA_GRAPHS, *_graphs(record, rank)),
            (Term.KV_AVAILABLE, *_pool(rank)),
            (Term.ALLOCATOR_SLACK, *_slack(rank, phase, activation[0])),
        ]
    yield from (Entry(phase, rank.device, term, size, source=source) for term, size, source in terms)
    known = sum(size or 0 for term, size, _ in terms if term in ADDITIVE)
    total, source = _total(record, samples, base, phase)
    if total is not None:
        yield Entry(phase, rank.device, Term.UNATTRIBUTED, total - known, source="total less the terms above")
        yield Entry(phase, rank.device, Term.TOTAL, total, source=source)
    elif record.mode == "imported" and (unknown := [t for t, size, _ in terms if size is None and t in STATED]):
        words = ", ".join(term.replace("_", " ") for term in unknown)
        yield Entry(phase, rank.device, Term.TOTAL, None, source=f"the log does not tell {words}")
    elif known and not record.gpus:
        yield Entry(phase, rank.device, Term.TOTAL, known, source=f"sum of the terms above; {source}")
    else:
        yield Entry(phase, rank.device, Term.TOTAL, None, source=source)


def _pool(rank: Rank) -> tuple[int | None, str]:
    """The tensors of the cache; what was granted, less than a block more, where the worker did not tell."""
    held = rank.figure("kv_bytes")
    return held if held[0] is not None else rank.figure("available_bytes")


# -- terms -----------------------------------------------------------------------------------------------


def _runtime(rank: Rank, base: int | None) -> tuple[int | None, str]:
    total, source = rank.figure("cuda_total_bytes")
    free, _ = rank.figure("free_at_init_bytes")
    torch, _ = rank.figure("torch_at_init_bytes")
    if total is None or free is None:
        return None, _NO_FIGURE
    return total - free - (torch or 0) - (base or 0), f"{source}: CUDA's total less what was free at init"


def _non_torch(rank: Rank, phase: Phase) -> tuple[int | None, str]:
    consumed, source = rank.figure("consumed_bytes")
    weights, _ = rank.figure("model_bytes")
    if consumed is not None and weights is not None:
        start, source = consumed - weights, f"{source}: consumed after the profile, less the weights"
    else:
        found, source = rank.figure("non_torch_bytes")
        if found is None:
            return None, source
        start = found
    before, after = _outside_torch(rank.idle), _outside_torch(rank.loaded)
    if phase is Phase.IDLE or before is None or after is None:
        return start, source
    return start + after - before, f"{source}, and what came beside PyTorch under load"


def _outside_torch(told: Figures) -> int | None:
    needed = ("cuda_total_bytes", "cuda_free_bytes", "torch_reserved_current_bytes")
    if any(name not in told for name in needed):
        return None
    total, free, reserved = (told[name] for name in needed)
    return total - free - reserved


def _activation(rank: Rank, phase: Phase) -> tuple[int | None, str]:
    if phase is Phase.IDLE:
        peak, source = rank.figure("activation_peak_bytes")
        estimated = rank.figure("graphs_estimated_bytes")[0] if rank.figure("graphs_applied")[0] else 0
        return (None, source) if peak is None else (peak - (estimated or 0), f"{source}: peak of the profile run")
    peak, before = rank.loaded.get("torch_allocated_peak_bytes"), rank.idle.get("torch_allocated_current_bytes")
    if peak is None or before is None:
        return None, "the worker did not tell PyTorch's peak"
    if phase is Phase.DRAIN:
        return None, "nothing runs any more"
    return peak - before, "PyTorch's peak under load, less what it held before"


def _graphs(record: RunRecord, rank: Rank) -> tuple[int | None, str]:
    if record.arguments.get("enforce_eager") is True:
        return 0, "enforce_eager: no graphs"
    return rank.figure("graphs_bytes")


def _slack(rank: Rank, phase: Phase, activation: int | None) -> tuple[int | None, str]:
    told = rank.idle if phase is Phase.IDLE else rank.loaded
    needed = (
        "torch_reserved_current_bytes", "torch_allocated_current_bytes", "graph_pool_reserved_bytes",
        "graph_pool_allocated_bytes",
    )  # fmt: skip
    if any(name not in told for name in needed):
        return None, "the worker did not tell PyTorch's reserve"
    reserved, allocated, graphs, in_graphs = (told[name] for name in needed)
    idle_room = reserved - graphs - (allocated - in_graphs)
    return idle_room - (activation or 0), "reserved by PyTorch, not allocated, less the activation peak"


# -- what NVML saw -----------------------------------------------------------------------------------------


def device_samples(record: RunRecord, uuid: str | None) -> pd.DataFrame:
    """NVML's readings of one GPU, in order of time."""
    frame = record.tables["devices"]
    return frame[frame["uuid"] == uuid].sort_values("time_ns")


def baseline(record: RunRecord, samples: pd.DataFrame) -> int | None:
    """Bytes in use before the engine was started (median); None where nobody looked."""
    start = record.marks.get(str(Phase.START))
    if start is None:
        return None
    quiet = samples[samples["time_ns"] < start]["used_bytes"].tolist()
    return int(statistics.median(quiet)) if quiet else None


# phase -> its end, which reading of it counts, and how that is said
_WINDOWS = {
    Phase.IDLE: (Phase.LOAD, "median", "median while idle"),
    Phase.LOAD: (Phase.DRAIN, "max", "peak"),
    Phase.DRAIN: (Phase.STOP, "last", "after the load"),
}


def _total(
    record: RunRecord, samples: pd.DataFrame, base: int | None, phase: Phase
) -> tuple[int | None, str]:  # fmt: skip
    if not len(samples):
        return None, "no reading of NVML"
    begin = record.marks[str(phase)]
    if phase is Phase.WEIGHTS_LOADED:  # a moment, not a span: the next reading
        inside, how, words = samples[samples["time_ns"] >= begin]["used_bytes"][:1], "last", "with the weights loaded"
    else:
        end, how, words = _WINDOWS[phase]
        # The load is at its fullest until the last answer, so what drains belongs to it.
        until = record.marks.get(str(Phase.STOP if phase is Phase.LOAD else end), samples["time_ns"].max() + 1)
        window = samples[(samples["time_ns"] >= begin) & (samples["time_ns"] < until)]
        inside = window["used_bytes"]
    if not len(inside):
        return None, "no reading of NVML in this phase"
    values = inside.tolist()
    value = int(values[-1] if how == "last" else statistics.median(values) if how == "median" else max(values))
    if base is None:
        return value, f"NVML, used, {words}; no quiet baseline to take from it"
    return value - base, f"NVML, used{' above the quiet baseline' if base else ''}, {words}"
