"""CUDA graphs: how many are captured, equal to vLLM's own count, and what they hold, by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from harness import catalog
from harness.architecture import from_config
from harness.engines.vllm import ServerPlan, command_line
from harness.errors import ScenarioError, UsageError
from harness.ledger import Term
from harness.predict import predict, settings
from harness.predict.graphs import captured, split_outputs
from harness.predict.settings import device_gpu
from harness.scenario import Scenario, parse_scenario
from tests.vllm_oracle import Vllm, vllm_on_meta

GIB = 2**30


def scenario(model: str = "llama-3.1-8b", engine: str = "", gpu: str = "h100", vllm: str = "0.32") -> Scenario:
    return parse_scenario(
        f"name: x\nmodel: {json.dumps(model)}\ngpu: {{name: {gpu}}}\n"
        f"engine: {{vllm: '{vllm}', max_model_len: 2048, {engine}}}\n"
    )


def counts(run: Scenario) -> tuple[int, int, int]:
    found = captured(from_config(run.config()), settings(run))
    return found.pieces, found.whole, found.largest


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    with vllm_on_meta(tmp_path_factory.mktemp("graphs"), catalog.model_config("llama-3.1-8b")) as found:
        yield found


def own_sizes(vllm: Vllm, seqs: int, tokens: int, proposed: int, asked: dict[str, Any]) -> list[int] | str:
    """What vLLM makes of it as on a GPU, or why it refuses."""
    from vllm.config import CUDAGraphMode

    more: dict[str, Any] = {}
    if proposed:
        more["speculative_config"] = {"method": "ngram", "num_speculative_tokens": proposed}
    config = catalog.model_config("llama-3.1-8b")
    own = vllm.configured(config, max_num_seqs=seqs, max_num_batched_tokens=tokens, **more)
    own.model_config.enforce_eager = False
    own.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    own.compilation_config.cudagraph_capture_sizes = asked.get("cudagraph_capture_sizes")
    own.compilation_config.max_cudagraph_capture_size = asked.get("max_cudagraph_capture_size")
    try:
        own._set_cudagraph_sizes()
    except ValueError as error:
        return str(error)
    return list(own.compilation_config.cudagraph_capture_sizes)


ASKED = (
    {"max_cudagraph_capture_size": 100}, {"max_cudagraph_capture_size": 1024},
    {"cudagraph_capture_sizes": [8, 1, 2, 8, 3000]}, {"max_cudagraph_capture_size": 7, "cudagraph_capture_sizes": [4]},
)  # fmt: skip
LIMITS = [(1024, 8192, 0), (256, 2048, 0), (5, 2048, 0), (300, 2048, 0), (128, 2048, 3), (1000, 8192, 5), (16, 300, 0)]


@pytest.mark.parametrize(
    ("seqs", "tokens", "proposed", "asked"),
    [*((*limits, {}) for limits in LIMITS), *((256, 2048, 0, asked) for asked in ASKED), (128, 2048, 3, ASKED[0])],
)
def test_the_sizes_are_vllms_own(vllm: Vllm, seqs: int, tokens: int, proposed: int, asked: dict[str, Any]):
    given = ", ".join(f"{key}: {value}" for key, value in asked.items())
    drafts = f"{{method: ngram, num_speculative_tokens: {proposed}}}" if proposed else "null"
    limits = f"max_num_seqs: {seqs}, max_num_batched_tokens: {tokens}, speculative_config: {drafts}"
    own = own_sizes(vllm, seqs, tokens, proposed, asked)
    run = scenario(engine=f"{limits}, {given}".rstrip(", "))
    if isinstance(own, str):
        with pytest.raises(UsageError) as refused:
            settings(run)
        assert own in str(refused.value)
    else:
        assert list(settings(run).capture_sizes) == own


def test_whole_graphs_are_of_what_a_batch_of_decodes_can_have():
    """51 + 35 and 35 + 19 as public logs say ("Profiling CUDA graph memory: PIECEWISE=51 ..., FULL=35 ...")."""
    assert counts(scenario()) == (51, 51, 512)
    assert counts(scenario(engine="max_num_seqs: 256")) == (51, 35, 256)
    assert counts(scenario(engine="max_num_seqs: 128")) == (35, 19, 128)
    assert counts(scenario(engine="max_num_seqs: 16, max_cudagraph_capture_size: 32")) == (7, 5, 16)
    assert counts(scenario("openai/gpt-oss-20b", "max_num_seqs: 128")) == (83, 19, 128)
    assert counts(scenario(gpu="b200")) == (83, 83, 1024)
    assert counts(scenario(gpu="b200", vllm="0.27")) == (51, 51, 512)
    assert counts(scenario(engine="enforce_eager: true")) == (0, 0, 0)
    whisper = "name: x\nmodel: openai/whisper-large-v3\ngpu: {name: h100}\nengine: {vllm: '0.32'}\n"
    assert counts(parse_scenario(whisper))[0] == 0


def test_an_8b_by_hand():
    """0.106 + 0.175 MiB x 32 layers x 102 graphs, and 32 parts of 512 tokens' 32 heads of 128 in float32."""
    run = scenario(vllm="0.19")
    term = predict(run).ledger.bytes_of(Term.CUDA_GRAPHS)
    assert term is not None and term / GIB == pytest.approx(0.106 + 0.175 * 32 * 102 / 1024 + 0.25, abs=0.001)
    few = predict(scenario(vllm="0.19", engine="cudagraph_capture_sizes: [1, 2, 4]")).ledger.bytes_of(Term.CUDA_GRAPHS)
    parts = 32 * 4 * 32 * 128 * 4
    assert few is not None and few - parts == pytest.approx((0.106 + 0.175 * 32 * 6 / 1024) * GIB, abs=GIB / 1000)


@pytest.mark.parametrize(
    ("model", "engine", "gpu", "heads_dim"),
    [
        ("llama-3.1-8b", "", "h100", 32 * 128),
        ("llama-3.1-8b", "", "a100-sxm-80gb", 0),
        ("llama-3.1-8b", "dtype: float32", "h100", 0),
        ("llama-3.1-8b", "", "b200", 0),
        ("google/gemma-3-27b-it", "", "h100", 0),
        ("Qwen/Qwen3.5-27B", "", "h100", 24 * 256),
    ],
)
def test_flash_attention_3_keeps_the_parts_of_its_outputs(model: str, engine: str, gpu: str, heads_dim: int):
    run = scenario(model, engine, gpu)
    card = device_gpu(run)
    assert card is not None
    assert split_outputs(from_config(run.config()), settings(run), card) == 32 * 512 * heads_dim * 4


def test_sizes_go_to_the_server_as_values_of_their_own():
    plan = ServerPlan("m", ".", {"cudagraph_capture_sizes": [1, 2, 4], "max_cudagraph_capture_size": 4})  # type: ignore[arg-type]
    assert "--cudagraph-capture-sizes 1 2 4 --max-cudagraph-capture-size 4" in " ".join(command_line(plan, 1))


def test_what_the_prediction_would_not_see_is_refused():
    hidden = "arguments: {compilation_config: '{\"cudagraph_capture_sizes\": [1]}'}"
    with pytest.raises(ScenarioError, match=r"say engine\.cudagraph_capture_sizes"):
        scenario(engine=hidden)
    with pytest.raises(UsageError, match=r"max_cudagraph_capture_size: vLLM has it from 0\.12 on, not 0\.11"):
        settings(scenario(engine="max_cudagraph_capture_size: 64", vllm="0.11"))
