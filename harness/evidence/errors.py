"""How far the predictions are off: over any set of rows, and with a family's own rows left out of every fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean, linear_regression, median

from harness.evidence.compared import COLUMNS, Case, Compared
from harness.predict.admission import budget
from harness.predict.graphs import graph_units, split_outputs
from harness.predict.weights import LAYOUT, tensors

Error = Callable[[Compared], int | None]


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


def errors(runs: Iterable[Compared], term: str, error: Error | None = None) -> Errors | None:
    """The errors of ``term`` over ``runs``; None where no run states it."""
    pairs = [(e, r.measured[term]) for r in runs if (e := error(r) if error else r.error(term)) is not None]
    shares = sorted(100 * abs(e) / m for e, m in pairs if m > 0)
    if not shares:
        return None
    sizes = sorted(abs(e) for e, _ in pairs)
    return Errors(
        len(pairs), fmean(sizes), median(sizes), _rank(sizes), sizes[-1], fmean(e for e, _ in pairs),
        median(shares), _rank(shares), shares[-1],
    )  # fmt: skip


def _rank(values: list[float] | list[int]) -> float:
    """The 95th percentile of sorted ``values``: the nearest rank."""
    return values[min(len(values) - 1, -(-len(values) * 95 // 100) - 1)]


# -- without a family's own rows -------------------------------------------------------------------


def held_out(runs: list[Compared], term: str) -> Errors | None:
    """Errors of ``term`` with every constant fitted again on the other families' rows.

    The constants: the layout of mxfp4 experts (weights), what the law leaves of the activation peak, by model runner,
    the means of the non-torch increase by ranks and version, the line of the graphs. A pool is what these leave of the
    budget. A row that no other family's rows tell of is left out.
    """
    found = {id(r): _without(r, [o for o in runs if o.family != r.family], term) for r in runs}
    return errors(runs, term, lambda r: _difference(r, term, found[id(r)]))


def _difference(run: Compared, term: str, guess: float | None) -> int | None:
    if guess is None or term not in run.measured or term not in run.predicted:
        return None
    return round(guess) - run.measured[term]


def _without(run: Compared, others: list[Compared], term: str) -> float | None:
    if run.case is None or term not in run.predicted:
        return None
    if term == "kv":
        return _pool(run, run.case, others)
    return {"weights": _weights, "activation_peak": _peak, "non_torch_increase": _increase, "graphs": _graphs}[term](
        run, run.case, others
    )


def _weights(run: Compared, case: Case, others: list[Compared]) -> float | None:
    """Without the fitted layout of mxfp4 experts where no other family's row tells of it."""
    padding = _layout(run)
    return float(run.predicted["weights"] - (0 if any(map(_layout, others)) else padding))


def _layout(run: Compared) -> int:
    """Bytes that the fitted layout adds to the row's weights; 0 where it was not measured."""
    if run.case is None or run.error("weights") is None:
        return 0
    held = tensors(run.case.architecture, run.case.settings, stage=0)
    return sum(t.bytes * t.count for t in held if t.name.endswith(LAYOUT))


def _peak(run: Compared, case: Case, others: list[Compared]) -> float | None:
    left = [-(o.error("activation_peak") or 0) for o in others
            if o.fitted("activation_peak") and o.error("activation_peak") is not None
            and o.case and o.case.settings.model_runner == case.settings.model_runner]  # fmt: skip
    return run.predicted["activation_peak"] + fmean(left) if left else None


def _kind(case: Case) -> tuple[object, ...]:
    chosen = case.settings
    ranks = (chosen.tensor_parallel_size, chosen.pipeline_parallel_size > 1)
    return (case.gpu.name, chosen.model_runner, *ranks, chosen.defaults.non_torch_one_rank_gib)


def _increase(run: Compared, case: Case, others: list[Compared]) -> float | None:
    alike = [o.measured["non_torch_increase"] for o in others
             if o.case and _kind(o.case) == _kind(case) and "non_torch_increase" in o.measured]  # fmt: skip
    return fmean(alike) if alike else None


def _graphs(run: Compared, case: Case, others: list[Compared]) -> float | None:
    if case.settings.enforce_eager:
        return 0.0
    alike = [(o.case, o.measured["graphs"]) for o in others
             if o.case and o.case.gpu == case.gpu and "graphs" in o.measured
             and (o.case.architecture.mixture is None) == (case.architecture.mixture is None)]  # fmt: skip
    if case.architecture.mixture is not None:
        rates = [size / _units(c) for c, size in alike]
        return fmean(rates) * _units(case) if rates else None
    if len({_units(c) for c, _ in alike}) < 2:
        return None
    slope, base = linear_regression([_units(c) for c, _ in alike], [size - _splits(c) for c, size in alike])
    return base + slope * _units(case) + _splits(case)


def _units(case: Case) -> int:
    return graph_units(case.architecture, case.settings)[1]


def _splits(case: Case) -> int:
    return split_outputs(case.architecture, case.settings, case.gpu)


def _pool(run: Compared, case: Case, others: list[Compared]) -> float | None:
    counted = ["weights", "activation_peak", "non_torch_increase"]
    if case.settings.graphs_in_budget:
        counted.append("graphs")
    taken = [_without(run, others, term) for term in counted]
    if any(size is None for size in taken):
        return None
    return budget(case.architecture, case.settings, case.gpu, stage=0).requested.bytes - sum(t for t in taken if t)


# -- the sets that are shown -----------------------------------------------------------------------


def term_errors(runs: list[Compared]) -> Iterator[tuple[str, str, Errors]]:
    """(term, which rows, errors): all rows; those not fitted on that state all; those that leave something open;
    and every family with its own rows left out of the fits."""
    for term in COLUMNS:
        sets: tuple[tuple[str, Errors | None], ...] = (
            ("all", errors(runs, term)),
            ("not fitted, stated", errors([r for r in runs if not r.fitted(term) and _stated(r, term)], term)),
            ("not fitted, assumed", errors([r for r in runs if not r.fitted(term) and not _stated(r, term)], term)),
            ("held out", held_out([r for r in runs if _stated(r, term)], term)),
        )
        yield from ((term, name, found) for name, found in sets if found)


def _stated(run: Compared, term: str) -> bool:
    """Weights follow from the model, its format and the ranks: a row that has them states them."""
    return term == "weights" or run.stated


def by(runs: Iterable[Compared], key: Callable[[Compared], str], term: str = "kv") -> Iterator[tuple[str, Errors]]:
    """(value of ``key``, errors of ``term``) over the runs that have one."""
    runs = [r for r in runs if r.error(term) is not None]
    for value in sorted({key(r) for r in runs}):
        found = errors([r for r in runs if key(r) == value], term)
        if found:
            yield value or "not stated", found


def rates(runs: Iterable[Compared]) -> tuple[int, int]:
    """(right, compared): rows whose printed pool and tokens allow the predicted bytes a token."""
    pairs = [(r.rate, r.measured_rate) for r in runs if r.rate is not None and r.measured_rate is not None]
    return sum(low <= rate <= high for rate, (low, high) in pairs), len(pairs)


def layered(runs: Iterable[Compared]) -> tuple[int, int]:
    """(right, compared): pools of layers that differ, whose printed bytes allow the printed tokens."""
    found = [r.layered for r in runs if r.layered is not None]
    return sum(least <= printed <= most for least, most, printed in found), len(found)


def verdicts(runs: Iterable[Compared]) -> tuple[int, int]:
    """(right, judged): rows whose highest rung was told from the configuration alone."""
    judged = [r for r in runs if r.judged]
    return sum(r.verdict == r.reached for r in judged), len(judged)


def intervals(runs: Iterable[Compared], term: str) -> tuple[int, int]:
    """(inside, compared): measured figures of rows not fitted on that lie in the predicted interval."""
    found = [r.inside[term] for r in runs if term in r.inside and not r.fitted(term)]
    return sum(found), len(found)
