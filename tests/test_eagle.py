"""EAGLE drafters against vLLM's own classes and planner (0.32), and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
from vllm_oracle import Vllm, as_one_of, build, build_drafter, layer_specs, vllm_on_meta

from harness import catalog
from harness.architecture import FAMILIES, from_config
from harness.architecture.eagle import WITHOUT_EAGLE3, eagle
from harness.architecture.multimodal import WRAPPERS
from harness.errors import ScenarioError, UsageError
from harness.ledger import Term
from harness.predict import kv_cache, predict, settings
from harness.predict.kv_groups import with_draft
from harness.predict.limits import bounds
from harness.scenario import Scenario, parse_scenario
from harness.simulate import Speculation
from tests.test_vllm_planner import ours

EAGLE, EAGLE3 = "yuhuili/EAGLE-LLaMA3.1-Instruct-8B", "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"
TARGET = catalog.model_config("llama-3.1-8b")
MORE = {"norm_before_fc": True, "fc_norm": True, "num_hidden_layers": 2, "num_aux_hidden_states": 4}
CASES = [
    ("eagle", catalog.drafter_config(EAGLE)), ("eagle", {**catalog.drafter_config(EAGLE), "num_hidden_layers": 2}),
    ("eagle3", catalog.drafter_config(EAGLE3)), ("eagle3", {**catalog.drafter_config(EAGLE3), **MORE}),
    ("eagle3", {**catalog.drafter_config(EAGLE3), "draft_vocab_size": None, "attention_bias": True}),
]  # fmt: skip


def scenario(method: str = "eagle3", name: str = EAGLE3, more: str = "", model: str = "llama-3.1-8b") -> Scenario:
    drafter = f"{{method: {method}, model: {name}, num_speculative_tokens: 3}}"
    return parse_scenario(
        f"name: x\nmodel: {model}\ngpu: {{name: h100}}\n"
        f"engine: {{vllm: '0.32', max_model_len: 4096, speculative_config: {drafter}}}\n{more}"
    )


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    with vllm_on_meta(tmp_path_factory.mktemp("model"), TARGET) as found:
        yield found


def proposing(folder: Path, method: str, config: dict[str, Any]) -> dict[str, Any]:
    """vLLM's arguments for the drafter of ``config``, which is written to ``folder``."""
    (folder / "config.json").write_text(json.dumps(config))
    asked = {"method": method, "model": str(folder), "num_speculative_tokens": 3}
    return {"max_model_len": 4096, "speculative_config": asked}


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize(("method", "config"), CASES)
def test_a_drafter_holds_what_vllms_own_class_makes(
    vllm: Vllm, tmp_path: Path, method: str, config: dict[str, Any], tp: int
):
    with as_one_of(tp):
        made = build_drafter(vllm.configured(TARGET, **proposing(tmp_path, method, config))).named_parameters()
    theirs = {n: p.numel() * p.element_size() for n, p in made if not n.endswith("embed_tokens.weight")}
    drafter = eagle(config, method, from_config(TARGET), 4096)
    size = {None: 2, "int64": 8}
    held = sum(prod(c.on_rank(tp)) * drafter.copies(c) * size[c.dtype] for c in drafter.components)
    assert held == sum(theirs.values()) > 0


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_its_layer_is_in_the_pool_as_in_vllm(vllm: Vllm, tmp_path: Path, method: str):
    name = EAGLE3 if method == "eagle3" else EAGLE
    _, own = build(vllm, TARGET, **proposing(tmp_path, method, catalog.drafter_config(name)))
    build_drafter(own)
    specs = layer_specs(own, 16)
    architecture, chosen = from_config(TARGET), settings(scenario(method, name))
    assert len(specs) == sum(len(caches) for caches in with_draft(architecture, chosen).kv_layers) == 33
    block = kv_cache.bytes_per_block(architecture, chosen)
    needed = kv_cache.request_blocks(architecture, chosen, 4096)
    for available in (block, block * needed, block * (needed + 1), block * needed * 10 + 12345):
        expected = vllm.plan([specs], [available], 4096, in_flight=chosen.in_flight_tokens)
        assert ours(architecture, chosen, available) == expected


def test_eagle3_for_llama_8b_by_hand():
    # q, k, v of 8,192 inputs, o, the MLP, four norms, three hidden states projected to one, an lm_head of 32,000 words.
    layer = 6144 * 8192 + 4096**2 + 3 * 4096 * 14_336 + 4 * 4096
    drafter = eagle(catalog.drafter_config(EAGLE3), "eagle3", from_config(TARGET), 0)
    assert drafter.parameters == layer + 4096 * 3 * 4096 + 32_000 * 4096 + 32_000
    plain, drafted = (
        predict(s).ledger for s in (parse_scenario(
            "name: x\nmodel: llama-3.1-8b\ngpu: {name: h100}\nengine: {vllm: '0.32', max_model_len: 4096}"
        ), scenario())
    )  # fmt: skip
    more = drafted.bytes_of(Term.WEIGHTS) - plain.bytes_of(Term.WEIGHTS)
    assert more == pytest.approx(2 * drafter.parameters, rel=0.01)
    assert "the EAGLE drafter's 0.7" in next(e.source for e in drafted.entries if e.term == Term.WEIGHTS)


def test_the_classes_without_hidden_states_to_hand_out_are_vllms(vllm: Vllm):
    from vllm.model_executor.models.interfaces import supports_eagle3
    from vllm.model_executor.models.registry import ModelRegistry

    classes = {name: ModelRegistry._try_load_model_cls(name) for name in (*FAMILIES, *WRAPPERS)}
    without = {name for name, cls in classes.items() if cls is not None and not supports_eagle3(cls)}
    assert without == set(WITHOUT_EAGLE3)
    config = {**catalog.drafter_config(EAGLE3), "vocab_size": 32_000, "draft_vocab_size": None}
    with pytest.raises(UsageError, match="MixtralForCausalLM: Model does not support EAGLE3 interface but aux_hidden"):
        eagle(config, "eagle3", from_config(catalog.model_config("mixtral-8x7b")), 0)


def test_it_is_scheduled_as_mtp_layers_are():
    load = "load: {shape: closed, requests: 60, users: 8, prompt_tokens: 500, output_tokens: 20, accepted_tokens: 1.5}"
    assert bounds(scenario(more=load), 100).speculation == Speculation(3, 1.5, lookahead=3, rows=0, drops_block=True)
    assert predict(scenario(more=load)).rung("HOLDS").holds


@pytest.mark.parametrize(("method", "name", "words"), [
    ("eagle", "null", "missing: the draft model"), ("eagle3", "yuhuili/EAGLE3-Qwen", "unknown drafter"),
    ("eagle3", "llama-3.2-1b", "unknown drafter 'llama-3.2-1b'.*known: yuhuili"),
])  # fmt: skip
def test_an_unknown_drafter_is_refused_at_its_line(method: str, name: str, words: str):
    with pytest.raises(ScenarioError, match=words):
        scenario(method, name)


@pytest.mark.parametrize(("name", "model", "words"), [
    (EAGLE3, "qwen3-8b", "the drafter takes words 128,256, and Qwen3ForCausalLM here has 151,936: it is another model"),
    (EAGLE3, "llama-3.1-70b", "takes hidden states of 4,096, and LlamaForCausalLM here has 8,192"),
])  # fmt: skip
def test_another_models_drafter_is_refused(name: str, model: str, words: str):
    with pytest.raises(UsageError, match=words):
        settings(scenario("eagle3", name, model=model))


def test_a_drafter_may_be_a_config():
    config = {**catalog.drafter_config(EAGLE3), "draft_vocab_size": 64_000}
    named, inline = (predict(scenario(name=n)).ledger.bytes_of(Term.WEIGHTS) for n in (EAGLE3, json.dumps(config)))
    assert inline - named == 32_000 * (4096 * 2 + 8)
    small = predict(scenario("draft_model", json.dumps(catalog.model_config("llama-3.2-1b"))))
    assert small.kv.bytes_per_token == predict(scenario("draft_model", "llama-3.2-1b")).kv.bytes_per_token


def test_a_class_that_is_not_known_is_refused():
    config = {**catalog.drafter_config(EAGLE3), "architectures": ["Eagle3DeepseekV2ForCausalLM"]}
    with pytest.raises(UsageError, match=r"a drafter of \['Eagle3DeepseekV2ForCausalLM'\] is not modelled"):
        eagle(config, "eagle3", from_config(TARGET), 0)
    with pytest.raises(UsageError, match="expected a whole number, got 'many'"):
        eagle({**catalog.drafter_config(EAGLE3), "draft_vocab_size": "many"}, "eagle3", from_config(TARGET), 0)
