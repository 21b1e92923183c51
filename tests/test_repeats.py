"""Repeats: run folders that belong together, what of them is run again, and what a report makes of their spread.

The runs are real ones, against the misbehaving server of the tests.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import test_gpu_runs
from conftest import ROOT, bench
from fake_nvml import H100, Node, device
from test_faults import (
    LOAD,
    MEASURED,
    REHEARSAL,
    Run,
    answers_on_disk,
    assert_clean,
    expecting,
    finish,
    interrupt,
    launch,
    mounted,
    report,
    wait_for,
)
from test_faults import pytestmark as pytestmark

from harness.compare import Comparison, FigureRow, RungRow, TermRow
from harness.errors import ScenarioError
from harness.scenario import parse_scenario
from harness.spread import Spread, spreads
from harness.store import series

EVENTS = ("--measure", "--set", "repeats=2")
REFUSED = expecting(starts=False)


def folders(run: Run) -> list[Path]:
    """The run folders, the oldest first."""
    found = [p for p in (run.out / "faults").iterdir() if not p.is_symlink()]
    return sorted(p for p in found if p.is_dir())


def places(run: Run) -> list[tuple[int, str]]:
    """(repeat, outcome) of each run folder; of one series."""
    manifests = [json.loads((f / "manifest.json").read_text()) for f in folders(run)]
    assert len({m["series"]["id"] for m in manifests}) == 1
    return [(m["series"]["repeat"], m["outcome"]) for m in manifests]


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_the_spread_of_finished_repeats_is_shown_and_they_are_not_run_again(tmp_path: Path) -> None:
    first = finish(launch(tmp_path, "fine", *EVENTS))
    assert first.code == 0, first.stderr
    assert_clean(first)
    assert places(first) == [(1, "completed"), (2, "completed")]
    one, two = folders(first)
    assert one.name != two.name and {p.suffix for p in (one, two)} == {""}
    sent = [[line.split(",")[:3] for line in (f / "requests.csv").read_text().splitlines()[1:]] for f in (one, two)]
    assert sorted(sent[0]) == sorted(sent[1])  # the same requests
    assert "faults · measured · 2 repeats" in first.stdout and "a fresh engine each time" in first.stdout
    assert "least – greatest" in first.stdout and "1, 2" in first.stdout
    # Each folder is a run like any other, and its report is that of the series unless it is asked for alone.
    for named in (one, two, one.parent, one.parent / "latest"):
        assert report(named, "text")[1] in first.stdout
    alone = bench("report", one, "--alone")
    assert alone.out.startswith("faults · measured\n") and "Repeat 1 of 2." in alone.out
    before = [contents(f) for f in (one, two)]
    # Again, with one repeat more: that one is run.
    more = finish(launch(tmp_path, "fine", "--measure", "--set", "repeats=3", "--json"))
    assert more.code == 0 and places(more) == [(1, "completed"), (2, "completed"), (3, "completed")]
    assert f"kept of 3 repeats: 1 ({one.name}), 2 ({two.name})\n" in more.stderr
    document = json.loads(more.stdout)
    assert [r["repeat"] for r in document["runs"]] == [1, 2, 3] and document["not_counted"] == []
    assert [r["run_dir"] for r in document["runs"]] == list(map(str, folders(more)))
    weights = document["spread"]["terms"][0]
    assert weights["measured"] == {"median": 2**20, "least": 2**20, "greatest": 2**20, "told": 3}
    again = finish(launch(tmp_path, "not_there", "--measure", "--set", "repeats=3"))
    assert again.code == 0 and "nothing is left to run" in again.stderr and len(folders(again)) == 3
    assert "faults · measured · 3 repeats" in again.stdout
    assert [contents(f) for f in (one, two)] == before


def test_every_form_of_the_report(tmp_path: Path) -> None:
    run = finish(launch(tmp_path, "refuses", *EVENTS, "--junit", str(tmp_path / "gate.xml"), scenario=REFUSED))
    assert run.code == 0, run.stderr  # a failure that is expected is a result
    assert places(run) == [(1, "refused_at_start"), (2, "refused_at_start")]
    assert all(f'<testsuite name="faults, repeat {n}"' in (tmp_path / "gate.xml").read_text() for n in (1, 2))
    before = {f: contents(f) for f in folders(run)}
    folder = folders(run)[0]
    texts = {form: report(folder, form) for form in ("text", "markdown", "html", "json", "csv")}
    assert all((code, stderr) == (0, "") and stdout for code, stdout, stderr in texts.values())
    assert max(map(len, texts["text"][1].splitlines())) <= 100
    assert "As expected" in texts["text"][1] and "# faults · measured · 2 repeats" in texts["markdown"][1]
    assert "<title>faults · measured · 2 repeats</title>" in texts["html"][1]
    assert texts["csv"][1].startswith("term,phase,predicted,low,high,median,least,greatest,told,outside")
    assert report(folder, "csv", tmp_path / "frames")[0] == 0
    assert {p.stem for p in (tmp_path / "frames").iterdir()} == {"terms", "rungs", "figures", "repeats"}
    again = finish(launch(tmp_path, "fine", *EVENTS, scenario=REFUSED))  # it is not asked anything
    assert again.code == 0 and "nothing is left to run" in again.stderr
    assert {f: contents(f) for f in folders(run)} == before


def test_another_scenario_or_again_is_another_series(tmp_path: Path) -> None:
    ran = [finish(launch(tmp_path, "refuses", *EVENTS, *more, scenario=REFUSED))
           for more in ((), ("--set", "load.users=2"), ("--again",), ("--set", "repeats=1"))]  # fmt: skip
    assert [r.code for r in ran] == [0, 0, 0, 0]
    assert all("kept" not in r.stderr for r in ran)
    found = series.members(ran[0].out / "faults")
    assert sorted(map(len, found.values())) == [2, 2, 2] and len(folders(ran[0])) == 7
    keys = [id.partition("-")[0] for id in sorted(found, key=lambda id: id.partition("-")[2])]
    assert keys[0] == keys[2] != keys[1]
    # The one that was begun last goes on.
    more = finish(launch(tmp_path, "refuses", "--measure", "--set", "repeats=3", scenario=REFUSED))
    last = max(i for i in found if i.startswith(keys[0]))
    assert len(series.members(ran[0].out / "faults")[last]) == 3 and "kept of 3 repeats: 1 (" in more.stderr


def test_a_repeat_that_was_interrupted_or_killed_is_run_anew_and_the_others_are_kept(tmp_path: Path) -> None:
    def in_the_second(run: Run) -> None:
        assert wait_for(lambda: len(folders(run)) > 1)

    run = launch(tmp_path, "in_turn:fine,endless,endless,fine", *EVENTS)
    assert wait_for(lambda: (run.out / "faults").exists())
    in_the_second(run)
    interrupt("under load", signal.SIGINT, answers=2)(run)
    run = finish(run)
    assert run.code == 130 and "1 of 2 repeats" in run.stdout, run.stderr
    assert_clean(run)
    one, two = folders(run)
    kept = contents(one)
    killed = launch(tmp_path, "in_turn:fine,endless,endless,fine", *EVENTS)
    try:
        assert wait_for(lambda: len(folders(killed)) == 3 and answers_on_disk(killed) >= 2)
    finally:
        killed.process.kill()
    killed = finish(killed, orphans_within_s=15)
    assert killed.left_behind == []
    assert places(killed) == [(1, "completed"), (2, "interrupted"), (2, "running")]
    text = report(one, "text")[1]
    assert "1 of 2 repeats" in text and "Still to be run: 2" in text and text.count("interrupted") >= 2
    last = finish(launch(tmp_path, "in_turn:fine,endless,endless,fine", *EVENTS))
    assert last.code == 0 and places(last)[3:] == [(2, "completed")]
    assert f"kept of 2 repeats: 1 ({one.name})\n" in last.stderr and "2 repeats" in last.stdout
    assert contents(one) == kept
    assert "Repeat 2 was not counted" in last.stdout and two.exists()
    assert_clean(last)


def test_an_engine_that_fails_once_costs_that_repeat(tmp_path: Path) -> None:
    turns = "in_turn:fine,crashes,fine"
    run = finish(launch(tmp_path, turns, "--measure", "--set", "repeats=3"))
    assert run.code == 4 and places(run) == [(1, "completed"), (2, "died_under_load"), (3, "completed")]
    assert len(run.lines) == 1 and "KeyError" in run.lines[0]
    assert "2 of 3 repeats" in run.stdout and "Repeat 2 was not counted" in run.stdout
    again = finish(launch(tmp_path, turns, "--measure", "--set", "repeats=3"))
    assert again.code == 0 and places(again)[3:] == [(2, "completed")]
    assert "· 3 repeats" in again.stdout and "Repeat 2 was not counted" in again.stdout
    assert_clean(again)


def test_a_disk_that_fills_between_repeats(tmp_path: Path) -> None:
    out = tmp_path / "results"
    with mounted(out, "size=1m"):
        run = launch(tmp_path, "refuses", "--measure", "--set", "repeats=3", out=out, scenario=REFUSED)
        assert wait_for(lambda: (out / "faults" / "latest").exists())
        with contextlib.suppress(OSError), (out / "filler").open("wb", buffering=0) as filler:
            for size in (4096, 1):
                with contextlib.suppress(OSError):
                    while filler.write(bytes(size)):
                        pass
        run = finish(run)
        assert run.code == 3, run.stderr
        assert any("No space left on device" in line for line in run.lines)
        assert_clean(run)
        assert "1 of 3 repeats" in run.stdout
        kept = contents(folders(run)[0])
        (out / "filler").unlink()
        again = finish(launch(tmp_path, "refuses", "--measure", "--set", "repeats=3", out=out, scenario=REFUSED))
        assert again.code == 0 and "kept of 3 repeats: 1 (" in again.stderr
        assert "· 3 repeats" in again.stdout and contents(folders(run)[0]) == kept


def test_two_benches_do_not_run_the_same_series(tmp_path: Path) -> None:
    scenario = {**REHEARSAL, "model": "meta-llama/Llama-3.1-8B-Instruct"}
    first = launch(tmp_path / "a", "fine", "--rehearse", "--set", "repeats=2", scenario=scenario, out=tmp_path / "out")
    assert wait_for(lambda: "repeat 1 of 2" in (first.home / "stderr").read_text())
    second = finish(launch(
        tmp_path / "b", "fine", "--rehearse", "--set", "repeats=2", scenario=scenario, out=tmp_path / "out"
    ))  # fmt: skip
    assert second.code == 3 and len(second.lines) == 1
    assert f"another bench runs these repeats (process {first.process.pid})" in second.lines[0]
    # What is run alone, or otherwise, is not held up.
    other = finish(launch(tmp_path / "c", "refuses", *EVENTS, scenario=REFUSED, out=tmp_path / "out"))
    assert other.code == 0, other.stderr
    first = finish(first)
    assert first.code == 0 and "rehearsal · 2 repeats" in first.stdout
    assert len(folders(first)) == 4
    assert "for here" in first.stdout and "all alike" in first.stdout


def test_an_analytic_run_is_one(tmp_path: Path) -> None:
    run = finish(launch(tmp_path, "fine", "--analytic-only", "--set", "repeats=3"))
    assert run.code == 0 and len(folders(run)) == 1
    assert "repeats: an analytic run comes out the same each time, so there is one" in run.stderr
    assert "series" not in run.manifest


def test_how_often_is_not_what(tmp_path: Path) -> None:
    text = json.dumps({"name": "faults", "model": "llama-3.2-1b", "load": LOAD, **MEASURED})
    once, often = (parse_scenario(text, overrides=[f"repeats={n}"]) for n in (1, 5))
    assert once.digest == often.digest == parse_scenario(text).digest
    for wrong in ("0", "1001", "many", "2.5"):
        with pytest.raises(ScenarioError, match="repeats: expected"):
            parse_scenario(text, overrides=[f"repeats={wrong}"])


def of_references(tmp_path: Path, name: str, times: int) -> list[Path]:
    """A series made of one recorded run, each copy with its answers a little later."""
    made = []
    for n in range(1, times + 1):
        made.append(tmp_path / name / f"2026010{n}-000000-{name}")
        shutil.copytree(ROOT / "results" / "reference" / name, made[-1])
        manifest = json.loads((made[-1] / "manifest.json").read_text())
        manifest["series"] = {"id": "0123-4567", "repeat": n, "repeats": times}
        (made[-1] / "manifest.json").write_text(json.dumps(manifest))
        path = made[-1] / "requests.csv"
        head, *rows = list(csv.reader(path.open(newline="")))
        end = head.index("end_ns")
        rows = [[*r[:end], str(int(r[end]) + n * 10**9), *r[end + 1 :]] for r in rows]
        with path.open("w", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([head, *rows])
    return made


def test_the_report_of_a_recorded_series(tmp_path: Path) -> None:
    folders = of_references(tmp_path, "smollm2_cpu-measured", 3)
    alone = bench("report", folders[1], "--alone").out
    text = report(folders[0], "text")[1]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "smollm2_cpu · measured · 3 repeats" in lines
    assert "HOLDS does the load hold? NO NO" in lines and "preemptions 9 9 all alike none" in lines
    assert "KV pool 128.0 128.0 – 128.0 128.0 128.0 – 128.0 none" in lines
    first = next(n for n, line in enumerate(lines) if line.startswith("end to end median"))
    median, least, greatest = (float(line.split()[-4]) for line in lines[first : first + 3])
    assert (median - least, greatest - median) == pytest.approx((1, 1), abs=0.11)  # each a second later
    assert "Repeat 2 of 3." in alone
    assert max(map(len, text.splitlines())) <= 100
    page = report(folders[0], "html")[1]
    assert page.count("<svg ") == 1 and all(f">{term}</text>" in page for term in ("runtime at init", "total"))
    assert page == report(folders[1], "html")[1]
    cut = folders[2].rename(f"{folders[2]}.partial")
    shown = " ".join(report(folders[0], "text")[1].split())
    assert "2 of 3 repeats" in shown and "completed, but bench was killed at its end" in shown
    folders[2] = cut.rename(folders[2])
    (folders[2] / "scenario.yaml").write_text("name: 7")
    shown = " ".join(report(folders[0], "text")[1].split())
    assert "2 of 3 repeats" in shown and "Repeat 3 was not counted" in shown and "can't be read" in shown
    for form in ("markdown", "html", "json", "csv"):
        assert report(folders[0], form)[0] == 0


def test_the_repeats_that_miss_the_slo_are_named(tmp_path: Path) -> None:
    folders = of_references(tmp_path, "smollm2_cpu-measured", 3)
    for folder in folders:
        path = folder / "scenario.yaml"
        path.write_text(path.read_text() + "slo: {e2e_p95_s: 21.5, ttft_p95_s: 60}\n")
    _, text, _ = report(folders[0], "text")
    lines = [line.split() for line in text.splitlines()]
    (late,), (early,) = ([line for line in lines if line[:1] == [name]] for name in ("e2e_p95_s", "ttft_p95_s"))
    assert late[1] == "21.5" and late[-2:] == ["2,", "3"] and early[-1] == "none"
    document = json.loads(report(folders[0], "json")[1])
    assert document["expectation"] == {"met": True, "failed": []}


def test_a_rehearsal_tells_no_bytes(tmp_path: Path) -> None:
    folders = of_references(tmp_path, "70b_8k_int4-rehearsal", 2)
    text = report(folders[0], "text")[1]
    assert "Memory for each device" not in text and "for here" in text and "Latency" not in text


def test_a_repeat_taken_out_of_its_series_is_a_run(tmp_path: Path) -> None:
    run = finish(launch(tmp_path, "refuses", *EVENTS, scenario=REFUSED))
    away = tmp_path / "elsewhere" / "one"
    away.parent.mkdir()
    folders(run)[1].rename(away)
    code, stdout, _ = report(away, "text")
    assert code == 0 and stdout.startswith("faults · measured\n") and "Repeat 2 of 2." in stdout
    # What stays is a series of which one is missing, and a manifest that was changed ties to nobody.
    assert report(folders(run)[0], "text")[1].startswith("faults · measured\n")
    manifest = json.loads((away / "manifest.json").read_text())
    for odd in ({"id": 7}, [], "x", {"id": "x", "repeat": "y", "repeats": 2},
                {"id": "x", "repeat": 1, "repeats": 10**15}, {"id": "x", "repeat": -1, "repeats": 2}):  # fmt: skip
        (away / "manifest.json").write_text(json.dumps({**manifest, "series": odd}))
        assert series.place(away) is None
        assert "series is of another shape" in report(away, "text")[1].replace("\n ", "")


# -- on GPUs -----------------------------------------------------------------------------------------------


def test_a_gpu_that_is_lost_ends_the_series_and_another_gpu_begins_one(node: Node, tmp_path: Path) -> None:
    node.say(device())
    parent = tmp_path / "out" / "gpu"
    running = test_gpu_runs.start(node, tmp_path, "fine", "--set", "repeats=2")
    assert wait_for(lambda: (parent / "latest").exists())
    node.say(device(), f"lost {H100}")
    out, err = running.communicate(timeout=90)
    assert running.returncode == 3 and "lost" in err and "gpu · measured · 1 of 2 repeats" in out, err
    kept = contents((parent / "latest").resolve())
    node.say(device())
    out, err = test_gpu_runs.start(node, tmp_path, "fine", "--set", "repeats=2").communicate(timeout=90)
    assert "kept of 2 repeats: 1 (" in err and "gpu · measured · 2 repeats" in out, err
    assert kept in [contents(p) for p in parent.iterdir() if not p.is_symlink()]
    assert re.search(r"idle +weights +[\d.]+ +[\d.]+ – [\d.]+ +[\d.]+ +[\d.]+ – [\d.]+", out), out
    node.say(device("GPU-another"))
    out, err = test_gpu_runs.start(node, tmp_path, "fine", "--set", "repeats=2", "--json").communicate(timeout=90)
    assert "kept" not in err and len(json.loads(out)["runs"]) == 2
    assert sorted(map(len, series.members(parent).values()))[-2:] in ([2, 2], [2, 3])


# -- the spread itself -----------------------------------------------------------------------------------


def compared(bytes_: int | None, blocks: float | None, holds: bool | None, here: float = 10.0) -> Comparison:
    error = None if blocks is None else here - blocks
    return Comparison(
        "measured", "completed",
        (TermRow("weights", "idle", 100, 90, 110, bytes_, None, None, None, ""),),
        (RungRow("HOLDS", True, holds, None, None, None, None, None, "", ""),),
        (FigureRow("peak_blocks_used", 10.0, here, blocks, error),),
    )  # fmt: skip


def test_median_least_greatest_and_who_is_outside() -> None:
    told = spreads({1: compared(95, 10.0, True), 2: compared(120, 12.0, False), 4: compared(98, 10.0, None)})
    (term,), (rung,), (figure,) = told.terms, told.rungs, told.figures
    assert (term.measured, term.outside) == (Spread(98, 95, 120, 3), (2,))
    assert rung.measured == {1: True, 2: False, 4: None}
    assert (figure.measured, figure.differ) == (Spread(10.0, 10.0, 12.0, 3), (2,))


def test_a_median_of_two_is_whole_bytes_and_what_nobody_told_is_none() -> None:
    told = spreads({1: compared(95, None, True), 2: compared(98, None, True)})
    assert told.terms[0].measured == Spread(96, 95, 98, 2) and told.terms[0].outside == ()
    assert told.figures[0].measured == Spread(None, None, None, 0) and told.figures[0].differ is None
    none = spreads({1: compared(None, 1.0, None)})
    assert none.terms[0].measured.told == 0 and none.terms[0].outside is None
