"""The report as Markdown, for a ticket or a pull request."""

from __future__ import annotations

import re

from harness.engines.log import printable
from harness.report.parts import Report, Section, Table

# Characters that Markdown or HTML would act on; a name or a reason must come out as it is.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def render(report: Report) -> str:
    """The whole report."""
    parts = [f"# {_escape(report.title)}", *(_escape(line) for line in report.lead)]
    for section in report.sections:
        parts += [f"## {_escape(section.title)}", *_body(section)]
    if report.expectation_met is not None:
        parts.append("## Expectation")
        if report.expectation_met:
            parts.append("Met.")
        else:
            parts.append("Not met:\n\n" + "\n".join(f"- {_escape(line)}" for line in report.expectation_failed))
    return "\n\n".join(parts) + "\n"


def _body(section: Section) -> list[str]:
    parts = []
    if section.sentences:
        if section.flowing:
            parts.append(" ".join(_escape(s) for s in section.sentences))
        else:
            parts.append("\n".join(f"- {_escape(s)}" for s in section.sentences))
    if section.table:
        parts.append(_table(section.table))
    if section.quoted:
        fence = "```"
        while any(fence in line for line in section.quoted):
            fence += "`"
        parts.append("\n".join([f"{fence}text", *map(printable, section.quoted), fence]))
    return parts


def _table(table: Table) -> str:
    rule = ["---" if i in table.left else "--:" for i in range(len(table.columns))]
    lines = [table.columns, tuple(rule), *table.rows]
    return "\n".join(
        "| " + " | ".join(cell if n == 1 else _escape(cell) for cell in row) + " |" for n, row in enumerate(lines)
    )


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))
