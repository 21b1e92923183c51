"""The scenario language: what is wrong is told in one line, at its line, with the nearest right name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from harness import catalog
from harness.errors import LoadfitError, ScenarioError
from harness.ledger import Account
from harness.predict import predict
from harness.scenario import Scenario, load_scenario, parse_scenario, schema

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "scenarios").glob("*.yaml"))

GOOD = """\
name: small
model: meta-llama/Llama-3.1-8B-Instruct
gpu: {name: h100-sxm-80gb}
engine: {max_model_len: 8192}
load: {shape: closed, users: 4, requests: 8, prompt_tokens: 100, output_tokens: 100}
"""
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
A_MODEL = "a catalogue name (`bench models`), a folder with config.json, or the config itself"
A_LENGTH = "a whole number of tokens, or a distribution such as {distribution: uniform, low: 1, high: 512}"
KEYS = "calibration, device, engine, expect, gpu, kind, load, model, name, question, repeats, slo, training, weights"
FORMATS = (
    f"(known: {', '.join(catalog.weight_format_names())}; those of int4 and the packed ones of int8 may end in their "
    "group size, such as awq-int4-g128, or in -channel)"
)
LIMITS = (
    "(known: kv_cache, weights, runtime_at_init, other_processes, non_torch_increase, activation_peak, cuda_graphs, "
    "allocator_slack, memory, engine, "
    "master_weights, adapters, optimizer, gradients, activations, logits, workspace)"
)
ENGINE, USERS, GPU = "max_model_len: 8192", "users: 4", "{name: h100-sxm-80gb}"
PROMPT, CLOSED = "prompt_tokens: 100", "shape: closed"


def but(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def answer(text: str | bytes, *overrides: str) -> str:
    with pytest.raises(LoadfitError) as raised:
        parse_scenario(text, "s.yaml", Path("/nowhere"), overrides)
    return str(raised.value)


def test_the_good_one_is_good() -> None:
    scenario = parse_scenario(GOOD, "s.yaml")
    assert (scenario.name, scenario.engine.max_model_len, scenario.count) == ("small", 8192, 1)
    assert scenario.load is not None and scenario.load.concurrency == 4


# What is changed in GOOD -> the answer, whole.
BAD: list[tuple[str, str, str]] = [
    # keys that are missing
    ("name: small\n", "", "s.yaml:1: name: missing: a name of letters, digits, '.', '_' or '-' (80 at most)"),
    (f"model: {MODEL}\n", "", f"s.yaml:1: model: missing: {A_MODEL}"),
    (f"gpu: {GPU}\n", "", "s.yaml:1: gpu: missing: name a GPU (gpu: {name: h100-sxm-80gb}) or say device: cpu"),
    (GPU, "{}", "s.yaml:3: gpu.name: missing: a catalogue name (`bench gpus`), or give memory: 24 GiB"),
    ("users: 4, ", "", "s.yaml:5: load.users: missing: a closed load has users"),
    ("requests: 8, ", "", "s.yaml:5: load.requests: missing: how many requests are sent in all"),
    ("prompt_tokens: 100, ", "", f"s.yaml:5: load.prompt_tokens: missing: {A_LENGTH}"),
    (PROMPT, "prompt_tokens: {low: 1, high: 2}",
     "s.yaml:5: load.prompt_tokens.distribution: missing: uniform, normal, lognormal or empirical"),
    # unknown keys, at every level
    ("engine:", "engin:", "s.yaml:4: engin: unknown key; did you mean 'engine'?"),
    ("engine:", "foo:", f"s.yaml:4: foo: unknown key; known here: {KEYS}"),
    ("max_model_len", "max-model-len", "s.yaml:4: engine.max-model-len: unknown key; did you mean 'max_model_len'?"),
    (ENGINE, "gpu_mem_util: 0.9", "s.yaml:4: engine.gpu_mem_util: unknown key; did you mean 'gpu_memory_utilization'?"),
    (GPU, "{nam: h100-sxm-80gb, memory: 24 GiB}", "s.yaml:3: gpu.nam: unknown key; did you mean 'name'?"),
    (CLOSED, f"{CLOSED}, sed: 1", "s.yaml:5: load.sed: unknown key; did you mean 'seed'?"),
    (PROMPT, "prompt_tokens: {distribution: uniform, low: 1, hihg: 2, high: 3}",
     "s.yaml:5: load.prompt_tokens.hihg: unknown key; did you mean 'high'?"),
    ("gpu:", "expect: {hold: true}\ngpu:", "s.yaml:3: expect.hold: unknown key; did you mean 'holds'?"),
    ("gpu:", "weights: {formt: fp8}\ngpu:", "s.yaml:3: weights.formt: unknown key; did you mean 'format'?"),
    # wrong types
    ("small", "3", "s.yaml:1: name: expected text, got 3"),
    ("small", "", "s.yaml:1: name: expected text, got null"),
    ("small", "a/b", "s.yaml:1: name: expected a name of letters, digits, '.', '_' or '-' (80 at most), got \"a/b\""),
    (MODEL, "[a]", f's.yaml:2: model: expected {A_MODEL}, got ["a"]'),
    (MODEL, "''", f's.yaml:2: model: expected {A_MODEL}, got ""'),
    (GPU, "h100-sxm-80gb",
     's.yaml:3: gpu: expected a mapping, such as {name: h100-sxm-80gb, count: 1}, got "h100-sxm-80gb"'),
    ("{max_model_len: 8192}", "[1]", "s.yaml:4: engine: expected a mapping, such as {max_model_len: 8192}, got [1]"),
    ("8192", "'8192'", 's.yaml:4: engine.max_model_len: expected a whole number, got "8192"'),
    ("8192", "8192.5", "s.yaml:4: engine.max_model_len: expected a whole number, got 8192.5"),
    ("8192", "true", "s.yaml:4: engine.max_model_len: expected a whole number, got true"),
    ("8192", "1:30", 's.yaml:4: engine.max_model_len: expected a whole number, got "1:30"'),
    (ENGINE, "gpu_memory_utilization: 90%", 's.yaml:4: engine.gpu_memory_utilization: expected a number, got "90%"'),
    (ENGINE, "enforce_eager: yes", 's.yaml:4: engine.enforce_eager: expected true or false, got "yes"'),
    (ENGINE, "enforce_eager: 1", "s.yaml:4: engine.enforce_eager: expected true or false, got 1"),
    (ENGINE, "vllm: 0.32", "s.yaml:4: engine.vllm: expected text, got 0.32 (write it in quotes)"),
    (ENGINE, "vllm: latest",
     "s.yaml:4: engine.vllm: expected a version in quotes, such as '0.33' or '0.32.0', got \"latest\""),
    (ENGINE, "vllm: '0.5.1'",
     "s.yaml:4: engine.vllm: vLLM 0.5.1: versions before 0.6.4 count their memory otherwise, not modelled"),
    (ENGINE, "kv_cache_memory_bytes: 1.5",
     "s.yaml:4: engine.kv_cache_memory_bytes: expected a size like '80 GiB' or a whole number of bytes, got 1.5"),
    (PROMPT, "prompt_tokens: '100'", f's.yaml:5: load.prompt_tokens: expected {A_LENGTH}, got "100"'),
    (PROMPT, "prompt_tokens: {distribution: uniform, low: 3, high: x}",
     's.yaml:5: load.prompt_tokens.high: expected a whole number, got "x"'),
    # out of range
    ("8192", "0", "s.yaml:4: engine.max_model_len: expected at least 1, got 0"),
    ("8192", "-1", "s.yaml:4: engine.max_model_len: expected at least 1, got -1"),
    ("8192", "99999999", "s.yaml:4: engine.max_model_len: expected at most 10,000,000, got 99999999"),
    ("8192", "1" + "0" * 30, "s.yaml:4: engine.max_model_len: expected a number of at most 19 digits"),
    ("8192", "0x" + "F" * 900, "s.yaml:4: engine.max_model_len: expected a number of at most 19 digits"),
    ("8192", "1" + "0" * 5000, "s.yaml:4: a number of a thousand digits: not a scenario"),
    (ENGINE, "gpu_memory_utilization: 1.5", "s.yaml:4: engine.gpu_memory_utilization: expected at most 1, got 1.5"),
    (ENGINE, "gpu_memory_utilization: .nan",
     "s.yaml:4: engine.gpu_memory_utilization: expected a finite number, got nan"),
    (ENGINE, "gpu_memory_utilization: -.inf",
     "s.yaml:4: engine.gpu_memory_utilization: expected a finite number, got -inf"),
    (ENGINE, "kv_cache_memory_bytes: -5",
     "s.yaml:4: engine.kv_cache_memory_bytes: expected a size of zero bytes or more, got -5"),
    (ENGINE, "kv_cache_memory_bytes: 5 parsecs",
     "s.yaml:4: engine.kv_cache_memory_bytes: expected a size in B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, "
     'got "5 parsecs"'),
    (ENGINE, "kv_cache_memory_bytes: 2000 TiB",
     "s.yaml:4: engine.kv_cache_memory_bytes: expected at most 1 PiB, got 2,199,023,255,552,000 bytes"),
    (GPU, "{memory: 80}", "s.yaml:3: gpu.memory: expected 256 MiB to 1 PiB, got 80 bytes"),
    (GPU, "{name: h100-sxm-80gb, count: 0}", "s.yaml:3: gpu.count: expected at least 1, got 0"),
    ("requests: 8", "requests: 0", "s.yaml:5: load.requests: expected at least 1, got 0"),
    (PROMPT, "prompt_tokens: 0", "s.yaml:5: load.prompt_tokens: expected at least 1, got 0"),
    (CLOSED, f"{CLOSED}, seed: -1", "s.yaml:5: load.seed: expected at least 0, got -1"),
    (CLOSED, f"{CLOSED}, timeout_s: 0", "s.yaml:5: load.timeout_s: expected above 0, got 0"),
    ("gpu:", f"question: {'x' * 2001}\ngpu:", "s.yaml:3: question: expected at most 2,000 characters, got 2,001"),
    # unknown names
    ("8B-Instruct", "8B-Instrct",
     f's.yaml:2: model: unknown model "meta-llama/Llama-3.1-8B-Instrct"; did you mean \'{MODEL}\'? '
     "(`bench models` lists the known ones; a folder with config.json or the config itself will do too)"),
    (MODEL, "zzz", 's.yaml:2: model: unknown model "zzz" '
     "(`bench models` lists the known ones; a folder with config.json or the config itself will do too)"),
    (MODEL, "./mine", 's.yaml:2: model: no config.json in "./mine" (looked from /nowhere)'),
    (MODEL, "~nobody-at-all/mine", 's.yaml:2: model: no config.json in "~nobody-at-all/mine" (looked from /nowhere)'),
    ("h100-sxm-80gb", "h100-smx-80gb",
     "s.yaml:3: gpu.name: unknown GPU 'h100-smx-80gb'; did you mean 'h100-sxm-80gb'? (`bench gpus` lists them)"),
    ("h100-sxm-80gb", "a100",
     "s.yaml:3: gpu.name: unknown GPU 'a100': say which of a100-pcie-40gb, a100-sxm-40gb, a100-pcie-80gb, "
     "a100-sxm-80gb (`bench gpus` lists them)"),
    ("gpu:", "device: gpu\ngpu:", "s.yaml:3: device: expected cpu, got \"gpu\"; did you mean 'cpu'?"),
    ("gpu:", "weights: {format: int3}\ngpu:",
     f"s.yaml:3: weights.format: unknown weight format 'int3'; did you mean 'int8'? {FORMATS}"),
    ("gpu:", "weights: {format: awq-int4-g4}\ngpu:",
     "s.yaml:3: weights.format: weight format 'awq-int4-g4': a group holds 8 to 4096 weights"),
    ("gpu:", "weights: {load: dumy}\ngpu:",
     "s.yaml:3: weights.load: expected auto or dummy, got \"dumy\"; did you mean 'dummy'?"),
    (ENGINE, "dtype: bf16", "s.yaml:4: engine.dtype: expected auto, bfloat16, float16 or float32, got \"bf16\"; "
     "did you mean 'bfloat16'?"),
    (ENGINE, "kv_cache_dtype: 8",
     "s.yaml:4: engine.kv_cache_dtype: expected auto, bfloat16, float16, fp8, fp8_e4m3, fp8_e5m2 or nvfp4, got 8"),
    ("closed", "open",
     's.yaml:5: load.shape: expected closed, burst, constant, poisson, gamma, ramp or trace, got "open"'),
    (PROMPT, "prompt_tokens: {distribution: lognorml, low: 1, high: 2}",
     "s.yaml:5: load.prompt_tokens.distribution: expected uniform, normal, lognormal or empirical, got \"lognorml\"; "
     "did you mean 'lognormal'?"),
    (PROMPT, "prompt_tokens: {distribution: 5, low: 1, high: 2}",
     "s.yaml:5: load.prompt_tokens.distribution: expected uniform, normal, lognormal or empirical, got 5"),
    ("gpu:", "expect: {limited_by: kv_cahce}\ngpu:",
     f"s.yaml:3: expect.limited_by: unknown term \"kv_cahce\"; did you mean 'kv_cache'? {LIMITS}"),
    # keys that contradict each other
    (GPU, "{name: h100-sxm-80gb, memory: 80 GiB}",
     "s.yaml:3: gpu.memory: given beside name: the catalogue knows this GPU's memory"),
    ("gpu:", "device: cpu\ngpu:", "s.yaml:3: device: given beside gpu: a scenario has one device"),
    (f"gpu: {GPU}", "device: cpu",
     "s.yaml:4: engine.kv_cache_memory_bytes: missing: on this computer say how large the KV pool is "
     "(kv_cache_memory_bytes: 256 MiB)"),
    (ENGINE, "tensor_parallel_size: 2",
     "s.yaml:4: engine.tensor_parallel_size: tensor_parallel_size x pipeline_parallel_size is 2 x 1 = 2, "
     "but gpu.count is 1"),
    (ENGINE, "pipeline_parallel_size: 2",
     "s.yaml:4: engine.pipeline_parallel_size: tensor_parallel_size x pipeline_parallel_size is 1 x 2 = 2, "
     "but gpu.count is 1"),
    ("gpu:", "weights: {format: fp8, group_size: 128}\ngpu:",
     "s.yaml:3: weights.group_size: fp8 has no group size to choose"),
    ("gpu:", "weights: {format: awq-int4-g128, group_size: 64}\ngpu:",
     "s.yaml:3: weights.group_size: expected 128 as in format awq-int4-g128, got 64"),
    ("closed", "burst", "s.yaml:5: load.users: a burst has no users: all its requests come at once"),
    (USERS, "users: 9", "s.yaml:5: load.users: 9 users but 8 requests: some would have nothing to send"),
    (PROMPT, "prompt_tokens: {distribution: uniform, low: 3, high: 2}",
     "s.yaml:5: load.prompt_tokens: low (3) is above high (2)"),
    (PROMPT, "prompt_tokens: 8093",
     "s.yaml:5: load.prompt_tokens: prompt and output reach 8,193 tokens, above engine.max_model_len (8,192)"),
    # a model that is a config
    (MODEL, "{architectures: [LlamaForCausalLM], hidden_size: 64}", "s.yaml:2: model.num_hidden_layers: missing"),
    (MODEL, "{hidden_size: 64}",
     "s.yaml:2: model.architectures: missing: the model's class, such as [LlamaForCausalLM]"),
    (MODEL, "{architectures: [LlamaForCausalLM], hidden_size: big}",
     "s.yaml:2: model.hidden_size: expected a whole number, got 'big'"),
    # what YAML has and a scenario hasn't
    ("gpu:", "name: b\ngpu:", "s.yaml:3: name: given twice"),
    (USERS, "users: 4, users: 5", "s.yaml:5: users: given twice"),
    ("gpu:", "\tgpu:", "s.yaml:3: not valid YAML: a tab; indent with spaces"),
    ("8192}", "8192",
     "s.yaml:5: not valid YAML: while parsing a flow mapping: expected ',' or '}', but got ':'"),
    ("small", '"small',
     "s.yaml:1: not valid YAML: while scanning a quoted scalar: found unexpected end of stream"),
    ("small", "*b", "s.yaml:1: not valid YAML: found undefined alias 'b'"),
    ("small", "!!python/object/apply:os.system ['touch /tmp/loadfit-was-here']",
     "s.yaml:1: name: a scenario has no YAML tags, got !!python/object/apply:os.system"),
    ("{max_model_len", "!foo {max_model_len", "s.yaml:4: engine: a scenario has no YAML tags, got !foo"),
    ("small", "!!binary aGVsbG8=", "s.yaml:1: name: expected text, a number, true or false, got binary data"),
    ("small", "!!set {a, b}", "s.yaml:1: name: expected text, a number, true or false, got a set"),
    ("8192", "2026-11-24",
     "s.yaml:4: engine.max_model_len: expected text, a number, true or false, got the date 2026-11-24 "
     "(write it in quotes)"),
    ("gpu:", "5: 6\ngpu:", "s.yaml:3: expected a key of text, got 5"),
    ("gpu:", "[a, b]: 6\ngpu:", 's.yaml:3: expected a key of text, got ["a", "b"]'),
    ("gpu:", "---\ngpu:",
     "s.yaml:3: not valid YAML: expected a single document in the stream, but found another document"),
    (MODEL, "\0", "s.yaml:2: not valid YAML: the character U+0000 may not stand in it"),
    ("small", '"a\\0"', 's.yaml:1: name: expected text without control characters, got "a\\u0000"'),
    ("small", "größe",
     "s.yaml:1: name: expected a name of letters, digits, '.', '_' or '-' (80 at most), got \"größe\""),
    ("small", '"\\ud800"', 's.yaml:1: name: expected text without control characters, got "\\ud800"'),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), BAD, ids=[f"{a[:16]!r}-{b[:24]!r}" for a, b, _ in BAD])
def test_bad(old: str, new: str, expected: str) -> None:
    assert answer(but(old, new)) == expected
    assert not Path("/tmp/loadfit-was-here").exists()


WHOLE: list[tuple[str, str | bytes, str]] = [
    ("empty", "", "s.yaml:1: expected the keys name, model, gpu, ..., got an empty file"),
    ("comment", "# nothing\n", "s.yaml:1: expected the keys name, model, gpu, ..., got an empty file"),
    ("list", "- a\n- b\n", "s.yaml:1: expected the keys name, model, gpu, ..., got a list"),
    ("text", "hello", 's.yaml:1: expected the keys name, model, gpu, ..., got "hello"'),
    ("not UTF-8", b"name: a\nmodel: \xff\n", "s.yaml:2: not UTF-8 text"),
    ("UTF-16", GOOD.encode("utf-16"), "s.yaml:1: not UTF-8 text"),
    ("large", b"#" * (2**20 + 1), "s.yaml:1: larger than 1 MiB: not a scenario"),
    ("many", f"name: a\nb: [{'1,' * 30_000}]", "s.yaml:2: b: more than 20,000 values: not a scenario"),
    ("deep", f"a: {'[' * 3000}{']' * 3000}", "s.yaml:1: nested too deeply"),
    ("rather deep", f"a: {'{a: ' * 200}1{'}' * 200}", "s.yaml:1: a.a.a: nested too deeply"),
    ("a row of brackets", f"a: {'[' * 200_000}", "s.yaml:1: nested too deeply"),
    ("a manifest", '{"schema": 1, "loadfit": "0.1.0", "scenario": "a", "mode": "analytic"}',
     "s.yaml:1: expected the keys name, model, gpu, ..., got schema, loadfit, scenario, mode"),
    ("a calibration", "format: 1\nloadfit: 0.1.0\ngpu: a\nmade: '2026'\nconstants: []\n",
     "s.yaml:1: expected the keys name, model, gpu, ..., got a file of bench calibrate (--calibration takes it)"),
    ("tabs", "name: a\ngpu:\n\tname: b\n", "s.yaml:3: not valid YAML: a tab; indent with spaces"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [w[1:] for w in WHOLE], ids=[w[0] for w in WHOLE])
def test_no_scenario_at_all(text: str | bytes, expected: str) -> None:
    assert answer(text) == expected


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert answer("\n".join(lines)).endswith("more than 20,000 values: not a scenario")


def test_anchors_and_a_byte_order_mark_are_welcome() -> None:
    text = GOOD.replace("small", "&n small") + "question: *n\n"
    assert parse_scenario(b"\xef\xbb\xbf" + text.encode()).question == "small"


def test_all_faults_come_at_once_in_the_order_of_the_lines() -> None:
    text = """\
nam: a
model: 5
gpu:
  count: 0
  nme: x
engine: {max_model_len: a}
lod: 3
"""
    assert answer(text).splitlines() == [
        "s.yaml:1: nam: unknown key; did you mean 'name'?",
        "s.yaml:1: name: missing: a name of letters, digits, '.', '_' or '-' (80 at most)",
        f"s.yaml:2: model: expected {A_MODEL}, got 5",
        "s.yaml:4: gpu.count: expected at least 1, got 0",
        "s.yaml:5: gpu.nme: unknown key; did you mean 'name'?",
        's.yaml:6: engine.max_model_len: expected a whole number, got "a"',
        "s.yaml:7: lod: unknown key; did you mean 'load'?",
    ]


def test_faults_between_keys_come_at_once_too() -> None:
    text = GOOD.replace(USERS, "users: 9").replace(PROMPT, "prompt_tokens: 8192").replace(MODEL, "zzz")
    lines = answer(text).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["s.yaml:2", "model"],
        ["s.yaml:5", "load.prompt_tokens"],
        ["s.yaml:5", "load.users"],
    ]


def test_a_fault_in_a_block_is_told_at_its_own_line() -> None:
    text = GOOD.replace("load: {", "load: {").replace(
        "engine: {max_model_len: 8192}", "engine:\n  # how long\n  max_model_len: 8192\n\n  dtype: float31\n"
    )
    assert answer(text).startswith("s.yaml:8: engine.dtype: expected auto")


def test_one_answer_is_one_line_whatever_the_key() -> None:
    told = answer(GOOD + '"a\\nb": 1\n' + "x" * 500 + ": 1\n")
    assert len(told.splitlines()) == 2
    assert max(map(len, told.splitlines())) < 220


def test_the_limit_of_the_model_holds_where_none_is_given() -> None:
    config = catalog.model_config(MODEL)
    text = but(PROMPT, "prompt_tokens: 131072").replace(ENGINE, "")
    assert config["max_position_embeddings"] == 131_072
    assert answer(text) == (
        "s.yaml:5: load.prompt_tokens: prompt and output reach 131,172 tokens, "
        "above the model's own max_position_embeddings (131,072)"
    )


# -- files and folders -----------------------------------------------------------------------------


def test_a_file_that_is_not_there_suggests_the_near_one(tmp_path: Path) -> None:
    (tmp_path / "70b_8k.yaml").write_text(GOOD)
    with pytest.raises(ScenarioError) as raised:
        load_scenario(tmp_path / "70b_8.yaml")
    assert str(raised.value) == (
        f"{tmp_path}/70b_8.yaml: can't be read: No such file or directory; did you mean '70b_8k.yaml'?"
    )
    with pytest.raises(ScenarioError, match="can't be read: Is a directory"):
        load_scenario(tmp_path)
    with pytest.raises(ScenarioError, match="can't be read: embedded null byte"):
        load_scenario("a\0b")


def _folder_with(tmp_path: Path, config: str) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(config)
    path = tmp_path / "s.yaml"
    path.write_text(but(MODEL, "./mine"))
    return path


def _counted(scenario: Scenario) -> object:
    """The prediction but for its words: they say whose config it was made from."""
    account = predict(scenario)
    return account.kv, account.rungs, account.load, [(e.term, e.bytes, e.low, e.high) for e in account.ledger.entries]


def test_a_local_folder_is_looked_for_beside_the_scenario(tmp_path: Path) -> None:
    path = _folder_with(tmp_path, json.dumps(catalog.model_config(MODEL)))
    scenario = load_scenario(path)
    assert scenario.model_folder == tmp_path / "mine"
    assert scenario.config() == catalog.model_config(MODEL)
    assert _counted(scenario) == _counted(parse_scenario(GOOD))


def test_the_resolved_scenario_can_be_read_from_anywhere(tmp_path: Path) -> None:
    scenario = load_scenario(_folder_with(tmp_path, json.dumps(catalog.model_config(MODEL))))
    again = parse_scenario(scenario.as_yaml(), folder=Path("/nowhere"))
    assert again.model_name == "./mine"
    assert _counted(again) == _counted(scenario)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("[1]", "model: {0}: expected a mapping, got list"),
        ('{"architectures": ["LlamaForCausalLM"]}', "model: config: hidden_size: missing"),
        ("{", "model: {0}: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)
def test_a_bad_config_in_a_folder(tmp_path: Path, config: str, expected: str) -> None:
    path = _folder_with(tmp_path, config)
    with pytest.raises(ScenarioError) as raised:
        load_scenario(path)
    assert str(raised.value) == f"{path}:2: " + expected.format(tmp_path / "mine" / "config.json")


def test_equal_digests_are_equal_scenarios(tmp_path: Path) -> None:
    a = parse_scenario(GOOD)
    assert a.digest == parse_scenario(GOOD.replace("small", "'small' # same")).digest
    assert a.digest == parse_scenario(GOOD + "weights: {format: auto}\n").digest
    assert a.digest != parse_scenario(but("8192", "8193")).digest
    path = _folder_with(tmp_path, json.dumps(catalog.model_config(MODEL)))
    before = load_scenario(path).digest
    (tmp_path / "mine" / "config.json").write_text(json.dumps({**catalog.model_config(MODEL), "vocab_size": 9}))
    assert load_scenario(path).digest != before


# -- overrides -------------------------------------------------------------------------------------


def test_set_changes_one_key() -> None:
    overrides = ("engine.max_model_len=4096", " load.users = 3 ", "gpu.count=1", "expect.holds=true", "load.seed=7")
    scenario = parse_scenario(GOOD, overrides=overrides)
    assert scenario.load is not None
    assert (scenario.engine.max_model_len, scenario.load.users, scenario.load.seed) == (4096, 3, 7)
    assert scenario.expect.items() == [("holds", True)]
    assert parse_scenario(GOOD, overrides=("load=null",)).load is None
    mapping = "load.prompt_tokens={distribution: uniform, low: 5, high: 20}"
    assert parse_scenario(GOOD, overrides=(mapping,)) == parse_scenario(
        GOOD, overrides=("load.prompt_tokens.distribution=uniform", "load.prompt_tokens.low=5",
                         "load.prompt_tokens.high=20"),
    )  # fmt: skip


SETS = [
    ("engine.max_modell_len=4", "--set engine.max_modell_len: unknown key; did you mean 'max_model_len'?"),
    ("engine.cudagraph_capture_sizes=[]",
     "--set engine.cudagraph_capture_sizes: expected at least 1 in the list, got 0"),
    ("engine.cudagraph_capture_sizes=1,2", '--set engine.cudagraph_capture_sizes: expected a list, got "1,2"'),
    ("engine.arguments={a b: 1}",
     '--set engine.arguments: engine.arguments.a b: expected a name of small letters, digits and \'_\', got "a b"'),
    ("engine.max_model_len=x", '--set engine.max_model_len: expected a whole number, got "x"'),
    ("engine.max_model_len", "--set engine.max_model_len: expected KEY=VALUE, such as engine.max_model_len=4096"),
    ("=3", "--set =3: expected KEY=VALUE, such as engine.max_model_len=4096"),
    ("engine..a=3", "--set engine..a=3: expected KEY=VALUE, such as engine.max_model_len=4096"),
    ("a\nb", '--set "a\\nb": expected KEY=VALUE, such as engine.max_model_len=4096'),
    ("gpu.name=h100-smx",
     "--set gpu.name: unknown GPU 'h100-smx'; did you mean 'h100-sxm-80gb'? (`bench gpus` lists them)"),
    ("load.users=9", "--set load.users: 9 users but 8 requests: some would have nothing to send"),
    ("load.prompt_tokens.low=3\nhigh: 4",
     "--set load.prompt_tokens.low: not valid YAML: mapping values are not allowed here"),
    ("load.prompt_tokens.distribution=normal",
     "--set load.prompt_tokens.distribution: load.prompt_tokens.high: missing\n"
     "--set load.prompt_tokens.distribution: load.prompt_tokens.low: missing\n"
     "--set load.prompt_tokens.distribution: load.prompt_tokens.mean: missing\n"
     "--set load.prompt_tokens.distribution: load.prompt_tokens.stdev: missing"),
    ("name=", "--set name: expected text, got null"),
    ("name=[", "--set name: not valid YAML: while parsing a flow node: expected the node content, "
     "but found '<stream end>'"),
    ("name=\tb", "--set name: not valid YAML: a tab; indent with spaces"),
    ("engine.vllm=new", "--set engine.vllm: expected a version in quotes, such as '0.33' or '0.32.0', got \"new\""),
    ("weights.format=awq-int4-g1",
     "--set weights.format: weight format 'awq-int4-g1': a group holds 8 to 4096 weights"),
    ("LOAD.users=3", "--set LOAD.users: LOAD: unknown key; did you mean 'load'?"),
    ("load.users=!!python/name:os.system",
     "--set load.users: a scenario has no YAML tags, got !!python/name:os.system"),
    ("load.users=3=4", '--set load.users: expected a whole number, got "3=4"'),
    ("gpu=null", "--set gpu: missing: name a GPU (gpu: {name: h100-sxm-80gb}) or say device: cpu"),
    ("device=cpu", "--set device: given beside gpu: a scenario has one device"),
    (".".join("abcdefghijklmnopqrstuvwxyz") + "=1",
     '--set "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x.y.z": nested too deeply'),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), SETS[:-1], ids=[s[0][:40] for s in SETS[:-1]])
def test_bad_sets(override: str, expected: str) -> None:
    assert answer(GOOD, override) == expected


def test_a_set_of_many_steps_is_refused() -> None:
    assert answer(GOOD, SETS[-1][0]).endswith("nested too deeply")


# -- nothing but a Scenario or a LoadfitError ------------------------------------------------------

TRIES = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(-5, 5) | st.floats() | st.text(max_size=12)
    | st.sampled_from(["auto", "fp8", "int4", "h100-sxm-80gb", "cpu", "burst", "80 GiB", "../x", "~x", "0.32"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4), max_leaves=12
)


def survives(text: str | bytes, *overrides: str) -> Scenario | None:
    """Parse and predict; anything but a LoadfitError fails the test. What parses also survives being written."""
    try:
        scenario = parse_scenario(text, "s.yaml", ROOT / "scenarios", overrides)
    except LoadfitError as error:
        assert str(error)
        return None
    assert parse_scenario(scenario.as_yaml(), "s.yaml", ROOT / "scenarios") == scenario
    if scenario.load is None or scenario.load.requests <= 2000:
        try:
            account = predict(scenario)
        except LoadfitError as error:
            assert str(error)
        else:
            assert isinstance(account, Account)
            assert Account.from_dict(json.loads(json.dumps(account.as_dict()))) == account
    return scenario


def written(data: Any) -> str:
    import io

    out = io.StringIO()
    YAML(typ="safe", pure=True).dump(data, out)
    return out.getvalue()


@TRIES
@given(st.binary(max_size=200) | st.text(max_size=200))
@example("? ")
@example("%TAG ! x")
@example("a: !!int x")
@example("a: !!float x")
@example("a: !!timestamp x")
@example("&a [*a]")
@example("a: &a {b: *a}")
@example("{<<: 3}")
@example("<<: [1, {a: b}]")
def test_any_text(text: str | bytes) -> None:
    assert survives(text) is None


@TRIES
@given(VALUES | st.dictionaries(st.sampled_from(sorted(Scenario.model_fields)), VALUES))
def test_any_data(data: Any) -> None:
    survives(written(data))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A good scenario with one to three keys replaced, deleted or put in, at any depth."""
    base = draw(st.sampled_from([GOOD, *(p.read_text() for p in SHIPPED)]))
    data = YAML(typ="safe", pure=True).load(base)
    for _ in range(draw(st.integers(1, 3))):
        at = data
        while True:
            inner = [k for k, v in at.items() if isinstance(v, dict) and v]
            if not inner or draw(st.booleans()):
                break
            at = at[draw(st.sampled_from(inner))]
        every = {k for part in (Scenario, *_parts()) for k in part.model_fields}
        key = draw(st.sampled_from(sorted(at) or ["name"]) | st.sampled_from(sorted(every)) | st.text(max_size=5))
        if draw(st.integers(0, 4)):
            at[key] = draw(SCALARS | st.integers(1, 10**6) | st.floats(0.01, 1) | VALUES)
        else:
            at.pop(key, None)
        if not data:
            break
    return data


def _parts() -> list[Any]:
    from harness import scenario as s

    return [s.Weights, s.Gpu, s.Engine, s.Load, s.Uniform, s.Normal, s.Lognormal, s.Expect]


@settings(TRIES, max_examples=400)
@given(mutated())
def test_any_mutation(data: Any) -> None:
    survives(written(data))


@TRIES
@given(st.lists(st.text(max_size=30) | st.builds(
    lambda k, v: f"{k}={v}",
    st.sampled_from(["engine.max_model_len", "load", "load.prompt_tokens", "gpu.count", "model.x", "name", "a.b.c"]),
    st.text(max_size=20) | st.integers().map(str),
), min_size=1, max_size=3))  # fmt: skip
def test_any_set(overrides: list[str]) -> None:
    survives(GOOD, *overrides)


@settings(TRIES, max_examples=200)
@given(st.data())
def test_any_inline_config(data: st.DataObject) -> None:
    config = catalog.model_config(data.draw(st.sampled_from(catalog.model_names())))
    for _ in range(data.draw(st.integers(0, 3))):
        config[data.draw(st.sampled_from(sorted(config)))] = data.draw(SCALARS | st.integers(1, 10**6) | VALUES)
    survives(written({**YAML(typ="safe", pure=True).load(GOOD), "model": config}))


def maybe(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


def sizes(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most.bit_length()).flatmap(lambda bits: st.integers(1, min(2**bits, most)))


LENGTHS = sizes(10_000) | st.tuples(sizes(10_000), sizes(10_000)).map(sorted).flatmap(
    lambda ends: st.sampled_from(
        [
            {"distribution": "uniform"},
            {"distribution": "normal", "mean": 100.5, "stdev": 40},
            {"distribution": "lognormal", "median": 300, "sigma": 1.5},
        ]
    ).map(lambda d: {**d, "low": ends[0], "high": ends[1]})
)


@st.composite
def plausible(draw: st.DrawFn) -> dict[str, Any]:
    """A scenario that is well formed, with values from everywhere in their ranges."""
    tp, pp = draw(st.sampled_from([(1, 1), (2, 1), (8, 1), (1, 2), (4, 2), (3, 1), (1, 100)]))
    memory = sizes(2**48).map(lambda n: max(n, 2**28))
    gpu = draw(st.sampled_from([{"name": g.name} for g in catalog.gpus()]) | memory.map(lambda n: {"memory": n}))
    fields = Scenario.model_fields["engine"].annotation.model_fields  # type: ignore[union-attr]
    engine = draw(maybe(
        vllm=st.sampled_from(["0.8.0", "0.10", "0.19.1", "0.32", "0.33", "9.9"]),
        max_model_len=sizes(10_000_000),
        gpu_memory_utilization=st.floats(0.001, 1),
        kv_cache_dtype=st.sampled_from(fields["kv_cache_dtype"].annotation.__args__),
        dtype=st.sampled_from(fields["dtype"].annotation.__args__),
        block_size=sizes(4096),
        max_num_seqs=sizes(65_536),
        max_num_batched_tokens=sizes(10_000_000),
        enforce_eager=st.booleans(),
        enable_prefix_caching=st.booleans(),
        kv_cache_memory_bytes=sizes(2**50),
        num_gpu_blocks_override=st.integers(2, 2**40),
    ))  # fmt: skip
    data: dict[str, Any] = {
        "name": "any",
        "model": draw(st.sampled_from(catalog.model_names())),
        "weights": {"format": draw(st.sampled_from([*catalog.weight_format_names(), "gptq-int4-g32"]))},
        "gpu": {**gpu, "count": tp * pp},
        "engine": {**engine, "tensor_parallel_size": tp, "pipeline_parallel_size": pp},
    }
    if draw(st.integers(0, 5)) == 0:
        del data["gpu"]
        data["device"] = "cpu"
        data["engine"] |= {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
        data["engine"].setdefault("kv_cache_memory_bytes", 2**30)
    if draw(st.booleans()):
        count = draw(st.integers(1, 60))
        data["load"] = {"shape": "burst", "requests": count, "prompt_tokens": draw(LENGTHS),
                        "output_tokens": draw(LENGTHS)}  # fmt: skip
        if draw(st.booleans()):
            data["load"] |= {"shape": "closed", "users": draw(st.integers(1, count))}
    return data


@settings(TRIES, max_examples=250)
@given(plausible())
def test_any_scenario_that_is_well_formed(data: dict[str, Any]) -> None:
    survives(written(data))


# -- the schema ------------------------------------------------------------------------------------


def test_the_schema_in_docs_is_the_one_printed() -> None:
    kept = json.loads((ROOT / "docs" / "scenario.schema.json").read_text())
    assert kept == schema(), "run: bench schema > docs/scenario.schema.json"
    assert kept["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(kept)


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_schema_takes_what_is_shipped(path: Path) -> None:
    validator().validate(YAML(typ="safe", pure=True).load(path.read_text()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: small\n", ""),
        ("engine:", "engin:"),
        ("8192", "'8192'"),
        ("8192", "0"),
        ("closed", "open"),
        (PROMPT, "prompt_tokens: {distribution: lognormal, mean: 1, low: 1, high: 2}"),
        (GPU, "h100-sxm-80gb"),
        (ENGINE, "enforce_eager: 1"),
        (ENGINE, "vllm: 0.32"),
        ("requests: 8, ", ""),
    ],
)
def test_the_schema_rejects(old: str, new: str) -> None:
    assert validator().is_valid(YAML(typ="safe", pure=True).load(GOOD))
    assert not validator().is_valid(YAML(typ="safe", pure=True).load(but(old, new)))
    with pytest.raises(LoadfitError):
        parse_scenario(but(old, new))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_what_is_shipped_is_good_and_named_after_its_file(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.name == path.stem
    assert scenario.question
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../docs/scenario.schema.json"
    assert parse_scenario(scenario.as_yaml(), folder=path.parent) == scenario
