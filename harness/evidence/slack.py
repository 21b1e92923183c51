"""What PyTorch kept reserved and could not give when vLLM ran out of memory: out_of_memory.csv.

Before it raises, PyTorch gives back every segment of which nothing is in use and tries again
(``CUDACachingAllocator.cpp``), so what the error calls "reserved by PyTorch but unallocated" is what lies between
tensors: the allocator's slack. CUDA graphs' pools, counted apart there, are not in it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean, median, quantiles

from harness.units import MIB

# What the process was at. A graph's pool exists from the capture on, so a line that names one is no earlier than that.
AFTER_THE_CAPTURE = ("capture", "warm_up", "load", "after_graphs")
GROUPS = ("loading", "profile", "serving, mxfp4 experts", "serving")


@dataclass(frozen=True)
class Slack:
    """One report: ``bytes`` of slack, and of what ``group`` it is ("" where that is not known)."""

    id: str
    bytes: int
    group: str


@cache
def slacks() -> tuple[Slack, ...]:
    """All reports, in the order of the table."""
    text = (files("harness.catalog") / "evidence" / "out_of_memory.csv").read_text(encoding="utf-8")
    return tuple(
        Slack(row["id"], round(float(row["unallocated_mib"]) * MIB), _group(row))
        for row in csv.DictReader(text.splitlines())
    )


def _group(row: dict[str, str]) -> str:
    if row["when"] not in AFTER_THE_CAPTURE:
        return row["when"]
    return "serving, mxfp4 experts" if row["mxfp4_experts"] == "yes" else "serving"


def of_group(name: str) -> list[int]:
    """The slacks of ``name``, bytes, in the order of the table."""
    return [s.bytes for s in slacks() if s.group == name]


def spread(sizes: list[int]) -> tuple[float, float, float]:
    """(median, 5th, 95th percentile) of at least two ``sizes``, bytes."""
    cuts = quantiles(sizes, n=20, method="inclusive")
    return median(sizes), cuts[0], cuts[-1]


def halves(sizes: list[int]) -> tuple[float, int]:
    """(mean error of the median, bytes; how many lie between the percentiles), each half by a fit on the other."""
    errors, inside = [], 0
    for seen, unseen in ((sizes[::2], sizes[1::2]), (sizes[1::2], sizes[::2])):
        likely, low, high = spread(seen)
        errors += [abs(size - likely) for size in unseen]
        inside += sum(low <= size <= high for size in unseen)
    return fmean(errors), inside
