"""The KV pool against vLLM's own planner (0.32, on a CPU, without weights): equal counts, equal refusals.

The specs of each layer come from vLLM's own model classes on the meta device, and from the config by our own table.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from math import prod
from typing import Any

import pytest

from harness import catalog
from harness.architecture import CHUNKED, FULL, INDEXER, MLA, SLIDING, STATE, KvLayer, State, from_config, text_config
from harness.architecture.mixers import DECODED
from harness.architecture.model import stage_layers
from harness.catalog import engine_defaults
from harness.errors import UsageError
from harness.predict import kv_cache
from harness.predict.kv_format import aligned
from harness.predict.ranks import check_context_split
from harness.predict.settings import settings
from harness.scenario import parse_scenario
from harness.units import GIB, MIB
from tests import vllm_oracle
from tests.hybrid_configs import CONFIGS, NOT_IN_TRANSFORMERS, NOT_IN_VLLM
from tests.vllm_oracle import Vllm, as_one_of, as_specs, build, layer_specs, vllm_on_meta

MODELS = ("llama-3.1-70b", "smollm2-135m", "phi-2", "gemma-2b", "starcoder", "qwen2.5-7b")
POOLS = (1, 3 * MIB, 700 * MIB, GIB + 12345, 20 * GIB)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """vLLM's own planner and model classes."""
    with vllm_on_meta(tmp_path_factory.mktemp("model"), catalog.model_config("qwen3-30b-a3b")) as found:
        yield found


def resolved(
    model: str | dict[str, Any], block_size: int, kv_dtype: str, tp: int, max_model_len: int, pp: int = 1,
    more: str = "",
) -> Any:
    """(architecture, settings) as predict sees them; ``model``: a name or a config."""
    scenario = parse_scenario(f"""
name: x
model: {json.dumps(model)}
gpu: {{name: h100, count: {tp * pp}}}
engine:
  vllm: "0.32"
  max_model_len: {max_model_len}
  block_size: {block_size}
  kv_cache_dtype: {kv_dtype}
  pipeline_parallel_size: {pp}
  {more}
""")
    return from_config(scenario.config()), settings(scenario)


def ours(architecture: Any, chosen: Any, available: int, stage: int = 0) -> Any:
    """The same answer from harness.predict: counts, or the words of a refusal."""
    try:
        if chosen.num_gpu_blocks_override is not None:
            available = chosen.num_gpu_blocks_override * kv_cache.bytes_per_block(architecture, chosen, stage)
        return vllm_oracle.ours(architecture, chosen, available, stage)
    except UsageError as error:
        return str(error)


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("model", MODELS)
def test_counts_and_refusals_equal_vllm(vllm: Vllm, model: str, kv_dtype: str):
    limit = from_config(catalog.model_config(model)).max_model_len
    answers = []
    for block_size, length, tp in itertools.product((16, 32, 48), (1000, min(8192, limit)), (1, 8)):
        try:
            architecture, chosen = resolved(model, block_size, kv_dtype, tp, length)
        except Exception as error:
            assert "divisible" in str(error)
            continue
        for available in POOLS:
            expected = vllm.plan(as_specs(architecture, chosen), [available], length)
            assert ours(architecture, chosen, available) == expected
            answers.append(type(expected))
    assert {str, tuple} <= set(answers)  # both kinds were seen


# -- the specs of vLLM's own model classes ---------------------------------------------------------


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
def test_every_kind_of_layer_plans_as_in_vllm(vllm: Vllm, model: str):
    check_against_vllm(vllm, catalog.model_config(model))


# Decoders of published models whose wrapper is another class's.
DECODERS = ("step-3.7-flash", "kimi-k3")


@pytest.mark.parametrize("model", DECODERS)
def test_published_decoders_plan_as_in_vllm(vllm: Vllm, model: str):
    check_against_vllm(vllm, text_config(catalog.model_config(model)))


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in NOT_IN_VLLM])
def test_every_hybrid_plans_as_in_vllm(vllm: Vllm, name: str):
    check_against_vllm(vllm, CONFIGS[name])


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in NOT_IN_VLLM])
def test_a_rank_holds_what_vllms_own_class_makes(vllm: Vllm, name: str, tp: int):
    architecture, refusals = from_config(CONFIGS[name]), []
    for attempt in (lambda: architecture.check_split(tp), lambda: build(vllm, CONFIGS[name], max_model_len=512)):
        try:
            with as_one_of(tp):
                built = attempt()
        except (AssertionError, UsageError) as error:
            refusals.append(str(error).partition(" (")[0])
    if refusals:
        assert refusals[0] == refusals[1]
        return
    # W_UK_T and W_UV are made when weights have been loaded, the other copy on a GPU alone.
    parts = [c for c in architecture.components if c.held and c.name not in ("W_UK_T, W_UV", DECODED)]
    held = sum(prod(c.on_rank(tp)) * architecture.copies(c) for c in parts)
    assert held == sum(p.numel() for p in built[0].parameters())


_BIAS = ("router_bias", "e_score_correction_bias")
PUBLISHED = {
    **catalog.model_config("nvidia/Llama-3_3-Nemotron-Super-49B-v1"),
    "auto_map": CONFIGS["nemotron-nas"]["auto_map"],
}


@pytest.mark.parametrize("config", [*(CONFIGS[name] for name in NOT_IN_TRANSFORMERS), PUBLISHED])
def test_what_transformers_lacks_counts_as_in_vllm(vllm: Vllm, config: dict[str, Any]):
    model, _ = build(vllm, config, max_model_len=512)
    counted = {n: p for n, p in model.named_parameters() if not n.endswith(_BIAS)}  # no parameter elsewhere
    assert from_config(config).parameters == sum(p.numel() for p in counted.values())


def check_against_vllm(vllm: Vllm, config: dict[str, Any]) -> None:
    """Equal counts and refusals, with the specs of vLLM's own class: as is, in fp8, on two ranks, without a cache of
    prefixes; pools of nothing, too small by a block, just large enough, ample."""
    length = min(8192, from_config(config).max_model_len)
    answers = []
    chooses_blocks = {k.kind for k in from_config(config).kv_kinds} == {FULL, INDEXER}  # blocks of a cache's own size
    block_size = 128 if chooses_blocks else 16
    for kv_dtype, tp, prefix_caching in (("auto", 1, True), ("fp8", 1, True), ("auto", 2, True), ("auto", 1, False)):
        if tp > 1 and from_config(config).heads % tp:
            continue
        more = f"enable_prefix_caching: {json.dumps(prefix_caching)}"
        architecture, chosen = resolved(config, block_size, kv_dtype, tp, length, more=more)
        if prefix_caching is False and not any(k.state for k in architecture.kv_kinds):
            continue
        _, built = build(
            vllm, shallow(config, architecture), kv_cache_dtype=kv_dtype, max_model_len=length,
            enable_prefix_caching=prefix_caching,
        )  # fmt: skip
        own = layer_specs(built, block_size, tp)
        assert len(own) == sum(len(caches) for caches in architecture.kv_layers)
        block = kv_cache.bytes_per_block(architecture, chosen)
        needed = kv_cache.request_blocks(architecture, chosen, length)
        for available in (1, block, block * needed, block * (needed + 1), block * needed * 10 + 12345):
            expected = vllm.plan(
                [own], [available], length, in_flight=chosen.in_flight_tokens, prefix_caching=prefix_caching
            )
            assert ours(architecture, chosen, available) == expected, (kv_dtype, tp, prefix_caching, available)
            answers.append(type(expected))
    assert {str, tuple} == set(answers)


# Caches of every kind, by how many layers have each; a layer may have two.
MIXES: dict[str, dict[KvLayer, int]] = {
    "Nemotron-H-56B": {
        KvLayer(FULL, 8, 256): 10, KvLayer(STATE, 0, 0, state=State(49152, 1 << 22, 1536, 8, kernel="mamba2")): 54
    },
    "Qwen3.5": {KvLayer(STATE, 0, 0, state=State(24576, 1 << 19)): 30, KvLayer(FULL, 2, 512): 10},
    "latent and states": {KvLayer(MLA, 1, 576): 7, KvLayer(STATE, 0, 0, state=State(36864, 1 << 19)): 20},
    "sparse attention": {KvLayer(MLA, 1, 576): 61, KvLayer(INDEXER, 1, 132, row_bytes=132): 61},
    "shared indexers": {KvLayer(MLA, 1, 576): 78, KvLayer(INDEXER, 1, 132, row_bytes=132): 21},
    "chunks": {KvLayer(CHUNKED, 8, 256, 8192): 36, KvLayer(FULL, 8, 256): 12},
    "two head counts": {KvLayer(FULL, 8, 256): 20, KvLayer(FULL, 2, 256): 12},
    "window with more heads": {KvLayer(SLIDING, 8, 320, 128): 39, KvLayer(FULL, 4, 320): 9},
    "window with wider heads": {KvLayer(SLIDING, 8, 512, 1024): 25, KvLayer(FULL, 2, 1024): 5},
    "pages that don't divide": {KvLayer(SLIDING, 8, 192, 512): 12, KvLayer(FULL, 8, 256): 12},
    "three kinds": {
        KvLayer(SLIDING, 8, 256, 512): 8, KvLayer(FULL, 8, 256): 4,
        KvLayer(STATE, 0, 0, state=State(12288, 1 << 18)): 12,
    },
    "two windows": {KvLayer(SLIDING, 8, 256, 512): 8, KvLayer(SLIDING, 8, 256, 4096): 8, KvLayer(FULL, 8, 256): 2},
}  # fmt: skip


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("name", MIXES)
def test_mixed_layers_are_grouped_as_in_vllm(vllm: Vllm, name: str, prefix_caching: bool):
    caches = [[cache] * layers for cache, layers in MIXES[name].items()]
    shuffled = [c for turn in itertools.zip_longest(*caches) for c in turn if c is not None]
    seen = []
    for block_size, tp, pp, kv_bytes in ((16, 1, 1, 2), (64, 2, 1, 1), (16, 8, 2, 2)):
        base, chosen = resolved("llama-3.1-70b", block_size, "auto", tp, 8192, pp=pp)
        architecture = replace(base, layers=len(shuffled), kv_layers=tuple((c,) for c in shuffled))
        # Unaligned blocks too, as if vLLM had not made room for the states beforehand.
        for size in {block_size, aligned(architecture, block_size, tp, kv_bytes, 2, 4)}:
            own = replace(
                chosen, block_size=size, kv_dtype_bytes=kv_bytes, state_dtype_bytes=4,
                enable_prefix_caching=prefix_caching, stages=tuple(stage_layers(len(shuffled), pp)),
            )  # fmt: skip
            for available in (1, 300 * MIB, 3 * GIB, 200 * GIB):
                expected = vllm.plan(
                    as_specs(architecture, own), [available] * pp, 8192, in_flight=own.in_flight_tokens,
                    prefix_caching=prefix_caching,
                )  # fmt: skip
                got = [ours(architecture, own, available, stage) for stage in range(pp)]
                refused = [g for g in got if isinstance(g, str)]
                assert (refused or [min(got)])[0] == expected, (size, tp, pp, available)
                seen.append(type(expected))
    assert {str, tuple} == set(seen)


def test_context_parallel_ranks_share_a_request_as_in_vllm(vllm: Vllm):
    for model, tp, dcp in (("deepseek-v3", 8, 8), ("gemma-2b", 8, 8), ("llama-3.1-8b", 32, 4)):
        architecture, chosen = resolved(
            model, 16, "auto", tp, 8192, more=f"decode_context_parallel_size: {dcp}"
        )
        for available in (3 * MIB, 20 * GIB):
            expected = vllm.plan(as_specs(architecture, chosen), [available], 8192, dcp=dcp)
            assert ours(architecture, chosen, available) == expected


@pytest.mark.parametrize(("tp", "dcp"), [(8, 2), (32, 8), (16, 2), (32, 4)])
def test_a_context_split_is_refused_as_in_vllm(vllm: Vllm, tp: int, dcp: int):
    model = vllm.configured(catalog.model_config("llama-3.1-8b")).model_config
    parallel = copy(vllm.config.parallel_config)
    parallel.tensor_parallel_size, parallel.decode_context_parallel_size = tp, dcp
    said = []
    for check in (
        lambda: model.verify_with_parallel_config(parallel),
        lambda: check_context_split(from_config(catalog.model_config("llama-3.1-8b")), tp, dcp),
    ):
        try:
            check()
            said.append("")
        except (ValueError, UsageError) as error:
            said.append(str(error))
    assert said[0] == said[1]


@pytest.mark.parametrize("blocks", [2, 300, 513, 514, 4096])
def test_an_override_counts_as_in_vllm(vllm: Vllm, blocks: int):
    architecture, chosen = resolved(
        "llama-3.1-70b", 16, "auto", 1, 8192, more=f"num_gpu_blocks_override: {blocks}"
    )
    expected = vllm.plan(as_specs(architecture, chosen), [20 * GIB], 8192, override=blocks)
    assert ours(architecture, chosen, 20 * GIB) == expected


def test_a_pipeline_gets_the_blocks_of_its_poorest_stage(vllm: Vllm):
    architecture, chosen = resolved("qwen2.5-7b", 16, "auto", 1, 8192, pp=8)
    available = [3 * GIB + i * MIB for i in range(8)]
    blocks, _, _ = vllm.plan(as_specs(architecture, chosen), available, 8192)
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
        for entrypoint, context in (("server", UsageContext.OPENAI_API_SERVER), ("llm", UsageContext.LLM_CLASS)):
            mine = engine_defaults("0.32", gpu.memory_bytes, gpu.name, entrypoint)
            assert (mine.max_num_batched_tokens, mine.max_num_seqs) == (tokens[context], seqs[context]), gpu.name
