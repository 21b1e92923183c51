"""The prediction against public runs: each row of harness/catalog/evidence from its configuration alone.

Nothing that was measured goes in. Of a pipeline rank 0 is compared. A term's figure is what the run's log printed, with
two decimals of a GiB. ``FITTED`` names the rows that any constant was fitted on; "held out" fits the constants of a
term again without the family in question and predicts that family with them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from statistics import fmean, linear_regression, median
from typing import Any

from harness.architecture import Architecture, from_config
from harness.errors import UsageError
from harness.predict import activations, predict
from harness.predict.admission import budget
from harness.predict.settings import device_gpu, settings
from harness.scenario import Scenario, parse_scenario
from harness.units import GIB

COLUMNS = {
    "weights": "weights_gib",
    "activation_peak": "activation_peak_gib",
    "non_torch_increase": "non_torch_increase_gib",
    "graphs": "graphs_gib",
    "kv": "kv_gib",
}
_HANDED = set(activations.FITTED_ON)
# Terms -> rows that a constant of theirs was fitted on; "all": the constant is a mean over the rows of its kind.
FITTED: dict[str, set[str] | str] = {
    "weights": {"h100-019-51"},  # the layout of mxfp4 experts
    "activation_peak": _HANDED,
    "non_torch_increase": "all",
    "graphs": "all",
    "kv": _HANDED | {"h100-019-51"},
}
# What a run's outcome says of the rungs: the highest that it reached, None for a refusal.
REACHED = {"started": "STARTS", "admitted_then_oom": "ADMITS", "refused": None}


@dataclass(frozen=True)
class Compared:
    """One row. ``predicted`` and ``measured`` are bytes by term; ``refusal``: why there is no prediction of terms.

    ``verdict``: the highest rung predicted; ``reached``: that of the run. ``supported``: whether its model is known.
    """

    id: str
    label: str
    family: str
    predicted: dict[str, int]
    measured: dict[str, int]
    verdict: str | None
    reached: str | None
    refusal: str
    supported: bool
    note: str

    def error(self, term: str) -> int | None:
        """Predicted minus measured, bytes; None where either is missing."""
        if term not in self.predicted or term not in self.measured:
            return None
        return self.predicted[term] - self.measured[term]

    def fitted(self, term: str) -> bool:
        """Whether a constant of ``term`` was fitted on this row."""
        on = FITTED[term]
        return on == "all" or self.id in on


@dataclass(frozen=True)
class Errors:
    """How far a set of predictions is off: bytes, and per cent of what was measured."""

    runs: int
    mae: float
    median: float
    p95: float
    worst: float
    bias: float
    median_percent: float
    p95_percent: float
    worst_percent: float


# -- rows ------------------------------------------------------------------------------------------


def rows() -> list[dict[str, str]]:
    """The evidence as it stands, texts by column."""
    text = (files("harness.catalog") / "evidence" / "h100.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def scenario(row: dict[str, str]) -> Scenario:
    """The run of ``row`` as a scenario: its configuration and nothing else."""
    count = int(row["tensor_parallel_size"] or 1) * int(row["pipeline_parallel_size"] or 1)
    keys = (
        "max_model_len", "max_num_seqs", "max_num_batched_tokens", "dtype", "kv_cache_dtype",
        "gpu_memory_utilization", "pipeline_parallel_size",
    )  # fmt: skip
    engine = "\n".join(f"  {key}: {row[key]}" for key in keys if row[key])
    return parse_scenario(f"""
name: {row["id"]}
model: {row["catalogue_model"]}
weights: {{format: {row["weights_format"]}}}
gpu: {{name: {row["gpu"]}, count: {count}}}
engine:
  vllm: "{row["vllm"]}"
{engine}
""")


def compare(row: dict[str, str]) -> Compared:
    """``row`` predicted, beside what was measured."""
    predicted: dict[str, int] = {}
    verdict, refusal, family = None, "", ""
    if not row["catalogue_model"]:
        refusal = f"not predicted: {row['note'].split(';')[0]} is not supported yet"
    else:
        family = from_config(scenario(row).config()).name
        try:
            predicted, verdict, refusal = _predicted(scenario(row))
        except UsageError as error:
            refusal = str(error)
    shape = f"tp{row['tensor_parallel_size'] or '?'} pp{row['pipeline_parallel_size'] or '?'} {row['max_model_len']}"
    return Compared(
        id=row["id"],
        label=f"{row['model'].split('/')[-1]} {row['dtype']} kv {row['kv_cache_dtype']} {shape}",
        family=family.removesuffix("ForCausalLM"),
        predicted=predicted,
        measured={t: round(float(row[c]) * GIB) for t, c in COLUMNS.items() if row[c]},
        verdict=verdict,
        reached=REACHED[row["outcome"]],
        refusal=refusal,
        supported=bool(row["catalogue_model"]),
        note=row["note"],
    )


def _predicted(run: Scenario) -> tuple[dict[str, int], str | None, str]:
    gpu = device_gpu(run)
    assert gpu is not None
    b = budget(from_config(run.config()), settings(run), gpu, stage=0)
    terms = (b.weights, b.activation, b.non_torch, b.graphs, b.available)
    account = predict(run)
    # LOADS alone is a refusal: the engine never gets as far as a pool.
    verdict = account.highest if account.highest in ("ADMITS", "STARTS", "HOLDS") else None
    stopped = next((r.reason for r in account.rungs if r.holds is False), "")
    return {t: e.bytes for t, e in zip(COLUMNS, terms, strict=True)}, verdict, stopped


def compared() -> list[Compared]:
    """All rows, compared."""
    return [compare(row) for row in rows()]


# -- errors ----------------------------------------------------------------------------------------


def errors(runs: Iterable[Compared], term: str, error: Callable[[Compared], int | None] | None = None) -> Errors | None:
    """The errors of ``term`` over ``runs``; None where no run states it."""
    pairs = [(e, r.measured[term]) for r in runs if (e := error(r) if error else r.error(term)) is not None]
    if not pairs:
        return None
    sizes = sorted(abs(e) for e, _ in pairs)
    shares = sorted(100 * abs(e) / m for e, m in pairs if m)
    return Errors(
        len(pairs), fmean(sizes), median(sizes), _rank(sizes), sizes[-1], fmean(e for e, _ in pairs),
        median(shares), _rank(shares), shares[-1],
    )  # fmt: skip


def _rank(values: list[float] | list[int]) -> float:
    """The 95th percentile of sorted ``values``: the nearest rank."""
    return values[min(len(values) - 1, -(-len(values) * 95 // 100) - 1)]


def held_out(runs: list[Compared], term: str) -> Errors | None:
    """Errors of a term whose constants are means or lines over the rows, each family predicted without its own rows."""
    found: dict[str, int] = {}
    by_id = {row["id"]: row for row in rows()}
    usable = [r for r in runs if r.error(term) is not None and _plain(by_id[r.id], term)]
    for r in usable:
        others = [o for o in usable if o.family != r.family]
        guess = _refitted(r, others, term)
        if guess is not None:
            found[r.id] = round(guess) - r.measured[term]
    return errors([r for r in runs if r.id in found], term, lambda r: found[r.id])


def _plain(row: dict[str, str], term: str) -> bool:
    """One rank, and the versions that share a constant."""
    one = row["tensor_parallel_size"] == "1" and row["pipeline_parallel_size"] == "1"
    return one and (term == "graphs" or row["vllm"].startswith(("0.18", "0.19")))


def _architecture(run: Compared) -> Architecture:
    return from_config(scenario(next(row for row in rows() if row["id"] == run.id)).config())


def _refitted(run: Compared, others: list[Compared], term: str) -> float | None:
    if term == "non_torch_increase":
        return fmean(o.measured[term] for o in others) if others else None
    dense = [(_architecture(o).layers, o.measured[term]) for o in others if _architecture(o).mixture is None]
    if _architecture(run).mixture is not None or len({n for n, _ in dense}) < 2:
        return None
    slope, base = linear_regression(*zip(*dense, strict=True))
    return base + slope * _architecture(run).layers


def term_errors(runs: list[Compared]) -> Iterator[tuple[str, str, Errors]]:
    """(term, which rows, errors): all rows, and those that tell of a model that no constant has seen."""
    for term in COLUMNS:
        unseen = [r for r in runs if not r.fitted(term)]
        other = ("held out", held_out(runs, term)) if FITTED[term] == "all" else ("not fitted", errors(unseen, term))
        for name, found in (("all", errors(runs, term)), other):
            if found:
                yield term, name, found


def verdicts(runs: Iterable[Compared]) -> tuple[int, int]:
    """(right, judged): rows whose highest rung was told from the configuration alone."""
    judged = [r for r in runs if r.supported]
    return sum(r.verdict == r.reached for r in judged), len(judged)


def as_dict(runs: list[Compared]) -> dict[str, Any]:
    """The document of ``bench evidence --json``; bytes."""
    right, judged = verdicts(runs)
    return {
        "rows": [{**asdict(r), "errors": {t: r.error(t) for t in COLUMNS}} for r in runs],
        "terms": {
            term: {
                name: asdict(found) if found else None
                for name, found in (
                    ("all", errors(runs, term)),
                    ("not_fitted", errors([r for r in runs if not r.fitted(term)], term)),
                    ("held_out", held_out(runs, term) if FITTED[term] == "all" else None),
                )
            }
            for term in COLUMNS
        },
        "families": {
            f: asdict(found) for f in families(runs) if (found := errors([r for r in runs if r.family == f], "kv"))
        },
        "verdicts": {"right": right, "judged": judged, "not_predicted": len(runs) - judged},
    }


def families(runs: Iterable[Compared]) -> list[str]:
    """The families of the runs that are predicted, in order."""
    return sorted({r.family for r in runs if r.family})


# -- the document ----------------------------------------------------------------------------------


def document(runs: list[Compared]) -> str:
    """docs/accuracy.md."""
    right, judged = verdicts(runs)
    return f"""# Accuracy

Written by `bench evidence --markdown`; a test fails when it is not fresh, and when a figure gets worse than its bound.

{len(runs)} public runs of vLLM 0.15 to 0.19 on H100 SXM (data of
[llm-d-planner](https://github.com/llm-d-incubation/llm-d-planner), Apache-2.0), each predicted from its configuration
alone. {len(runs) - judged} are not predicted: their kind is refused by name. Each row's link is in
`harness/catalog/evidence/`.

## By term

GiB, and per cent of what was measured. "not fitted": rows that no constant of the term was fitted on. "held out": the
constant fitted again without the family that is predicted, on one rank (graphs: dense models).

{_terms(runs)}

## By family

The KV pool.

{_by(runs)}

## Verdicts

The highest rung from the configuration alone: {right} of {judged} right. What the sampler's warm-up takes beside mxfp4
experts was fitted on 51 and 52, so their verdicts and that of 53 are those of a fit. The rows that failed:

{_failures(runs)}

## Rows

GiB, predicted / measured. *: a constant of the activation law was fitted on this run.

{_table(runs)}
"""


def _terms(runs: list[Compared]) -> str:
    heads = "n | MAE | median | p95 | worst | bias | median % | p95 % | worst %"
    lines = [f"| term | rows | {heads} |", "| --- " * 11 + "|"]
    lines += [f"| {term} | {name} | {_cells(found)} |" for term, name, found in term_errors(runs)]
    return "\n".join(lines)


def _by(runs: list[Compared]) -> str:
    lines = ["| family | n | MAE | median | p95 | worst | bias | median % | p95 % | worst % |", "| --- " * 10 + "|"]
    for family in families(runs):
        found = errors([r for r in runs if r.family == family], "kv")
        if found:
            lines.append(f"| {family} | {_cells(found)} |")
    return "\n".join(lines)


def _cells(e: Errors) -> str:
    sizes = " | ".join(f"{x / GIB:.3f}" for x in (e.mae, e.median, e.p95, e.worst))
    shares = " | ".join(f"{x:.2f}" for x in (e.median_percent, e.p95_percent, e.worst_percent))
    return f"{e.runs} | {sizes} | {e.bias / GIB:+.3f} | {shares}"


def _failures(runs: list[Compared]) -> str:
    lines = ["| run | model | predicted | reached | what is said | what happened |", "| --- " * 6 + "|"]
    for r in runs:
        if r.reached != "STARTS":
            words = (r.verdict or "refused" if r.supported else "–", r.reached or "refused", r.refusal, r.note)
            lines.append(f"| {_name(r)} | {r.label} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def _table(runs: list[Compared]) -> str:
    lines = [
        "| run | model | weights | activation | non-torch | graphs | KV pool | KV error |",
        "| --- " * 8 + "|",
    ]
    for r in runs:
        if r.predicted and r.measured:
            cells = " | ".join(f"{r.predicted[t] / GIB:.2f} / {_measured(r, t)}" for t in COLUMNS)
            mark = "*" if r.fitted("activation_peak") else ""
            lines.append(f"| {_name(r)}{mark} | {r.label} | {cells} | {(r.error('kv') or 0) / GIB:+.2f} |")
    return "\n".join(lines)


def _name(run: Compared) -> str:
    return run.id.removeprefix("h100-019-")


def _measured(run: Compared, term: str) -> str:
    return f"{run.measured[term] / GIB:.2f}" if term in run.measured else "–"
