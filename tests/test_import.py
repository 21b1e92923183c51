"""``bench import``: what a vLLM log states, as a run folder, in every format that is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import bench

from harness import catalog, evidence, imported, store
from harness.cli import cli
from harness.engines.masks import mask
from harness.errors import UsageError
from harness.ledger import Account, Phase, Term
from harness.measure import measure

GIB = 2**30
HERE = Path(__file__).resolve().parent
LOGS = HERE / "logs"
EVIDENCE = HERE.parents[1] / "shared" / "evidence"
PUBLIC = sorted((EVIDENCE / "logs").glob("*.log"))
H100 = ("--gpu", "h100-sxm-80gb")
# column of the table -> the ledger's term
TERMS = {
    "weights_gib": Term.WEIGHTS, "activation_peak_gib": Term.ACTIVATION_PEAK, "cuda_graph_actual_gib": Term.CUDA_GRAPHS,
    "non_torch_increase_gib": Term.NON_TORCH_INCREASE, "init_non_torch_gib": Term.RUNTIME_AT_INIT,
    "kv_cache_gib": Term.KV_AVAILABLE,
}  # fmt: skip
STATED = (
    "max_model_len", "max_num_seqs", "max_num_batched_tokens", "dtype", "kv_cache_dtype", "gpu_memory_utilization",
    "tensor_parallel_size", "pipeline_parallel_size",
)  # fmt: skip
REACHED = {"started": ("completed", "STARTS"), "admitted_then_oom": ("refused_at_start", "ADMITS")}


def account(path: Path, out: Path, *overrides: str, model: str | None = None, gpu: str | None = None) -> Account:
    start = imported.read(path)
    run = imported.scenario(path, start, model, gpu or "h100-sxm-80gb", overrides)
    found = measure(store.read(imported.record(start, run, path.name, out).path))
    assert found is not None
    return found


def sizes(found: Account, device: str = "gpu0") -> dict[str, float | None]:
    entries = [e for e in found.ledger if e.phase == Phase.IDLE and e.device == device]
    return {str(e.term): None if e.bytes is None else round(e.bytes / GIB, 2) for e in entries}


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "server.log"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# -- the public runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    if not PUBLIC:
        pytest.skip("the raw logs are not beside this checkout")
    with (EVIDENCE / "h100_vllm_0.19.csv").open(newline="") as file:
        return {row["source_url"].rsplit("/", 1)[-1]: row for row in csv.DictReader(file)}


def test_the_public_runs(table: dict[str, dict[str, str]], tmp_path: Path) -> None:
    ours = {row["id"]: row for row in evidence.rows()}
    figures = outcomes = 0
    for path in PUBLIC:
        row, mapped = table[path.name], ours[table[path.name]["id"]]
        start = imported.read(path)
        assert (start.stated.version, start.stated.model) == ("0.19.0", row["model"] or start.stated.model), path.name
        for key in STATED:
            assert not row[key] or start.stated.engine[key] == row[key], (path.name, key)
        known = catalog.knows_model(start.stated.model or "")
        # A name that the catalogue lacks: its base model, as the evidence has it; gemma-4-E4B was not loaded at all.
        model = None if known else mapped["catalogue_model"] or "google/gemma-3-4b-it"
        format_ = [f"weights.format={mapped['weights_format']}"] if model and mapped["weights_format"] else []
        found = account(path, tmp_path, *format_, model=model)
        outcome, highest = REACHED.get(row["outcome"], ("refused_at_start", None))
        assert start.outcome == outcome, path.name
        loaded = "LOADS" if "dp2" in path.name else None  # its second engine failed when the first had loaded
        assert found.highest == highest or found.highest == loaded, (path.name, found.highest)
        assert start.reason or outcome == "completed", path.name
        outcomes += 1
        for column, term in TERMS.items():
            if row[column]:
                ranks = [e.bytes / GIB for e in found.ledger if e.term == term and e.phase == "idle" and e.bytes]
                assert any(abs(r - float(row[column])) < 0.0051 for r in ranks), (path.name, column, ranks)
                figures += 1
        if row["kv_cache_tokens"]:
            stated = (int(row["kv_cache_tokens"]), float(row["max_concurrency"]))
            assert (found.kv.tokens, found.kv.max_concurrency) == stated, path.name
            figures += 2
    assert (outcomes, figures) == (47, 332)


def test_a_public_run_at_info(table: dict[str, dict[str, str]], tmp_path: Path) -> None:
    full = next(p for p in PUBLIC if p.name == "meta-llama-llama-3-1-8b---h100-80gb--tp1pp1dp1--8192.log")
    info = [line for line in full.read_text().splitlines() if "DEBUG" not in line]
    found = account(written(tmp_path, *info), tmp_path)
    assert (found.highest, found.kv.tokens) == ("STARTS", 476_016)
    terms = sizes(found)
    assert (terms["weights"], terms["cuda_graphs"], terms["kv_available"]) == (14.99, 0.91, 58.11)
    assert {terms[t] for t in ("activation_peak", "non_torch_increase", "runtime_at_init", "total")} == {None}


def test_why_the_public_runs_failed(table: dict[str, dict[str, str]]) -> None:
    words = {
        "codellama": "Free memory on device cuda:1 (60.87/79.19 GiB) on startup is less than desired",
        "google-gemma-4": "model type `gemma4` but Transformers does not recognize",
        "meta-llama-llama-3-1": "DP adjusted local rank 1 is out of bounds",
        "meta-llama-llama-4": "Free memory on device cuda:1 (60.33/79.19 GiB) on startup is less than desired",
        "microsoft-phi-2": "User-specified max_model_len (8192) is greater than the derived max_model_len",
        "openai-gpt-oss": "CUDA out of memory. Tried to allocate 786.00 MiB",
        "qwen-qwen3-14b": "151936 is not divisible by 5",
    }
    failed = [path for path in PUBLIC if "FAILED" in path.name]
    assert len(failed) == 8
    for path in failed:
        expected = next(text for name, text in words.items() if path.name.startswith(name))
        assert expected in imported.read(path).reason


# -- other formats -------------------------------------------------------------------------------------


def test_v0_5(tmp_path: Path) -> None:
    found = account(LOGS / "v0_0.5.4.log", tmp_path)
    assert sizes(found)["weights"] == 14.99
    assert (found.kv.num_blocks, found.kv.block_size, found.kv.tokens) == (27_899, 16, None)
    assert found.highest == "STARTS"


def test_v0_6_4_counts_the_weights_into_pytorchs_peak(tmp_path: Path) -> None:
    found = account(LOGS / "v0_0.6.4.log", tmp_path)
    terms = sizes(found)
    assert (terms["weights"], terms["activation_peak"], terms["kv_available"]) == (14.99, 1.21, 54.40)
    assert terms["cuda_graphs"] == 0.26
    assert terms["non_torch_increase"] is None  # what is stated has the CUDA context in it
    assert (found.kv.num_blocks, found.kv.max_concurrency, found.highest) == (27_852, 54.40, "STARTS")
    # 79.11 GiB x 0.90 - 16.20 - 0.60, and as many whole blocks: the fixture says what such an engine would
    assert round(79.11 * 0.9 - 16.20 - 0.60, 2) == 54.40 and int(54.40 * GIB) // (16 * 131_072) == 27_852


def test_v0_6_5_states_the_same_with_commas_and_offline_the_share_only_there(tmp_path: Path) -> None:
    lines = (LOGS / "v0_0.6.4.log").read_text().replace("Memory profiling results: ", "Memory profiling results: "
            "duration=18.41 seconds, ").replace("GiB peak", "GiB, peak").replace("GiB kv_", "GiB, kv_")  # fmt: skip
    lines = lines.replace("GiB gpu_memory_utilization=0.90", "GiB, gpu_memory_utilization=0.90.").splitlines()
    path = written(tmp_path, *lines[2:])  # without the server's arguments
    assert imported.read(path).stated.engine["gpu_memory_utilization"] == "0.90"
    terms = sizes(account(path, tmp_path))
    assert (terms["activation_peak"], terms["kv_available"]) == (1.21, 54.40)


def test_v0_7(tmp_path: Path) -> None:
    found = account(LOGS / "v0_0.7.3.log", tmp_path)
    terms = ("weights", "non_torch_increase", "activation_peak", "kv_available", "cuda_graphs")
    assert [sizes(found)[t] for t in terms] == [14.99, 0.10, 1.21, 54.90, 0.26]
    assert (found.kv.num_blocks, found.kv.max_concurrency, found.highest) == (28_108, 54.90, "STARTS")


def test_v1_0_10_with_debug_lines(tmp_path: Path) -> None:
    found = account(LOGS / "v1_0.10.2.log", tmp_path)
    terms = ("weights", "non_torch_increase", "activation_peak", "kv_available", "cuda_graphs", "runtime_at_init")
    assert [sizes(found)[t] for t in terms] == [14.99, 0.12, 4.99, 51.10, 0.59, 0.51]
    assert (found.kv.tokens, found.kv.num_blocks, found.kv.max_concurrency) == (418_608, 26_163, 51.10)
    engine = imported.read(LOGS / "v1_0.10.2.log").stated.engine
    assert (engine["max_model_len"], engine["max_num_batched_tokens"], engine["gpu_memory_utilization"]) == (
        "8192", "8192", "0.9"
    )  # fmt: skip
    info = [line for line in (LOGS / "v1_0.10.2.log").read_text().splitlines() if " DEBUG " not in line]
    assert sizes(account(written(tmp_path, *info), tmp_path)) == sizes(found)  # its last line has it all


def test_v1_0_13_whose_first_rank_speaks_for_all(tmp_path: Path) -> None:
    found = account(LOGS / "v1_0.13.0.log", tmp_path)
    assert [sizes(found)[t] for t in ("weights", "kv_available", "cuda_graphs")] == [7.51, 58.33, 0.82]
    assert (found.kv.tokens, found.kv.num_blocks, found.kv.max_concurrency) == (955_664, 59_729, 116.66)
    assert found.highest == "STARTS"


def test_v0_6_of_two_ranks(tmp_path: Path) -> None:
    found = account(LOGS / "v0_0.6.6.log", tmp_path)
    terms = ("weights", "non_torch_increase", "activation_peak", "kv_available")
    assert [sizes(found)[t] for t in terms] == [7.51, 2.02, 1.19, 60.55]  # the driver is the fuller of the two
    assert [sizes(found, "gpu1")[t] for t in terms] == [7.51, 1.95, 1.08, 60.73]
    assert sizes(found)["cuda_graphs"] == 0.27
    assert (found.kv.num_blocks, found.kv.max_concurrency) == (62_003, 121.10)
    stated = imported.read(LOGS / "v0_0.6.6.log").stated
    assert not stated.unread and "max_loras" not in stated.engine  # defaults say nothing


def test_v1_0_8_of_two_ranks_that_state_their_own_pools(tmp_path: Path) -> None:
    found = account(LOGS / "v1_0.8.5.log", tmp_path)
    assert (found.kv.tokens, found.kv.max_concurrency, found.kv.num_blocks) == (2_209_600, 269.73, 138_100)
    assert (sizes(found)["weights"], sizes(found, "gpu1")["weights"], sizes(found)["cuda_graphs"]) == (7.12, 7.12, 0.55)
    assert sizes(found)["kv_available"] is None  # nobody stated it, so it is not 0
    assert sizes(found)["total"] is None  # and what is stated makes no total


@pytest.mark.parametrize("prefix", ["vllm-1  | ", "2026-04-22T00:03:46.123456Z ", "node/pod | 2026-04-22T00:03:46Z "])
def test_what_a_container_puts_before_each_line(prefix: str, tmp_path: Path) -> None:
    path = written(tmp_path, *(prefix + line for line in (LOGS / "v1_0.8.5.log").read_text().splitlines()))
    assert imported.read(path).lines == imported.read(LOGS / "v1_0.8.5.log").lines


def test_v1_0_33(tmp_path: Path) -> None:
    found = account(LOGS / "v1_0.33.log", tmp_path)
    assert (found.kv.tokens, found.kv.max_concurrency) == (1_013_168, 123.68)
    assert (sizes(found)["kv_available"], sizes(found)["cuda_graphs"]) == (54.11, 0.61)


def test_a_version_that_is_not_modelled_is_still_read(tmp_path: Path) -> None:
    ran = bench("import", LOGS / "v0_0.5.4.log", *H100, "--json", "--out", tmp_path)
    assert ran.code == 0, ran.err
    assert ran.document["prediction"]["terms"]["weights"]["bytes"] is None
    assert ran.document["measurement"]["terms"]["weights"]["bytes"] == round(14.9888 * GIB)
    shown = bench("report", ran.folder).out
    assert "vLLM 0.5.4: versions before 0.6.4" in shown and "It started. Nothing is predicted for it" in shown


# -- as a user does it ---------------------------------------------------------------------------------


def test_the_document_and_the_report(tmp_path: Path) -> None:
    ran = bench("import", LOGS / "v1_0.33.log", *H100, "--json", "--out", tmp_path)
    assert ran.code == 0, ran.err
    document = ran.document
    assert (document["mode"], document["outcome"]) == ("imported", "completed")
    assert [r["holds"] for r in document["measurement"]["rungs"]] == [True, True, True, None]
    assert document["prediction"]["terms"]["weights"]["bytes"] > 0
    shown = bench("report", ran.folder)
    assert shown.code == 0 and "Imported (read from v1_0.33.log) by vLLM 0.33.0: completed." in shown.out
    csvs = bench("report", ran.folder, "--format", "csv", "--out", tmp_path / "csv")
    assert csvs.code == 0, csvs.err
    kept = (ran.folder / "engine.log").read_text()
    assert "swordfish" not in kept and "'api_key': ***" in kept


def refused(tmp_path: Path) -> Path:
    lines = (LOGS / "v1_0.33.log").read_text().splitlines()
    error = "(EngineCore pid=42) ERROR 11-02 08:00:40 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried"
    return written(tmp_path, *lines[:6], error)


def test_exit_codes(tmp_path: Path) -> None:
    path = refused(tmp_path)
    ran = bench("import", path, *H100, "--out", tmp_path / "r")
    assert ran.code == 4 and "refused_at_start: torch.OutOfMemoryError: CUDA out of memory" in ran.err
    assert bench("import", path, *H100, "--set", "expect.starts=false", "--out", tmp_path / "r").code == 0
    assert bench("import", LOGS / "v1_0.33.log", *H100, "--set", "expect.starts=false", "--out", tmp_path).code == 1


def test_a_log_that_ends_before_the_start_does(tmp_path: Path) -> None:
    lines = (LOGS / "v1_0.33.log").read_text().splitlines()
    found = account(written(tmp_path, *lines[:6]), tmp_path)
    assert [r.holds for r in found.rungs] == [True, True, None, None]
    assert sizes(found)["kv_available"] == 54.11


def test_an_engine_that_died_later(tmp_path: Path) -> None:
    lines = (LOGS / "v1_0.33.log").read_text().splitlines()
    later = (
        "(EngineCore pid=42) ERROR 11-02 09:00:00 [core.py:1] EngineCore encountered a fatal error.",
        "(EngineCore pid=42) ERROR 11-02 09:00:00 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB",
    )
    found = account(written(tmp_path, *lines, *later), tmp_path)
    assert found.highest == "STARTS"
    assert [(r.holds, r.limited_by) for r in found.rungs][-1] == (False, "memory")


def test_of_several_starts_the_last_one_counts(tmp_path: Path) -> None:
    twice = refused(tmp_path).read_text() + (LOGS / "v1_0.33.log").read_text().replace("14.25 GiB", "14.26 GiB")
    path = tmp_path / "twice.log"
    path.write_text(twice)
    found = account(path, tmp_path)
    assert found.highest == "STARTS" and sizes(found)["weights"] == 14.26
    assert "The log holds 2 starts; the last one is read." in found.notes


# -- what can't be read --------------------------------------------------------------------------------

BAD: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "can't be read: No such file or directory"),
    "empty": (b"", "empty"),
    "blank": (b"\n \n", "empty"),
    "binary": (b"\x7fELF\0\0\0\1" * 100, "not a text"),
    "packed": (b"\x1f\x8b\x08" + b"x" * 100, "not a text"),
    "prose": (b"hello\nworld\n", "no vLLM log that bench can read: 2 lines, 0 of them like vLLM's"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_log(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    path = tmp_path / "a.log"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^[^\n]*$") as error:
        imported.read(path)
    assert words in str(error.value) and str(path) in str(error.value)
    with pytest.raises(UsageError, match="this is a folder"):
        imported.read(tmp_path)


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(cli, ["import", *map(str, arguments)])
    assert isinstance(result.exception, UsageError)
    return str(result.exception)


def test_what_a_log_leaves_open_is_named(tmp_path: Path) -> None:
    text = (LOGS / "v1_0.33.log").read_text()
    assert "its GPU: say --gpu" in run(LOGS / "v1_0.33.log", "--out", tmp_path)
    path = written(tmp_path, text.replace("Qwen/Qwen2.5-7B-Instruct", "/models/private"))
    told = run(path, *H100, "--out", tmp_path)
    assert "a model of the catalogue (it has '/models/private'): say --model" in told
    path = written(tmp_path, text.replace("quantization=None", "quantization=awq_marlin"))
    assert "how awq_marlin stores its weights: say --set weights.format" in run(path, *H100, "--out", tmp_path)
    path = written(tmp_path, text.replace("kv_cache_dtype=auto", "kv_cache_dtype=turbo"))
    told = run(path, *H100, "--out", tmp_path)
    assert told.startswith(f"{path}: engine.kv_cache_dtype: ") and "\n" not in told
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]  # nothing is left of a refusal


def test_the_gpu_that_the_log_names_or_resembles(tmp_path: Path) -> None:
    text = (LOGS / "v1_0.33.log").read_text()
    named = "Config file not found at /x/configs/E=8,N=1,device_name=NVIDIA_H100_80GB_HBM3.json"
    start = imported.read(path := written(tmp_path, named, text))
    gpu = imported.scenario(path, start).gpu
    assert gpu is not None and gpu.name == "h100-sxm-80gb"
    told = run(LOGS / "v0_0.6.6.log", "--out", tmp_path)
    assert "CUDA sees 79.19 GiB on it, as on h100-sxm-80gb" in told
    other = run(LOGS / "v0_0.6.6.log", "--gpu", "l4-24gb", "--out", tmp_path)
    assert "did not run on l4-24gb, of " in other and other.endswith("CUDA sees 79.19 GiB on it, as on h100-sxm-80gb")


def test_a_path_or_a_name_in_a_log_leads_nowhere(tmp_path: Path) -> None:
    """A model's folder that the log names is not opened, and no name makes a path outside the folder of runs."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    text = (LOGS / "v1_0.33.log").read_text().replace("Qwen/Qwen2.5-7B-Instruct", str(tmp_path / "model"))
    assert "a model of the catalogue" in run(written(tmp_path, text), *H100, "--out", tmp_path)
    odd = tmp_path / "..$(touch x);é.log"
    odd.write_text((LOGS / "v1_0.33.log").read_text() + "\x1b]0;title\x07\x1b[31mred\n")
    start = imported.read(odd)
    scenario = imported.scenario(odd, start, None, "h100-sxm-80gb")
    folder = imported.record(start, scenario, odd.name, tmp_path / "out")
    assert folder.path.resolve().is_relative_to((tmp_path / "out").resolve()) and scenario.name == "touch_x"
    assert "\x1b" not in folder.file(store.ENGINE_LOG).read_text()


SECRETS = {
    "--api-key swordfish-1": "--api-key ***",
    "--api-key=swordfish-1 --port 1": "--api-key=*** --port 1",
    "args: Namespace(api_key='swordfish-1', port=1)": "args: Namespace(api_key=***, port=1)",
    "{'api_key': ['swordfish-1', 'swordfish-2'], 'port': 1}": "{'api_key': ***, 'port': 1}",
    "HF_TOKEN=swordfish-1": "HF_TOKEN=***",
    "using hf_AbCdEfGhIjKlMnOpQrSt now": "using *** now",
    "Authorization: Bearer swordfish-1": "Authorization: ***",
    "https://me:swordfish-1@host/x": "https://***@host/x",
    "'VLLM_API_KEY': None, max_num_batched_tokens=8192": "'VLLM_API_KEY': None, max_num_batched_tokens=8192",
    "GPU KV cache size: 1 tokens, in hf_hub_download": "GPU KV cache size: 1 tokens, in hf_hub_download",
}


@pytest.mark.parametrize("line", SECRETS)
def test_secrets_are_masked(line: str) -> None:
    assert mask(line) == SECRETS[line]


def test_a_huge_log_is_read_by_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "huge.log"
    with path.open("w") as file:
        file.write((LOGS / "v1_0.33.log").read_text())
        for _ in range(200_000):
            file.write("(APIServer pid=1) INFO:     127.0.0.1:1 - POST /v1/completions 200 OK, again and again\n")
    found = account(path, tmp_path)
    assert found.kv.tokens == 1_013_168
    kept = next((tmp_path / "huge").glob("*/engine.log"))
    assert kept.stat().st_size < 9 * 2**20 < path.stat().st_size



def test_memory_that_was_not_free_fails_the_grant_and_says_nothing_of_the_weights(tmp_path: Path) -> None:
    log = written(
        tmp_path,
        "INFO 03-01 10:00:00 [core.py:77] Initializing a V1 LLM engine (v0.19.0) with config: "
        "model='meta-llama/Llama-3.1-8B-Instruct', dtype=torch.bfloat16, max_seq_len=8192, tensor_parallel_size=1",
        "ERROR 03-01 10:00:09 [core.py:700] ValueError: Free memory on device cuda:0 (60.87/79.19 GiB) on startup is "
        "less than desired GPU memory utilization (0.95, 75.23 GiB). Decrease GPU memory utilization.",
    )
    found = account(log, tmp_path / "out")
    loads, admits, *_ = found.rungs
    assert (loads.holds, admits.holds, admits.limited_by) == (None, False, Term.RUNTIME_AT_INIT)
