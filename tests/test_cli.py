"""``bench`` as its users and their scripts meet it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import ROOT, SCENARIOS, Ran, bench

from harness.cli import EXIT_PIPE, cli
from harness.ledger import STATED
from harness.scenario import schema

INT4 = SCENARIOS / "70b_8k_int4.yaml"
BF16 = SCENARIOS / "70b_8k.yaml"
TERMS = ["weights", "runtime_at_init", "non_torch_increase", "activation_peak", "cuda_graphs", "kv_available"]
RUNGS = ["LOADS", "ADMITS", "STARTS", "HOLDS"]
LOAD = {
    "peak_blocks_needed", "peak_blocks_used", "peak_running", "peak_waiting", "preemptions", "steps",
    "tokens_scheduled",
}  # fmt: skip


def analytic(*arguments: str | Path, out: Path) -> Ran:
    return bench("run", *arguments, "--analytic-only", "--out", out)


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_command_has_help_with_an_example(verb: str) -> None:
    ran = bench(verb, "--help")
    assert ran.code == 0
    assert f"\n    bench {verb}" in ran.out
    described = [p for p in cli.commands[verb].params if isinstance(p, click.Option)]
    assert all(p.help for p in described), [p.name for p in described if not p.help]


def test_help_and_version() -> None:
    shown = bench("--help").out
    assert all(verb in shown for verb in cli.commands)
    assert "Exit codes: 0 met" in shown
    assert bench("--version").out == "loadfit, version 0.1.0\n"
    assert bench("-h").out == shown


# -- the document ----------------------------------------------------------------------------------


def check_account(account: dict[str, Any]) -> None:
    assert list(account["terms"]) == TERMS == [str(t) for t in STATED]
    for term in account["terms"].values():
        assert {"bytes", "low", "high", "source"} <= set(term)
        for key in ("bytes", "low", "high"):
            assert term[key] is None or type(term[key]) is int
        if term["bytes"] is not None and term["low"] is not None:
            assert term["low"] <= term["bytes"] <= term["high"]
    assert {"bytes_per_token", "block_size", "num_blocks", "tokens", "max_concurrency"} <= set(account["kv"])
    assert [r["rung"] for r in account["rungs"]] == RUNGS
    for rung in account["rungs"]:
        assert {"rung", "holds", "margin_bytes", "limited_by"} <= set(rung)
        assert rung["holds"] in (True, False, None)
        assert rung["margin_bytes"] is None or type(rung["margin_bytes"]) is int
    assert set(account["load"]) >= LOAD
    for name, value in account["load"].items():
        assert value is None or type(value) is (float if name.endswith("_s") else int), name


def check_document(document: dict[str, Any]) -> None:
    assert {
        "schema", "scenario", "mode", "run_dir", "expectation", "prediction", "measurement", "engine_says",
    } <= set(document)  # fmt: skip
    assert document["schema"] == 1
    assert {"met", "failed"} <= set(document["expectation"])
    assert isinstance(document["expectation"]["failed"], list)
    check_account(document["prediction"])
    if document["measurement"] is not None:
        check_account(document["measurement"])
    assert all(isinstance(line, str) for line in document["engine_says"])


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda p: p.stem)
def test_json_is_one_document_with_the_keys_agreed(path: Path, tmp_path: Path) -> None:
    ran = analytic(path, "--json", out=tmp_path)
    check_document(ran.document)
    assert (ran.document["scenario"], ran.document["mode"]) == (path.stem, "analytic")
    assert ran.document["measurement"] is None
    assert ran.folder.is_dir() and ran.folder.parent == tmp_path / path.stem
    assert ran.code == (0 if ran.document["expectation"]["met"] in (True, None) else 1)
    assert "Traceback" not in ran.err
    again = bench("report", ran.folder, "--format", "json")
    assert again.document == ran.document


def test_the_document_says_what_is_known_of_this_scenario(tmp_path: Path) -> None:
    document = analytic(INT4, "--json", out=tmp_path).document
    rungs = {r["rung"]: r for r in document["prediction"]["rungs"]}
    assert document["expectation"] == {"met": True, "failed": []}
    assert [rungs[r]["holds"] for r in RUNGS] == [True, True, True, False]
    assert rungs["HOLDS"]["limited_by"] == "kv_cache" and rungs["HOLDS"]["margin_bytes"] < 0
    assert document["prediction"]["kv"]["bytes_per_token"] == 2 * 80 * 8 * 128 * 2
    assert document["prediction"]["load"]["preemptions"] > 0
    assert any("GPU KV cache size" in line for line in document["engine_says"])


def test_several_scenarios_are_one_document_too(tmp_path: Path) -> None:
    ran = analytic(INT4, BF16, "--json", out=tmp_path)
    assert ran.code == 0
    assert ran.document["schema"] == 1
    assert [d["scenario"] for d in ran.document["runs"]] == ["70b_8k_int4", "70b_8k"]
    for document in ran.document["runs"]:
        check_document(document)


# -- exit codes ------------------------------------------------------------------------------------


def test_exit_0_where_the_expectation_is_met(tmp_path: Path) -> None:
    ran = analytic(INT4, out=tmp_path)
    assert ran.code == 0
    assert "As expected: every expectation of the scenario is met." in ran.out
    assert f"Run folder: {tmp_path}" in ran.out


def test_exit_1_where_it_is_not(tmp_path: Path) -> None:
    ran = analytic(INT4, "--set", "expect.holds=true", "--json", out=tmp_path)
    assert ran.code == 1
    assert ran.document["expectation"]["met"] is False
    assert len(ran.document["expectation"]["failed"]) == 1
    # One scenario that fails its check is enough.
    assert analytic(BF16, INT4, "--set", "expect.loads=true", out=tmp_path).code == 1


def test_exit_2_for_bad_scenarios_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\n")
    (tmp_path / "b.yaml").write_text(INT4.read_text().replace("max_model_len", "max_model_length"))
    ran = analytic(INT4, tmp_path / "a.yaml", tmp_path / "b.yaml", out=tmp_path / "out")
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.splitlines() == [
        f"bench: {tmp_path}/a.yaml:1: model: missing: a catalogue name (`bench models`), a folder with config.json, "
        "or the config itself",
        f"bench: {tmp_path}/b.yaml:7: engine.max_model_length: unknown key; did you mean 'max_model_len'?",
    ]
    assert not (tmp_path / "out").exists()


def test_exit_2_where_vllm_would_refuse_the_arguments(tmp_path: Path) -> None:
    ran = analytic(
        BF16, INT4, "--set", "engine.max_num_batched_tokens=8", "--set", "engine.max_num_seqs=9", out=tmp_path / "out"
    )
    assert ran.code == 2
    told = "max_num_batched_tokens (8) must be greater than or equal to max_num_seqs"
    assert [told in line for line in ran.err.splitlines()] == [True, True]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "scenarios/70b_8.yaml"],
         "bench: scenarios/70b_8.yaml: can't be read: No such file or directory; did you mean '70b_8k.yaml'?"),
        (["run", "scenarios/70b_8k.yaml", "--analytic-only", "--set", "engin.max_model_len=1"],
         "bench: --set engin.max_model_len: engin: unknown key; did you mean 'engine'?"),
        (["run"], "Error: Missing argument 'SCENARIO...'."),
        (["run", "scenarios/70b_8k.yaml", "--analytics"], "Did you mean '--analytic-only'?"),
        (["rum"], "Did you mean 'run'?"),
        (["run", "scenarios/70b_8k.yaml", "--interval", "nan"], "Invalid value for '--interval': nan is no number."),
        (["run", "scenarios/70b_8k.yaml", "--attach", "http://[::1"], "--attach: expected a URL"),
        (["run", "scenarios/70b_8k.yaml", "--attach", "http://a:99999"], "--attach: expected a URL"),
        (["run", "results/reference/smollm2_cpu-measured"],
         "Is a directory; a run's scenario is in results/reference/smollm2_cpu-measured/scenario.yaml"),
        (["run", "scenarios"], "bench: scenarios: can't be read: Is a directory\n"),
        (["evidence", "--json", "--markdown"], "bench: --json and --markdown: one of them at most\n"),
        (["calibrate", "tests/logs/v1_0.33.log", "--gpu", "h100-sxm-80gb", "--out", "README.md"],
         "bench: --out: README.md is there and is no calibration: name another file\n"),
        (["report", "nowhere"], "nowhere"),
        (["report", "scenarios/70b_8k.yaml"], "bench: scenarios/70b_8k.yaml is a file, not a run folder\n"),
        (["check"], "Error: Missing argument 'FILE...'."),
    ],
)  # fmt: skip
def test_exit_2_for_wrong_usage(arguments: list[str], told: str) -> None:
    ran = bench(*arguments)
    assert ran.code == 2
    assert told in ran.err
    assert ran.out == ""


def test_exit_3_where_this_machine_cannot(tmp_path: Path) -> None:
    ran = bench("run", INT4, "--measure", "--json", "--out", tmp_path)
    assert ran.code == 3
    assert "--measure: " in ran.err.splitlines()[-1]
    assert ran.out == ""


@pytest.mark.parametrize("place", ["/proc/nowhere", "{file}/below"])
def test_a_place_that_cannot_be_written_to(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = place.format(file=tmp_path / "file")
    ran = bench("run", BF16, "--analytic-only", "--json", "--out", out)
    assert ran.code == 2
    assert f"no run folder can be made in {out}" in ran.err
    assert "Traceback" not in ran.err and ran.out == ""


# -- the small verbs -------------------------------------------------------------------------------


def test_check_tells_of_every_file(tmp_path: Path) -> None:
    good = bench("check", *sorted(SCENARIOS.glob("*.yaml")))
    assert good.code == 0
    assert all(line.endswith(".yaml: ok") for line in good.out.splitlines())
    long = tmp_path / "long.yaml"
    long.write_text(INT4.read_text().replace(", max_model_len: 8192", "").replace("7168", "140000"))
    wide = tmp_path / "wide.yaml"
    wide.write_text(INT4.read_text().replace("8192", "200000"))
    ran = bench("check", INT4, long, wide, tmp_path / "gone.yaml")
    assert ran.code == 2
    assert ran.out == f"{INT4}: ok\n"
    assert ran.err.splitlines() == [
        f"{long}:8: load.prompt_tokens: prompt and output reach 141,024 tokens, above the model's own "
        "max_position_embeddings (131,072)",
        f"{wide}:7: engine.max_model_len: User-specified max_model_len (200000) is greater than the derived "
        "max_model_len (max_position_embeddings=131072 or model_max_length=None in model's config.json).",
        f"{tmp_path}/gone.yaml: can't be read: No such file or directory; did you mean 'long.yaml'?",
    ]


@pytest.mark.parametrize(
    ("engine", "gpu", "told"),
    [
        ("", ", count: 3", ":6: gpu.count: Total number of attention heads (64) must be divisible by tensor parallel "
         "size (3); 2 or 4 would do"),
        ("pipeline_parallel_size: 2, ", ", count: 6", ":6: gpu.count: Total number of attention heads (64) must be "
         "divisible by tensor parallel size (3); 4 or 8 would do"),
        ("tensor_parallel_size: 128, ", ", count: 128", ":7: engine.tensor_parallel_size: Total number of attention "
         "heads (64) must be divisible by tensor parallel size (128); 64 would do"),
        ("decode_context_parallel_size: 3, ", ", count: 32", ":7: engine.decode_context_parallel_size: tp_size=32 must "
         "be divisible by dcp_size=3; 2 or 4 would do"),
        ("decode_context_parallel_size: 2, ", ", count: 8", "model's total number of KV heads (8). Increase "
         "`--tensor-parallel-size` or set `--decode-context-parallel-size 1`; 1 would do"),
        ("pipeline_parallel_size: 100, ", ", count: 100", ":7: engine.pipeline_parallel_size: 100 is more than the "
         "model's 80 layers"),
    ],
)  # fmt: skip
def test_ranks_that_a_model_cannot_be_shared_by(engine: str, gpu: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "ranks.yaml"
    path.write_text(BF16.read_text().replace("engine: {", f"engine: {{{engine}").replace("80gb}", f"80gb{gpu}}}"))
    ran = bench("check", path)
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert told in ran.err and ran.err.startswith(f"{path}:")


def test_models_and_gpus() -> None:
    models = bench("models", "--json").document
    assert models["schema"] == 1
    rows = {m["name"]: m for m in models["models"]}
    assert rows["meta-llama/Llama-3.1-70B-Instruct"]["parameters"] == 70_553_706_496
    assert rows["meta-llama/Llama-3.1-70B-Instruct"]["kv_bytes_per_token"] == 327_680
    gpus = {g["name"]: g for g in bench("gpus", "--json").document["gpus"]}
    assert 79 * 2**30 < gpus["h100-sxm-80gb"]["memory_bytes"] < 80 * 2**30
    for verb, rows_ in (("models", rows), ("gpus", gpus)):
        shown = bench(verb)
        assert shown.code == 0
        assert all(name in shown.out for name in rows_), verb


def test_schema_prints_the_schema() -> None:
    assert bench("schema").document == schema()


# -- pipes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["schema"], ["gpus", "--json"], ["run", str(BF16), "--analytic-only"]])
def test_a_reader_that_has_gone_is_no_fault(arguments: list[str], tmp_path: Path) -> None:
    if arguments[0] == "run":
        arguments = [*arguments, "--out", str(tmp_path)]
    command = [sys.executable, "-m", "harness", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()  # gone before the first line
    told = process.stderr.read().decode()
    assert process.wait(60) == EXIT_PIPE, told
    assert "Traceback" not in told and "BrokenPipe" not in told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("into", "code", "said"), [
    (">/dev/full", 3, "bench: the output can't be written: No space left on device\n"), (">&-", 0, ""),
])  # fmt: skip
def test_output_that_cannot_be_written_is_told_in_a_line(into: str, code: int, said: str) -> None:
    command = ["/bin/sh", "-c", f"exec {sys.executable} -m harness gpus {into}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_fault_of_our_own_is_one_line_and_its_own_code(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from harness import cli as module

    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("oops")

    monkeypatch.delenv("LOADFIT_DEBUG", raising=False)
    monkeypatch.setattr(module.cli, "main", broken)
    with pytest.raises(SystemExit) as ended:
        module.main(["gpus"])
    assert ended.value.code == module.EXIT_BUG
    assert capsys.readouterr().err == (
        "bench: a fault of bench itself: KeyError: 'oops' (LOADFIT_DEBUG=1 shows where)\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_bars_and_dashes_gets_its_report_all_the_same(tmp_path: Path, encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", str(ROOT / "scenarios" / "70b_8k_int4.yaml"), "--analytic-only",
         "--out", str(tmp_path)],
        capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": encoding}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"HOLDS" in done.stdout and b"Run folder" in done.stdout


def test_one_mode_at_a_time(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", str(ROOT / "scenarios" / "70b_8k.yaml"), "--analytic-only",
         "--rehearse", "--out", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "bench: --analytic-only, --rehearse and --measure: one of them at most\n"


@pytest.mark.parametrize("verb", ["", *sorted(cli.commands)])
def test_help_fits_80_columns(verb: str) -> None:
    told = CliRunner().invoke(cli, [*([verb] if verb else []), "--help"], terminal_width=80).output.splitlines()
    assert told[0].startswith("Usage: ") and max(map(len, told)) <= 80
    assert not [line for line in told[1:] if line.endswith("...")]  # no verb is told in half a sentence
