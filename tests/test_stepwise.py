"""harness.simulate.stepwise against vLLM's own scheduler: at every step the same requests, blocks and tokens."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import traffic
from harness.errors import ScenarioError, UsageError
from harness.predict import predict
from harness.predict.limits import bounds
from harness.scenario import Load, parse_scenario
from harness.simulate import Limits, arrivals, simulate
from harness.simulate.job import Job
from harness.simulate.limits import Speculation
from harness.simulate.stepwise import Stepwise
from harness.simulate.tables import CHUNKED, CROSS, FULL, SLIDING, STATE, Table
from harness.traffic import Request

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM (the extra cpu)")
MANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


class Watched(Stepwise):
    """Stepwise, with notes of every step."""

    def __init__(self, *arguments: Any) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self._gone: set[int] = set()
        self._before = 0
        super().__init__(*arguments)

    def _preempt(self, job: Job) -> None:
        self._gone.add(job.index)
        super()._preempt(job)

    def _observe(self) -> None:
        super()._observe()
        running = [j.index for j in self.running]
        tokens, steps = self.tokens_scheduled - self._before, self.steps - len(self.notes)
        counts = (self.blocks_used, len(running), len(self.waiting), self.preemptions)
        # Steps taken at once are all the same.
        self.notes += [(*counts, tokens // steps, running, self._gone)] * steps
        self._gone, self._before = set(), self.tokens_scheduled


def against_vllm(work: list[Request], users: int, limits: Limits) -> Stepwise:
    """Both schedulers on ``work``, of which ``users`` are under way at once; every step must be alike."""
    import vllm_scheduler

    limits = vllm_scheduler.as_installed(limits)
    load = Load.model_validate(
        {"shape": "closed", "users": users, "requests": len(work), "prompt_tokens": 1, "output_tokens": 1, "seed": 1}
    )
    counts: list[Any] = []
    details: list[Any] = []
    theirs = vllm_scheduler.run(load, limits, per_step=counts, details=details, work=work)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(arrivals, "stream", lambda _: iter(work))
        ours = Watched(load, limits, limits.num_blocks)
        ours.finish()
    for step, (a, b, c) in enumerate(zip(ours.notes, counts, details, strict=True), 1):
        assert a == (*b, *c), f"step {step}"
    assert (ours.steps, ours.tokens_scheduled) == (theirs.steps, theirs.tokens_scheduled)
    assert ours.preemptions or not ours.tokens_recomputed
    assert ours.pool.used == 0
    return ours


@st.composite
def requests(draw: st.DrawFn, sharing: bool = True) -> list[Request]:
    """Prompts of pieces that others have too, then of their own."""
    made = []
    for index in range(draw(st.integers(1, 20))):
        pieces: list[tuple[int, int]] = []
        if sharing and draw(st.integers(0, 4)):
            for _ in range(draw(st.integers(1, 3))):
                pieces.append((draw(st.integers(0, 2)), draw(st.sampled_from([8, 16, 16, 32, 40, 64, 96]))))
        prompt = sum(n for _, n in pieces) + draw(st.integers(1, 150) | st.integers(1, 20))
        made.append(Request(index, prompt, draw(st.integers(1, 90)), index, pieces=tuple(pieces)))
    return made


@st.composite
def cases(draw: st.DrawFn, work: list[Request], tables: tuple[Table, ...] = (), lookahead: int = 0) -> Any:
    """(requests, users, limits): a pool between what the longest request takes and what all of them do."""
    users = draw(st.integers(1, len(work)) | st.just(len(work)))
    block_size = 16
    ends = [r.prompt_tokens + r.output_tokens + lookahead for r in work]
    sizes = [sum(t.blocks(end) + 1 for t in tables or (Table(FULL, 16),)) for end in ends]
    longest = max(sizes)
    blocks = 1 + longest + round((sum(sizes) - longest) * draw(st.floats(0, 1) | st.floats(0, 0.2)))
    model_len = max(r.prompt_tokens + r.output_tokens for r in work)
    model_len = max(64, draw(st.sampled_from([model_len, 1024])))
    limits = Limits(
        blocks, block_size, draw(st.sampled_from([64, 8, 3, 2])), draw(st.sampled_from([2048, 256, 100, 65])),
        model_len, tables=tables, enable_prefix_caching=draw(st.integers(0, 3)) > 0,
        scheduler_reserve_full_isl=draw(st.booleans()),
        watermark=draw(st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.5])),
        long_prefill_token_threshold=min(draw(st.sampled_from([0, 0, 1, 16, 30, 64])), model_len),
        enable_chunked_prefill=draw(st.integers(0, 3)) > 0, async_scheduling=draw(st.booleans()),
    )  # fmt: skip
    if not limits.enable_chunked_prefill:
        limits = replace(limits, max_num_batched_tokens=max(limits.max_num_batched_tokens, model_len))
    return work, users, limits


@needs_vllm
@MANY
@given(st.data())
def test_prompts_that_share_anything(data: st.DataObject) -> None:
    against_vllm(*data.draw(cases(data.draw(requests()))))


@needs_vllm
@MANY
@given(st.data())
def test_priorities(data: st.DataObject) -> None:
    work = [replace(r, priority=data.draw(st.integers(0, 3))) for r in data.draw(requests())]
    work, users, limits = data.draw(cases(work))
    against_vllm(work, users, replace(limits, scheduling_policy="priority"))


@needs_vllm
@MANY
@given(st.data())
def test_adapters(data: st.DataObject) -> None:
    import vllm_scheduler

    if not vllm_scheduler.queues_adapters_alike():
        pytest.skip("before 0.31 vLLM queues adapters otherwise, which is refused by name")
    work = [replace(r, adapter=data.draw(st.integers(0, 3))) for r in data.draw(requests())]
    policy = data.draw(st.sampled_from(["fcfs", "fcfs", "priority"]))
    work, users, limits = data.draw(cases(work))
    limits = replace(limits, scheduling_policy=policy, max_loras=data.draw(st.integers(1, 3)))
    against_vllm(work, users, limits)


@st.composite
def hybrids(draw: st.DrawFn) -> tuple[Table, ...]:
    """The block tables of a model with windows, chunks, or several of them."""
    window = Table(SLIDING, draw(st.sampled_from([16, 16, 32])), draw(st.sampled_from([1, 15, 16, 17, 33, 48, 100])))
    chunk = Table(CHUNKED, 16, draw(st.sampled_from([16, 32, 40, 64])))
    full = Table(FULL, 16)
    return draw(
        st.sampled_from(
            [
                (replace(window, block_size=16),), (full, window), (window, full), (full, window, window, window),
                (full, full, window), (full, window, replace(window, block_size=16, window=24)), (full, chunk),
                (chunk, chunk, full), (full, Table(FULL, 32), window),
                # DeepSeek V4's: windows twice, rows, two kinds of compressors.
                (
                    replace(window, block_size=16), replace(window, block_size=16), Table(FULL, 64),
                    Table(SLIDING, 4, 8), Table(SLIDING, 8, 33),
                ),
            ]
        )
    )  # fmt: skip


@needs_vllm
@MANY
@given(st.data())
def test_windows_and_several_tables(data: st.DataObject) -> None:
    tables = data.draw(hybrids())
    against_vllm(*data.draw(cases(data.draw(requests()), tables)))


@needs_vllm
@settings(MANY, max_examples=100)
@given(st.data())
def test_states(data: st.DataObject) -> None:
    work, users, limits = data.draw(cases(data.draw(requests())))
    state = Table(STATE, limits.max_model_len)
    tables = data.draw(st.sampled_from([(state,), (state, Table(FULL, 16)), (state, state, Table(FULL, 32))]))
    work, users, limits = data.draw(cases(work, tables))
    tables = tuple(replace(t, block_size=limits.max_model_len) if t.kind == STATE else t for t in tables)
    against_vllm(work, users, replace(limits, tables=tables, enable_prefix_caching=False))


@needs_vllm
@MANY
@given(st.data())
def test_encoders(data: st.DataObject) -> None:
    """Whisper's two tables: an encoder's blocks are taken at once, and so many encoders run in a step."""
    encoder = data.draw(st.sampled_from([1, 16, 40, 100, 300]))
    policy = data.draw(st.sampled_from(["fcfs", "fcfs", "priority"]))
    tables = (Table(FULL, 16), Table(CROSS, 16, encoder))
    tables = data.draw(st.sampled_from([tables, tables[::-1]]))
    work = [replace(r, priority=data.draw(st.integers(0, 3))) for r in data.draw(requests(sharing=False))]
    work, users, limits = data.draw(cases(work, tables))
    tokens = max(limits.max_num_batched_tokens, limits.max_model_len, encoder)
    against_vllm(work, users, replace(
        limits, tables=tables, encoder_tokens=encoder, scheduling_policy=policy, max_num_batched_tokens=tokens,
        enable_prefix_caching=False, enable_chunked_prefill=False, long_prefill_token_threshold=0,
    ))  # fmt: skip


@needs_vllm
@MANY
@given(st.data())
def test_speculative_decoding(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 5))
    kind = data.draw(st.sampled_from(["ngram", "eagle", "draft_model"]))
    lookahead = 0 if kind == "ngram" else tokens
    speculation = Speculation(
        tokens, data.draw(st.integers(0, 100)) * tokens / 100, lookahead, int(kind == "draft_model"), kind == "eagle"
    )
    work, users, limits = data.draw(cases(data.draw(requests()), lookahead=lookahead))
    if limits.long_prefill_token_threshold <= tokens:  # vLLM 0.32 fails an assertion
        limits = replace(limits, long_prefill_token_threshold=0)
    against_vllm(work, users, replace(limits, speculation=speculation))


@needs_vllm
@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize(
    ("model", "tables"),
    [
        ("openai/gpt-oss-20b", 2), ("google/gemma-3-12b-it", 6), ("mistralai/Mistral-7B-v0.1", 1),
        ("deepseek-ai/DeepSeek-V2-Lite", 0), ("deepseek-ai/DeepSeek-V4-Flash", 5),
    ],
)  # fmt: skip
def test_models_as_scenarios_have_them(model: str, tables: int, async_scheduling: bool) -> None:
    """A load on a pool that a quarter of it fills; DeepSeek's latent attention is one table like any. Of V4's blocks
    few are kept once a prompt is read, so it has a pool for the largest request alone."""
    engine = {"max_model_len": 8192, "max_num_batched_tokens": 2048, "async_scheduling": async_scheduling}
    scenario = parse_scenario(f"name: x\nmodel: {model}\ngpu: {{name: h100-sxm-80gb}}\nengine: {json.dumps(engine)}")
    limits = bounds(scenario, 2)
    assert len(limits.tables) == tables
    work = [Request(i, 700 + 531 * i % 5000, 20 + 37 * i % 90, i) for i in range(16)]
    sizes = [
        sum(t.held(r.prompt_tokens + r.output_tokens, limits.in_flight_tokens, 8192) for t in limits.block_tables)
        for r in work
    ]
    blocks = max(max(sizes) + 1, 0 if tables == 5 else sum(sizes) // 4)
    ran = against_vllm(work, 16, replace(limits, num_blocks=blocks))
    assert ran.preemptions or ran.waited_for_kv


@needs_vllm
@pytest.mark.parametrize("async_scheduling", [False, True])
def test_loads_as_scenarios_state_them(async_scheduling: bool) -> None:
    """Three system prompts, three priorities: what the load says is what runs, and what vLLM makes of it."""
    import vllm_scheduler

    work = Load.model_validate(
        {
            "shape": "closed", "users": 12, "requests": 60, "seed": 3, "shared_prefix_tokens": 100,
            "prompt_tokens": {"distribution": "uniform", "low": 101, "high": 300}, "output_tokens": 60,
            "shared_prefixes": 3, "turns": 2, "turn_tokens": 30, "priorities": [0, 0, 1, 5], "adapters": 2,
        }
    )  # fmt: skip
    limits = Limits(80, 16, 8, 128, 1024, scheduling_policy="priority", max_loras=1, async_scheduling=async_scheduling)
    ours, counts = simulate(work, limits), []
    vllm_scheduler.run(work, limits, per_step=counts)
    assert [tuple(p[1:5]) for p in ours.timeline] == counts and ours.figures.preemptions
    drawn = traffic.requests(work)
    assert len({r.pieces for r in drawn}) == 3
    assert ({r.priority for r in drawn}, {r.adapter for r in drawn}) == ({0, 1, 5}, {1, 2})
    one = simulate(work.model_copy(update={"shared_prefixes": 1}), limits)
    assert one.figures.peak_blocks_needed < ours.figures.peak_blocks_needed


@pytest.mark.parametrize(
    ("proposes", "speculation"),
    [
        ("{method: ngram, num_speculative_tokens: 4}", Speculation(4, 1.5)),
        ("{model: llama-3.2-1b, num_speculative_tokens: 4}", Speculation(4, 1.5, lookahead=4, rows=1)),
    ],
)
def test_what_is_proposed_and_how_much_of_it_is_taken(proposes: str, speculation: Speculation) -> None:
    text = f"""
name: x
model: llama-3.1-8b
gpu: {{name: h100-sxm-80gb}}
engine: {{max_model_len: 4096, speculative_config: {proposes}}}
load: {{shape: burst, requests: 8, prompt_tokens: 500, output_tokens: 100, seed: 1, accepted_tokens: 1.5}}
"""
    scenario = parse_scenario(text)
    assert bounds(scenario, 100).speculation == speculation
    told = predict(scenario)
    assert told.rung("HOLDS").holds is True and 41 <= told.load.steps <= 43  # a token of each prefill, 2.5 of each step
    held = predict(parse_scenario(text.replace(", accepted_tokens: 1.5", ""))).rung("HOLDS")
    assert held.holds is None and "load.accepted_tokens tells it" in held.reason
    for wrong, says in (("accepted_tokens: 5", "proposes 4 tokens"), ("accepted_tokens: -1", "accepted_tokens")):
        with pytest.raises(ScenarioError, match=says):
            parse_scenario(text.replace("accepted_tokens: 1.5", wrong))
    with pytest.raises(UsageError, match="less than a proposal's 5 rows"):
        predict(parse_scenario(text.replace("4096,", "4096, long_prefill_token_threshold: 4,")))
