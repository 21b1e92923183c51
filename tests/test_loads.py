"""Loads of every shape: the same requests whoever asks, sent at their times, and each fault at its line."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import SCENARIOS, bench

from harness.client import Answer, drive
from harness.errors import ScenarioError
from harness.scenario import Load, parse_scenario
from harness.traffic import Request, arrivals_s, prompt_ids, requests

BASE = """\
name: a
model: meta-llama/Llama-3.1-8B-Instruct
gpu: {name: h100-sxm-80gb}
engine: {max_model_len: 8192}
load: {SHAPE, requests: 20, prompt_tokens: 100, output_tokens: 50}
"""


def load(**keys: Any) -> Load:
    return Load.model_validate({"requests": 2000, "prompt_tokens": 100, "output_tokens": 10, "seed": 5, **keys})


def told(shape: str, folder: Path = SCENARIOS, without_lengths: bool = False) -> str:
    text = BASE.replace("SHAPE", shape)
    if without_lengths:
        text = text.replace(", prompt_tokens: 100, output_tokens: 50", "")
    with pytest.raises(ScenarioError) as raised:
        parse_scenario(text, "s.yaml", folder)
    return str(raised.value)


# -- when requests come --------------------------------------------------------------------------------


def gaps(**keys: Any) -> list[float]:
    times = list(arrivals_s(load(**keys)) or ())
    assert len(times) == 2000 and times[0] == 0.0
    return [b - a for a, b in itertools.pairwise(times)]


def test_a_constant_load_comes_evenly() -> None:
    assert gaps(shape="constant", rate=4.0) == pytest.approx([0.25] * 1999)


@pytest.mark.parametrize("rate", [0.5, 8.0])
@pytest.mark.parametrize(("shape", "spread"), [("poisson", 1.0), ("gamma", 2.0)])
def test_random_gaps_have_their_mean_and_spread(shape: str, spread: float, rate: float) -> None:
    """The coefficient of variation of gamma gaps is 1 / sqrt(burstiness), of exponential ones 1."""
    keys = {"burstiness": 0.25} if shape == "gamma" else {}
    drawn = gaps(shape=shape, rate=rate, **keys)
    assert statistics.fmean(drawn) == pytest.approx(1 / rate, rel=0.1)
    assert statistics.stdev(drawn) / statistics.fmean(drawn) == pytest.approx(spread, rel=0.1)


def test_a_ramp_begins_and_ends_at_its_rates() -> None:
    drawn = gaps(shape="ramp", rate=1.0, end_rate=10.0)
    assert statistics.fmean(drawn[:200]) == pytest.approx(1 / 1.45, rel=0.2)
    assert statistics.fmean(drawn[-200:]) == pytest.approx(1 / 9.55, rel=0.2)


def test_the_lengths_are_the_same_at_any_rate_and_shape() -> None:
    mixed = {"prompt_tokens": {"distribution": "uniform", "low": 1, "high": 900}, "requests": 50}

    def lengths(**keys: Any) -> list[tuple[int, int]]:
        return [(r.prompt_tokens, r.output_tokens) for r in requests(load(**mixed, **keys))]

    assert lengths(shape="burst") == lengths(shape="poisson", rate=3.0) == lengths(shape="constant", rate=9.0)
    assert len(set(lengths(shape="burst"))) > 40


# -- conversations -------------------------------------------------------------------------------------


def test_a_later_turn_begins_with_all_that_was_said() -> None:
    drawn = requests(load(shape="closed", users=2, requests=9, turns=3, turn_tokens=7))
    assert [(r.conversation, r.turn, r.prompt_tokens) for r in drawn[:4]] == [
        (0, 0, 100), (0, 1, 117), (0, 2, 134), (1, 0, 100),
    ]  # fmt: skip
    first = prompt_ids(drawn[0], 5, 4096)
    said = [*first, *range(10)]
    second = prompt_ids(drawn[1], 5, 4096, 0, said)
    assert second[:110] == said and len(second) == 117
    assert second[110:] != first[:7]


def test_prompts_share_what_has_the_same_ids() -> None:
    a, b, c = (
        prompt_ids(Request(i, 1100, 1, conversation=i, pieces=pieces), 5, 4096)
        for i, pieces in enumerate([((1, 512), (2, 512)), ((1, 512), (3, 512)), ()])
    )
    assert a[:512] == b[:512] and a[512:1024] != b[512:1024] and a[1024:] != b[1024:]
    assert len(a) == len(c) == 1100 and c[:512] != a[:512]


# -- files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "form"), [("mooncake.jsonl", "mooncake"), ("timed.jsonl", "timed"),
                                            ("burstgpt.csv", "burstgpt")])  # fmt: skip
def test_each_shipped_trace_is_read(file: str, form: str) -> None:
    text = BASE.replace("SHAPE", f"shape: trace, trace: {{file: traces/{file}, format: {form}, time_scale: 0.5}}")
    text = text.replace(", prompt_tokens: 100, output_tokens: 50", "").replace("requests: 20", "requests: 38")
    read = parse_scenario(text, "s.yaml", SCENARIOS)
    assert read.load is not None and read.load.trace is not None
    drawn = requests(read.load)
    assert len(drawn) == 38 and drawn[0].time_s == 0.0
    assert [r.time_s for r in drawn] == sorted(r.time_s for r in drawn)  # type: ignore[type-var]
    assert len(read.load.trace.rows) == (38 if form == "burstgpt" else 40)  # two of its requests failed
    assert any(r.pieces for r in drawn) is (form == "mooncake")
    # As kept in a run folder, beside a copy of the file, it is the same scenario.
    assert f"file: load-trace{Path(file).suffix}" in read.as_yaml()


def test_a_scenario_with_files_is_the_same_beside_copies_of_them(tmp_path: Path) -> None:
    (tmp_path / "seen.txt").write_text("# tokens\n100\n200\n200\n")
    seen = "prompt_tokens: {distribution: empirical, file: seen.txt}"
    text = BASE.replace("SHAPE", "shape: burst").replace("prompt_tokens: 100", seen)
    read = parse_scenario(text, "s.yaml", tmp_path)
    assert read.load is not None
    assert {r.prompt_tokens for r in requests(read.load)} == {100, 200}
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / "load-prompt_tokens.txt").write_text(read.load.files["prompt_tokens"].text)
    again = parse_scenario(read.as_yaml(), "s.yaml", copies)
    assert again.digest == read.digest
    (tmp_path / "seen.txt").write_text("100\n")
    assert parse_scenario(text, "s.yaml", tmp_path).digest != read.digest


MOONCAKE = '{"timestamp": 5, "input_length": 10, "output_length": 2, "hash_ids": [1]}\n'
TRACE = "shape: trace, trace: {file: t, format: mooncake}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (MOONCAKE + "{oops\n", 't:2: expected a JSON object, got "{oops"'),
        (MOONCAKE + "[1]\n", "t:2: expected a JSON object"),
        (MOONCAKE * 2 + MOONCAKE.replace("10", "0"), "t:3: input_length: expected a whole number of tokens from 1 to"),
        (MOONCAKE.replace('"output_length": 2, ', ""), "t:1: output_length: expected a whole number of tokens from 1"),
        (MOONCAKE.replace("5", '"soon"'), 't:1: timestamp: expected a time, got "soon"'),
        (MOONCAKE.replace("[1]", '"x"'), 't:1: hash_ids: expected a list of whole numbers, got "x"'),
        ("\n", "t:1: expected requests, got none"),
        (MOONCAKE, "s.yaml:5: load.requests: the trace has 1 requests, got 20"),
        (MOONCAKE.replace("10", "9000") * 20, "s.yaml:5: load.trace: prompt and output reach 9,002 tokens, above"),
        (None, "s.yaml:5: load.trace.file: TMP/t can't be read: No such file or directory"),
    ],
)
def test_a_broken_trace_is_told_at_its_line(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "t").write_text(content)
    line = told(TRACE, tmp_path, without_lengths=True)
    assert says in line.replace(str(tmp_path), "TMP") and "\n" not in line


def test_a_broken_csv_is_told_at_its_line(tmp_path: Path) -> None:
    csv = TRACE.replace("mooncake", "burstgpt")
    (tmp_path / "t").write_text("Timestamp,Request tokens\n5,3\n")
    assert "t:1: expected the columns Timestamp, Request tokens, Response tokens; missing: Response tokens" in told(
        csv, tmp_path, without_lengths=True
    )
    (tmp_path / "t").write_text("Timestamp,Request tokens,Response tokens\n5,3,7\n6,x,7\n")
    assert 't:3: Request tokens: expected a whole number of tokens from 1 to 10,000,000, got "x"' in told(
        csv, tmp_path, without_lengths=True
    )


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ("shape: poisson", "load.rate: missing: a poisson load has one"),
        ("shape: poisson, rate: 0", "load.rate: expected at least 1e-06, got 0"),
        ("shape: poisson, rate: 1, users: 4", "load.users: a poisson load has none"),
        ("shape: gamma, rate: 1", "load.burstiness: missing: a gamma load has one"),
        ("shape: ramp, rate: 1", "load.end_rate: missing: a ramp load has one"),
        ("shape: burst, rate: 1", "load.rate: a burst load has none"),
        ("shape: burst, turns: 4", "load.turn_tokens: missing: what a later turn of a conversation adds to the prompt"),
        ("shape: burst, turns: 3, turn_tokens: 5", "load.requests: expected whole conversations of 3 turns, got 20"),
        ("shape: burst, turn_tokens: 5", "load.turn_tokens: there are no later turns: say load.turns"),
        ("shape: burst, think_s: 5", "load.think_s: nobody sends a next request"),
        ("shape: burst, turns: 20, turn_tokens: 500", "load.prompt_tokens: a conversation reaches 10,600 tokens"),
        ("shape: closed, users: 6, turns: 4, turn_tokens: 5", "load.users: 6 users but 5 conversations"),
        (TRACE, "load.output_tokens: a trace has its own lengths"),
    ],
)
def test_faults_between_the_keys_of_a_load(shape: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(MOONCAKE * 20)
    assert f"s.yaml:5: {says}" in told(shape, tmp_path)


def test_bench_says_it_in_one_line(tmp_path: Path) -> None:
    text = BASE.replace("SHAPE", TRACE).replace(", prompt_tokens: 100, output_tokens: 50", "")
    (tmp_path / "s.yaml").write_text(text)
    (tmp_path / "t").write_text(MOONCAKE + "no\n")
    ran = bench("run", tmp_path / "s.yaml", "--analytic-only")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f'bench: {tmp_path}/t:2: expected a JSON object, got "no"\n'


# -- sending -------------------------------------------------------------------------------------------


class Echo:
    """A client whose answers take ``seconds`` and say nothing but ids."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.sent, self.prompts = seconds, {}, {}

    async def complete(self, request: Request, prompt: list[int], *, keep_text: bool, keep_ids: bool = False) -> Answer:
        self.sent[request.index], self.prompts[request.index] = time.monotonic(), prompt
        await asyncio.sleep(self.seconds)
        ids = tuple(range(request.output_tokens)) if keep_ids else ()
        return Answer(request, 0, 0, 0, request.output_tokens, "ok", "", "", ids)


def sent(work: Load, seconds: float = 0.0) -> Echo:
    echo, answers, all_sent = Echo(seconds), [], []
    asyncio.run(
        drive(
            echo, work, lambda r, said: prompt_ids(r, 5, 4096, 0, said), answers.append, keep_text=False,  # type: ignore[arg-type]
            on_all_sent=lambda: all_sent.append(len(echo.sent)),
        )
    )  # fmt: skip
    assert len(answers) == work.requests and all_sent == [work.requests - 1]
    return echo


def test_an_open_load_is_sent_at_its_times_answered_or_not() -> None:
    work = load(shape="poisson", rate=50.0, requests=25)
    echo = sent(work, seconds=0.3)
    late = [echo.sent[i] - echo.sent[0] - when for i, when in enumerate(arrivals_s(work) or ())]
    assert len(late) == 25 and all(-0.005 < x < 0.1 for x in late)


def test_a_user_thinks_before_the_next_request() -> None:
    echo = sent(load(shape="closed", users=1, requests=3, think_s=0.1))
    assert all(0.1 <= echo.sent[i + 1] - echo.sent[i] < 0.3 for i in range(2))


def test_a_conversation_is_sent_in_order_with_what_was_answered() -> None:
    echo = sent(load(shape="closed", users=2, requests=6, turns=3, turn_tokens=4))
    for first in (0, 3):
        assert echo.sent[first] < echo.sent[first + 1] < echo.sent[first + 2]
        assert echo.prompts[first + 1][:110] == [*echo.prompts[first], *range(10)]
        assert echo.prompts[first + 2][:124] == [*echo.prompts[first + 1], *range(10)]
