"""The command line of a measured run on GPUs: what the scenario says, as the installed vLLM's own parser reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness import modes, sessions
from harness.devices import nvml
from harness.engines import arguments, vllm
from harness.errors import MachineError, ScenarioError
from harness.predict import predict
from harness.scenario import Scenario, parse_scenario

H100 = nvml.Gpu("GPU-1", "NVIDIA H100 80GB HBM3", "0", 85_520_809_984, "v2")
LOAD = {"shape": "closed", "users": 2, "requests": 4, "prompt_tokens": 64, "output_tokens": 8}
BASE = {
    "name": "plan", "model": "meta-llama/Llama-3.1-8B-Instruct", "weights": {"load": "dummy"},
    "gpu": {"name": "h100-sxm-80gb"}, "engine": {"vllm": "0.32", "max_model_len": 8192}, "load": LOAD,
}  # fmt: skip


@pytest.fixture(autouse=True)
def two_h100s(monkeypatch: pytest.MonkeyPatch) -> None:
    other = nvml.Gpu("GPU-2", H100.name, "1", H100.total_bytes, "v2")
    monkeypatch.setattr(nvml, "here", lambda: [H100, other])
    monkeypatch.setattr(vllm, "require_gpu_build", lambda: vllm.Installed("vllm", "0.32.0"))


def scenario(**changes: Any) -> Scenario:
    engine = {**BASE["engine"], **changes.pop("engine", {})}  # type: ignore[dict-item]
    given = {k: v for k, v in {**BASE, **changes, "engine": engine}.items() if v is not None}
    return parse_scenario(json.dumps(given), "plan.yaml", Path())


def session(**changes: Any) -> sessions.Session:
    asked = scenario(**changes)
    made = sessions.prepare(modes.Mode.MEASURED, asked, predict(asked))
    made.close()
    return made


def parsed(made: sessions.Session) -> Any:
    """What vLLM's own parser makes of the command line."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    line = vllm.command_line(made.plan, 8000)
    return make_arg_parser(FlexibleArgumentParser()).parse_args(line[line.index("--model"):])


def test_what_the_scenario_says_reaches_vllm() -> None:
    made = session(engine={
        "gpu_memory_utilization": 0.9, "max_num_seqs": 64, "enable_prefix_caching": False, "kv_cache_dtype": "fp8",
        "enforce_eager": True, "block_size": 32, "watermark": 0.05, "num_gpu_blocks_override": 500,
        "arguments": {"seed": 7, "disable_cascade_attn": True},
    })  # fmt: skip
    read = parsed(made)
    assert (read.max_model_len, read.gpu_memory_utilization, read.max_num_seqs) == (8192, 0.9, 64)
    assert (read.enable_prefix_caching, read.kv_cache_dtype, read.enforce_eager) == (False, "fp8", True)
    assert (read.block_size, read.watermark, read.num_gpu_blocks_override) == (32, 0.05, 500)
    assert (read.seed, read.disable_cascade_attn) == (7, True)
    assert (read.load_format, read.skip_tokenizer_init, read.host) == ("dummy", True, "127.0.0.1")


def test_what_it_leaves_open_is_as_predicted_but_for_the_block_size() -> None:
    read = parsed(session())
    assert (read.max_num_seqs, read.max_num_batched_tokens, read.dtype) == (1024, 8192, "bfloat16")
    assert read.block_size is None  # the attention backend's choice
    assert read.scheduler_cls.endswith(".RecordingScheduler") and read.async_scheduling is False


def test_asynchronous_scheduling_takes_the_asynchronous_recorder() -> None:
    read = parsed(session(engine={"async_scheduling": True}))
    assert read.scheduler_cls.endswith(".RecordingAsyncScheduler") and read.async_scheduling is True


@pytest.mark.parametrize("backend", ["mp", "ray"])
def test_several_gpus(backend: str) -> None:
    made = session(gpu={"name": "h100-sxm-80gb", "count": 2}, engine={"distributed_executor_backend": backend})
    read = parsed(made)
    assert (read.tensor_parallel_size, read.distributed_executor_backend) == (2, backend)
    assert made.plan.environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_70b_in_4_bits_needs_no_download() -> None:
    asked = scenario(model="meta-llama/Llama-3.1-70B-Instruct", weights={"format": "awq-int4-g128", "load": "dummy"})
    made = sessions.prepare(modes.Mode.MEASURED, asked, predict(asked))
    try:
        config = json.loads((Path(made.plan.model) / "config.json").read_text())
    finally:
        made.close()
    assert config["num_hidden_layers"] == 80 and config["quantization_config"]["quant_method"] == "awq"
    assert made.plan.environment["HF_HUB_OFFLINE"] == "1"


def test_real_weights_are_named_as_the_hub_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    made = session(weights={})
    assert made.plan.model == "meta-llama/Llama-3.1-8B-Instruct" and made.real_text
    assert "HF_HUB_OFFLINE" not in made.plan.environment
    assert "hf_secret" not in " ".join(vllm.command_line(made.plan, 1)) + str(made.plan)


def test_weights_of_another_format_are_not_taken_for_the_scenarios() -> None:
    with pytest.raises(MachineError, match=r"are bf16, the scenario's are awq-int4-g128: name the repository"):
        session(weights={"format": "awq-int4-g128"})


def test_an_argument_that_this_vllm_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(MachineError, match=r"engine.arguments.made_up: vLLM 0.32.0 here has no --made-up"):
        session(engine={"arguments": {"made_up": 1}})


def test_a_key_that_an_older_vllm_does_not_know_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = arguments.known()
    assert known is not None and "watermark" in known
    monkeypatch.setattr(arguments, "known", lambda: known - {"watermark", "disable_uvicorn_access_log"})
    assert session().notes == ("vLLM 0.32.0 has no --disable-uvicorn-access-log: left out.",)
    with pytest.raises(MachineError, match=r"engine.watermark: vLLM 0.32.0 here has no --watermark"):
        session(engine={"watermark": 0.1})


def on_this_computer(**engine: Any) -> sessions.Session:
    asked = scenario(gpu=None, device="cpu", engine={"kv_cache_memory_bytes": "4 GiB", **engine})
    made = sessions.prepare(modes.Mode.MEASURED, asked, predict(asked))
    made.close()
    return made


@pytest.mark.skipif(vllm.installed() is None, reason="needs vLLM")
def test_on_this_computer_every_key_reaches_vllm_too() -> None:
    engine = {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3}, "language_model_only": True,
        "mamba_ssm_cache_dtype": "float32", "num_gpu_blocks_override": 500, "arguments": {"seed": 7},
    }  # fmt: skip
    read = parsed(on_this_computer(**engine))
    assert (read.speculative_config, read.seed) == (engine["speculative_config"], 7)
    assert (read.mamba_ssm_cache_dtype, read.language_model_only) == ("float32", True)
    assert (read.kv_cache_memory_bytes, read.num_gpu_blocks_override) == (4 << 30, 500)
    with pytest.raises(MachineError, match=r"engine.arguments.made_up: vLLM \S+ here has no --made-up"):
        on_this_computer(arguments={"made_up": 1})


@pytest.mark.parametrize("device", [{}, {"gpu": None, "device": "cpu"}])
def test_the_llm_class_is_not_measured_by_a_server(device: dict[str, Any]) -> None:
    asked = scenario(**device, engine={"entrypoint": "llm", "kv_cache_memory_bytes": "4 GiB"})
    assert modes.obstacle(modes.Mode.MEASURED, asked, predict(asked)) == (
        "engine.entrypoint: what is measured is a server"
    )


@pytest.mark.parametrize("name", ["port", "middleware", "worker_extension_cls", "kv_transfer_config", "api_key"])
def test_what_is_ours_or_loads_code_is_refused(name: str) -> None:
    with pytest.raises(ScenarioError, match=f"engine.arguments.{name}: bench sets this itself"):
        scenario(engine={"arguments": {name: "x"}})


def test_a_key_of_the_language_is_not_hidden_among_the_arguments() -> None:
    with pytest.raises(ScenarioError, match=r"say engine.max_num_seqs"):
        scenario(engine={"arguments": {"max_num_seqs": 4}})


@pytest.mark.parametrize(
    ("version", "words"), [("0.20.2", "older than 0.21"), ("0.32.0+cpu", "CPU build"), (None, "not installed")]
)
def test_the_engine_must_be_one_that_measures(
    version: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.undo()
    monkeypatch.setattr(vllm, "installed", lambda: vllm.Installed("vllm", version) if version else None)
    with pytest.raises(MachineError, match=words):
        vllm.require_gpu_build()


def test_a_relative_pythonpath_leads_to_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine lives in another folder and has to find the probes where bench itself was found."""
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}/elsewhere")
    assert vllm._absolute_pythonpath() == {"PYTHONPATH": f"{Path().absolute()}{os.pathsep}/elsewhere"}
    monkeypatch.delenv("PYTHONPATH")
    assert vllm._absolute_pythonpath() == {}


def test_a_partition_of_the_layers_and_capture_sizes_reach_vllm() -> None:
    engine = {"pipeline_parallel_size": 2, "pp_layer_partition": [20, 12], "cudagraph_capture_sizes": [1, 2, 4]}
    made = session(gpu={"name": "h100-sxm-80gb", "count": 2}, engine=engine)
    assert made.plan.environment["VLLM_PP_LAYER_PARTITION"] == "20,12"
    assert "pp_layer_partition" not in made.plan.arguments
    assert parsed(made).cudagraph_capture_sizes == [1, 2, 4]
