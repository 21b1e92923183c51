"""What else is on the device, slices of one, and buffers that no profile saw."""

from __future__ import annotations

import pytest
from test_predict import LOAD, rung, scenario

from harness import catalog
from harness.architecture import from_config
from harness.errors import ScenarioError
from harness.ledger import Account, Phase, RungName, Term
from harness.predict import predict, settings
from harness.predict.unprofiled import prompt_logprobs
from harness.units import GIB, MIB

H100 = "name: h100-sxm-80gb"


def account(gpu: str = H100, engine: str = "", load: str = "") -> Account:
    return predict(scenario("llama-3.1-8b", gpu=gpu, engine=engine, load=load))


# -- other processes -------------------------------------------------------------------------------


def test_other_processes_leave_the_budget_and_take_the_device():
    alone, beside = account(), account(f"{H100}, in_use: 4 GiB")
    assert beside.kv == alone.kv  # the budget is a share of the total
    assert beside.ledger.bytes_of(Term.OTHER_PROCESSES) == 4 * GIB
    assert alone.ledger.find(Term.OTHER_PROCESSES) is None
    total = [a.ledger.bytes_of(Term.TOTAL) for a in (alone, beside)]
    assert total[0] is not None and total[1] == total[0] + 4 * GIB
    for name in (RungName.LOADS, RungName.STARTS):
        assert rung(beside, name).margin_bytes == rung(alone, name).margin_bytes - 4 * GIB


def test_with_less_free_than_requested_vllm_does_not_start():
    full = account(f"{H100}, in_use: 10 GiB")
    admits = rung(full, RungName.ADMITS)
    assert (admits.holds, admits.limited_by) == (False, Term.RUNTIME_AT_INIT)
    assert "ValueError: Free memory on device cuda:0 (68.68/79.19 GiB) on startup is less than" in full.engine_says[-1]
    assert rung(account(f"{H100}, in_use: 70 GiB"), RungName.LOADS).holds is False


def test_before_0_9_1_the_neighbours_are_taken_off_the_budget():
    pools = [account(f"{H100}, in_use: {n} GiB", "vllm: '0.9.0'").ledger.bytes_of(Term.KV_AVAILABLE) for n in (0, 4)]
    assert pools[0] is not None and pools[1] == pools[0] - 4 * GIB
    later = account(f"{H100}, in_use: 0 GiB", "vllm: '0.9.1'").ledger
    runtime = later.bytes_of(Term.RUNTIME_AT_INIT)
    assert runtime and later.bytes_of(Term.KV_AVAILABLE) == pools[0] + runtime


def test_the_allocators_slack_is_kept_off_the_margins_and_shown_under_load():
    run = scenario("llama-3.1-8b", load=LOAD)
    entry = predict(run).ledger.find(Term.ALLOCATOR_SLACK)
    assert entry is not None and entry.phase == Phase.LOAD and entry.low < entry.bytes < entry.high
    starts = rung(account(), RungName.STARTS)
    assert predict(scenario("llama-3.1-8b", load="")).ledger.find(Term.ALLOCATOR_SLACK) is None
    held = account().ledger.bytes_of(Term.TOTAL)
    beyond = starts.margin_bytes - (round(79.19 * GIB) - held)
    assert beyond == pytest.approx(-entry.bytes, abs=4 * MIB)  # a pool is whole blocks
    assert starts.margin_bytes - starts.margin_low > entry.high - entry.bytes
    old = account(engine="vllm: '0.7.3'")
    left = round(79.19 * GIB) - old.ledger.bytes_of(Term.TOTAL)
    assert rung(old, RungName.STARTS).margin_bytes == pytest.approx(left, abs=4 * MIB)


# -- slices ----------------------------------------------------------------------------------------


def test_a_slice_is_a_gpu_of_its_own():
    chosen = settings(scenario("llama-3.1-8b", gpu=f"{H100}, mig: 3g.40gb", load=""))
    assert (chosen.max_num_seqs, chosen.max_num_batched_tokens) == (256, 2048)  # less than 70 GiB
    part = account(f"{H100}, mig: 3g.40gb")
    total = part.ledger.find(Term.KV_AVAILABLE)
    assert total is not None and total.bytes and 15 * GIB < total.bytes < 22 * GIB
    assert any("CUDA's total" in note for note in part.notes)


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        (f"{H100}, mig: 3g.30gb", "gpu.mig: MIG profile '3g.30gb' of h100-sxm-80gb; did you mean '3g.40gb'?"),
        ("name: t4, mig: 1g.5gb", "gpu.mig: MIG profile '1g.5gb' of t4-16gb (no slice of it has a sourced size)"),
        ("memory: 40 GiB, mig: 3g.40gb", "gpu.mig: a slice of which GPU?"),
        (f"{H100}, mig: 3g.40gb, count: 2", "gpu.count: slices have no way to one another"),
        (f"{H100}, in_use: 2000 TiB", "gpu.in_use: expected at most 1 PiB"),
        ("name: gb10", "gpu.name: NVIDIA GB10 shares its memory with the CPU"),
    ],
)
def test_what_cannot_be_such_a_device_is_said_at_its_line(gpu: str, said: str):
    with pytest.raises(ScenarioError) as caught:
        scenario("llama-3.1-8b", gpu=gpu, load="")
    assert said in str(caught.value)


# -- log probabilities of prompts ------------------------------------------------------------------

ASKING = LOAD.replace("seed: 1", "seed: 1, prompt_logprobs: 1")


def test_the_figure_by_hand():
    qwen = from_config(catalog.model_config("qwen2.5-7b"))
    chosen = settings(scenario("qwen2.5-7b", "fp16", engine="vllm: '0.19.0'", load=""))
    assert qwen.vocab == 152_064 and chosen.max_num_batched_tokens == 8192
    hidden = 8192 * 3584 * 2
    assert prompt_logprobs(qwen, chosen, 100_000).bytes == hidden + 8192 * 152_064 * 6
    assert prompt_logprobs(qwen, chosen, 1000).bytes == hidden + 1000 * 152_064 * 6


def test_model_runner_v2_makes_them_in_pieces():
    llama = from_config(catalog.model_config("llama-3.1-8b"))
    chosen = settings(scenario("llama-3.1-8b", load=""))
    assert prompt_logprobs(llama, chosen, 100_000).bytes == 8192 * 4096 * 2 + 1024 * 128_256 * 2


def test_a_load_that_asks_for_them_can_run_out_of_memory():
    tight = "vllm: '0.19.0', gpu_memory_utilization: 0.95"
    plain, asking = account(engine=tight, load=LOAD), account(engine=tight, load=ASKING)
    assert rung(plain, RungName.STARTS).holds and rung(asking, RungName.STARTS).holds
    holds = rung(asking, RungName.HOLDS)
    assert (holds.holds, holds.limited_by) == (False, Term.ACTIVATION_PEAK)
    assert holds.margin_bytes < 0 and "prompt_logprobs takes 8.62 GiB (7,168 rows" in holds.reason
    roomy = account(engine="vllm: '0.19.0', gpu_memory_utilization: 0.80", load=ASKING)
    assert rung(roomy, RungName.HOLDS).limited_by == "kv_cache"


def test_the_key_is_checked():
    with pytest.raises(ScenarioError, match="prompt_logprobs"):
        scenario("llama-3.1-8b", load=LOAD.replace("seed: 1", "prompt_logprobs: 99"))
