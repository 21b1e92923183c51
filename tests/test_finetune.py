"""The training step: adapters, states, activations and peaks against peft, bitsandbytes and PyTorch's own counts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import SCENARIOS, bench
from test_walls import pulled_in

from harness import catalog
from harness.architecture import from_config
from harness.errors import ScenarioError, UsageError
from harness.ledger import Term
from harness.predict import predict
from harness.predict.finetune import activations, states, step
from harness.predict.finetune.parameters import SUPPORTED, adapters, parameters
from harness.predict.finetune.ways import ways
from harness.report.tables import load_run
from harness.scenario import Lora, Training, load_scenario, parse_scenario

ATTENTION = {"Phi3ForCausalLM": ["qkv_proj"]}
SEVEN_B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 32768, "max_position_embeddings": 32768, "num_hidden_layers": 4,
}  # fmt: skip


def architecture(name: str, config: dict[str, Any]) -> Any:
    return from_config({"architectures": [name], "torch_dtype": "bfloat16", **config})


def count(tensors: Any) -> int:
    return sum(p.elements * p.count for p in tensors)


# -- adapters ------------------------------------------------------------------------------------------

MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3", "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen3-8B", "microsoft/Phi-3-mini-4k-instruct", "google/gemma-7b", "HuggingFaceTB/SmolLM3-3B",
)  # fmt: skip


@pytest.mark.parametrize("targets", ["all-linear", "attention", "mlp"])
@pytest.mark.parametrize("model", MODELS)
def test_adapters_are_pefts_own(model: str, targets: str) -> None:
    from torch_memory import peft, torch, transformers

    config = catalog.model_config(model)
    a = from_config(config)
    fused = a.name == "Phi3ForCausalLM"
    chosen = {
        "all-linear": "all-linear",
        "attention": ["qkv_proj"] if fused else ["q_proj", "v_proj"],
        "mlp": ["gate_up_proj", "down_proj"] if fused else ["gate_proj", "up_proj", "down_proj"],
    }[targets]
    lora = Lora(rank=8, target_modules=chosen)
    cls = getattr(transformers, a.name)
    with torch.device("meta"):
        real = peft.get_peft_model(cls(cls.config_class(**config)), peft.LoraConfig(r=8, target_modules=chosen))
    trained = [tuple(p.shape) for p in real.parameters() if p.requires_grad]
    ours = [p.shape for p in adapters(a, lora) for _ in range(p.count)]
    assert sorted(trained) == sorted(ours)
    assert count(adapters(a, lora)) == real.get_nb_trainable_parameters()[0]
    assert count(parameters(a)) == a.parameters == real.get_nb_trainable_parameters()[1] - count(adapters(a, lora))


def test_by_hand_lora_of_rank_16_on_mistral_7b() -> None:
    a = from_config(catalog.model_config("mistralai/Mistral-7B-Instruct-v0.3"))
    rows = {p.name: p.elements for p in adapters(a, Lora(rank=16, target_modules=["q_proj", "v_proj"]))}
    assert rows == {
        "q_proj.lora_A": 16 * 4096, "q_proj.lora_B": 4096 * 16, "v_proj.lora_A": 16 * 4096, "v_proj.lora_B": 1024 * 16,
    }  # fmt: skip
    assert count(adapters(a, Lora(rank=16))) == 41_943_040


# -- states --------------------------------------------------------------------------------------------


def tensor_bytes(state: dict[str, Any]) -> int:
    return sum(v.nbytes for k, v in state.items() if hasattr(v, "nbytes") and not k.startswith("qmap"))


@pytest.mark.parametrize("precision", ["mixed", "bf16"])
@pytest.mark.parametrize("name", ["adamw", "sgd", "sgd-momentum", "adafactor", "adamw-8bit", "paged-adamw"])
def test_the_states_are_those_of_the_real_optimizer(name: str, precision: str) -> None:
    import torch_memory as real

    torch = real.torch
    training = Training(method="full", optimizer=name, precision=precision)
    model, config = real.build("LlamaForCausalLM", training, real.SMALL)
    trained = list(model.parameters())
    for p in trained:
        p.grad = torch.zeros_like(p)
    if name in real.OPTIMIZERS:
        optimizer = real.OPTIMIZERS[name](trained)
        optimizer.step()
        whole = 0
    else:
        bnb = pytest.importorskip("bitsandbytes")
        optimizer = {"adamw-8bit": bnb.optim.AdamW8bit, "paged-adamw": bnb.optim.AdamW32bit}[name](trained)
        optimizer.mng.register_parameters(trained)
        # As transformers' Trainer has it: embeddings are left in float32.
        optimizer.mng.override_config(model.get_input_embeddings().weight, "optim_bits", 32)
        optimizer.check_overrides()
        for index, p in enumerate(trained):
            optimizer.init_state(optimizer.param_groups[0], p, 0, index)
        whole = states.QMAPS if name == "adamw-8bit" else 0
    a = from_config(config.to_dict())
    assert states.optimizer_bytes(states.trainable(a, training), training) == whole + sum(
        tensor_bytes(optimizer.state[p]) for p in trained
    )


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_4_bit_weight_takes_what_bitsandbytes_holds(double_quant: bool) -> None:
    from torch_memory import torch

    bnb = pytest.importorskip("bitsandbytes")
    weight = bnb.nn.Params4bit(
        torch.randn(300, 648), requires_grad=False, quant_type="nf4", compress_statistics=double_quant
    ).to("cpu")
    state = weight.quant_state
    parts = [weight, state.absmax, state.code]
    if double_quant:
        parts += [state.offset, state.state2.absmax, state.state2.code]
    assert states.nf4_bytes(300 * 648, double_quant) == sum(p.nbytes for p in parts)


def test_a_published_4_bit_footprint_comes_out() -> None:
    """Qwen2.5-7B in nf4 beside 16-bit embeddings: 5.44 GB by transformers' get_memory_footprint, which leaves scales
    out (https://dev.to/sumanpro/qlora-fine-tuning-a-7b-model-on-a-16gb-gpu-it-shrank-to-54gb-in-front-of-me-28n4)."""
    a = from_config(catalog.model_config("Qwen/Qwen2.5-7B-Instruct"))
    training = Training(method="qlora", prepare_model_for_kbit_training=False)
    linear = [p for p in parameters(a) if p.module]
    scales = sum((states.nf4_bytes(p.elements, True) - p.elements // 2) * p.count for p in linear)
    assert (states.base_bytes(a, training) - scales) / 1e9 == pytest.approx(5.44, abs=0.005)


def test_paged_states_are_counted_on_the_host() -> None:
    a = from_config(catalog.model_config("mistralai/Mistral-7B-Instruct-v0.3"))
    plain, paged = (Training(method="full", optimizer=o, precision="bf16") for o in ("adamw-8bit", "paged-adamw-8bit"))
    tensors = states.trainable(a, paged)
    assert states.optimizer_bytes(tensors, plain) == states.optimizer_bytes(tensors, paged)
    here = step.moments(a, paged)[0].terms[Term.OPTIMIZER]
    assert here.high == states.optimizer_bytes(tensors, paged)
    assert here.bytes < 0.06 * here.high  # absmax and the norms' states stay
    assert step.moments(a, plain)[0].terms[Term.OPTIMIZER].bytes == here.high


# -- activations ---------------------------------------------------------------------------------------

CASES = {
    "full-bf16": {"method": "full", "precision": "bf16"},
    "full-mixed": {"method": "full"},
    "full-fp32-eager": {"method": "full", "precision": "fp32", "attn_implementation": "eager"},
    "full-mixed-eager": {"method": "full", "attn_implementation": "eager"},
    "lora-mixed": {"method": "lora"},
    "lora-bf16": {"method": "lora", "precision": "bf16"},
    "lora-attention": {"method": "lora", "lora": "attention"},
    "lora-down": {"method": "lora", "precision": "bf16", "lora": "down"},
    "qlora-mixed": {"method": "qlora"},
    "qlora-bf16": {"method": "qlora", "precision": "bf16", "prepare_model_for_kbit_training": False},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SUPPORTED)
def test_a_block_keeps_what_autograd_saves_byte_for_byte(name: str, case: str) -> None:
    from torch_memory import kept

    given = dict(CASES[case])
    modules = {"attention": ATTENTION.get(name, ["q_proj", "v_proj"]), "down": ["down_proj"]}
    if "lora" in given:
        given["lora"] = Lora(rank=8, target_modules=modules[given["lora"]])
    training = Training(sequence_length=48, micro_batch=2, **given)
    two, _ = kept(name, training, 2)
    three, config = kept(name, training, 3)
    shape = activations.shape(from_config(config.to_dict()), training)
    assert three - two == sum(size for _, size in activations.block(shape))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_whole_forward_pass_keeps_what_autograd_saves(method: str) -> None:
    from torch_memory import kept

    training = Training(method=method, sequence_length=48, micro_batch=2)
    saved, config = kept("LlamaForCausalLM", training, 3)
    shape = activations.shape(from_config(config.to_dict()), training)
    blocks = [activations.block(shape, flowing=i > 0 or method == "full") for i in range(3)]
    loss = 4 * shape.T * shape.V + 8 * shape.T + 4  # log-softmax, labels, their number
    assert saved == sum(size for part in (*blocks, activations.ends(shape)) for _, size in part) + loss


# -- the step ------------------------------------------------------------------------------------------

STEPS: tuple[tuple[dict[str, Any], float], ...] = (
    ({"method": "full", "precision": "bf16", "sequence_length": 4096}, 0.001),
    ({"method": "full", "precision": "bf16", "sequence_length": 4096, "gradient_checkpointing": True}, 0.001),
    ({"method": "full", "sequence_length": 512, "gradient_checkpointing": True}, 0.002),
    ({"method": "full", "sequence_length": 4096, "gradient_checkpointing": True}, 0.002),
    ({"method": "full", "sequence_length": 256, "optimizer": "adafactor", "precision": "bf16"}, 0.001),
    ({"method": "full", "sequence_length": 256, "optimizer": "sgd-momentum"}, 0.002),
    ({"method": "lora", "sequence_length": 2048}, 0.001),
    ({"method": "lora", "sequence_length": 4096, "gradient_checkpointing": True}, 0.001),
    ({"method": "lora", "precision": "fp32", "sequence_length": 512, "gradient_checkpointing": True}, 0.001),
)


@pytest.mark.parametrize(("given", "tolerance"), STEPS)
def test_the_peak_of_a_step_is_what_pytorch_holds(given: dict[str, Any], tolerance: float, monkeypatch: Any) -> None:
    """Blocks as wide as a 7B's; whole steps, optimizer included."""
    from torch_memory import held

    training = Training(**given)
    between, peak = held("LlamaForCausalLM", training, SEVEN_B, monkeypatch)
    first, *others = step.moments(architecture("LlamaForCausalLM", SEVEN_B), training)
    assert first.bytes == pytest.approx(between, rel=1e-6)
    assert max(m.bytes for m in others) == pytest.approx(peak, rel=tolerance)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", ["GemmaForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_the_peak_of_other_classes(name: str, method: str, monkeypatch: Any) -> None:
    """Half as wide; Gemma's embedding is tied, and Qwen2's here."""
    from torch_memory import SMALL, held

    config = {
        **SMALL, "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16, "num_key_value_heads": 4,
        "vocab_size": 32000, "max_position_embeddings": 8192, "head_dim": 128,
        **({"tie_word_embeddings": True} if name == "Qwen2ForCausalLM" else {}),
    }  # fmt: skip
    training = Training(method=method, sequence_length=2048, gradient_checkpointing=True)
    between, peak = held(name, training, config, monkeypatch)
    first, *others = step.moments(architecture(name, config), training)
    assert first.bytes == pytest.approx(between, rel=1e-6)
    assert max(m.bytes for m in others) == pytest.approx(peak, rel=0.005)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("precision", ["mixed", "bf16"])
def test_a_step_on_a_4_bit_base_peaks_within_the_interval(
    precision: str, checkpointing: bool, monkeypatch: Any
) -> None:
    """Really computed, by bitsandbytes' CPU kernels."""
    pytest.importorskip("bitsandbytes")
    from torch_memory import held

    config = {
        "hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 2048, "max_position_embeddings": 1024, "num_hidden_layers": 3, "pad_token_id": 0,
    }  # fmt: skip
    training = Training(
        method="qlora", precision=precision, sequence_length=512, gradient_checkpointing=checkpointing,
        prepare_model_for_kbit_training=precision == "mixed",
    )  # fmt: skip
    between, peak = held("LlamaForCausalLM", training, config, monkeypatch, fake=False)
    first, *others = step.moments(architecture("LlamaForCausalLM", config), training)
    assert first.bytes == between
    highest = max(others, key=lambda m: m.bytes)
    low, high = (sum(getattr(e, end) for e in highest.terms.values()) for end in ("low", "high"))
    assert 0.999 * low <= peak <= 1.001 * high


def test_gradients_stay_while_they_accumulate() -> None:
    a = architecture("LlamaForCausalLM", SEVEN_B)
    once, twice = (
        {m.name: m for m in step.moments(a, Training(method="full", gradient_accumulation_steps=n))} for n in (1, 2)
    )
    assert Term.GRADIENTS not in once["loss"].terms
    assert twice["loss"].bytes - once["loss"].bytes == 4 * a.parameters


def test_checkpointing_and_flash_attention_shrink_what_they_should() -> None:
    a = architecture("LlamaForCausalLM", SEVEN_B)

    def kept(**given: Any) -> int:
        terms = step.moments(a, Training(method="lora", sequence_length=4096, **given))[1].terms
        return terms[Term.ACTIVATIONS].bytes

    assert kept(gradient_checkpointing=True) < 0.06 * kept()
    pairs = 32 * 4096**2 * (4 + 2) * 4  # scores of four blocks
    assert kept(attn_implementation="eager") - kept() == pytest.approx(pairs, rel=0.01)


# -- the scenario --------------------------------------------------------------------------------------

GOOD = """
name: a
kind: finetune
model: mistralai/Mistral-7B-Instruct-v0.3
gpu: {name: rtx-4090-24gb}
training: {method: lora}
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("kind: finetune", "kind: serve"), "training: given without kind: finetune"),
        (("training: {method: lora}", ""), "training: missing"),
        (("method: lora", "method: qlra"), 'got "qlra"; did you mean'),
        (("method: lora", "method: full, lora: {rank: 8}"), "method: full has no adapters"),
        (("method: lora", "method: lora, double_quant: false"), "training.double_quant: method: lora has no 4-bit"),
        (("method: lora", "method: lora, lora: {rank: 0}"), "training.lora.rank: expected at least 1, got 0"),
        (("method: lora", "method: lora, lora: {target_modules: 3}"), "expected all-linear or a list of modules"),
        (("rtx-4090-24gb", "rtx-4090-24gb, count: 2"), "gpu.count: fine-tuning is predicted for one device"),
        (("gpu: {name: rtx-4090-24gb}", "device: cpu"), "device: fine-tuning is predicted for a gpu"),
        (("training:", "engine: {max_model_len: 8}\ntraining:"), "engine: belongs to serving"),
        (("gpu: {", "gpu: {in_use: 3 GiB, "), "gpu.in_use: belongs to serving"),
        (("training:", "expect: {holds: true}\ntraining:"), "expect.holds: belongs to serving"),
    ],
)
def test_a_fault_is_named_at_its_key(change: tuple[str, str], said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_scenario(GOOD.replace(*change))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("method: lora", "method: lora, lora: {target_modules: [q_prj]}"), "unknown module 'q_prj'; did you mean"),
        (("method: lora", "method: lora, sequence_length: 40000"), "above the model's own limit (32,768)"),
        (("Mistral-7B-Instruct-v0.3", "Mistral-7B-v0.1"), ""),
        (("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mixtral-8x7B-v0.1"), "MixtralForCausalLM is not supported"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(change: tuple[str, str], said: str) -> None:
    scenario = parse_scenario(GOOD.replace(*change))
    if not said:  # a window of 4,096 with 2,048 tokens masks nothing
        assert predict(scenario).highest is not None
        return
    with pytest.raises(UsageError) as error:
        predict(scenario)
    assert said in str(error.value)


def test_steps_belongs_to_finetuning() -> None:
    with pytest.raises(ScenarioError, match=r"expect.steps: only kind: finetune"):
        load_scenario(SCENARIOS / "70b_8k.yaml", ["expect.steps=true"])


def test_a_7b_on_24_gb_by_numbers() -> None:
    """The known rules of thumb come out: 12 B a parameter stay with AdamW in mixed precision, 16-bit weights alone
    leave room for adapters, and only checkpointing for their activations."""
    scenario = load_scenario(SCENARIOS / "finetune_7b_24gb.yaml")
    found = {(w.method, w.optimizer, w.precision, w.gradient_checkpointing): w for w in ways(scenario)}
    assert found["full", "adamw", "mixed", True].between_steps == pytest.approx(12 * 7_248_023_552, rel=0.01)
    assert found["full", "adamw", "mixed", True].limited_by == "master_weights"
    assert found["full", "adamw", "bf16", True].limited_by == "optimizer"
    assert found["full", "adafactor", "bf16", True].limited_by == "gradients"
    assert found["lora", "adamw", "mixed", False].limited_by == "activations"
    assert found["lora", "adamw", "mixed", True].fits
    assert found["qlora", "adamw", "mixed", True].fits
    # Four bits take the frozen weights to 0.32 of their 16-bit size: embeddings, lm_head and norms grow to float32.
    lora, qlora = (found[m, "adamw", "mixed", True].between_steps for m in ("lora", "qlora"))
    assert lora - qlora == pytest.approx((2 - 4.127 / 8) * 6_979_321_856 - 2 * 268_701_696, rel=0.001)


# -- the command ---------------------------------------------------------------------------------------


def test_bench_runs_and_reports_a_finetune_scenario(tmp_path: Path) -> None:
    ran = bench("run", SCENARIOS / "finetune_7b_24gb.yaml", "--analytic-only", "--json", "--out", tmp_path)
    assert ran.code == 0
    document = ran.document
    assert [(r["rung"], r["holds"]) for r in document["training"]["rungs"]] == [("LOADS", True), ("STEPS", True)]
    assert {r["rung"]: r["holds"] for r in document["prediction"]["rungs"]} == {
        "LOADS": True, "ADMITS": None, "STARTS": None, "HOLDS": None
    }  # fmt: skip
    loss = document["training"]["moments"]["loss"]
    assert sum(t["bytes"] for k, t in loss.items() if k != "total") == loss["total"]["bytes"]
    assert document["training"]["trainable_parameters"] == 41_943_040
    assert len(document["training"]["ways"]) == 9
    run = load_run(ran.folder)
    assert set(run.terms["phase"]) == set(step.MOMENTS)
    assert run.rungs["rung"].tolist() == ["LOADS", "STEPS"]
    for form in ("text", "markdown"):
        shown = bench("report", ran.folder, "--format", form)
        assert shown.code == 0
        assert "Ways on this device" in shown.out
    again = json.loads(bench("report", ran.folder, "--format", "json").out)
    assert again["training"] == document["training"]


def test_the_arithmetic_is_light_and_quick(tmp_path: Path) -> None:
    path = SCENARIOS / "finetune_7b_24gb.yaml"
    assert pulled_in(f"import harness; harness.predict(harness.load_scenario({str(path)!r}))") == set()
    scenario = load_scenario(path)
    predict(scenario)
    begun = time.process_time()
    for _ in range(100):
        predict(scenario)
    assert (time.process_time() - begun) / 100 < 0.01  # about 1 ms


def test_an_expectation_that_fails_ends_with_1(tmp_path: Path) -> None:
    path = SCENARIOS / "finetune_7b_24gb.yaml"
    ran = bench("run", path, "--analytic-only", "--out", tmp_path, "--set", "training.gradient_checkpointing=false")
    assert ran.code == 1
    assert "expect.steps: expected true, predicted false" in ran.out


@pytest.mark.parametrize("verb", ["capacity", "paging"])
def test_a_training_step_has_no_load(verb: str) -> None:
    ran = bench(verb, SCENARIOS / "finetune_7b_24gb.yaml")
    assert ran.code == 2
    assert "kind: finetune" in ran.err
