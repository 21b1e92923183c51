"""What is read out of a run folder: recorded runs, changed in one place each."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from harness import store
from harness.compare import check
from harness.report.content import build
from harness.report.reading import Reading, understand

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"
REHEARSAL, MEASURED = REFERENCE / "70b_8k_int4-rehearsal", REFERENCE / "smollm2_cpu-measured"

# Neither the workers nor /metrics have told of the pool.
UNTOLD: dict[str, object] = {"workers": {}, "cache_config": {}}
REFUSED: dict[str, object] = {"outcome": "refused_at_start", "reason": "ValueError: no", "marks": {"start": 1}}


def changed(source: Path, target: Path, **manifest: object) -> Path:
    """A copy of a recorded run with keys of its manifest replaced."""
    shutil.copytree(source, target)
    kept = json.loads((target / store.MANIFEST).read_text(encoding="utf-8"))
    (target / store.MANIFEST).write_text(json.dumps({**kept, **manifest}), encoding="utf-8")
    return target


def read(folder: Path) -> Reading:
    return understand(store.read(folder))


@pytest.mark.parametrize("request_tokens", [8192, 8195, 8191, 500, 33, 32, 31, 1])
@pytest.mark.parametrize("blocks", [2, 129, 3233, 100_003])
def test_the_pool_is_read_from_the_line_that_vllm_prints(tmp_path: Path, request_tokens: int, blocks: int) -> None:
    """vLLM prints int(max_concurrency x max_model_len), which is blocks x block only where these divide."""
    concurrency = blocks / -(-request_tokens // 32)
    folder = changed(REHEARSAL, tmp_path / "run", **UNTOLD)
    log = (folder / store.ENGINE_LOG).read_text(encoding="utf-8")
    line = (
        f"KV cache size: {int(concurrency * request_tokens):,} tokens, Maximum concurrency for {request_tokens:,} "
        f"tokens per request: {concurrency:.2f}x"
    )
    (folder / store.ENGINE_LOG).write_text(re.sub(r"KV cache size: .*", line, log), encoding="utf-8")
    measured = read(folder).measured
    assert measured is not None
    assert measured.kv.num_blocks == blocks
    assert measured.kv.tokens == int(concurrency * request_tokens)


@pytest.mark.parametrize("source", [REHEARSAL, MEASURED])
def test_an_interrupted_run_judges_nothing(tmp_path: Path, source: Path) -> None:
    marks = {"start": 1, "loading": 2}
    folder = changed(source, tmp_path / "run", outcome="interrupted", reason="SIGINT", marks=marks, **UNTOLD)
    (folder / store.ENGINE_LOG).write_text("", encoding="utf-8")
    reading = read(folder)
    assert reading.measured is not None
    assert [r.holds for r in reading.measured.rungs] == [None] * 4
    assert check(reading.scenario.expect, reading.comparison) == (None, [])
    assert build(reading).expectation_met is None


def test_a_stand_in_that_is_refused_says_nothing_of_the_scenario(tmp_path: Path) -> None:
    folder = changed(REHEARSAL, tmp_path / "run", **REFUSED)
    reading = read(folder)
    assert reading.measured is not None
    assert reading.measured.rungs[3].holds is None
    assert check(reading.scenario.expect, reading.comparison) == (None, [])


def test_a_refusal_on_the_scenarios_own_device_is_a_verdict(tmp_path: Path) -> None:
    folder = changed(MEASURED, tmp_path / "run", **REFUSED, **UNTOLD)
    (folder / store.ENGINE_LOG).write_text("", encoding="utf-8")
    reading = read(folder)
    assert reading.measured is not None
    assert [r.holds for r in reading.measured.rungs] == [False] * 4


def test_without_steps_no_predicted_figure_passes_for_a_measured_one(tmp_path: Path) -> None:
    folder = changed(REHEARSAL, tmp_path / "run")
    (folder / store.STEPS).unlink()
    reading = read(folder)
    assert reading.measured is not None
    assert reading.measured.load.tokens_scheduled is None
    whole = read(REHEARSAL).measured
    assert whole is not None and whole.load.preemptions
    assert reading.measured.load.preemptions == whole.load.preemptions  # /metrics tells that much
    words = " ".join(s for section in build(reading).sections for s in section.sentences)
    assert "tokens scheduled in all" not in words
    assert "steps.csv is missing" in words


def test_without_steps_and_preemptions_nobody_can_say_that_it_holds(tmp_path: Path) -> None:
    folder = changed(REHEARSAL, tmp_path / "run")
    (folder / store.STEPS).unlink()
    header, *rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    column = header.split(",").index("preemptions")
    calm = [",".join("0.0" if i == column else c for i, c in enumerate(row.split(","))) for row in rows]
    (folder / "metrics.csv").write_text("\n".join([header, *calm, ""]), encoding="utf-8")
    measured = read(folder).measured
    assert measured is not None
    assert measured.rungs[3].holds is None


def test_another_vllm_than_the_scenarios_is_named(tmp_path: Path) -> None:
    engine = json.loads((REHEARSAL / store.MANIFEST).read_text(encoding="utf-8"))["engine"]
    reading = read(changed(REHEARSAL, tmp_path / "run", engine={**engine, "version": "0.40.1"}))
    words = " ".join(s for section in build(reading).sections for s in section.sentences)
    assert "what ran here is 0.40.1" in words


def test_without_a_prediction_nothing_is_said_to_fit(tmp_path: Path) -> None:
    folder = changed(REHEARSAL, tmp_path / "run")
    (folder / store.PREDICTION).unlink()
    reading = read(folder)
    words = " ".join(build(reading).sections[0].sentences)
    assert "it fits" not in words
    assert "no prediction" in words
