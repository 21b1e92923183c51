"""The HTML page and its pictures: from the run's own figures, complete, and inert whoever said what."""

from __future__ import annotations

import random
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import bench

from harness import store
from harness.analytic import analytic
from harness.errors import LoadfitError
from harness.predict import predict
from harness.report import charts, html
from harness.report.charts import CHARTS, memory
from harness.report.content import build
from harness.report.reading import Reading, understand
from harness.scenario import load_scenario

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
SVG = "{http://www.w3.org/2000/svg}"


def recorded(run: str) -> Reading:
    return understand(store.read(REFERENCE / run))


def predicted(scenario: str, tmp_path: Path) -> Reading:
    loaded = load_scenario(ROOT / "scenarios" / f"{scenario}.yaml")
    return understand(store.read(analytic(loaded, predict(loaded), tmp_path, "a test").path))


class Page(HTMLParser):
    """What a page holds: the text outside styles, the tags, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.leads = "", [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.leads += [value for name, value in attrs if name in ("src", "href", "action", "srcset") and value]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def words(svg: str) -> list[str]:
    return [(t.text or "").strip() for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("run", ["70b_8k_int4-rehearsal", "smollm2_cpu-measured"])
def test_a_page_says_all_that_the_report_says_and_asks_for_nothing(run: str) -> None:
    reading = recorded(run)
    report = build(reading)
    shown = Page(html.render(report, reading))
    assert "script" not in shown.tags and "link" not in shown.tags and "img" not in shown.tags
    assert all(lead.startswith("#") for lead in shown.leads)  # within the page's own pictures
    said = " ".join(shown.text.split())
    for section in report.sections:
        assert section.title in said
        assert all(" ".join(s.split()) in said for s in section.sentences)
        assert all(cell in said for row in (section.table.rows if section.table else ()) for cell in row)
    assert said.count("70b_8k_int4" if run.startswith("70b") else "smollm2_cpu") >= 1
    assert html.render(report, reading) == html.render(build(recorded(run)), recorded(run))


def test_memory_shows_what_there_is_and_what_the_load_wants(tmp_path: Path) -> None:
    reading = recorded("70b_8k_int4-rehearsal")
    svg = memory(reading)
    assert svg is not None
    ledger, kv = reading.record.prediction.ledger, reading.record.prediction.kv
    beyond = reading.record.prediction.load.peak_blocks_needed * kv.bytes_per_block - ledger.bytes_of("kv_available")
    said = words(svg)
    assert {"idle, predicted", "load's peak, predicted", "what the load wants", "the device: 79.2 GiB"} <= set(said)
    assert f"{beyond / 2**30:,.1f}" in said and "beyond the pool" in said
    held = memory(predicted("8b_24gb_retrieval", tmp_path))
    assert held is not None and ("what the load wants" in words(held)) == ("beyond the pool" in words(held))
    refused = memory(predicted("70b_8k", tmp_path))
    assert refused is not None and "131.4" in words(refused) and "load's peak, predicted" not in words(refused)


def test_the_loads_peak_holds_all_that_the_idle_device_holds(tmp_path: Path) -> None:
    reading = predicted("8b_24gb_poisson", tmp_path)
    idle, peak = (dict.fromkeys(p[0] for p in pieces) for _, pieces in charts._serving_bars(reading))
    assert list(peak) == [*list(idle)[:-1], "allocator_slack", "kv_available"]


def test_measured_memory_stands_beside_what_was_predicted() -> None:
    svg = memory(recorded("smollm2_cpu-measured"))
    assert svg is not None
    assert {"idle, predicted", "idle, measured", "unattributed"} <= set(words(svg))


def test_a_training_step_is_drawn_by_its_moments(tmp_path: Path) -> None:
    svg = memory(predicted("finetune_7b_24gb", tmp_path))
    assert svg is not None
    assert {"between steps", "loss", "backward", "update", "optimizer states"} <= set(words(svg))


def test_a_picture_is_drawn_only_of_what_was_recorded(tmp_path: Path) -> None:
    """A stand-in's waits are not the GPU's; no GPU, no picture of one; no load, no timeline."""

    def drawn(reading: Reading) -> set[str]:
        return {name for name, draw in CHARTS.items() if draw(reading)}

    assert drawn(predicted("70b_8k", tmp_path)) == {"memory"}
    assert drawn(recorded("70b_8k_int4-rehearsal")) == {"memory", "load"}
    assert drawn(recorded("smollm2_cpu-measured")) == {"memory", "load", "waits"}


def test_waits_begin_where_the_tables_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users who start together are held back at first: that is no time to a first token."""
    reading, drawn = recorded("smollm2_cpu-measured"), []
    monkeypatch.setattr(charts, "_waits", lambda done: drawn.append(done) or charts._figure(1)[0])
    charts.waits(reading)
    mean = ((drawn[0]["first_ns"] - drawn[0]["sent_ns"]) / 1e9).mean()
    told = next(f.measured for f in reading.comparison.figures if f.figure == "ttft_mean_s")
    assert mean == pytest.approx(told)


def test_peaks_survive_in_a_long_timeline() -> None:
    svg = CHARTS["load"](recorded("70b_8k_int4-rehearsal"))
    assert svg is not None and "all 3,201 blocks" in words(svg) and len(svg) < 150_000


def test_the_command_writes_it(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    ran = bench("report", REFERENCE / "70b_8k_int4-rehearsal", "--format", "html", "--out", out)
    assert ran.code == 0 and ran.out == ""
    text = out.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.count("<svg") == 2
    assert re.search(r'<li class="no"><b>HOLDS</b>', text)


@pytest.mark.parametrize("name", ["manifest.json", "prediction.json", "requests.csv", "steps.csv", "scenario.yaml"])
def test_a_damaged_folder_is_drawn_as_far_as_it_goes(name: str, tmp_path: Path) -> None:
    raw = (REFERENCE / "smollm2_cpu-measured" / name).read_bytes()
    rng = random.Random(name)
    for n in range(8):
        folder = tmp_path / f"{n}-measured"
        shutil.copytree(REFERENCE / "smollm2_cpu-measured", folder)
        spoilt = bytearray(raw[: rng.randrange(len(raw))] if n % 2 else raw)
        for _ in range(1 + len(spoilt) // 300):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        (folder / name).write_bytes(spoilt)
        try:
            reading = understand(store.read(folder))
        except LoadfitError:
            continue
        assert html.render(build(reading), reading).endswith("</html>")
