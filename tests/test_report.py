"""Reports of recorded runs, to the letter. `python tests/test_report.py` writes them anew, on purpose."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import harness
from harness import store
from harness.errors import RecordError
from harness.report import markdown, text
from harness.report.content import build
from harness.report.document import document
from harness.report.reading import understand

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
GOLDEN = ROOT / "tests" / "golden"
RUNS = sorted(p.name for p in REFERENCE.iterdir())
FORMS = {"txt": text.render, "md": markdown.render}


def rendered(run: str, form: str) -> str:
    return FORMS[form](build(understand(store.read(REFERENCE / run))))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_a_report_is_what_it_was(run: str, form: str) -> None:
    assert rendered(run, form) == (GOLDEN / f"{run}.{form}").read_text(encoding="utf-8")


@pytest.mark.parametrize("run", RUNS)
def test_a_terminal_report_fits_100_columns(run: str) -> None:
    lines = rendered(run, "txt").splitlines()
    assert max(map(len, lines)) <= 100
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [48, 60, 80])
@pytest.mark.parametrize("run", RUNS)
def test_no_word_is_broken_on_a_narrow_terminal(run: str, width: int) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    report = build(understand(store.read(REFERENCE / run)))
    text.show(report, screen)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= width
    words = set(shown.split())
    for table in (section.table for section in report.sections if section.table):
        assert {w for row in table.rows for cell in row[:1] for w in cell.split()} <= words


@pytest.mark.parametrize("run", RUNS)
def test_what_the_run_wrote_is_what_its_folder_yields(run: str) -> None:
    """Nothing in a report comes from anywhere but the folder."""
    reading = understand(store.read(REFERENCE / run))
    written = json.loads((REFERENCE / run / store.COMPARISON).read_text(encoding="utf-8"))
    assert json.loads(json.dumps(reading.comparison.as_dict())) == written
    assert reading.measured is not None
    measured = json.loads((REFERENCE / run / store.MEASUREMENT).read_text(encoding="utf-8"))
    assert measured["load"] == document(reading)["measurement"]["load"]


def test_the_comparison_agrees_with_plain_sums_over_the_tables() -> None:
    run = harness.load_run(REFERENCE / "70b_8k_int4-rehearsal")
    steps = pd.read_csv(REFERENCE / "70b_8k_int4-rehearsal" / "steps.csv")
    measured = run.figures.set_index("figure")["measured"]
    assert measured["preemptions"] == steps["preempted"].sum() == run.measurement.load.preemptions
    assert measured["peak_blocks_used"] == steps["blocks_used"].max()
    assert measured["tokens_scheduled"] == steps["tokens"].sum()
    assert run.figures.set_index("figure")["error"]["preemptions"] == 0


def test_every_documented_frame_has_its_columns() -> None:
    run = harness.load_run(REFERENCE / "smollm2_cpu-measured")
    doc = type(run).__doc__ or ""
    for name, frame in run.frames().items():
        entry = doc.partition(f"``{name}``")[2].partition("``")[0]
        assert entry, name
        for column in frame.columns:
            assert column in entry, f"{name}.{column} is not documented"


def test_bytes_stay_whole_numbers_in_the_frames() -> None:
    terms = harness.load_run(REFERENCE / "smollm2_cpu-measured").terms
    assert {str(terms[c].dtype) for c in ("predicted", "measured", "error")} == {"Int64"}
    assert terms["measured"].isna().any(), "a reading that can't be had is missing, not 0"


def test_an_analytic_run_has_empty_tables_and_a_whole_prediction(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(REFERENCE / "70b_8k_int4-rehearsal", folder)
    manifest = json.loads((folder / store.MANIFEST).read_text())
    (folder / store.MANIFEST).write_text(json.dumps({**manifest, "mode": "analytic"}))
    run = harness.load_run(folder)
    assert run.measurement is None
    assert run.steps.empty and list(run.steps.columns) == list(store.COLUMNS["steps"])
    assert run.terms["predicted"].notna().any()


def test_a_folder_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / store.MANIFEST).write_text('{"schema": 99}')
    with pytest.raises(RecordError, match="another version"):
        store.read(tmp_path)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in RUNS:
        for suffix in FORMS:
            (GOLDEN / f"{name}.{suffix}").write_text(rendered(name, suffix), encoding="utf-8")
            print(f"{name}.{suffix}")
