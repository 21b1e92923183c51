"""The prediction against public runs of real vLLM on real H100s: bounds that a change must not break."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import evidence
from harness.errors import UsageError
from harness.predict import predict

RUNS = evidence.started()
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


def test_the_evidence_is_whole():
    assert len(RUNS) == 35
    assert all(row["source_url"].startswith("https://github.com/") for row in ROWS.values())


@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.id)
def test_weights_within_half_a_percent(run: evidence.Compared):
    assert abs(run.error("weights")) <= 0.005 * run.measured["weights"]


@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.id)
def test_kv_pool_within_a_tenth_of_a_gib(run: evidence.Compared):
    assert abs(run.error("kv")) <= 0.10


def test_the_documentation_shows_the_table_of_today():
    text = (Path(__file__).parents[1] / "docs" / "memory-model.md").read_text(encoding="utf-8")
    assert evidence.table(RUNS) in text
    assert evidence.summary_table(RUNS) in text


def test_mean_errors():
    errors = {term: (mean, worst) for term, mean, worst in evidence.summary(RUNS)}
    assert errors["activation_peak"][0] < 0.01 and errors["activation_peak"][1] < 0.05
    assert errors["non_torch_increase"][1] < 0.06
    assert errors["graphs"][0] < 0.10
    assert errors["kv"][0] < 0.02


def test_runs_that_the_law_was_not_fitted_on_are_as_near():
    unseen = [r for r in RUNS if not r.fitted]
    assert len(unseen) == 28
    assert max(abs(r.error("activation_peak")) for r in unseen) < 0.05


@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.id)
def test_what_started_is_predicted_to_start_with_its_tokens_and_every_term_in_its_interval(
    run: evidence.Compared,
):
    row = ROWS[run.id]
    account = predict(evidence.scenario(row))
    assert account.highest == "STARTS"
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
