"""The KV pool against vLLM's own planner (0.32, on a CPU, without weights): equal counts, equal refusals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
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
    """plan(specs by worker, bytes by worker, max_model_len, override) -> (blocks, tokens, concurrency)."""
    pytest.importorskip("torch")
    pytest.importorskip("vllm")
    try:
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

    def plan(
        specs: list[dict[str, Any]], available: list[int], max_model_len: int, override: int | None = None
    ) -> Any:
        config.model_config.max_model_len = max_model_len
        config.cache_config.num_gpu_blocks_override = override
        planned = get_kv_cache_configs(config, specs, available)
        return planned[0].num_blocks, *get_kv_cache_capacity(config, planned[0])

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
    needed = kv_cache.blocks_for(chosen.max_model_len, chosen.block_size) * block
    check = available - block
    if check <= 0:
        return no_memory()
    if needed > check:
        longest = kv_cache.longest_that_fits(check, block, chosen.block_size, chosen.max_model_len)
        return not_enough(chosen.max_model_len, needed, check, longest)
    pool = kv_cache.pool(available // block, block // chosen.block_size, chosen)
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
