"""A row predicted from its configuration alone, beside what was measured. Nothing measured goes in.

Of a pipeline rank 0 is compared. A term's figure is what the run's log printed, with two decimals of a GiB. A pool that
was logged in tokens alone is those tokens times the rate that the architecture gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.architecture import Architecture, from_config
from harness.catalog import Gpu
from harness.errors import UsageError
from harness.evidence.rows import Row, assumed, cannot, cannot_grant, rows, scenario
from harness.predict import activations, kv_cache, predict
from harness.predict.admission import budget
from harness.predict.settings import Settings, device_gpu, settings
from harness.predict.weights import weights
from harness.scenario import Scenario
from harness.units import GIB

COLUMNS = {
    "weights": "weights_gib",
    "activation_peak": "activation_peak_gib",
    "non_torch_increase": "non_torch_increase_gib",
    "graphs": "graphs_gib",
    "kv": "kv_gib",
}
_HANDED = set(activations.FITTED_ON)
_WEIGHTS = {"h100-019-51"}  # the layout of mxfp4 experts
_GRAPHS = {"v11349-l32-1b", "llmdbench-qwen3-0p6b", "llmdbench-gptoss20b"}
# Terms -> rows that a constant of theirs was fitted on; "h100": the constant is a mean over the rows of that table.
FITTED: dict[str, set[str]] = {
    "weights": _WEIGHTS,
    "activation_peak": _HANDED,
    "non_torch_increase": {"h100"},
    "graphs": {"h100"} | _GRAPHS,
    "kv": _HANDED | _WEIGHTS,
}
# What a run's outcome says of the rungs: the highest that it is known to have reached, None for a refusal.
REACHED = {
    "started": "STARTS", "preempted": "STARTS", "oom_under_load": "STARTS", "admitted_then_oom": "ADMITS",
    "oom_at_start": "ADMITS", "refused": None, "oom_at_load": None, "oom_at_profile": None,
}  # fmt: skip
_ROUNDED = 0.005 * GIB


@dataclass(frozen=True)
class Case:
    """The row's run as the prediction sees it."""

    architecture: Architecture
    settings: Settings
    gpu: Gpu


@dataclass(frozen=True)
class Compared:
    """One row. ``predicted``, ``low``, ``high`` and ``measured`` are bytes by term; ``refusal``: why terms are missing.

    ``verdict``: the highest rung predicted, judged where ``judged``; ``reached``: that of the run. ``rate`` and
    ``measured_rate``: bytes of KV cache a token on one rank. ``layered``: where layers differ and no such rate exists,
    the least and the most tokens that the pool's printed bytes make, and the tokens printed. ``assumed``: what the row
    leaves open of its grant.
    """

    id: str
    label: str
    family: str
    gpu: str
    version: str
    table: str
    predicted: dict[str, int]
    measured: dict[str, int]
    inside: dict[str, bool]
    rate: int | None
    measured_rate: tuple[float, float] | None
    layered: tuple[int, int, int] | None
    verdict: str | None
    reached: str | None
    judged: bool
    refusal: str
    assumed: tuple[str, ...]
    note: str
    url: str
    case: Case | None = field(repr=False)

    @property
    def stated(self) -> bool:
        """Whether the row itself states all that its grant follows from."""
        return not self.assumed

    def error(self, term: str) -> int | None:
        """Predicted minus measured, bytes; None where either is missing."""
        if term not in self.predicted or term not in self.measured:
            return None
        return self.predicted[term] - self.measured[term]

    def fitted(self, term: str) -> bool:
        """Whether a constant of ``term`` was fitted on this row."""
        return not FITTED[term].isdisjoint((self.table, self.id))


def compare(row: Row) -> Compared:
    """``row`` predicted, beside what was measured."""
    predicted: dict[str, int] = {}
    inside: dict[str, bool] = {}
    verdict, judged, refusal, case, rate = None, False, cannot(row), None, None
    measured = {t: round(float(row[c]) * GIB) for t, c in COLUMNS.items() if row[c]}
    family, layered = "", None
    if not refusal:
        refusal = cannot_grant(row)
        try:
            run = scenario(row)
            family = from_config(run.config()).name
            case = _case(run)
            rate = _rate(case)
            layered = None if rate else _layered(row, case)
            if "kv" not in measured and row["kv_tokens"] and rate:
                measured["kv"] = int(row["kv_tokens"]) * rate
            if row["weights_format"]:
                predicted["weights"] = weights(case.architecture, case.settings).bytes
            if _profile_is_known(row, case, refusal):
                peak = activations.activation_peak(case.architecture, case.settings, case.gpu)
                predicted["activation_peak"] = peak.bytes
            if not refusal:
                terms, inside = _terms(case, measured)
                predicted.update(terms)
                verdict, refusal = _verdict(run)
                judged = bool(row["outcome"])
        except UsageError as error:
            if not refusal:
                judged = bool(row["outcome"]) and _refused_by_vllm(str(error))
            refusal = str(error)
    shape = f"tp{row['tensor_parallel_size'] or '?'} pp{row['pipeline_parallel_size'] or '?'} {row['max_model_len']}"
    return Compared(
        id=row["id"],
        label=f"{row['model'].split('/')[-1] or 'unnamed'} {row['dtype']} kv {row['kv_cache_dtype']} {shape}",
        family=family.removesuffix("ForCausalLM"),
        gpu=row["gpu"],
        version=row["vllm"],
        table=row["table"],
        predicted=predicted,
        measured=measured,
        inside=inside,
        rate=rate,
        measured_rate=_measured_rate(row),
        layered=layered,
        verdict=verdict,
        reached=REACHED.get(row["outcome"]),
        judged=judged,
        refusal=refusal,
        assumed=assumed(row),
        note=row["note"],
        url=row["source_url"],
        case=case,
    )


def compared() -> list[Compared]:
    """All rows, compared."""
    return [compare(row) for row in rows()]


def _case(run: Scenario) -> Case:
    gpu = device_gpu(run)
    assert gpu is not None
    architecture = from_config(run.config())
    return Case(architecture, settings(run, architecture), gpu)


def _rate(case: Case) -> int | None:
    """Bytes of KV cache a token on one rank; None where layers differ, for then there is no such rate."""
    if not kv_cache.is_one_table(case.architecture, case.settings):
        return None
    block = kv_cache.bytes_per_block(case.architecture, case.settings, 0)
    return round(block / case.settings.block_size)


def _layered(row: Row, case: Case) -> tuple[int, int, int] | None:
    """(least, most, printed) tokens of a pool whose layers differ; None where the row leaves too much open."""
    if row["speculative"] or not all(row[c] for c in ("kv_gib", "kv_tokens", "vllm", "max_model_len")):
        return None
    block = kv_cache.bytes_per_block(case.architecture, case.settings)
    least, most = (
        kv_cache.pool(case.architecture, case.settings, int(float(row["kv_gib"]) * GIB + room) // block).tokens
        for room in (-_ROUNDED, _ROUNDED)
    )
    return (least, most, int(row["kv_tokens"])) if least is not None and most is not None else None


def _measured_rate(row: Row) -> tuple[float, float] | None:
    """(least, most) bytes a token that the printed figures allow."""
    if not (row["kv_gib"] and row["kv_tokens"]) or row["pipeline_parallel_size"] not in ("", "1"):
        return None  # of a pipeline the fullest rank decides the tokens, another one's bytes may be printed
    size, tokens = float(row["kv_gib"]) * GIB, int(row["kv_tokens"])
    return ((size - _ROUNDED) / (tokens + 16), (size + _ROUNDED) / tokens) if size > 0 and tokens else None


def _profile_is_known(row: Row, case: Case, refusal: str) -> bool:
    """Whether the activation peak follows: of V0 it does not depend on the GPU."""
    return not refusal or (bool(row["vllm"]) and case.settings.model_runner == "v0" and not row["speculative"])


def _terms(case: Case, measured: dict[str, int]) -> tuple[dict[str, int], dict[str, bool]]:
    """Bytes of every term, and whether the measured figure lies in its interval."""
    b = budget(case.architecture, case.settings, case.gpu, stage=0)
    terms = (b.weights, b.activation, b.non_torch, b.graphs, b.available)
    inside = {
        t: e.low - _ROUNDED <= measured[t] <= e.high + _ROUNDED
        for t, e in zip(COLUMNS, terms, strict=True) if t in measured
    }  # fmt: skip
    return {t: e.bytes for t, e in zip(COLUMNS, terms, strict=True)}, inside


def _verdict(run: Scenario) -> tuple[str | None, str]:
    """(the highest rung of the engine's start, what stopped the next)."""
    account = predict(run)
    # LOADS alone is a refusal: the engine never gets as far as a pool.
    highest = account.highest if account.highest in ("ADMITS", "STARTS", "HOLDS") else None
    return highest, next((r.reason for r in account.rungs if r.holds is False), "")


def _refused_by_vllm(words: str) -> bool:
    """Whether a UsageError says in vLLM's words that it would not start, rather than that we can't tell."""
    return any(said in words for said in ("not divisible by", "must be divisible by", "max_model_len", "Bfloat16"))
