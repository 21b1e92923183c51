"""The KV pool against vLLM's own planner (0.32, on a CPU, without weights): equal counts, equal refusals.

The specs of each layer come from vLLM's own model classes on the meta device, and from the config by our own table.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import catalog
from harness.architecture import from_config, stage_layers
from harness.catalog import engine_defaults
from harness.predict import kv_cache
from harness.predict.admission import no_memory, not_enough
from harness.predict.settings import settings
from harness.scenario import parse_scenario
from harness.units import GIB, MIB

MODELS = ("llama-3.1-70b", "smollm2-135m", "phi-2", "gemma-2b", "starcoder", "qwen2.5-7b")
POOLS = (1, 3 * MIB, 700 * MIB, GIB + 12345, 20 * GIB)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """plan(specs by worker, bytes by worker, max_model_len, override, in flight) -> (blocks, tokens, concurrency)."""
    pytest.importorskip("torch")
    pytest.importorskip("vllm")
    try:
        from vllm.config import VllmConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity, get_kv_cache_configs
        from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
    except ImportError as error:
        pytest.skip(f"another vLLM than 0.32: {error}")
    folder = tmp_path_factory.mktemp("model")
    Path(folder / "config.json").write_text(json.dumps(catalog.model_config("llama-3.1-70b")))
    config = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        max_model_len=8192,
        enforce_eager=True,
    ).create_engine_config()
    register_all_kvcache_specs(config)
    config.cache_config.kv_cache_layout = "LBNHC"
    in_flight = 8192

    def plan(
        specs: list[dict[str, Any]], available: list[int], max_model_len: int, override: int | None = None,
        tokens_in_flight: int = 8192,
    ) -> Any:  # fmt: skip
        nonlocal in_flight
        in_flight = tokens_in_flight
        config.model_config.max_model_len = max_model_len
        config.cache_config.num_gpu_blocks_override = override
        planned = get_kv_cache_configs(config, specs, available)
        return planned[0].num_blocks, *get_kv_cache_capacity(config, planned[0])

    with pytest.MonkeyPatch.context() as patched:
        # What a GPU's engine would have in flight, and not this computer's.
        patched.setattr(VllmConfig, "max_in_flight_tokens", property(lambda _: in_flight))
        yield plan


def resolved(
    model: str, block_size: int, kv_dtype: str, tp: int, max_model_len: int, pp: int = 1, more: str = ""
) -> Any:
    """(architecture, settings) as predict sees them."""
    scenario = parse_scenario(f"""
name: x
model: {model}
gpu: {{name: h100, count: {tp * pp}}}
engine:
  max_model_len: {max_model_len}
  block_size: {block_size}
  kv_cache_dtype: {kv_dtype}
  pipeline_parallel_size: {pp}
  {more}
""")
    return from_config(scenario.config()), settings(scenario)


def specs_of(architecture: Any, chosen: Any) -> list[dict[str, Any]]:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    dtype = {1: torch.uint8, 2: torch.bfloat16, 4: torch.float32}[chosen.kv_dtype_bytes]
    spec = FullAttentionSpec(
        block_size=chosen.block_size,
        num_kv_heads=architecture.kv_heads_on_rank(chosen.tensor_parallel_size),
        head_size=architecture.head_dim,
        dtype=dtype,
    )
    numbers = itertools.count()
    return [
        {f"layer.{next(numbers)}": spec for _ in range(layers)}
        for layers in stage_layers(architecture.layers, chosen.pipeline_parallel_size)
    ]


def ours(architecture: Any, chosen: Any, available: int) -> Any:
    """The same answer from harness.predict: counts, or the words of the refusal."""
    block = kv_cache.bytes_per_block(architecture, chosen)
    if chosen.num_gpu_blocks_override is not None:
        available = chosen.num_gpu_blocks_override * block
    needed = kv_cache.request_blocks(architecture, chosen, chosen.max_model_len) * block
    check = available - block
    if check <= 0:
        return no_memory()
    if needed > check:
        longest = kv_cache.longest_that_fits(architecture, chosen, check, block)
        return not_enough(chosen.max_model_len, needed, check, longest)
    pool = kv_cache.pool(architecture, chosen, available // block)
    return pool.num_blocks, pool.tokens, pool.max_concurrency


def theirs(plan: Any, *args: Any) -> Any:
    try:
        return plan(*args)
    except ValueError as error:
        return f"ValueError: {error}"


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("model", MODELS)
def test_counts_and_refusals_equal_vllm(planner: Any, model: str, kv_dtype: str):
    limit = from_config(catalog.model_config(model)).max_model_len
    answers = []
    for block_size, length, tp in itertools.product((16, 32, 48), (1000, min(8192, limit)), (1, 8)):
        try:
            architecture, chosen = resolved(model, block_size, kv_dtype, tp, length)
        except Exception as error:
            assert "divisible" in str(error)
            continue
        for available in POOLS:
            expected = theirs(planner, specs_of(architecture, chosen), [available], length)
            assert ours(architecture, chosen, available) == expected
            answers.append(type(expected))
    assert {str, tuple} <= set(answers)  # both kinds were seen


# -- the specs of vLLM's own model classes ---------------------------------------------------------


@pytest.fixture(scope="module")
def specs_by_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """specs(config, block_size, kv_dtype) -> the KV spec of each layer, asked of vLLM's model on the meta device."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    def configured(config: dict[str, Any], kv_dtype: str) -> Any:
        folder = tmp_path_factory.mktemp("config")
        (folder / "config.json").write_text(json.dumps(config))
        # On a CPU the block must be a multiple of 32: that of the GPU is put in by `at_block_size`.
        return EngineArgs(
            model=str(folder), skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, max_model_len=1024,
            kv_cache_dtype=kv_dtype, block_size=32,
        ).create_engine_config()  # fmt: skip

    def specs(config: dict[str, Any], block_size: int, kv_dtype: str, tp: int) -> dict[str, Any]:
        vllm = configured(config, kv_dtype)
        with set_current_vllm_config(vllm), torch.device("meta"):
            torch.set_default_dtype(vllm.model_config.dtype)
            try:
                initialize_model(vllm_config=vllm)
            finally:
                torch.set_default_dtype(torch.float32)
        layers = vllm.compilation_config.static_forward_context
        found = {n: m.get_kv_cache_spec(vllm) for n, m in layers.items() if hasattr(m, "get_kv_cache_spec")}
        return {n: on_rank(s, block_size, tp) for n, s in found.items() if s is not None}

    def on_rank(spec: Any, block_size: int, tp: int) -> Any:
        from vllm.v1.kv_cache_interface import MLAAttentionSpec

        heads = 1 if isinstance(spec, MLAAttentionSpec) else max(1, spec.num_kv_heads // tp)
        return replace(spec, block_size=block_size, num_kv_heads=heads)

    with set_current_vllm_config(configured(catalog.model_config("qwen3-30b-a3b"), "auto")):
        started = not parallel_state.model_parallel_is_initialized()
        if started:
            store = f"file://{tmp_path_factory.mktemp('store') / 'store'}"
            parallel_state.init_distributed_environment(1, 0, store, 0, "gloo")
            parallel_state.initialize_model_parallel(1, 1)
    yield specs
    if started:
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()


# Of every kind: full, all sliding, mixed with and without padding groups, latent; dense and with experts.
KINDS = (
    "llama-3.1-8b", "qwen2.5-7b", "qwen3-8b", "granite-3.1-8b", "gemma-2b", "phi-2", "opt-1.3b", "falcon-7b",
    "mistralai/Mistral-7B-v0.1", "gemma-2-9b", "gemma-3-1b", "gpt-oss-20b", "command-r7b", "exaone-4.0-32b",
    "mixtral-8x7b", "qwen3-30b-a3b", "qwen1.5-moe-a2.7b", "olmoe-1b-7b",
    "deepseek-v2-lite", "deepseek-v3", "kimi-k2",
)  # fmt: skip


def shallow(config: dict[str, Any], architecture: Any) -> dict[str, Any]:
    """The config without its quantization: a CPU has no kernels for it, and the KV cache doesn't depend on it."""
    return {k: v for k, v in config.items() if k not in ("quantization_config", "dtype", "torch_dtype")} | {
        "torch_dtype": architecture.dtype
    }


@pytest.mark.parametrize("model", KINDS)
def test_every_kind_of_layer_plans_as_in_vllm(planner: Any, specs_by_vllm: Any, model: str):
    config = catalog.model_config(model)
    limit = from_config(config).max_model_len
    seen = []
    for kv_dtype, tp in (("auto", 1), ("fp8", 1), ("auto", 2)):
        length = min(8192, limit)
        if tp > 1 and from_config(config).heads % tp:
            continue
        architecture, chosen = resolved(model, 16, kv_dtype, tp, length)
        own = specs_by_vllm(shallow(config, architecture), 16, kv_dtype, tp)
        assert len(own) == architecture.layers
        for available in (1, 3 * MIB, 150 * MIB, 700 * MIB, 20 * GIB):
            expected = theirs(planner, [own], [available], length, None, chosen.in_flight_tokens)
            assert ours(architecture, chosen, available) == expected, (kv_dtype, tp, available)
            seen.append(type(expected))
    assert {str, tuple} == set(seen)


@pytest.mark.parametrize("blocks", [2, 300, 513, 514, 4096])
def test_an_override_counts_as_in_vllm(planner: Any, blocks: int):
    architecture, chosen = resolved(
        "llama-3.1-70b", 16, "auto", 1, 8192, more=f"num_gpu_blocks_override: {blocks}"
    )
    expected = theirs(planner, specs_of(architecture, chosen), [20 * GIB], 8192, blocks)
    assert ours(architecture, chosen, 20 * GIB) == expected


def test_a_pipeline_gets_the_blocks_of_its_poorest_stage(planner: Any):
    architecture, chosen = resolved("qwen2.5-7b", 16, "auto", 1, 8192, pp=8)
    available = [3 * GIB + i * MIB for i in range(8)]
    blocks, _, _ = planner(specs_of(architecture, chosen), available, 8192)
    assert blocks == min(
        bytes_ // kv_cache.bytes_per_block(architecture, chosen, stage)
        for stage, bytes_ in enumerate(available)
    )


def test_batch_defaults_equal_vllm(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("vllm")
    from vllm.engine import arg_utils
    from vllm.usage.usage_lib import UsageContext

    class Platform:
        def __init__(self, memory: int, name: str) -> None:
            self.get_device_total_memory = lambda: memory
            self.get_device_name = lambda: name
            self.is_tpu = self.is_cpu = lambda: False

    for gpu in catalog.gpus():
        monkeypatch.setattr(
            arg_utils, "current_platform", Platform(gpu.cuda_total_bytes or gpu.memory_bytes, gpu.title)
        )
        tokens, seqs = arg_utils.EngineArgs.get_batch_defaults(1)
        mine = engine_defaults("0.32", gpu.memory_bytes, gpu.name)
        server = UsageContext.OPENAI_API_SERVER
        assert (mine.max_num_batched_tokens, mine.max_num_seqs) == (tokens[server], seqs[server]), gpu.name
