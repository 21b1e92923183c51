"""The comparison as docs/accuracy.md and as the JSON document of ``bench evidence``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from harness.evidence.compared import COLUMNS, Compared
from harness.evidence.errors import Errors, by, errors, held_out, intervals, layered, rates, term_errors, verdicts
from harness.evidence.slack import GROUPS, halves, of_group, spread
from harness.units import GIB

_HEADS = "n | MAE | median | p95 | worst | bias | median % | p95 % | worst %"
_CUTS: dict[str, Callable[[Compared], str]] = {
    "family": lambda r: r.family,
    "GPU": lambda r: r.gpu,
    "version": lambda r: ".".join(r.version.split(".")[:2]),
}


def as_dict(runs: list[Compared]) -> dict[str, Any]:
    """The document of ``bench evidence --json``; bytes."""
    right, judged = verdicts(runs)
    exact, compared = rates(runs)
    shown = [f.name for f in fields(Compared) if f.name != "case"]
    return {
        "rows": [{**{n: getattr(r, n) for n in shown}, "errors": {t: r.error(t) for t in COLUMNS}} for r in runs],
        "terms": {
            term: {
                "all": _dict(errors(runs, term)),
                "not_fitted": _dict(errors([r for r in runs if not r.fitted(term)], term)),
                "held_out": _dict(held_out(runs, term)),
                "in_interval": intervals(runs, term),
            }
            for term in COLUMNS
        },
        **{f"by_{name}".lower(): {k: asdict(e) for k, e in by(runs, key)} for name, key in _CUTS.items()},
        "kv_bytes_per_token": {"right": exact, "compared": compared},
        "kv_tokens_of_layers_that_differ": dict(zip(("right", "compared"), layered(runs), strict=True)),
        "verdicts": {"right": right, "judged": judged},
        "allocator_slack": {name: of_group(name) for name in GROUPS},
        "not_predicted": dict(_reasons(runs)),
    }


def _dict(found: Errors | None) -> dict[str, Any] | None:
    return asdict(found) if found else None


def _reasons(runs: list[Compared]) -> list[tuple[str, int]]:
    """Why rows have no prediction of their pool, most frequent first."""
    missing = [r.refusal for r in runs if "kv" not in r.predicted and not (r.judged and r.verdict == r.reached)]
    return sorted(Counter(missing).items(), key=lambda item: (-item[1], item[0]))


def document(runs: list[Compared]) -> str:
    """docs/accuracy.md."""
    right, judged = verdicts(runs)
    exact, compared = rates(runs)
    fits, pools = layered(runs)
    ours = [r for r in runs if r.table == "h100"]
    cuts = "\n\n".join(f"### By {name}\n\n{_by(runs, name, key)}" for name, key in _CUTS.items())
    return f"""# Accuracy

Written by `bench evidence --markdown`; a test fails when it is not fresh, and when a figure gets worse than its bound.

{len(runs)} public runs, each predicted from its configuration alone. {len(ours)} are runs of vLLM 0.15 to 0.19 on H100
SXM whose every argument is known (`h100.csv`: data of
[llm-d-planner](https://github.com/llm-d-incubation/llm-d-planner), Apache-2.0), {len(runs) - len(ours)} are what people
reported in public threads (`community.csv`), with what they left out left out. Each row's link is in
`harness/catalog/evidence/`.

## By term

GiB, and per cent of what was measured. "not fitted": rows that no constant of the term was fitted on; "stated" where
the row states its version, GPU, batch sizes, length and utilization, "assumed" where some of these are our defaults or
were inferred by whoever wrote the row down. "held out": every constant fitted again without any row of the family that
is predicted, on the rows that state all.

{_terms(runs)}

Bytes of KV cache a token: {exact} of {compared} rows as predicted, within what two printed decimals allow. Where layers
differ (sliding windows, recurrent states), tokens of the pool from its printed bytes: {fits} of {pools}.

{_intervals(runs)}

## The allocator's slack

What PyTorch held "reserved but unallocated" when a public vLLM process ran out of memory, by what it was at
(`out_of_memory.csv`; {len(of_group(""))} more reports leave that open). "serving": its graphs were captured. "by half":
the mean error of the median, and how many lie between the percentiles, each half of the reports told by the other.

{_slack()}

## The KV pool

{cuts}

## Verdicts

The highest rung from the configuration alone: {right} of {judged} right. The allocator's slack beside mxfp4 experts was
fitted on 51 and 52 (and one more), so their verdicts and that of 53 are those of a fit: with the slack of all others
they would be told to start. The rows that failed, or that we tell wrong:

{_failures(runs)}

## Not predicted

The pool of {sum(n for _, n in _reasons(runs))} rows, of some of which weights, activations or the bytes a token are
compared nevertheless.

| rows | why |
| --- | --- |
{_missing(runs)}

## Rows

GiB, predicted / measured. *: a constant of the activation law was fitted on this run. ~: the row leaves something open.

{_table(runs)}
"""


def _terms(runs: list[Compared]) -> str:
    lines = [f"| term | rows | {_HEADS} |", "| --- " * 11 + "|"]
    lines += [f"| {term} | {name} | {_cells(found)} |" for term, name, found in term_errors(runs)]
    return "\n".join(lines)


def _slack() -> str:
    lines = ["| at | n | median GiB | 5th | 95th | least | most | by half: error | within |", "| --- " * 9 + "|"]
    for name in GROUPS:
        sizes = of_group(name)
        least, most = (f"{x / GIB:.3f}" for x in (min(sizes), max(sizes)))
        median, low, high = (f"{x / GIB:.3f}" for x in (spread(sizes) if len(sizes) > 1 else (sizes * 3)))
        error, inside = halves(sizes) if len(sizes) > 3 else (None, 0)
        held = f"{error / GIB:.3f} | {inside} of {len(sizes)}" if error is not None else "– | –"
        lines.append(f"| {name} | {len(sizes)} | {median} | {low} | {high} | {least} | {most} | {held} |")
    return "\n".join(lines)


def _intervals(runs: list[Compared]) -> str:
    shares = [f"{term} {inside} of {n}" for term in COLUMNS for inside, n in [intervals(runs, term)] if n]
    return "Measured figures inside the predicted interval, on rows that no fit has seen: " + ", ".join(shares) + "."


def _by(runs: list[Compared], name: str, key: Callable[[Compared], str]) -> str:
    lines = [f"| {name} | {_HEADS} |", "| --- " * 10 + "|"]
    return "\n".join([*lines, *(f"| {value} | {_cells(found)} |" for value, found in by(runs, key))])


def _cells(e: Errors) -> str:
    sizes = " | ".join(f"{x / GIB:.3f}" for x in (e.mae, e.median, e.p95, e.worst))
    shares = " | ".join(f"{x:.2f}" for x in (e.median_percent, e.p95_percent, e.worst_percent))
    return f"{e.runs} | {sizes} | {e.bias / GIB:+.3f} | {shares}"


def _failures(runs: list[Compared]) -> str:
    lines = ["| run | model | predicted | reached | what is said | what happened |", "| --- " * 6 + "|"]
    for r in runs:
        if r.judged and (r.reached != "STARTS" or r.verdict != r.reached):
            words = (r.verdict or "refused", r.reached or "refused", r.refusal, r.note)
            lines.append(f"| {_name(r)} | {r.label} | " + " | ".join(w.replace("|", "/") for w in words) + " |")
    return "\n".join(lines)


def _missing(runs: list[Compared]) -> str:
    return "\n".join(f"| {count} | {reason.replace('|', '/')} |" for reason, count in _reasons(runs))


def _table(runs: list[Compared]) -> str:
    heads = "| run | vLLM | GPU | model | weights | activation | non-torch | graphs | KV pool | KV error |"
    lines = [heads, "| --- " * 10 + "|"]
    for r in runs:
        if any(r.error(t) is not None for t in COLUMNS):
            cells = " | ".join(_cell(r, t) for t in COLUMNS)
            mark = ("*" if r.fitted("activation_peak") else "") + ("" if r.stated else "~")
            error = r.error("kv")
            last = f"{error / GIB:+.2f}" if error is not None else "–"
            lines.append(f"| {_name(r)}{mark} | {r.version or '–'} | {r.gpu or '–'} | {r.label} | {cells} | {last} |")
    return "\n".join(lines)


def _cell(run: Compared, term: str) -> str:
    sides = (run.predicted.get(term), run.measured.get(term))
    return " / ".join("–" if x is None else f"{x / GIB:.2f}" for x in sides)


def _name(run: Compared) -> str:
    return run.id.removeprefix("h100-019-")
