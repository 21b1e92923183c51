"""What there is to report, a run or a series of repeats, in each form. Only what the form needs is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store
from harness.report import content, document, reading, repeats, series
from harness.report.parts import Report
from harness.report.reading import Reading
from harness.report.series import Series

if TYPE_CHECKING:
    import pandas as pd

Found = Reading | Series


def read(folder: Path, *, alone: bool = False) -> Found:
    """The run in ``folder``; with the others of its series where it is a repeat, unless ``alone``."""
    return (None if alone else series.of(folder)) or reading.understand(store.read(folder))


def report_of(found: Found) -> Report:
    """The report before any format."""
    return repeats.build(found) if isinstance(found, Series) else content.build(found)


def document_of(found: Found) -> dict[str, Any]:
    """The JSON document."""
    return series.document(found) if isinstance(found, Series) else document.document(found)


def page_of(found: Found) -> str:
    """The HTML page."""
    from harness.report import html

    if isinstance(found, Series):
        from harness.report.charts import spread

        drawn = spread(found.comparisons) if found.counted else None
        return html.page(repeats.build(found), repeats.rungs(found), {"spread": drawn} if drawn else {})
    return html.render(content.build(found), found)


def frames_of(found: Found) -> dict[str, pd.DataFrame]:
    """The tables."""
    if isinstance(found, Series):
        return series.frames(found)
    from harness.report import tables

    return tables.from_reading(found).frames()
