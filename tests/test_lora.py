"""LoRA slots against vLLM's own layers on the meta device; experts split by number against vLLM's own map."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from harness import catalog
from harness.architecture import from_config
from harness.errors import ScenarioError, UsageError
from harness.ledger import RungName, Term
from harness.predict import predict, settings
from harness.predict.lora import slots
from harness.predict.settings import LORA_CLASSES
from harness.predict.weights import tensors
from harness.scenario import Scenario, parse_scenario
from tests.vllm_oracle import Vllm, build, vllm_on_meta

MODELS = (
    "llama-3.1-8b", "llama-3.2-1b", "mistralai/Mistral-7B-v0.1", "granite-3.1-8b", "qwen2.5-7b", "qwen2.5-0.5b",
    "qwen3-8b", "qwen3-0.6b", "gemma-2b", "gemma-2-9b", "qwen3-30b-a3b", "mistralai/Mixtral-8x7B-v0.1",
    "allenai/OLMoE-1B-7B-0924",
)  # fmt: skip


def scenario(model: str, engine: str, gpus: int = 1) -> Scenario:
    return parse_scenario(
        f"name: x\nmodel: {json.dumps(model)}\ngpu: {{name: h100, count: {gpus}}}\nengine: {{vllm: '0.32', {engine}}}\n"
    )


def elements(run: Scenario) -> int:
    """Elements of all slots on one rank, as we count them."""
    architecture, chosen = from_config(run.config()), settings(run)
    sizes = (
        size * architecture.copies(c)
        for c in architecture.components for _, size in slots(c, architecture, chosen)
    )  # fmt: skip
    return sum(sizes) // chosen.dtype_bytes


def test_an_adapter_of_rank_16_by_hand():
    assert elements(scenario("llama-3.1-8b", "enable_lora: true")) == 46_178_304
    plain, with_slots = (
        predict(scenario("llama-3.1-8b", e)).ledger.bytes_of(Term.WEIGHTS) for e in ("", "enable_lora: true")
    )
    assert plain and with_slots and with_slots - plain == pytest.approx(2 * 46_178_304, rel=0.01)


def test_slots_grow_with_adapters_and_rank():
    one = elements(scenario("qwen2.5-7b", "enable_lora: true"))
    many = elements(scenario("qwen2.5-7b", "enable_lora: true, max_loras: 4, max_lora_rank: 64"))
    assert many == 16 * one


def test_ranks_share_the_outputs_of_b_and_the_inputs_of_a():
    # Qwen2.5-7B has no slots at its embeddings: hidden 3584, heads 28 x 128, 4 KV heads, intermediate 18944.
    run = scenario("qwen2.5-7b", "enable_lora: true", 4)
    a = 3 * 3584 + 3584 // 4 + 2 * 3584 + 18944 // 4
    b = 7 * 128 + 2 * 128 + 3584 + 2 * 18944 // 4 + 3584
    assert elements(run) == 28 * 16 * (a + b)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    folder, config = tmp_path_factory.mktemp("lora"), catalog.model_config("qwen3-30b-a3b")
    with vllm_on_meta(folder, config) as found, pytest.MonkeyPatch.context() as patched:
        without_kernels(patched)
        yield found


def without_kernels(patched: pytest.MonkeyPatch) -> None:
    """Experts' adapters ask for a kernel that takes them, which no CPU has; their slots need none."""
    from vllm.lora.layers import BaseLayerWithLoRA, fused_moe

    def made(self: Any, base: Any) -> None:
        BaseLayerWithLoRA.__init__(self)
        self.base_layer, self.moe_config, self.device = base, base.moe_config, "meta"
        self.tp_size, self.tp_rank, self._w13_slices = 1, 0, 2 if base.moe_config.is_act_and_mul else 1

    patched.setattr(fused_moe.FusedMoEWithLoRA, "__init__", made)
    patched.setattr(fused_moe.FusedMoEWithLoRA, "set_mapping", lambda *_: None)


@pytest.mark.parametrize("model", MODELS)
def test_slots_equal_those_of_vllms_own_layers(vllm: Vllm, model: str):
    from vllm.lora.layers import BaseLayerWithLoRA
    from vllm.lora.model_manager import LoRAModelManager

    config = catalog.model_config(model)
    layers = 2
    shallow = {**config, "num_hidden_layers": layers}
    shallow.pop("layer_types", None)
    built, cfg = build(vllm, shallow, enable_lora=True, max_loras=2, max_lora_rank=32)
    LoRAModelManager(
        built, max_num_seqs=8, max_num_batched_tokens=64, vocab_size=config["vocab_size"], lora_config=cfg.lora_config,
        device="meta", vllm_config=cfg,
    )  # fmt: skip
    wrapped = {id(m): m for m in built.modules() if isinstance(m, BaseLayerWithLoRA)}
    theirs = sum(count(m.lora_a_stacked) + count(m.lora_b_stacked) for m in wrapped.values())
    architecture = from_config(shallow)
    chosen = settings(scenario(model, "enable_lora: true, max_loras: 2, max_lora_rank: 32"))
    assert architecture.name in LORA_CLASSES
    ours = sum(
        size * architecture.copies(c)
        for c in architecture.components for _, size in slots(c, architecture, chosen)
    )  # fmt: skip
    assert ours == 2 * theirs > 0


def count(stacked: Any) -> int:
    return sum(t.numel() for t in stacked) if isinstance(stacked, tuple | list) else stacked.numel()


@pytest.mark.parametrize(
    ("model", "engine", "said"),
    [
        ("falcon-7b", "enable_lora: true", "the slots of FalconForCausalLM are not modelled (known: LlamaForCausalLM,"),
        ("deepseek-v2-lite", "enable_lora: true", "the slots of DeepseekV2ForCausalLM are not modelled"),
        ("qwen3-30b-a3b", "enable_lora: true, enable_expert_parallel: true", "beside experts divided by number"),
    ],
)
def test_slots_that_are_not_known_are_refused(model: str, engine: str, said: str):
    with pytest.raises(UsageError) as caught:
        settings(scenario(model, engine))
    assert said in str(caught.value)


def test_older_releases_are_refused_and_stray_keys_too():
    run = parse_scenario("name: x\nmodel: qwen2.5-7b\ngpu: {name: h100}\nengine: {vllm: '0.15', enable_lora: true}\n")
    with pytest.raises(UsageError, match=r"modelled from vLLM 0\.16 on, not for 0\.15"):
        settings(run)
    run = parse_scenario("name: x\nmodel: mixtral-8x7b\ngpu: {name: h100}\nengine: {vllm: '0.18', enable_lora: true}\n")
    with pytest.raises(UsageError, match=r"modelled beside experts from vLLM 0\.19 on, not for 0\.18"):
        settings(run)
    run = parse_scenario(
        "name: x\nmodel: mixtral-8x7b\nweights: {format: fp8}\ngpu: {name: h100}\nengine: {enable_lora: true}\n"
    )
    with pytest.raises(UsageError, match="beside experts in fp8 it is not modelled"):
        settings(run)
    with pytest.raises(ScenarioError, match="max_loras: without enable_lora: true there are no adapters"):
        scenario("qwen2.5-7b", "max_loras: 4")
    with pytest.raises(ScenarioError, match="max_lora_rank: expected 1, 8, 16, 32, 64, 128, 256, 320 or 512"):
        scenario("qwen2.5-7b", "enable_lora: true, max_lora_rank: 5")


# -- experts and engines ---------------------------------------------------------------------------


def weights_of(model: str, engine: str, gpus: int) -> dict[str, int]:
    run = scenario(model, engine, gpus)
    found: dict[str, int] = {}
    for tensor in tensors(from_config(run.config()), settings(run), 0):
        found[tensor.name] = found.get(tensor.name, 0) + tensor.bytes * tensor.count
    return found


def test_experts_are_divided_by_width_or_by_number():
    whole, by_width, by_number = (
        weights_of("qwen3-30b-a3b", e, n) for e, n in (("", 1), ("", 8), ("enable_expert_parallel: true", 8))
    )
    for name in ("experts.w13", "experts.w2"):
        assert whole[name] == 8 * by_width[name] == 8 * by_number[name]
    uneven = weights_of("qwen1.5-moe-a2.7b", "enable_expert_parallel: true", 8)  # 60 experts: 8 on the first ranks
    assert uneven["experts.w2"] == 24 * 8 * 2048 * 1408 * 2


def test_engines_share_the_experts_and_have_attention_of_their_own():
    alone = weights_of("qwen3-30b-a3b", "", 1)
    for engine in ("data_parallel_size: 4", "data_parallel_size: 4, enable_expert_parallel: true"):
        shared = weights_of("qwen3-30b-a3b", engine, 4)
        assert shared["qkv_proj.weight"] == alone["qkv_proj.weight"]
        assert 4 * shared["experts.w13"] == alone["experts.w13"]
    dense = weights_of("llama-3.1-8b", "data_parallel_size: 4", 4)
    assert dense == weights_of("llama-3.1-8b", "", 1)


@pytest.mark.parametrize(("tp", "dp", "ep"), [(1, 4, True), (2, 4, True), (2, 4, False), (8, 1, True), (1, 1, True)])
def test_the_split_is_vllms_own(vllm: Vllm, tp: int, dp: int, ep: bool):
    from types import SimpleNamespace

    from vllm.model_executor.layers.fused_moe.config import FusedMoEParallelConfig

    run = scenario(
        "qwen3-30b-a3b",
        f"tensor_parallel_size: {tp}, data_parallel_size: {dp}, enable_expert_parallel: {str(ep).lower()}", tp * dp,
    )
    parallel = SimpleNamespace(
        enable_expert_parallel=ep, all2all_backend="allgather_reducescatter", enable_eplb=False, data_parallel_rank=0,
        is_moe_model=True,
    )
    try:
        theirs = FusedMoEParallelConfig.make(
            tp_size_=tp, pcp_size_=1, dp_size_=dp, sp_size_=1, vllm_parallel_config=parallel
        )
    except (TypeError, AttributeError) as error:
        pytest.skip(f"another vLLM than 0.32: {error}")
    assert settings(run).expert_split == (theirs.tp_size, theirs.ep_size)


def test_counts_of_gpus_and_what_is_not_judged():
    with pytest.raises(ScenarioError, match=r"x data_parallel_size is 2 x 1 x 3 = 6, but gpu\.count is 8"):
        scenario("qwen3-30b-a3b", "tensor_parallel_size: 2, data_parallel_size: 3", 8)
    load = "load: {shape: closed, users: 4, requests: 8, prompt_tokens: 512, output_tokens: 128}\n"
    text = "name: x\nmodel: qwen3-30b-a3b\ngpu: {name: h100, count: 2}\nengine: {data_parallel_size: 2}\n" + load
    holds = predict(parse_scenario(text)).rung(RungName.HOLDS)
    assert holds is not None and holds.holds is None and "spread over 2 engines" in holds.reason
    # An expert that its ranks do not divide is no obstacle where they divide the number.
    with pytest.raises(UsageError, match="not divisible"):
        settings(scenario("qwen3-30b-a3b", "tensor_parallel_size: 1, data_parallel_size: 5", 5))
    settings(scenario("qwen3-30b-a3b", "data_parallel_size: 5, enable_expert_parallel: true", 5))
