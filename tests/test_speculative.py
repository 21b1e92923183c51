"""engine.speculative_config: a draft model beside the model, and the logits that check what is proposed."""

from __future__ import annotations

import json
from math import prod

import pytest

from harness import catalog
from harness.architecture import from_config, mtp
from harness.errors import ScenarioError, UsageError
from harness.ledger import RungName, Term
from harness.predict import kv_cache, predict, settings
from harness.predict.kv_cache import bytes_per_token
from harness.predict.kv_groups import groups, with_draft
from harness.predict.limits import bounds
from harness.predict.quantization import own_quantization
from harness.predict.step_time import clock
from harness.predict.weights import draft_weights, tensors
from harness.scenario import Scenario, parse_scenario
from harness.simulate import Speculation
from tests.hybrid_configs import CONFIGS
from tests.hybrid_configs import SMALL as TINY
from tests.test_vllm_planner import ours, shallow
from tests.vllm_oracle import Specs, Vllm, as_one_of, as_specs, build, build_drafter, layer_specs, vllm_on_meta

DRAFT = "speculative_config: {model: llama-3.2-1b, num_speculative_tokens: 5}"
MTP = "speculative_config: {method: mtp, num_speculative_tokens: 2}"
NGRAM = "speculative_config: {method: ngram, num_speculative_tokens: 5}"


def scenario(
    engine: str = DRAFT, vllm: str = "0.19", model: str = "llama-3.1-8b", more: str = "", gpus: int = 1
) -> Scenario:
    return parse_scenario(
        f"name: x\nmodel: {model}\ngpu: {{name: h100, count: {gpus}}}\n"
        f"engine: {{vllm: '{vllm}'{engine and ', '}{engine}}}\n{more}"
    )


def test_a_draft_models_weights_are_loaded_beside_the_models():
    plain, drafted = (predict(scenario(e)).ledger for e in ("", DRAFT))
    alone = settings(scenario("", model="llama-3.2-1b"))
    config = from_config(catalog.model_config("llama-3.2-1b"))
    parameters = sum(t.bytes * t.count for t in tensors(config, alone, 0))
    more = drafted.bytes_of(Term.WEIGHTS) - plain.bytes_of(Term.WEIGHTS)
    assert more == draft_weights(settings(scenario())) == pytest.approx(parameters, rel=0.01)
    assert more == pytest.approx(1_235_814_400 * 2, rel=0.01)  # its checkpoint
    assert "the draft model's 2.32 GiB" in next(e.source for e in drafted.entries if e.term == Term.WEIGHTS)


def test_its_layers_are_in_the_pool_by_hand():
    # 32 layers and 16 of the draft; K and V of 8 heads x 128 and of 8 heads x 64, 2 bytes.
    target = from_config(catalog.model_config("llama-3.1-8b"))
    chosen = settings(scenario())
    assert bytes_per_token(target, chosen) == 2 * 2 * (32 * 8 * 128 + 16 * 8 * 64)
    (group,) = groups(target, chosen)
    assert len(group.layers) == 48
    assert predict(scenario()).kv.bytes_per_token == 163_840


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory):
    with vllm_on_meta(tmp_path_factory.mktemp("draft"), catalog.model_config("qwen3-30b-a3b")) as found:
        yield found


@pytest.mark.parametrize(("model", "draft"), [
    ("llama-3.1-8b", "llama-3.2-1b"), ("qwen3-8b", "qwen3-0.6b"), ("gemma-2-9b", "gemma-2b"),
    ("gemma-2-9b", "gemma-2-9b"),
])  # fmt: skip
def test_vllms_planner_counts_as_much_for_both_models(vllm: Vllm, model: str, draft: str):
    engine = f"max_model_len: 4096, speculative_config: {{model: {draft}, num_speculative_tokens: 3}}"
    architecture, chosen = from_config(catalog.model_config(model)), settings(scenario(engine, "0.32", model))
    specs: Specs = {}
    for name in (model, draft):
        for layer, spec in as_specs(from_config(catalog.model_config(name)), chosen)[0].items():
            specs[f"{len(specs)}.{layer}"] = spec
    for available in (10**8, 2 * 10**9, 20 * 10**9):
        expected = vllm.plan([specs], [available], 4096, in_flight=chosen.in_flight_tokens)
        assert ours(architecture, chosen, available) == expected


def test_ngram_loads_nothing_but_its_proposals_are_checked_too():
    runs = [predict(scenario(e)) for e in ("", NGRAM)]
    plain, guessed = (run.ledger for run in runs)
    assert guessed.bytes_of(Term.WEIGHTS) == plain.bytes_of(Term.WEIGHTS)
    assert runs[0].kv.bytes_per_token == runs[1].kv.bytes_per_token == 131_072
    # S = 1024 rows of 128,256: 3d + 20 in place of 12 + d, less the buffer of the top-k kernel (132 multiprocessors).
    more = guessed.bytes_of(Term.ACTIVATION_PEAK) - plain.bytes_of(Term.ACTIVATION_PEAK)
    assert more == 1024 * 128_256 * (26 - 14) - 132 * 128_256 * 4


@pytest.mark.parametrize(("vllm", "engine", "runner"), [
    ("0.30", DRAFT, "v1"), ("0.31", DRAFT, "v2"), ("0.31", NGRAM, "v1"), ("0.32", NGRAM, "v2"), ("0.30", "", "v2"),
])  # fmt: skip
def test_model_runner_v2_takes_them_up_one_by_one(vllm: str, engine: str, runner: str):
    assert settings(scenario(engine, vllm)).model_runner == runner


def test_a_draft_model_as_large_as_the_model_decides_the_layers_path():
    engine = "max_num_seqs: 1, speculative_config: {model: llama-3.1-8b, num_speculative_tokens: 2}"
    small, same = (
        predict(scenario(e, model=m)).ledger.bytes_of(Term.ACTIVATION_PEAK)
        for e, m in (("max_num_seqs: 1", "llama-3.1-8b"), (engine, "llama-3.1-8b"))
    )
    assert same - small == 8192 * 4096 * 2  # the hidden states of the model, which are held meanwhile


LOAD = "load: {shape: closed, requests: 600, users: 512, prompt_tokens: 500, output_tokens: 20}\n"


def test_more_proposals_than_the_profile_checks_may_not_be_held():
    engine = "gpu_memory_utilization: 0.97, max_num_seqs: 512, "
    many = "speculative_config: {method: ngram, num_speculative_tokens: 15}"
    rungs = {r.rung: r for r in predict(scenario(engine + many, more=LOAD)).rungs}
    assert rungs[RungName.STARTS].holds
    # 512 x 16 rows of 128,256 in 10 bytes, where 512 x 26 were profiled.
    holds = rungs[RungName.HOLDS]
    assert holds.holds is False and "8,192 rows of logits x 10 bytes" in holds.reason
    few = {r.rung: r for r in predict(scenario(engine + NGRAM.replace("5", "1"), more=LOAD)).rungs}
    assert few[RungName.HOLDS].holds is not False


@pytest.mark.parametrize(("engine", "vllm", "words"), [
    ("speculative_config: {num_speculative_tokens: 5}", "0.19", "the draft model"),
    ("speculative_config: {model: llama-3.2-1b}", "0.19", "num_speculative_tokens"),
    ("speculative_config: {method: ngram, model: llama-3.2-1b, num_speculative_tokens: 5}", "0.19", "no model"),
    ("speculative_config: {method: medusa, model: x, num_speculative_tokens: 5}", "0.19", "draft_model"),
    ("speculative_config: {method: mtp, model: llama-3.2-1b, num_speculative_tokens: 5}", "0.19", "own checkpoint"),
    (MTP, "0.16", "MTP layers are modelled from vLLM 0.17 on"),
    (f"{MTP}, pipeline_parallel_size: 2", "0.19", "MTP layers beside pipeline stages"),
    ("speculative_config: {model: lama-3.2-1b, num_speculative_tokens: 5}", "0.19", "unknown model"),
    (DRAFT, "0.14", "0.15"),
    (f"{DRAFT}, pipeline_parallel_size: 2", "0.19", "pipeline stages"),
])  # fmt: skip
def test_what_does_not_go_together(engine: str, vllm: str, words: str):
    with pytest.raises(ScenarioError, match=words):
        scenario(engine, vllm, gpus=2 if "pipeline" in engine else 1)


def test_another_vocabulary_is_refused_in_vllms_words():
    with pytest.raises(UsageError, match=r"same vocabulary size. Target model vocab_size=152064\. .*=128256"):
        settings(scenario(model="qwen2.5-7b"))


# -- the model's own MTP layers --------------------------------------------------------------------


PREDICTING = (
    "deepseek-v3", "deepseek-v3.2", "zai-org/GLM-5.2", "glm-4.5", "glm-4.5-air", "qwen3-next-80b-a3b", "qwen3.5-9b",
    "Qwen/Qwen3.5-35B-A3B", "step-3.7-flash", "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
    "XiaomiMiMo/MiMo-V2-Flash", "mimo-7b", "glm-4.7-flash", "ernie-4.5-moe",
)  # fmt: skip
SHARED = ("embed_tokens.weight", "lm_head.weight", "shared_head.head.weight")  # dropped for the decoder's once loaded
OWN_HEADS = ("step-3.7-flash",)  # whose heads are kept
PROPOSING = {"max_model_len": 4096, "speculative_config": {"method": "mtp", "num_speculative_tokens": 2}}
OWN = {
    "step-3.7-flash": {"auto_map": {"AutoConfig": "configuration_own.StepConfig"}},
    "mimo-7b": {"auto_map": {"AutoConfig": "configuration_own.MimoConfig"}},
    "XiaomiMiMo/MiMo-V2-Flash": {  # what the catalogue leaves out
        "layernorm_epsilon": 1e-5, "sliding_window_size": 128, "scoring_func": "sigmoid", "norm_topk_prob": True,
        "rope_theta": 5e6, "swa_rope_theta": 1e4, "add_swa_attention_sink_bias": True,
    },
}  # classes of the configs' own


PLAIN = {**TINY, "max_position_embeddings": 4096}
# Small ones of classes that the catalogue has none of.
SMALL = {
    "mimo-7b": {
        **PLAIN, "architectures": ["MiMoForCausalLM"], "model_type": "mimo", "attention_bias": True,
        "num_nextn_predict_layers": 1,
    },
    "glm-4.7-flash": {**CONFIGS["glm-4.7-flash"], "num_nextn_predict_layers": 1, "max_position_embeddings": 4096},
    "ernie-4.5-moe": {**CONFIGS["ernie-4.5-moe"], "max_position_embeddings": 4096},
}  # fmt: skip


def with_mtp(model: str, tp: int = 1, more: str = "", vllm: str = "0.32"):
    """(config without quantization, architecture, settings)"""
    engine = f"tensor_parallel_size: {tp}, max_model_len: 4096, block_size: 16, {MTP}{more}"
    read = scenario(engine, vllm, json.dumps(SMALL[model]) if model in SMALL else model, gpus=tp)
    architecture = from_config(read.config())
    config = {**shallow(read.config(), architecture), **OWN.get(model, {})}
    return config, architecture, settings(read, architecture)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("model", PREDICTING)
def test_mtp_layers_hold_what_vllms_own_class_makes(vllm: Vllm, model: str, tp: int):
    config, _, chosen = with_mtp(model, tp)
    with as_one_of(tp):
        made = build_drafter(vllm.configured(config, **PROPOSING)).named_parameters()
    dropped = SHARED[:1] if model in OWN_HEADS else SHARED
    theirs = {name: p.numel() for name, p in made if not name.endswith(dropped)}
    drafter = chosen.draft.architecture if chosen.draft else None
    assert drafter is not None
    parts = [c for c in drafter.components if c.held and c.name != "W_UK_T, W_UV"]  # these are made once loaded
    assert sum(prod(c.on_rank(tp)) * drafter.copies(c) for c in parts) == sum(theirs.values()) > 0


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("model", PREDICTING)
def test_mtp_layers_are_in_the_pool_as_in_vllm(vllm: Vllm, model: str, prefix_caching: bool, tp: int):
    more = f", enable_prefix_caching: {str(prefix_caching).lower()}"
    config, architecture, chosen = with_mtp(model, tp, more)
    _, own = build(vllm, config, **PROPOSING, enable_prefix_caching=prefix_caching)
    build_drafter(own)
    specs = layer_specs(own, 16, tp)
    assert len(specs) == sum(len(caches) for caches in with_draft(architecture, chosen).kv_layers)
    block, needed = (f(architecture, chosen, *more) for f, more in (
        (kv_cache.bytes_per_block, ()), (kv_cache.request_blocks, (4096,))
    ))  # fmt: skip
    for available in (block, block * needed, block * (needed + 1), block * needed * 10 + 12345):
        expected = vllm.plan(
            [specs], [available], 4096, in_flight=chosen.in_flight_tokens, prefix_caching=prefix_caching
        )
        assert ours(architecture, chosen, available) == expected


def test_the_mtp_layer_of_deepseek_v3_by_hand():
    # A layer with experts, as it has 58 of them, and a projection of 14,336 to 7,168 with two norms.
    _, architecture, chosen = with_mtp("deepseek-v3")
    whole = sum(c.elements for c in architecture.components if c.counted and c.layers is None and c.place == "layer")
    routed = sum(c.elements for c in architecture.components if c.counted and c.layers and 60 in c.layers)
    assert chosen.draft is not None
    assert chosen.draft.architecture.parameters == whole + routed + 2 * 7168**2 + 3 * 7168 == 11_610_067_968
    assert chosen.draft.quantization.name == "fp8-block"
    assert bytes_per_token(architecture, chosen) == 62 * 576 * 2


def test_the_mtp_layers_of_nemotron_3_ultra_by_hand():
    # Attention, then experts between matrices of 8,192 x 2,048; the projection is split and there once.
    config = catalog.model_config("nemotron-3-ultra")
    attention = (2 * 64 + 2 * 2) * 128 * 8192
    experts = 512 * 2 * 5120 * 2048 + 2 * 10_240 * 8192 + 2 * 2048 * 8192 + 512 * 8192
    assert mtp(config).parameters == attention + experts + 2 * 8192**2 + (2 + 3) * 8192 == 11_215_609_856
    for letters, kinds in (("*E", ["full_attention", "moe"]), ("EE*", ["moe", "moe", "attention"])):
        named = [
            mtp({**config, **given})
            for given in ({"mtp_hybrid_override_pattern": letters}, {"mtp_layers_block_type": kinds})
        ]
        assert named[0] == named[1]


@pytest.mark.parametrize(("given", "words"), [
    ({"num_nextn_predict_layers": 2}, "Only one MTP layer is supported for NemotronH-MTP"),
    ({"mtp_hybrid_override_pattern": "*M"}, "config: mtp_layers_block_type: expected attention or moe for each layer"),
    ({"mtp_layers_block_type": "moe"}, "config: mtp_layers_block_type: expected attention or moe for each layer"),
])  # fmt: skip
def test_mtp_layers_that_nemotrons_class_does_not_make(given: dict[str, object], words: str):
    with pytest.raises(UsageError, match=words):
        mtp({**catalog.model_config("nemotron-3-ultra"), **given})


@pytest.mark.parametrize("made_from", ["GLM-5.2", "Qwen3.5-397B-A17B", "DeepSeek-V3.1"])
def test_a_checkpoint_may_leave_its_mtp_layers_unquantized(made_from: str):
    config = catalog.model_config(f"nvidia/{made_from}-NVFP4")
    assert own_quantization(config, from_config(config)).main.name == "nvfp4"
    assert own_quantization(config, mtp(config)).name == "bf16"


def test_older_names_of_mtp_are_the_same():
    runs = [
        predict(scenario(f"tensor_parallel_size: 8, {MTP.replace('mtp', name)}", "0.32", "deepseek-v3", gpus=8))
        for name in ("mtp", "deepseek_mtp")
    ]
    assert runs[0].ledger == runs[1].ledger
    assert "the MTP layers' " in next(e.source for e in runs[0].ledger.entries if e.term == Term.WEIGHTS)


@pytest.mark.parametrize("engine", [DRAFT, NGRAM])
def test_steps_with_a_drafter_have_no_predicted_time(engine: str):
    found = clock(read := scenario(engine), from_config(read.config()), settings(read))
    assert (found == "what a drafter's own passes take is not modelled") is (engine == DRAFT)


def test_mtp_takes_no_row_of_the_budget_and_computes_the_last_found_block_again():
    engine, load = f"tensor_parallel_size: 8, {MTP}", LOAD.replace("users", "accepted_tokens: 1.5, users")
    found = bounds(scenario(engine, "0.32", "deepseek-v3", load, gpus=8), 100).speculation
    assert found == Speculation(2, 1.5, lookahead=2, rows=0, drops_block=True)
    held = predict(scenario(MTP, "0.32", "qwen3.5-9b", f"{load}")).rung("HOLDS")
    assert held.holds is None and "fed with hidden states, beside several block tables, is not" in held.reason


@pytest.mark.parametrize(("model", "engine", "words"), [
    ("llama-3.1-8b", MTP, "the MTP layers of LlamaForCausalLM are not modelled .known: DeepseekV3ForCausalLM"),
    ("kimi-k2", MTP, "the model has no MTP layers .num_nextn_predict_layers of its config"),
])  # fmt: skip
def test_mtp_layers_that_are_not_known_are_refused(model: str, engine: str, words: str):
    with pytest.raises(UsageError, match=words):
        settings(scenario(engine, "0.32", model))


@pytest.mark.parametrize("wrong", [
    {"num_nextn_predict_layers": -1}, {"num_nextn_predict_layers": "one"}, {"num_nextn_predict_layers": 10**9},
    {"quantization_config": ["NVFP4"]},
])  # fmt: skip
def test_an_absurd_config_is_one_line(wrong: dict[str, object]):
    config = json.dumps({**catalog.model_config("deepseek-v3"), **wrong})
    with pytest.raises(UsageError, match=r"^config: \w+: expected "):
        settings(scenario(MTP, "0.32", config))


def test_layers_take_turns_so_the_tokens_must_come_out_even():
    config = {**catalog.model_config("deepseek-v3"), "num_nextn_predict_layers": 2}
    three = MTP.replace("2}", "3}")
    with pytest.raises(UsageError, match=r"num_speculative_tokens:3 must be divisible by n_predict=2"):
        settings(scenario(three, "0.32", json.dumps(config)))


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("name", ["nemotron-h", "granite-4", "falcon-h1", "qwen3-next"])
def test_each_proposed_token_has_a_state_of_its_own(vllm: Vllm, name: str, prefix_caching: bool):
    config, caching = CONFIGS[name], f"enable_prefix_caching: {str(prefix_caching).lower()}"
    read = scenario(f"max_model_len: 512, block_size: 16, {caching}, {NGRAM}", "0.32", json.dumps(config))
    architecture = from_config(config)
    chosen = settings(read)
    _, own = build(
        vllm, shallow(config, architecture), max_model_len=512, enable_prefix_caching=prefix_caching,
        speculative_config={"method": "ngram", "num_speculative_tokens": 5},
    )  # fmt: skip
    specs = layer_specs(own, 16)
    needed = kv_cache.request_blocks(architecture, chosen, 512) * kv_cache.bytes_per_block(architecture, chosen)
    for available in (needed, needed * 2, needed * 10 + 12345):
        expected = vllm.plan(
            [specs], [available], 512, in_flight=chosen.in_flight_tokens, prefix_caching=prefix_caching
        )
        assert ours(architecture, chosen, available) == expected


def test_states_that_are_not_known_beside_proposals_are_refused():
    with pytest.raises(UsageError, match="the states of KimiLinearForCausalLM beside it are not modelled"):
        settings(scenario(NGRAM, "0.32", json.dumps(CONFIGS["kimi-linear"])))


def test_the_mtp_layers_of_step_are_what_its_lists_say():
    """Three sliding layers of 96 heads with a plain MLP, each with an lm_head: by hand."""
    _, architecture, chosen = with_mtp("step-3.7-flash")
    assert chosen.draft is not None
    attention = (96 + 2 * 8) * 128 * 4096 + 96 * 128 * 4096 + 96 * 4096 + 2 * 128
    each = attention + 3 * 11_264 * 4096 + 128_896 * 4096 + 2 * 4096**2 + 5 * 4096
    assert chosen.draft.architecture.parameters == 3 * each == 2_428_171_008
    assert [k.window for k in chosen.draft.architecture.kv_kinds] == [512]
    assert bytes_per_token(architecture, chosen) == 48 * 2 * 8 * 128 * 2


@pytest.mark.parametrize(("changes", "words"), [
    ({"layer_types": catalog.model_config("step-3.7-flash")["text_config"]["layer_types"][:45]},
     "layer_types: expected one more for each of 3 MTP layers"),
    ({"moe_layers_enum": "3,four"}, "moe_layers_enum: expected numbers of layers"),
])  # fmt: skip
def test_lists_too_short_for_mtp_layers_are_refused(changes: dict[str, object], words: str):
    config = catalog.model_config("step-3.7-flash")
    with pytest.raises(UsageError, match=words):
        mtp({**config, "text_config": {**config["text_config"], **changes}})


def test_mtp_layers_of_step_without_its_wrapper_are_refused():
    with pytest.raises(UsageError, match=r"drops what layer_types says of MTP layers"):
        mtp(CONFIGS["step-3.5"])
