"""Calibrates on some public runs and predicts the others, which the fit did not have.

    python -m benchmarks.calibration

"Before" has the published constants, which were themselves fitted on the H100 runs of 0.19 that are shown: there
"after" is held out and "before" is not. Of a pipeline rank 0 is compared. docs/calibration.md has the tables.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean, median

from harness import evidence
from harness.calibrate import Case, Run, calibrate, case_of, splits
from harness.evidence.rows import cannot, cannot_grant
from harness.ledger import Term
from harness.predict.calibrated import WORDS
from harness.scenario import Calibration, minor
from harness.units import GIB

COLUMNS = {
    Term.RUNTIME_AT_INIT: "init_gib", Term.NON_TORCH_INCREASE: "non_torch_increase_gib",
    Term.ACTIVATION_PEAK: "activation_peak_gib", Term.CUDA_GRAPHS: "graphs_gib", Term.KV_AVAILABLE: "kv_gib",
}  # fmt: skip
TODAY = datetime.date(2026, 11, 24)
Pair = tuple[Case, Calibration]


def runs(gpu: str, version: str) -> list[Run]:
    """The public runs of ``gpu`` under vLLM ``version`` that state a term and can be predicted."""
    found = []
    for row in evidence.rows():
        measured = {str(t): round(float(row[c]) * GIB) for t, c in COLUMNS.items() if row.get(c)}
        if row["gpu"] != gpu or minor(row["vllm"] or "0.0") != version or not measured or row["outcome"] == "refused":
            continue
        if not (cannot(row) or cannot_grant(row)):
            found.append(Run(row["id"], evidence.scenario(row), measured))
    return found


def held_out(given: Sequence[Run]) -> Iterator[Pair]:
    """Each run with the calibration on the runs of all other models; on all others, where there is one model."""
    for one, rest in splits(given, [run.model for run in given]):
        yield _first_rank(one), calibrate(rest, TODAY)


def trained(on: Sequence[Run], others: Sequence[Run]) -> Iterator[Pair]:
    """Each of ``others`` with the calibration on ``on``."""
    found = calibrate(on, TODAY)
    for one in others:
        yield _first_rank(one), found


def _first_rank(run: Run) -> Case:
    return replace(case_of(run), stage=0)


def show(title: str, pairs: Sequence[Pair]) -> None:
    """A row for each term: errors and intervals with the published constants and with the calibration's."""
    print(f"\n{title}\n")
    print("| term | runs | before: median | mean | worst | inside | after: median | mean | worst | inside |")
    print("| --- " + "| --: " * 9 + "|")
    for term in COLUMNS:
        rows = [(c, k) for c, k in pairs if term in c.run.measured]
        if not rows:
            continue
        cells = []
        for calibrated in (False, True):
            found = [(c.terms(k if calibrated else None)[term], c.run.measured[term]) for c, k in rows]
            errors = [abs(e.bytes - m) / GIB for e, m in found]
            inside = sum(e.low - 0.005 * GIB <= m <= e.high + 0.005 * GIB for e, m in found)
            cells += [f"{x:.3f}" for x in (median(errors), fmean(errors), max(errors))] + [str(inside)]
        print(f"| {WORDS.get(term, 'left for KV')} | {len(rows)} | {' | '.join(cells)} |")


def main() -> None:
    """Print the tables."""
    h100 = runs("h100-sxm-80gb", "0.19")
    llama = [r for r in h100 if r.model == "meta-llama/Llama-3.1-8B-Instruct"]
    others = [r for r in h100 if r.model not in {x.model for x in llama}]
    show(f"H100 SXM, 0.19: {len(h100)} runs, each predicted from those of all other models", list(held_out(h100)))
    show(f"The same: {len(llama)} runs of Llama-3.1-8B predict the others", list(trained(llama, others)))
    for gpu, version in (("h100-sxm-80gb", "0.11"), ("rtx-3090-24gb", "0.6")):
        few = runs(gpu, version)
        show(f"{gpu}, {version}: {len(few)} runs, each predicted from the others", list(held_out(few)))


if __name__ == "__main__":
    main()
