"""The report as one HTML page that needs nothing beside it: no script, no font, no request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.engines.log import printable
from harness.report.charts import CHARTS
from harness.report.parts import Report
from harness.report.reading import Reading


def render(report: Report, reading: Reading) -> str:
    """The page of ``report``, with the pictures of the ``reading`` that it was built from."""
    drawn = {s.chart: CHARTS[s.chart](reading) for s in report.sections if s.chart}
    rungs = [(r.rung, r.measured if r.measured is not None else r.predicted) for r in reading.comparison.rungs]
    return page(report, rungs, {name: svg for name, svg in drawn.items() if svg})


def page(report: Report, rungs: Sequence[tuple[str, bool | None]], charts: Mapping[str, str]) -> str:
    """The page; ``charts`` are SVG, everything else is escaped, whoever said it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def told(value: Any) -> Any:
        return value if isinstance(value, Markup) else printable(str(value))

    environment = Environment(
        loader=PackageLoader("harness.report", "."), autoescape=True, undefined=StrictUndefined, finalize=told,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    template = environment.get_template("report.html.j2")
    return template.render(report=report, rungs=rungs, charts={name: Markup(svg) for name, svg in charts.items()})
