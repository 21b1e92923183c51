"""Prediction against public vLLM runs on H100s: every dense text run that started, term by term.

    python -m benchmarks.evidence

The figures are from harness/catalog/evidence.csv: data of llm-d-planner (Apache-2.0), each row with the link
to its source, printed there with two decimals. Of a pipeline rank 0 is compared. The overhead constants are
means over these very rows; of the activation law one constant and the pipeline's share were fitted, on the
rows marked *.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from statistics import fmean

from harness.architecture import from_config
from harness.predict.activations import FITTED_ON
from harness.predict.admission import budget
from harness.predict.settings import device_gpu, settings
from harness.scenario import Scenario, parse_scenario
from harness.units import GIB

TERMS = ("weights", "activation_peak", "non_torch_increase", "graphs", "kv")


@dataclass(frozen=True)
class Compared:
    """One run: predicted and measured GiB by term; ``fitted``: whether the activation constant saw it."""

    id: str
    label: str
    predicted: dict[str, float]
    measured: dict[str, float]
    fitted: bool

    def error(self, term: str) -> float | None:
        """Predicted minus measured, GiB; None where the run's report doesn't state the term."""
        return self.predicted[term] - self.measured[term] if term in self.measured else None


def rows() -> list[dict[str, str]]:
    """The evidence as it stands, texts by column."""
    text = (files("harness.catalog") / "evidence.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def scenario(row: dict[str, str]) -> Scenario:
    """The run of ``row`` as a scenario."""
    count = int(row["tensor_parallel_size"]) * int(row["pipeline_parallel_size"])
    return parse_scenario(f"""
name: {row["id"]}
model: {row["catalogue_model"]}
weights: {{format: {row["weights_format"]}}}
gpu: {{name: {row["gpu"]}, count: {count}}}
engine:
  vllm: "{row["vllm"]}"
  max_model_len: {row["max_model_len"]}
  max_num_seqs: {row["max_num_seqs"]}
  max_num_batched_tokens: {row["max_num_batched_tokens"]}
  dtype: {row["dtype"]}
  kv_cache_dtype: {row["kv_cache_dtype"]}
  gpu_memory_utilization: {row["gpu_memory_utilization"]}
  pipeline_parallel_size: {row["pipeline_parallel_size"]}
""")


def compare(row: dict[str, str]) -> Compared:
    """Prediction and measurement of a run that started, on the first rank."""
    run = scenario(row)
    gpu = device_gpu(run)
    assert gpu is not None
    b = budget(from_config(run.config()), settings(run), gpu, stage=0)
    terms = (b.weights, b.activation, b.non_torch, b.graphs, b.available)
    columns = ("weights_gib", "activation_peak_gib", "non_torch_increase_gib", "graphs_gib", "kv_gib")
    shape = f"tp{row['tensor_parallel_size']} pp{row['pipeline_parallel_size']} {row['max_model_len']}"
    return Compared(
        id=row["id"],
        label=f"{row['model'].split('/')[1]} {row['dtype']} kv {row['kv_cache_dtype']} {shape}",
        predicted={t: e.bytes / GIB for t, e in zip(TERMS, terms, strict=True)},
        measured={t: float(row[c]) for t, c in zip(TERMS, columns, strict=True) if row[c]},
        fitted=row["id"] in FITTED_ON,
    )


def started() -> list[Compared]:
    """All runs that started, compared."""
    return [compare(row) for row in rows() if row["outcome"] == "started"]


def summary(runs: Iterable[Compared]) -> Iterator[tuple[str, float, float]]:
    """(term, mean absolute error, largest absolute error) in GiB."""
    runs = list(runs)
    for term in TERMS:
        errors = [abs(e) for r in runs if (e := r.error(term)) is not None]
        yield term, fmean(errors), max(errors)


def summary_table(runs: list[Compared]) -> str:
    """Markdown: the errors of all runs, and of those that the activation law was not fitted on, in GiB."""
    unseen = [r for r in runs if not r.fitted]
    lines = [
        f"| term | MAE, {len(runs)} runs | largest | MAE, {len(unseen)} runs not fitted on | largest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (term, mean, worst), (_, mean_unseen, worst_unseen) in zip(
        summary(runs), summary(unseen), strict=True
    ):
        lines.append(f"| {term} | {mean:.3f} | {worst:.3f} | {mean_unseen:.3f} | {worst_unseen:.3f} |")
    return "\n".join(lines)


def table(runs: Iterable[Compared]) -> str:
    """Markdown: predicted / measured by term, and the error of the KV pool, in GiB."""
    lines = [
        "| run | model | weights | activation | non-torch | graphs | KV pool | KV error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in runs:
        cells = " | ".join(f"{r.predicted[t]:.2f} / {_measured(r, t)}" for t in TERMS)
        name = r.id.removeprefix("h100-019-")
        lines.append(f"| {name}{'*' if r.fitted else ''} | {r.label} | {cells} | {r.error('kv') or 0:+.2f} |")
    return "\n".join(lines)


def _measured(run: Compared, term: str) -> str:
    return f"{run.measured[term]:.2f}" if term in run.measured else "–"


def worst_weights(runs: Iterable[Compared]) -> float:
    """The largest error of the weights, as a share of the measured figure."""
    return max(abs(r.error("weights") or 0) / r.measured["weights"] for r in runs)


def main() -> None:
    """Print the table and the errors."""
    runs = started()
    print("GiB, predicted / measured. *: the activation law was fitted on this run.\n")
    print(table(runs))
    print()
    print(summary_table(runs))
    print(f"\nWeights: {100 * worst_weights(runs):.2f} % at worst.")


if __name__ == "__main__":
    main()
