"""A 70B's paging, rehearsed on real vLLM over HTTP, against vLLM's own scheduler driven without a model."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import vllm_scheduler
from conftest import ROOT, SCENARIOS, Ran, bench

import harness
from harness.engines.standin import stand_in
from harness.errors import MachineError
from harness.modes import limits_of
from harness.predict import predict
from harness.scenario import load_scenario
from harness.simulate import Limits

pytestmark = pytest.mark.vllm


def test_it_runs_to_its_end_and_meets_what_the_scenario_expects(rehearsed: Ran) -> None:
    assert rehearsed.code == 0, rehearsed.err
    document = rehearsed.document
    assert document["mode"] == "rehearsal"
    assert document["expectation"] == {"met": True, "failed": []}
    assert document["measurement"]["rungs"][3]["holds"] is False


def test_peaks_and_preemptions_are_those_of_vllms_own_scheduler(rehearsed: Ran) -> None:
    scenario = load_scenario(SCENARIOS / "70b_8k_int4.yaml")
    limits = stand_in(limits_of(scenario, predict(scenario).kv)).limits
    assert scenario.load is not None
    oracle = vllm_scheduler.run(scenario.load, limits)
    measured = rehearsed.document["measurement"]["load"]
    assert measured["preemptions"] == oracle.preemptions > 0
    assert measured["peak_blocks_used"] == oracle.peak_blocks_used == limits.num_blocks - 1
    assert measured["peak_running"] == oracle.peak_running
    # A user's next request takes a moment to arrive, so a step more or less is the engine's own; no token is.
    assert measured["steps"] == pytest.approx(oracle.steps, rel=0.002)
    assert measured["tokens_scheduled"] == pytest.approx(oracle.tokens_scheduled, rel=0.002)


def test_the_pool_has_the_predicted_tokens(rehearsed: Ran) -> None:
    predicted, measured = (rehearsed.document[side]["kv"] for side in ("prediction", "measurement"))
    tokens = [(kv["num_blocks"] - 1) * kv["block_size"] for kv in (predicted, measured)]
    # Equal but for what does not fill one of the rehearsal's blocks.
    assert tokens[0] // measured["block_size"] * measured["block_size"] == tokens[1]


def test_every_request_got_exactly_its_tokens(rehearsed: Ran) -> None:
    run = harness.load_run(rehearsed.folder)
    assert list(run.requests["status"].unique()) == ["ok"]
    assert (run.requests["tokens_out"] == 1024).all()
    assert sorted(run.requests["index"]) == list(range(64))
    assert (run.requests["first_ns"] > run.requests["sent_ns"]).all()


def test_metrics_and_steps_tell_the_same_story(rehearsed: Ran) -> None:
    run = harness.load_run(rehearsed.folder)
    assert run.metrics["preemptions"].max() == run.steps["preempted"].sum()
    assert run.metrics["generation_tokens"].max() == 64 * 1024
    assert run.metrics["running"].max() <= run.steps["running"].max()


def test_the_report_shows_both_sides(rehearsed: Ran) -> None:
    shown = bench("report", rehearsed.folder)
    assert shown.code == 0
    for words in ("predicted for the GPU", "predicted for here", "measured", "preemptions", "blocks of 32"):
        assert words in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100


def test_no_key_is_written_down(rehearsed: Ran) -> None:
    for file in rehearsed.folder.iterdir():
        assert "Bearer" not in file.read_text(errors="replace"), file
        assert "VLLM_API_KEY" not in file.read_text(errors="replace"), file


def test_nothing_of_the_engine_listens_beyond_loopback(rehearsed: Ran) -> None:
    assert any("VLLM::Worker" in who for who in rehearsed.listening.values()), "gloo's sockets were not seen"
    assert {where.split()[0] for where in rehearsed.listening} == {"127.0.0.1"}, rehearsed.listening


def test_requests_that_come_by_the_clock_meet_as_many_as_was_predicted(paced: Ran) -> None:
    assert paced.code == 0, paced.err
    run = harness.load_run(paced.folder)
    figures = run.figures.set_index("figure")
    ours, theirs = figures["here"], figures["measured"]
    for figure in ("peak_running", "peak_blocks_used", "tokens_scheduled", "duration_s", "requests_per_s"):
        assert theirs[figure] == pytest.approx(ours[figure], rel=0.05), figure
    assert theirs["preemptions"] == ours["preemptions"] == 0
    # As many on average: by Little's law the time of a request times the rate.
    assert theirs["e2e_mean_s"] == pytest.approx(ours["e2e_mean_s"], rel=0.05)


def test_a_paced_rehearsal_tells_of_latencies_and_of_its_pace(paced: Ran) -> None:
    # Beside other work this computer is late; a GPU's times all the same, not its own, which are a tenth of them.
    load, prediction = paced.document["measurement"]["load"], paced.document["prediction"]["load"]
    for figure in ("ttft_p95_s", "itl_p95_s", "tpot_mean_s"):
        assert load[figure] == pytest.approx(prediction[figure], rel=0.35), figure
    steps = harness.load_run(paced.folder).steps
    assert (steps["took_ns"] >= steps["paced_ns"]).all()
    shown = bench("report", paced.folder).out
    assert "The steps were held to the predicted step times; this computer took " in shown
    assert "As expected" in shown


def test_nothing_to_rehearse_is_a_result(tmp_path: Path) -> None:
    ran = bench("run", SCENARIOS / "70b_8k.yaml", "--rehearse", "--json", "--out", tmp_path)
    assert ran.code == 0
    assert ran.document["mode"] == "analytic"
    assert "nothing to rehearse" in ran.err
    assert "CUDA out of memory" in ran.document["engine_says"][-1]


def test_a_pool_that_fills_no_request_is_refused() -> None:
    with pytest.raises(MachineError, match="nothing to rehearse"):
        stand_in(Limits(10, 16, 8, 2048, 4096))


def test_no_vllm_process_outlives_a_killed_bench(real_vllm: object, tmp_path: Path) -> None:
    bench_process = subprocess.Popen(
        [sys.executable, "-m", "harness", "run", str(SCENARIOS / "tiny_cpu.yaml"), "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    ours: set[int] = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        watched = psutil.Process(bench_process.pid)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            family = watched.children(recursive=True)
            ours |= {p.pid for p in family}
            if any("VLLM::Worker" in " ".join(p.cmdline()) for p in family):
                break
            time.sleep(0.05)
    os.kill(bench_process.pid, signal.SIGKILL)
    bench_process.wait()
    assert len(ours) >= 4, "the engine was not up before it was killed"
    until = time.monotonic() + 30
    while (left := [p for p in ours if psutil.pid_exists(p)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left
    (partial,) = (tmp_path / "tiny_cpu").glob("*.partial")
    report = bench("report", partial)
    assert report.code == 0
    assert "interrupted" in report.out
