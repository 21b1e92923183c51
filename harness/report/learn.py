"""``bench learn``, as a report and as one JSON document."""

from __future__ import annotations

from typing import Any

from harness.learn import Column, Finding, find
from harness.report.parts import Report, Section, Table
from harness.units import human

SCHEMA = 1


def build(name: str, finding: Finding) -> Report:
    """The report: the question, the table, what it says."""
    heads = tuple(c.head for c in finding.columns)
    rows = tuple(
        tuple(_shown(c, value) for c, value in zip(finding.columns, row, strict=True)) for row in finding.rows
    )
    words = frozenset(i for i, value in enumerate(finding.rows[0]) if isinstance(value, str))
    return Report(
        name,
        (find(name).question, f"{finding.setting[:1].upper()}{finding.setting[1:]}."),
        (
            Section("What was found", table=Table(heads, rows, words)),
            Section("What it says", sentences=finding.says),
            Section("Papers", sentences=finding.sources),
        ),
    )


def _shown(column: Column, value: Any) -> str:
    return human(value) if column.form == "bytes" else column.form.format(value)


def document(name: str, seed: int, finding: Finding) -> dict[str, Any]:
    """The one JSON document."""
    return {
        "schema": SCHEMA, "experiment": name, "question": find(name).question, "seed": seed,
        "setting": finding.setting, "rows": finding.figures(), "says": list(finding.says),
        "sources": list(finding.sources),
    }  # fmt: skip
