"""The experiments of ``bench learn``: the effect each shows, on several seeds, and the arithmetic beneath."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command does; a second thread only waits for the first

import numpy as np
import pytest
from conftest import ROOT, bench
from ruamel.yaml import YAML

from harness.learn import EXPERIMENTS, run
from harness.learn.formats import BF16, FP16, as_bf16, as_fp16, as_integers, symmetric_scale
from harness.learn.gptq_awq import METHODS, awq, gptq, nearest
from harness.learn.scales import quantized

SEEDS = (0, 1, 2)


def figures(name: str, seed: int, *keys: str) -> dict[Any, dict[str, Any]]:
    """The rows of an experiment by their first ``keys``."""
    rows = run(name, seed).figures()
    return {tuple(r[k] for k in keys) if len(keys) > 1 else r[keys[0]]: r for r in rows}


# -- the formats -----------------------------------------------------------------------------------------


def test_bf16_is_what_torch_rounds_to() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    values = (random.normal(size=20_000) * 10.0 ** random.integers(-40, 38, 20_000)).astype(np.float32)
    values = np.concatenate([values, np.float32([0, -0.0, np.inf, -np.inf, BF16.largest, BF16.smallest, 1.00390625])])
    assert np.array_equal(as_bf16(values), torch.from_numpy(values).bfloat16().float().numpy())
    assert np.array_equal(as_fp16(values), torch.from_numpy(values).half().float().numpy())


def test_the_ends_of_both_formats() -> None:
    for to, kind in ((as_fp16, FP16), (as_bf16, BF16)):
        ends = np.array([kind.smallest, kind.smallest / 2.01, kind.largest], dtype=np.float32)
        assert to(ends).tolist() == [kind.smallest, 0.0, kind.largest]
        assert to(np.float32([1 + 2.0**-kind.mantissa_bits]))[0] == 1 + 2.0**-kind.mantissa_bits


def test_integers_keep_their_largest_and_are_off_by_half_a_step() -> None:
    values = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    for axis in (None, 1):
        scale = symmetric_scale(values, 4, axis)
        made = as_integers(values, 4, scale)
        assert np.max(np.abs(made - values) / scale) <= 0.5 + 1e-5
        assert len(np.unique(np.round(made / scale))) <= 15
        assert np.max(np.abs(made)) == pytest.approx(np.max(np.abs(values)), rel=1e-6)


# -- the experiments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_fp16_loses_small_gradients_and_bf16_does_not(seed: int) -> None:
    plain, half, scaled, brain = run("fp16-bf16", seed).figures()
    assert half["gradients_to_zero"] > 0.5
    assert brain["gradients_to_zero"] == plain["gradients_to_zero"] == 0
    assert half["loss_after"] > 2 * plain["loss_after"]
    assert brain["loss_after"] == pytest.approx(plain["loss_after"], rel=0.05)
    # The price: three bits of mantissa, felt where small updates meet weights of the same format.
    assert 6 < brain["rounding_error"] / scaled["rounding_error"] < 10
    assert scaled["loss_after"] == pytest.approx(plain["loss_after"], rel=0.05)
    assert brain["updates_lost"] > 2 * scaled["updates_lost"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_scale_for_each_channel_saves_the_ordinary_ones(seed: int) -> None:
    rows = figures("scales", seed, "bits", "scale_per")
    tensor, channel = rows[8, "tensor"], rows[8, "channel"]
    assert tensor["error_beside_loud"] > 10 * channel["error_beside_loud"]
    assert channel["error_beside_loud"] == pytest.approx(channel["error"], rel=0.02)  # loud neighbours don't matter
    assert tensor["error"] < 2 * channel["error"]  # nor does the grain, where all are alike
    assert (channel["scales"], channel["scale_bytes"]) == (1024, 2048)
    assert rows[4, "tensor"]["error_beside_loud"] > 0.9
    assert rows[4, "group of 128"]["error"] < rows[4, "channel"]["error"] < rows[4, "tensor"]["error"]


def test_a_group_as_wide_as_the_row_is_a_channel() -> None:
    weights = np.random.default_rng(0).normal(size=(16, 128)).astype(np.float32)
    assert np.array_equal(quantized(weights, 4, "group of 128"), quantized(weights, 4, "channel"))


@pytest.mark.parametrize("seed", SEEDS)
def test_gptq_uses_correlation_and_awq_magnitude(seed: int) -> None:
    rows = figures("gptq-awq", seed, "inputs", "method")
    together, loud = "correlated, of equal size", "independent, a few loud"
    assert rows[together, "GPTQ"]["of_nearest"] < 0.5
    assert rows[together, "AWQ"]["of_nearest"] > 0.9
    assert rows[loud, "AWQ"]["of_nearest"] < 0.8
    assert rows[loud, "GPTQ"]["of_nearest"] == pytest.approx(1, abs=0.05)
    # A smaller error of the output, with weights that are further off.
    assert rows[together, "GPTQ"]["weight_error"] > rows[together, "round to nearest"]["weight_error"]


def test_without_a_signal_both_round_to_nearest() -> None:
    """Inputs that are exactly uncorrelated and of one size: H is a multiple of the identity."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(8, 128)).astype(np.float32)
    inputs = np.vstack([np.eye(128), -np.eye(128)]).astype(np.float32)
    assert np.allclose(gptq(weights, inputs), nearest(weights, inputs), atol=1e-5)
    assert np.allclose(awq(weights, inputs), nearest(weights, inputs), atol=1e-5)


def test_gptq_spreads_an_error_as_its_equation_says() -> None:
    """Two inputs that are nearly one: what the first weight loses, the second makes up for."""
    rare = np.random.default_rng(0).normal(size=(512, 1))
    inputs = np.hstack([rare, rare + 0.01 * np.random.default_rng(1).normal(size=(512, 1))] + [rare * 0] * 126)
    weights = np.zeros((1, 128), dtype=np.float32)
    weights[0, :3] = 0.34, 0.13, 0.7  # steps of 0.1: 0.3 and 0.1 by themselves, 0.07 too little together
    made = gptq(weights, inputs.astype(np.float32))
    assert made[0, :2] == pytest.approx([0.3, 0.2])
    lost, lost_by_nearest = (np.linalg.norm(inputs @ (w - weights).T) for w in (made, nearest(weights, inputs)))
    assert lost < 0.6 * lost_by_nearest


def test_every_method_gives_15_levels_at_most() -> None:
    random = np.random.default_rng(0)
    weights, inputs = random.normal(size=(4, 128)).astype(np.float32), random.normal(size=(512, 128)).astype(np.float32)
    loudness = np.mean(np.abs(inputs), axis=0)
    for name, method in METHODS.items():
        row = method(weights, inputs)[0]
        levels = len(np.unique(np.round(row, 5)))
        assert levels <= 15 or name == "AWQ", name  # AWQ's levels are those of the scaled columns
    assert loudness.min() > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_four_bits_change_unsure_answers_first(seed: int) -> None:
    rows = figures("int4-rare-inputs", seed, "bits")
    eight, four, three = rows[8], rows[4], rows[3]
    assert abs(four["accuracy"] - four["accuracy_before"]) < 0.01
    assert four["changed_unsure"] > 0.1
    assert four["changed_sure"] < 0.001
    assert four["changed_rare"] > 1.5 * four["changed_frequent"]
    for key in ("changed_unsure", "changed_rare", "changed_frequent"):
        assert eight[key] < four[key] < three[key]


def test_kv_heads_scale_the_cache() -> None:
    rows = figures("kv-heads", 0, "kv_heads")
    assert [rows[n]["kv_bytes_per_token"] for n in (64, 8, 1)] == [2 * 80 * n * 128 * 2 for n in (64, 8, 1)]
    assert rows[8]["pool_tokens"] / rows[64]["pool_tokens"] > 8  # the pool grows too: smaller k and v matrices
    assert rows[8]["requests"] == pytest.approx(12.51, abs=0.01)  # as docs/memory-model.md has it by hand


def test_retrieval_costs_cache_and_adapters_weights() -> None:
    rows = figures("rag-or-finetune", 0, "way")
    neither, retrieval = rows["neither"], rows["retrieval"]
    assert retrieval["kv_bytes"] == 7 * neither["kv_bytes"]  # 3,584 tokens against 512
    assert retrieval["requests"] == neither["requests"] // 7
    assert rows["fine-tuned, adapter merged"]["requests"] == neither["requests"]
    one, eight = rows["fine-tuned, one adapter apart"], rows["fine-tuned, 8 adapters apart"]
    assert one["weight_bytes"] == 2 * 41_943_040
    assert eight["weight_bytes"] == 8 * one["weight_bytes"]
    assert retrieval["requests"] < eight["requests"] < one["requests"] < neither["requests"]


# -- the command ---------------------------------------------------------------------------------------


def test_one_seed_one_finding() -> None:
    assert run("gptq-awq", 3) == run("gptq-awq", 3)
    assert run("gptq-awq", 3) != run("gptq-awq", 4)


def test_the_sentences_carry_the_tables_numbers() -> None:
    found = run("scales", 0)
    channel = next(r for r in found.figures() if r["bits"] == 8 and r["scale_per"] == "channel")
    assert f"{channel['scale_bytes']:,} bytes" in found.says[0]
    assert all(s.startswith("http", s.index(": http") + 2) for s in found.sources)


def test_bench_learn_lists_and_shows() -> None:
    listed = bench("learn")
    lines = listed.out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(EXPERIMENTS)
    assert max(map(len, lines)) <= 100
    shown = bench("learn", "scales", "--seed", "1")
    assert shown.code == 0
    assert "What was found" in shown.out
    document = bench("learn", "scales", "--seed", "1", "--json").document
    assert document["rows"] == json.loads(json.dumps(run("scales", 1).figures()))
    unknown = bench("learn", "fp16")
    assert unknown.code == 2
    assert "did you mean 'fp16-bf16'?" in unknown.err


def test_every_question_of_the_seeds_has_its_words() -> None:
    questions = YAML(typ="safe").load((ROOT / "seeds" / "questions.yaml").read_text(encoding="utf-8"))
    asked = {q["command"].removeprefix("bench learn "): q["question"] for q in questions if "command" in q}
    assert asked == {name: e.question for name, e in EXPERIMENTS.items()}
