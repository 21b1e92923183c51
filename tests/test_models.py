"""``bench models``: the list, the inventory of one model, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import bench

from harness import catalog
from harness.predict.inventory import inventory


@pytest.mark.parametrize("name", catalog.model_names())
def test_the_parts_of_every_model_add_up(name: str) -> None:
    shown = inventory(catalog.model_config(name)).as_dict()
    assert sum(p["parameters"] for p in shown["components"]) == shown["parameters"]
    assert sum(p["bytes"] for p in shown["components"]) == shown["bytes"]
    assert shown["active_parameters"] <= shown["parameters"]
    assert shown["kv"]["bytes_per_token"] > 0
    kept = inventory(catalog.model_config(name)).architecture.kv_layers
    assert sum(row["layers"] for row in shown["kv"]["layers"]) == sum(len(caches) for caches in kept) > 0
    assert ("state" in shown["kv"]["kinds"]) == (shown["kv"]["state_bytes"] > 0)


@pytest.mark.parametrize(
    ("name", "kinds", "per_token", "active"),
    [
        ("llama-3.1-8b", ["full"], 131_072, 8_030_261_248),
        ("gpt-oss-20b", ["sliding", "full"], 49_152, 4_190_654_016),
        ("deepseek-v3", ["mla"], 61 * 576 * 2, 37_551_681_536),
    ],
)
def test_one_model_as_json(name: str, kinds: list[str], per_token: int, active: int) -> None:
    shown = json.loads(bench("models", name, "--json").out)
    assert shown["kv"]["kinds"] == kinds
    assert shown["kv"]["bytes_per_token"] == per_token
    assert shown["active_parameters"] == pytest.approx(active, rel=1e-3)
    assert {"name", "parameters", "bytes"} == set(shown["components"][0])


def test_a_model_that_is_not_predicted_says_why() -> None:
    for name, said in (
        ("nvidia/glm-5-nvfp4", "model nvidia/GLM-5-NVFP4 is not predicted: its config.json doesn't say how"),
    ):
        ran = bench("models", name)
        assert ran.code == 2
        assert said in ran.err
        assert ran.err.count("\n") == 1


def test_a_local_config_is_shown_as_the_catalogues(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(catalog.model_config("mixtral-8x7b")))
    for path in (tmp_path, tmp_path / "config.json"):
        assert bench("models", "--config", str(path), "--json").out == bench("models", "mixtral-8x7b", "--json").out


def test_the_table_shows_where_the_bytes_sit() -> None:
    lines = bench("models", "mixtral-8x7b").out.splitlines()
    assert lines[0] == (
        "mistralai/Mixtral-8x7B-v0.1 (MixtralForCausalLM): 46,702,792,704 parameters, 12.88 B of them for a token; "
        "weights bf16"
    )
    assert lines[4].split() == ["experts.w13", "experts", "32", "30,064,771,072", "57,344.0", "64.4", "%"]
    assert lines[-3].startswith("KV cache: 32 full; one token writes 131,072 bytes (bfloat16)")
    listed = bench("models").out
    assert "60 mla" in listed and max(map(len, listed.splitlines())) <= 100
    assert "12 sliding 128 + 12 full" in bench("models", "gpt-oss").out


@pytest.mark.parametrize(
    ("words", "some", "none"),
    [
        (("qwen", "vl"), "Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-8B"),
        (("QWEN3-vl",), "Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        (("experts", "mla"), "deepseek-ai/DeepSeek-V3", "mistralai/Mixtral-8x7B-v0.1"),
        (("vision",), "google/gemma-3-4b-it", "google/gemma-3-1b-it"),
        (("GptOss",), "openai/gpt-oss-120b", "openai-community/gpt2"),
    ],
)
def test_words_choose_models(words: tuple[str, ...], some: str, none: str) -> None:
    rows = {row["name"]: row for row in json.loads(bench("models", *words, "--json").out)["models"]}
    assert some in rows and none not in rows
    assert all(row["checked"] in catalog.CHECKED for row in rows.values())


def test_the_list_says_how_many_and_what_its_entries_were_checked_against() -> None:
    lines = bench("models", "gpt-oss").out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["openai/gpt-oss-120b", "openai/gpt-oss-20b"]
    assert lines[-3].startswith(f"2 of {len(catalog.model_names())} models; `bench models NAME` shows one.")
    assert lines[-1] == f"  config: {catalog.CHECKED['config']}"


def test_small_parts_are_one_row_and_every_byte_is_still_counted() -> None:
    lines = bench("models", "qwen3-vl-8b").out.splitlines()
    (small,) = (line.split() for line in lines if " smaller " in line)
    kept = [line for line in lines if line.startswith(("visual", "gate", "down", "qkv", "embed", "lm_head", "o_proj"))]
    assert int(small[0]) >= 10 and len(kept) >= 10
    shown = json.loads(bench("models", "qwen3-vl-8b", "--json").out)
    assert len(shown["components"]) >= int(small[0]) + len(kept)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gpt-oss-21b"], "did you mean"),
        (["gpt2", "--config", "x"], "not both"),
        (["--config", "nowhere"], "nowhere: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str) -> None:
    done = bench("models", *arguments)
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1


def test_a_broken_config_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, said in (("{", "not JSON"), ("[]", "expected a mapping, got list"), ("[" * 100_000, "not JSON")):
        file.write_text(text)
        done = bench("models", "--config", str(file))
        assert done.code == 2 and said in done.err, text[:9]


def test_experts_beside_a_dense_mlp_are_not_called_by_its_name() -> None:
    """Gemma 4's list of unquantized modules has the dense MLP of each layer, ``layers.0.mlp*``, and not its experts."""
    parts = {p.name: p for p in inventory(catalog.model_config("nvidia/Gemma-4-26B-A4B-NVFP4")).parts}
    dense, routed = parts["gate_up_proj.weight"], parts["experts.w13"]
    assert dense.bytes == 2 * dense.parameters
    assert routed.bytes == pytest.approx(routed.parameters * (4 + 8 / 16) / 8, rel=1e-3)
