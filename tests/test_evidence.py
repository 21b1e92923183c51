"""The prediction against public runs of real vLLM on real H100s: bounds that a change must not break."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, bench

from harness import evidence
from harness.errors import UsageError
from harness.predict import predict
from harness.units import GIB

ALL = evidence.compared()
RUNS = [r for r in ALL if r.predicted and r.measured]
STARTED = [r for r in RUNS if r.reached == "STARTS"]
# Terms of the ledger -> columns of the evidence.
LOGGED = {
    "weights": "weights_gib",
    "activation_peak": "activation_peak_gib",
    "non_torch_increase": "non_torch_increase_gib",
    "cuda_graphs": "graphs_gib",
    "kv_available": "kv_gib",
    "runtime_at_init": "init_gib",
}
ROWS = {row["id"]: row for row in evidence.rows()}
# (term, rows) -> at most so much: median %, p95 %, worst %. What docs/accuracy.md says, rounded up.
BOUNDS = {
    ("weights", "all"): (0.02, 0.34, 0.34),
    ("weights", "not fitted"): (0.02, 0.34, 0.34),
    ("activation_peak", "all"): (0.1, 1.7, 3.7),
    ("activation_peak", "not fitted"): (0.1, 1.0, 1.2),
    ("non_torch_increase", "all"): (0.1, 4.3, 7.5),
    ("non_torch_increase", "held out"): (1.8, 5.0, 8.7),
    ("graphs", "all"): (9.1, 31, 31),
    ("graphs", "held out"): (17, 21, 21),
    ("kv", "all"): (0.03, 0.06, 0.14),
    ("kv", "not fitted"): (0.03, 0.11, 0.14),
}


def test_the_evidence_is_whole():
    assert (len(ALL), len(RUNS), len(STARTED)) == (51, 40, 38)
    assert all(row["source_url"].startswith("https://github.com/") for row in ROWS.values())
    assert {r.id for r in ALL if not r.supported} == {f"h100-019-{n}" for n in (13, 15, 17, 18, 23, 32, 39, 40)}


def test_no_figure_is_worse_than_its_bound():
    found = {(term, name): e for term, name, e in evidence.term_errors(ALL)}
    assert found.keys() == BOUNDS.keys()
    for key, bound in BOUNDS.items():
        e = found[key]
        for figure, limit in zip((e.median_percent, e.p95_percent, e.worst_percent), bound, strict=True):
            assert figure <= limit, key
    assert evidence.verdicts(ALL) == (42, 43)


def test_the_one_wrong_verdict_has_a_cause_outside_the_configuration():
    (wrong,) = (r for r in ALL if r.supported and r.verdict != r.reached)
    assert wrong.id == "h100-019-00" and "the GPU was not empty" in wrong.note


@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.id)
def test_weights_within_half_a_percent_and_the_pool_within_a_tenth_of_a_gib(run: evidence.Compared):
    assert abs(run.error("weights")) <= 0.005 * run.measured["weights"]
    assert abs(run.error("kv")) <= 0.10 * GIB


def test_nothing_measured_goes_into_a_prediction():
    row = ROWS["h100-019-66"]
    blind = {k: "" if k.endswith("_gib") or k in ("kv_tokens", "max_concurrency") else v for k, v in row.items()}
    assert evidence.compare(blind).predicted == evidence.compare(row).predicted


def test_the_pools_of_one_model_do_not_depend_on_max_model_len():
    pools = {r.predicted["kv"] for r in RUNS if r.id in {f"h100-019-{n}" for n in (29, 30, 31, 37, 38)}}
    assert len(pools) == 1


@pytest.mark.parametrize(("row_id", "verdict"), [("51", "ADMITS"), ("52", "ADMITS"), ("53", "STARTS")])
def test_gpt_oss_is_admitted_at_95_and_starts_at_90(row_id: str, verdict: str):
    assert next(r for r in RUNS if r.id == f"h100-019-{row_id}").verdict == verdict


def test_the_document_is_fresh():
    assert (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8") == evidence.document(ALL)


def test_the_command_says_the_same_in_words_and_in_json():
    assert "Verdicts: 42 of 43 right; 8 rows of a kind that is refused by name." in bench("evidence").out
    shown = json.loads(bench("evidence", "--json").out)
    assert len(shown["rows"]) == 51
    assert shown["verdicts"] == {"right": 42, "judged": 43, "not_predicted": 8}
    assert shown["terms"]["kv"]["all"]["runs"] == 40
    assert set(shown["families"]) >= {"Llama", "Qwen2", "GptOss", "Qwen3Moe", "DeepseekV2"}
    assert bench("evidence", "--markdown").out == evidence.document(ALL)


@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.id)
def test_each_run_has_its_tokens_and_every_term_in_its_interval(run: evidence.Compared):
    row = ROWS[run.id]
    account = predict(evidence.scenario(row))
    assert account.highest == run.reached
    if row["kv_tokens"]:
        assert account.kv.tokens == pytest.approx(int(row["kv_tokens"]), rel=0.002)
    if row["max_concurrency"] and int(row["pipeline_parallel_size"]) == 1:
        assert account.kv.max_concurrency == pytest.approx(float(row["max_concurrency"]), rel=0.002)
        for term, column in LOGGED.items():
            if row[column]:
                entry = account.ledger.find(term)
                # The log has two decimals: half of the last one is added on either side.
                assert entry.low / 2**30 - 0.0051 <= float(row[column]) <= entry.high / 2**30 + 0.0051, term


@pytest.mark.parametrize(
    ("row_id", "words"),
    [
        ("h100-019-65", "151936 is not divisible by 5"),
        ("h100-019-42", "User-specified max_model_len (8192) is greater than the derived max_model_len"),
    ],
)
def test_what_vllm_refused_is_refused_in_its_words(row_id: str, words: str):
    with pytest.raises(UsageError) as caught:
        predict(evidence.scenario(ROWS[row_id]))
    assert words in str(caught.value)


def test_the_script_prints_each_run_and_its_worst_errors() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.evidence"], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    *_, last = done.stdout.splitlines()
    words = r"(\d+) runs: worst weights ([\d.]+) %, KV pool mean error [\d.]+ GiB, worst ([\d.]+) GiB"
    found = re.fullmatch(words, last)
    assert found is not None
    assert len(done.stdout.splitlines()) == int(found[1]) + 2 >= 41
    assert float(found[2]) <= 0.5 and float(found[3]) <= 0.15
