"""Classes that no table has, read from transformers on the meta device: as the closed formulas, where both know one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from conftest import bench

from harness import catalog
from harness.architecture import Architecture, by_transformers, from_config
from harness.errors import UsageError
from harness.predict import predict
from harness.scenario import parse_scenario

pytest.importorskip("torch")
pytest.importorskip("transformers")

# One model of each class that both sources read. Cohere2's window is one longer in vLLM, Gemma 3 has a second rotary
# cache there: what the table adds.
BOTH = (
    "llama-3.1-8b", "olmo-2-7b", "olmo-7b", "olmoe-1b-7b", "seed-oss-36b", "command-r-35b", "qwen2.5-7b", "gemma-2-9b",
    "gemma-2b", "gemma-3-1b", "smollm3-3b", "granite-3.1-8b", "exaone-4.0-32b", "minimax-m2.5", "mixtral-8x7b",
    "qwen1.5-moe-a2.7b", "qwen3-8b", "qwen3-30b-a3b", "stablelm-2-1.6b", "glm-4.5",
)  # fmt: skip


def tensors(architecture: Architecture, tp: int) -> Counter[tuple[int, ...]]:
    return Counter({
        shape: sum(architecture.copies(c) for c in architecture.components if c.counted and c.on_rank(tp) == shape)
        for shape in {c.on_rank(tp) for c in architecture.components if c.counted}
    })  # fmt: skip


@pytest.mark.parametrize("model", BOTH)
def test_both_sources_give_the_same_tensors(model: str) -> None:
    config = {k: v for k, v in catalog.model_config(model).items() if k != "quantization_config"}
    ours = from_config(config)
    theirs = by_transformers.read(ours.name, config)
    assert theirs.source == "transformers on the meta device" and ours.source == "closed formulas"
    for tp in (1, 2):
        assert tensors(theirs, tp) == tensors(ours, tp)
    assert (theirs.parameters, theirs.kv_layers) == (ours.parameters, ours.kv_layers)
    assert theirs.active_parameters == ours.active_parameters
    same = ("heads", "kv_heads", "head_dim", "intermediate", "vocab", "tied", "gated", "mixture", "layout")
    assert [getattr(theirs, n) for n in same] == [getattr(ours, n) for n in same]


SMALL = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 64, "torch_dtype": "bfloat16",
}  # fmt: skip
ARCEE = {**SMALL, "architectures": ["ArceeForCausalLM"], "model_type": "arcee"}


def test_a_prediction_says_where_its_parts_are_from() -> None:
    base = "name: x\nmodel: llama-3.1-8b\ngpu: {name: h100-sxm-80gb}\nengine: {max_model_len: 512}"
    account = predict(parse_scenario(base).model_copy(update={"model": ARCEE}))
    entry = account.ledger.find("weights")
    assert entry is not None
    assert entry.source.startswith("transformers on the meta device on the inline config (bf16: its dtype)")
    assert any("ArceeForCausalLM are read from transformers" in note for note in account.notes)
    known = predict(parse_scenario(base)).ledger.find("weights")
    assert known is not None
    assert known.source.startswith("closed formulas on the catalogue's config (bf16: its dtype)")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["NobodyForCausalLM"]}, "'NobodyForCausalLM' is not supported yet"),
        ({"architectures": ["RwkvForCausalLM"]}, "'RwkvForCausalLM' is not supported yet"),  # not its model_type
        ({"architectures": ["NanoChatForCausalLM"], "model_type": "nanochat"},
         "'model.layers.0.mlp.fc1.weight' of its model is no part of a decoder"),
        ({"architectures": ["MptForCausalLM"], "model_type": "mpt"}, "of its model is no part of a decoder"),
        ({"layer_types": ["somersault"] * 4}, "ArceeForCausalLM in transformers: "),
        ({"hidden_size": "wide"}, "ArceeForCausalLM in transformers: "),
    ],
)  # fmt: skip
def test_what_neither_can_read_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_config({**ARCEE, **changes})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_transformers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"'ArceeForCausalLM' is not .*\(pip install torch transformers"):
        from_config(ARCEE)


def test_bench_models_names_the_source(tmp_path: Any) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps(ARCEE))
    shown = bench("models", "--config", tmp_path)
    assert shown.out.splitlines()[-1] == "Parts by transformers on the meta device; formats from its dtype"
