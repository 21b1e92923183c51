"""What memory is spent on, predicted and measured in the same shape.

A :class:`Ledger` is a list of entries keyed by (phase, device, term); bytes are ints; a term that
can't be observed is ``None``, never 0. An :class:`Account` puts the KV pool, the four rungs and the
load beside the ledger. A prediction is an account and so is a measurement, so a comparison is a join.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """The marks of a run, in order; a phase lasts from its mark to the next one."""

    START = "start"
    WEIGHTS_LOADED = "weights_loaded"
    IDLE = "idle"
    LOAD = "load"
    DRAIN = "drain"
    STOP = "stop"


class Term(StrEnum):
    """The terms of the memory model, per device (the fullest rank)."""

    WEIGHTS = "weights"
    RUNTIME_AT_INIT = "runtime_at_init"
    OTHER_PROCESSES = "other_processes"  # where a scenario states them
    NON_TORCH_INCREASE = "non_torch_increase"
    ACTIVATION_PEAK = "activation_peak"
    CUDA_GRAPHS = "cuda_graphs"
    KV_AVAILABLE = "kv_available"
    MASTER_WEIGHTS = "master_weights"  # of a training step, as the next six
    ADAPTERS = "adapters"
    OPTIMIZER = "optimizer"
    GRADIENTS = "gradients"
    ACTIVATIONS = "activations"
    LOGITS = "logits"
    WORKSPACE = "workspace"
    KV_USED = "kv_used"  # of kv_available, at the peak of the load; not added to a total
    ALLOCATOR_SLACK = "allocator_slack"  # what PyTorch keeps reserved beside its tensors and the activation peak
    UNATTRIBUTED = "unattributed"
    TOTAL = "total"


# The terms that add up to a device's memory. KV_USED lies inside KV_AVAILABLE.
ADDITIVE = (
    Term.WEIGHTS,
    Term.RUNTIME_AT_INIT,
    Term.NON_TORCH_INCREASE,
    Term.ACTIVATION_PEAK,
    Term.CUDA_GRAPHS,
    Term.KV_AVAILABLE,
    Term.OTHER_PROCESSES,
    Term.ALLOCATOR_SLACK,
    Term.UNATTRIBUTED,
)
# The terms that every account states (null where unknown).
STATED = ADDITIVE[:-3]
# The terms of a training step, in the order in which they come to the device.
TRAINING_STATED = (
    Term.RUNTIME_AT_INIT, Term.WEIGHTS, Term.MASTER_WEIGHTS, Term.ADAPTERS, Term.OPTIMIZER, Term.ACTIVATIONS,
    Term.LOGITS, Term.GRADIENTS, Term.WORKSPACE,
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One row: ``bytes`` with its ``low``/``high`` and where the figure comes from.

    ``bytes`` is None where the reading can't be had; ``source`` then holds the reason.
    """

    phase: str
    device: str
    term: str
    bytes: int | None
    low: int | None = None
    high: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Ledger:
    """Entries, at most one for each (phase, device, term)."""

    entries: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        keys = [(e.phase, e.device, e.term) for e in self.entries]
        if len(set(keys)) != len(keys):
            raise ValueError(f"a ledger holds one entry for each phase, device and term: {sorted(keys)}")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def find(self, term: str, phase: str | None = None, device: str | None = None) -> Entry | None:
        """The first entry of ``term`` (in ``phase``, on ``device`` where given), or None."""
        for e in self.entries:
            if e.term == term and phase in (None, e.phase) and device in (None, e.device):
                return e
        return None

    def bytes_of(self, term: str, phase: str | None = None) -> int | None:
        """Bytes of ``term``, or None where there is no entry or no reading."""
        entry = self.find(term, phase)
        return entry.bytes if entry else None


@dataclass(frozen=True)
class KvPool:
    """The block pool of one device (the fullest rank). Bytes, tokens and blocks are ints.

    ``num_blocks`` is vLLM's count, the null block included: ``num_blocks - 1`` serve requests.
    ``tokens`` is what vLLM prints as "KV cache size"; ``max_concurrency`` the ratio it prints after it.
    """

    bytes_per_token: int | None = None
    bytes_per_block: int | None = None
    block_size: int | None = None
    num_blocks: int | None = None
    tokens: int | None = None
    max_concurrency: float | None = None
    tables: int | None = None

    @property
    def usable_tokens(self) -> int | None:
        """Tokens that requests can hold; where layers keep different spans, what vLLM prints."""
        if self.one_table:
            blocks, size = self.usable_blocks, self.block_size
            return None if blocks is None or size is None else blocks * size
        return self.tokens

    @property
    def one_table(self) -> bool:
        """Whether a block holds ``block_size`` tokens of every layer; False where layers keep different spans.

        Where ``tables``, the number of KV groups, is not known: of several a block is one group's page, at most 0.6 of
        what a token takes in all. A measured pool's figures are rounded, so they needn't be equal.
        """
        if self.tables is not None:
            return self.tables == 1
        if self.bytes_per_block is None or self.bytes_per_token is None or self.block_size is None:
            return True
        return self.bytes_per_block > 0.8 * self.bytes_per_token * self.block_size

    @property
    def usable_blocks(self) -> int | None:
        """Blocks that requests can hold: all but the null block."""
        return None if self.num_blocks is None else max(self.num_blocks - 1, 0)


class RungName(StrEnum):
    """The four questions, each harder than the last."""

    LOADS = "LOADS"
    ADMITS = "ADMITS"
    STARTS = "STARTS"
    HOLDS = "HOLDS"


class StepRung(StrEnum):
    """The two questions of a training step."""

    LOADS = "LOADS"
    STEPS = "STEPS"


@dataclass(frozen=True)
class Rung:
    """A verdict: ``holds`` is None where it could not be judged, and ``reason`` says why.

    ``margin_bytes`` (with low and high) is what is left of the limiting resource; negative: missing.
    """

    rung: str
    holds: bool | None
    margin_bytes: int | None = None
    limited_by: str | None = None
    margin_low: int | None = None
    margin_high: int | None = None
    reason: str = ""


# What is told of a load's latencies: each as <name>_mean_s and <name>_p<quantile>_s of LoadFigures.
LATENCIES = ("ttft", "itl", "tpot", "queue", "e2e")
QUANTILES = (50, 95, 99)


@dataclass(frozen=True)
class LoadFigures:
    """What a load does to the block pool and the scheduler. Counts; None where not known.

    Blocks are counted as vLLM's ``kv_cache_manager.usage`` counts them after each schedule.
    ``peak_blocks_needed`` is what the load would hold at once if the pool had no end. Times are in seconds, by the
    names that vLLM's benchmark has; queue: until a request first runs. Goodput: requests per second that meet the SLO.
    """

    peak_blocks_needed: int | None = None
    peak_blocks_used: int | None = None
    peak_running: int | None = None
    peak_waiting: int | None = None
    preemptions: int | None = None
    steps: int | None = None
    tokens_scheduled: int | None = None
    duration_s: float | None = None
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    goodput_per_s: float | None = None
    ttft_mean_s: float | None = None
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    ttft_p99_s: float | None = None
    itl_mean_s: float | None = None
    itl_p50_s: float | None = None
    itl_p95_s: float | None = None
    itl_p99_s: float | None = None
    tpot_mean_s: float | None = None
    tpot_p50_s: float | None = None
    tpot_p95_s: float | None = None
    tpot_p99_s: float | None = None
    queue_mean_s: float | None = None
    queue_p50_s: float | None = None
    queue_p95_s: float | None = None
    queue_p99_s: float | None = None
    e2e_mean_s: float | None = None
    e2e_p50_s: float | None = None
    e2e_p95_s: float | None = None
    e2e_p99_s: float | None = None


@dataclass(frozen=True)
class Account:
    """One side of a comparison: the ledger, the pool, the rungs, the load, the engine's own words."""

    ledger: Ledger = field(default_factory=Ledger)
    kv: KvPool = field(default_factory=KvPool)
    rungs: tuple[Rung, ...] = ()
    load: LoadFigures = field(default_factory=LoadFigures)
    engine_says: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calibration: str = ""  # of a prediction: that it has constants of this host, and what they changed

    def rung(self, name: str) -> Rung | None:
        """The rung called ``name``, or None."""
        return next((r for r in self.rungs if r.rung == name), None)

    @property
    def of_training(self) -> bool:
        """Whether this is the account of a training step, not of a server."""
        return self.rung(StepRung.STEPS) is not None

    @property
    def highest(self) -> str | None:
        """The highest rung reached with every rung below it reached too; None when none is."""
        reached = None
        for r in self.rungs:
            if r.holds is not True:
                break
            reached = r.rung
        return reached

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data that :meth:`from_dict` reads back."""
        data = asdict(self)
        data["ledger"] = [asdict(e) for e in self.ledger]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Account:
        """The account that :meth:`as_dict` wrote; keys of a later schema are ignored."""
        return cls(
            ledger=Ledger(tuple(_known(Entry, e) for e in data.get("ledger", ()))),
            kv=_known(KvPool, data.get("kv", {})),
            rungs=tuple(_known(Rung, r) for r in data.get("rungs", ())),
            load=_known(LoadFigures, data.get("load", {})),
            engine_says=tuple(data.get("engine_says", ())),
            notes=tuple(data.get("notes", ())),
            calibration=data.get("calibration", ""),
        )


def _known(cls: Any, data: dict[str, Any]) -> Any:
    names = {f.name for f in fields(cls)}
    return cls(**{k: v for k, v in data.items() if k in names})
