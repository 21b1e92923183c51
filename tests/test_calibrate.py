"""``bench calibrate``: known constants are given back, public logs give what their table says, others are refused."""

from __future__ import annotations

import csv
import datetime
import io
import json
import random
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, SCENARIOS, Ran, bench
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from harness import __version__, store
from harness.calibrate import Run, calibrate, case_of
from harness.cli import main
from harness.ledger import Term
from harness.predict import predict
from harness.predict.simulated import step_time_of
from harness.report.reading import understand
from harness.scenario import Calibration, Scenario, calibrated, parse_scenario

GIB = 2**30
REFERENCE = ROOT / "results" / "reference"
EVIDENCE = ROOT.parent / "shared" / "evidence"
TODAY = datetime.date(2026, 11, 24)
MODELS = ("meta-llama/Llama-3.2-1B", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-32B-Instruct", "meta-llama/Llama-3.1-70B")
# Constants of a GPU that nobody has, bytes; graphs: base and each layer of each graph.
INIT, NON_TORCH, C, BASE, EACH = 700_000_000, 400_000_000, 90_000_000, 500_000_000, 300_000
CAPTURED = 51 + 35  # graphs of 256 sequences: all sizes in pieces, those up to 256 whole
SHARES = {"weights": 0.62, "kv": 0.7, "linear": 0.55, "attention": 0.3}


def scenario(model: str, gpu: str = "a100-sxm-80gb", vllm: str = "0.19", more: str = "") -> Scenario:
    text = f"name: s\nmodel: {model}\nweights: {{format: int4}}\ngpu: {{name: {gpu}}}\n"
    return parse_scenario(text + f"engine: {{vllm: '{vllm}', max_model_len: 8192}}\n{more}")


def constants(base: int = BASE) -> Calibration:
    """What is to be found."""
    rows = [
        ("runtime_at_init", "tp=1 pp=1", INIT, 0), ("non_torch_increase", "tp=1 pp=1", NON_TORCH, 0),
        ("activation_peak", "v1", C, 0), ("cuda_graphs", "graphs, tp=1 pp=1", base, EACH),
    ]  # fmt: skip
    return Calibration.model_validate({
        "format": 1, "loadfit": __version__, "gpu": "a100-sxm-80gb", "vllm": "0.19", "made": "2026-11-24", "runs": 1,
        "made_from": [],
        "constants": [
            {"term": t, "of": o, "bytes": b, "bytes_per_unit": e, "runs": 1, "before": 0, "after": 0}
            for t, o, b, e in rows
        ],
    })  # fmt: skip


def run(model: str, found: Calibration | None = None, **off: int) -> Run:
    """A run on that GPU; ``off``: bytes that a term of it is beside the law."""
    one = Run(model, scenario(model), {})
    terms = case_of(one).terms(found or constants())
    return replace(one, measured={t: e.bytes + off.get(t, 0) for t, e in terms.items()})


def found_of(c: Calibration) -> dict[str, tuple[int, int]]:
    return {k.term: (k.bytes, k.bytes_per_unit) for k in c.constants}


def quick(*arguments: str | Path) -> Ran:
    """``bench`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return Ran(int(end.value.code or 0), out.getvalue(), err.getvalue())


# -- the fit -------------------------------------------------------------------------------------------


def test_known_constants_are_given_back() -> None:
    found = calibrate([run(m) for m in MODELS], TODAY)
    assert found_of(found) == {
        "runtime_at_init": (INIT, 0), "non_torch_increase": (NON_TORCH, 0), "activation_peak": (C, 0),
        "cuda_graphs": (BASE, EACH),
    }  # fmt: skip
    assert {(c.after, c.held_out, c.runs) for c in found.constants if c.term != "cuda_graphs"} == {(0, 0, 4)}
    assert all(c.before > 0 for c in found.constants)
    assert found.pool is not None and (found.pool.after, found.pool.runs) == (0, 4) and found.pool.before > 10**8
    assert (found.gpu, found.vllm, found.runs, found.made_from) == ("a100-sxm-80gb", "0.19", 4, list(MODELS))


def test_one_odd_run_moves_nothing() -> None:
    odd = {Term.NON_TORCH_INCREASE: 10**9, Term.CUDA_GRAPHS: -(10**9), Term.ACTIVATION_PEAK: 10**9}
    found = calibrate([*(run(m) for m in MODELS), run("Qwen/Qwen2.5-14B-Instruct", None, **odd)], TODAY)
    assert {k: v for k, v in found_of(found).items() if k != "cuda_graphs"} == {
        "runtime_at_init": (INIT, 0), "non_torch_increase": (NON_TORCH, 0), "activation_peak": (C, 0)
    }  # fmt: skip
    base, each = found_of(found)["cuda_graphs"]
    units = 40 * CAPTURED
    assert base + units * each == pytest.approx(BASE + units * EACH, rel=0.1)


def test_few_depths_keep_the_published_slope() -> None:
    found = {c.term: c for c in calibrate([run(m) for m in MODELS[:2]], TODAY).constants}
    graphs = found["cuda_graphs"]
    assert graphs.bytes_per_unit == round(0.175 * 2**20)
    assert graphs.after > 0 and graphs.held_out is None and graphs.below is None


def test_a_model_is_held_out_with_all_its_runs() -> None:
    """By hand: the medians of the others are off by what each model is beside the rest."""
    off = dict(zip(MODELS, (0, 10, 20, 600), strict=True))
    runs = [run(m, None, non_torch_increase=n * 2**20) for m, n in off.items() for _ in range(2)]
    constant = next(c for c in calibrate(runs, TODAY).constants if c.term == "non_torch_increase")
    assert constant.bytes == NON_TORCH + 15 * 2**20
    # Left out, 0 is predicted by the median of 10, 20, 600, and so on.
    errors = [20 - 0, 20 - 10, 10 - 20, 10 - 600]
    assert constant.held_out == (10 + 20) / 2 * 2**20
    assert constant.above == -min(errors) * 2**20 + GIB // 200  # beyond the published interval, so it is wider
    assert constant.below is None  # within it, and four models are too few to make it narrower


def test_one_run_can_be_used_and_not_held_out() -> None:
    found = calibrate([run(MODELS[0])], TODAY)
    assert found_of(found)["runtime_at_init"] == (INIT, 0)
    assert all(c.held_out is None and c.below is None and c.above is None for c in found.constants)
    assert found.pool is not None and found.pool.held_out is None


def test_what_no_run_tells_stays_and_is_named() -> None:
    told = run(MODELS[0])
    found = calibrate([replace(told, measured={Term.RUNTIME_AT_INIT: 1})], TODAY)
    assert list(found_of(found)) == ["runtime_at_init"]
    assert found.not_refitted["activation peak of v1"] == "no run states it"
    assert found.not_refitted["step times"] == "no run recorded its steps"


def test_from_0_20_on_the_budget_holds_an_estimate_of_the_graphs_and_both_are_found() -> None:
    """The pool follows what is reserved, what is left on the device what the capture takes."""
    def one(model: str) -> Scenario:
        return scenario(model, vllm="0.21")

    cases = [case_of(Run(m, one(m), {})) for m in MODELS]
    off = [{t: e.bytes for t, e in c.terms(None).items()} for c in cases]
    for terms in off:
        terms["cuda_graphs"] += 10**8
        terms["graphs_reserved"] -= 2 * 10**8
        terms["kv_available"] += 2 * 10**8
    found = calibrate([Run(m, one(m), terms) for m, terms in zip(MODELS, off, strict=True)], TODAY)
    assert found.pool is not None and found.pool.before == 2 * 10**8 and found.pool.after < 100  # slopes are rounded
    plain, with_it = (predict(one(MODELS[1]).model_copy(update={"calibration": c})) for c in (None, found))
    for term, change in (("cuda_graphs", 10**8), ("kv_available", 2 * 10**8)):
        sizes = [a.ledger.bytes_of(term) for a in (plain, with_it)]
        assert sizes[1] - sizes[0] == pytest.approx(change, abs=100), term  # type: ignore[operator]
    starts = [a.rung("STARTS").margin_bytes for a in (plain, with_it)]  # type: ignore[union-attr]
    assert starts[1] - starts[0] == pytest.approx(-3 * 10**8, abs=with_it.kv.bytes_per_block)  # type: ignore[operator]


# -- steps ---------------------------------------------------------------------------------------------


def steps(one: Scenario, seed: int) -> list[tuple[int, int, int, int]]:
    """(tokens, kv_tokens, pairs, took_ns) of a GPU that reaches SHARES, two per cent off each."""
    changes = {"gpu": one.gpu.model_copy(update={"efficiency": one.gpu.efficiency.model_copy(update=SHARES)})}  # type: ignore[union-attr]
    real, rng = step_time_of(one.model_copy(update=changes)), random.Random(seed)
    rows = [(n, n * rng.randrange(500, 8000), 0) for n in range(1, 41) for _ in range(4)]
    for _ in range(100):
        new, before = rng.randrange(2048, 8192), rng.choice([0, 2000, 4000])
        rows.append((new + 20, 20 * rng.randrange(500, 8000), new * before + new * (new + 1) // 2))
    return [(*row, round(real.step(*row) / 1000 * rng.gauss(1, 0.02))) for row in rows]


def folder(path: Path, model: str, *, seed: int = 1, **manifest: object) -> Path:
    """A run folder as a measured run on that GPU leaves it, with its steps."""
    one = run(model)
    m, total = one.measured, 80 * GIB
    worker = {
        "rank": 0, "cuda_total_bytes": total, "free_at_init_bytes": total - m[Term.RUNTIME_AT_INIT],
        "torch_at_init_bytes": 0, "model_bytes": 10 * GIB, "consumed_bytes": 10 * GIB + m[Term.NON_TORCH_INCREASE],
        "activation_peak_bytes": m[Term.ACTIVATION_PEAK], "graphs_bytes": m[Term.CUDA_GRAPHS],
        "available_bytes": m[Term.KV_AVAILABLE], "num_blocks": 1000,
    }  # fmt: skip
    load = "load: {shape: closed, users: 1, requests: 1, prompt_tokens: 512, output_tokens: 64}\n"
    made = scenario(model, more=load)
    kept = store.RunFolder.create(path, made.name, "measured")
    kept.write_text(store.SCENARIO, made.as_yaml())
    kept.write_json(store.PREDICTION, predict(made).as_dict())
    kept.save_manifest(
        digest=made.digest, mode="measured", device="gpu", outcome="completed",
        marks={"start": 1, "idle": 2, "load": 3}, engine={"version": "0.19.1", "arguments": {}},
        workers={"idle": [worker]}, **manifest,
    )  # fmt: skip
    names = (*store.COLUMNS["steps"], "kv_tokens", "pairs", "paced_ns", "took_ns")
    lines = [f"{n},1,1,0,0,{t},0,{kv},{pairs},0,{took}" for n, (t, kv, pairs, took) in enumerate(steps(made, seed))]
    kept.write_text(store.STEPS, "\n".join([",".join(names), *lines]) + "\n")
    return kept.finish()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("runs")
    return [folder(out / str(n), model, seed=n) for n, model in enumerate(MODELS)]


@pytest.fixture(scope="module")
def made(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    file = tmp_path_factory.mktemp("file") / "a100.yaml"
    return bench("calibrate", *folders, "--out", file, "--json"), file


def test_run_folders_give_the_constants_back(made: tuple[Ran, Path]) -> None:
    ran, file = made
    assert ran.code == 0, ran.err
    document = ran.document
    found = {c["term"]: (c["bytes"], c["bytes_per_unit"]) for c in document["constants"]}
    assert found == {
        "runtime_at_init": (INIT, 0), "non_torch_increase": (NON_TORCH, 0), "activation_peak": (C, 0),
        "cuda_graphs": (BASE, EACH),
    }  # fmt: skip
    for name, share in SHARES.items():
        assert document["step_times"][name] == pytest.approx(share, rel=0.15 if name == "attention" else 0.05), name
    times = document["step_times"]
    assert times["runs"] == 4 and times["after"] < 0.02 and times["held_out"] < 0.03 < 0.1 < times["before"]
    kept = YAML(typ="safe").load(file.read_text())
    assert (document["file"], kept["vllm"], kept["pool"]["after"]) == (str(file), "0.19", 0)


# -- as a user does it ---------------------------------------------------------------------------------


@pytest.fixture
def ask(tmp_path: Path) -> Path:
    load = "load: {shape: closed, users: 4, requests: 8, prompt_tokens: 512, output_tokens: 64}\n"
    path = tmp_path / "ask.yaml"
    path.write_text(scenario("Qwen/Qwen2.5-14B-Instruct", more=load).as_yaml())
    return path


def test_a_prediction_uses_it_and_says_so(made: tuple[Ran, Path], ask: Path, tmp_path: Path) -> None:
    how = ("--analytic-only", "--out", tmp_path, "--json")
    plain, with_it = bench("run", ask, *how), bench("run", ask, *how, "--calibration", made[1])
    assert (plain.code, with_it.code) == (0, 0), with_it.err
    assert plain.document["calibration"] is None
    said = with_it.document["calibration"]
    assert said.startswith("Calibrated on 4 runs of this GPU (a100-sxm-80gb) under vLLM 0.19, made on ")
    assert "runtime at init 0.51 to 0.65 GiB" in said and "\n" not in said
    terms = with_it.document["prediction"]["terms"]
    assert terms["runtime_at_init"]["bytes"] == INIT and terms["cuda_graphs"]["bytes"] == BASE + 48 * CAPTURED * EACH
    assert terms["runtime_at_init"]["source"] == "calibrated on 4 runs of this GPU"
    assert with_it.document["prediction"]["load"]["e2e_mean_s"] != plain.document["prediction"]["load"]["e2e_mean_s"]
    shown = " ".join(quick("report", with_it.folder).out.split())
    assert said in shown and "with the shares that 4 runs of this GPU reached" in shown
    for verb in ("capacity", "paging"):
        ran = quick(verb, ask, "--calibration", made[1], "--json")
        assert ran.code == 0 and ran.document["calibration"] == said
        assert said in " ".join(quick(verb, ask, "--calibration", made[1]).out.split())


def test_a_folder_is_reproducible_from_itself(made: tuple[Ran, Path], ask: Path, tmp_path: Path) -> None:
    how = ("--analytic-only", "--out", tmp_path, "--json")
    plain, with_it = quick("run", ask, *how), quick("run", ask, *how, "--calibration", made[1])
    digests = [json.loads((r.folder / store.MANIFEST).read_text())["digest"] for r in (plain, with_it)]
    assert digests[0] != digests[1]
    reading = understand(store.read(with_it.folder))
    assert reading.scenario.digest == digests[1]
    assert predict(reading.scenario) == reading.record.prediction


def test_what_a_calibration_does_not_know_is_named_and_stays() -> None:
    one = scenario("Qwen/Qwen3-8B", more="")
    two = one.model_copy(update={
        "gpu": one.gpu.model_copy(update={"count": 2}) if one.gpu else None, "calibration": constants(),
    })  # fmt: skip
    account, plain = predict(two), predict(two.model_copy(update={"calibration": None}))
    assert "has no runtime at init, non-torch increase, CUDA graphs, which stay as published." in account.calibration
    for term in (Term.RUNTIME_AT_INIT, Term.NON_TORCH_INCREASE, Term.CUDA_GRAPHS):
        assert account.ledger.find(term) == plain.ledger.find(term)
    assert account.ledger.bytes_of(Term.ACTIVATION_PEAK) != plain.ledger.bytes_of(Term.ACTIVATION_PEAK)


big = st.sampled_from([0, 1, -1, 2**20, -(2**20), 2**31, -(2**31), 2**50, -(2**50)])


@given(st.lists(st.tuples(big, big, st.sampled_from([None, 0, 2**50])), min_size=4, max_size=4))
def test_whatever_a_file_says_is_a_prediction(figures: list[tuple[int, int, int | None]]) -> None:
    rows = [
        c.model_copy(update={"bytes": size, "bytes_per_unit": each * (c.term == "cuda_graphs"), "below": room})
        for c, (size, each, room) in zip(constants().constants, figures, strict=True)
    ]
    one = scenario(MODELS[1]).model_copy(update={"calibration": constants().model_copy(update={"constants": rows})})
    for entry in predict(one).ledger:
        assert entry.bytes is not None and entry.low is not None and entry.high is not None
        assert entry.bytes >= 0 and entry.low <= entry.bytes <= entry.high, entry


def test_a_kept_scenario_of_another_loadfit_says_so() -> None:
    old = constants().model_copy(update={"loadfit": "0.0.9"})
    said = predict(scenario(MODELS[0]).model_copy(update={"calibration": old})).calibration
    assert "made on 2026-11-24 by loadfit 0.0.9, whose laws may be others: " in said


def written(path: Path, found: Calibration, **changes: object) -> Path:
    with path.open("w") as file:
        YAML().dump({**found.model_dump(exclude_defaults=True), **changes}, file)
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("gpu.name=h100", "made for a100-sxm-80gb; the scenario's GPU is h100-sxm-80gb (s)"),
        ("gpu={memory: 80 GiB}", "made for a100-sxm-80gb; the scenario's GPU is known by its memory alone (s)"),
        ("engine.vllm=0.20", "made under vLLM 0.19; the scenario's is 0.20 (s)"),
    ],
)
def test_another_gpu_or_version_is_refused(change: str, told: str, ask: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "a100.yaml", constants())
    for verb in (("run", ask, "--analytic-only"), ("capacity", ask), ("paging", ask)):
        ran = quick(*verb, "--set", change, "--calibration", file)
        assert (ran.code, ran.err.strip()) == (2, f"bench: --calibration {file}: {told}"), ran.err
        assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("format: 2\n", "{0}:1: format: this bench reads 1, got 2: make it again"),
        ("gpu: h100\n", "{0}:1: no calibration: bench calibrate writes them"),
        ("- 1\n", "{0}:1: no calibration: bench calibrate writes them"),
        ("format: [\n", "{0}:2: not valid YAML: "),
        (None, "--calibration {0}: can't be read: No such file or directory"),
    ],
)
def test_a_broken_file_is_one_line(text: str | None, told: str, ask: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    if text is not None:
        file.write_text(text)
    ran = quick("run", ask, "--analytic-only", "--calibration", file)
    assert ran.code == 2 and ran.err.startswith("bench: " + told.format(file)) and ran.err.count("\n") == 1, ran.err


def test_faults_of_a_file_are_told_at_their_lines(ask: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "a100.yaml", constants(), loadfit="0.0.9")
    ran = quick("run", ask, "--analytic-only", "--calibration", file)
    assert ran.code == 2 and "made by loadfit 0.0.9, whose laws may be others than those of" in ran.err
    file.write_text(file.read_text().replace("bytes: 700000000", "bytes: many").replace("'2026-11-24'", "today"))
    ran = quick("run", ask, "--analytic-only", "--calibration", file)
    lines = ran.err.splitlines()
    assert ran.code == 2 and len(lines) == 2, ran.err
    assert lines[0].endswith('made: expected a day such as \'2026-11-24\', got "today"')
    assert lines[1].startswith(f"bench: {file}:11: constants.0.bytes: expected a whole number")


def test_in_a_scenario_it_is_refused_at_its_key(tmp_path: Path) -> None:
    kept = scenario(MODELS[0]).model_copy(update={"calibration": constants()}).as_yaml()
    path = tmp_path / "s.yaml"
    path.write_text(kept.replace("name: a100-sxm-80gb", "name: h100"))
    ran = quick("check", path)
    line = kept.splitlines().index("calibration:") + 1
    assert ran.code == 2 and ran.err.startswith(f"{path}:{line}: calibration: made for a100-sxm-80gb; ")


def test_a_training_step_and_this_computer_have_no_such_constants(tmp_path: Path) -> None:
    file = written(tmp_path / "a100.yaml", constants())
    tune = next(p for p in SCENARIOS.glob("*.yaml") if "kind: finetune" in p.read_text())
    for path, told in ((tune, "a training step has none"), (SCENARIOS / "tiny_cpu.yaml", "device is this computer")):
        ran = quick("run", path, "--analytic-only", "--calibration", file)
        assert ran.code == 2 and told in ran.err and ran.err.count("\n") == 1


# -- runs that are refused or left out --------------------------------------------------------------------


def test_runs_without_a_measured_ledger_are_refused(ask: Path, tmp_path: Path) -> None:
    analytic = quick("run", ask, "--analytic-only", "--out", tmp_path / "a", "--json").folder
    expected = {
        analytic: "analytic: nothing was measured on the scenario's device",
        REFERENCE / "70b_8k_int4-rehearsal": "rehearsal: nothing was measured on the scenario's device",
        REFERENCE / "smollm2_cpu-measured": "ran on this computer (device: cpu): a calibration is for a GPU",
    }
    ran = quick("calibrate", *expected, "--out", tmp_path / "c.yaml")
    assert ran.code == 2 and ran.err.splitlines() == [f"bench: {path}: {told}" for path, told in expected.items()]
    assert not (tmp_path / "c.yaml").exists()


def test_runs_of_several_kinds_are_refused(folders: list[Path], tmp_path: Path) -> None:
    log = ROOT / "tests" / "logs" / "v1_0.33.log"
    ran = quick("calibrate", folders[0], log, "--gpu", "h100-sxm-80gb", "--out", tmp_path / "c.yaml")
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert "the runs are of several kinds, a calibration is for one: a100-sxm-80gb under vLLM 0.19 (" in ran.err
    assert "; h100-sxm-80gb under vLLM 0.33 (v1_0.33.log)" in ran.err


def test_a_run_counts_once_and_a_shared_gpu_not_at_all(folders: list[Path], tmp_path: Path) -> None:
    latest = folders[0].parent / "latest"
    ran = quick("calibrate", folders[0], latest, folders[0].parent, "--out", tmp_path / "c.yaml", "--json")
    assert ran.code == 0 and ran.document["runs"] == 1, ran.err
    gpu = {
        "uuid": "GPU-1", "name": "A100", "total_bytes": 80 * GIB, "memory_version": "v2", "mig": 0, "missing": {},
        "processes": {}, "strangers": ["a process of somebody else (pid 7) was on it"], "accounting_peak_bytes": None,
        "lost": None,
    }  # fmt: skip
    shared = folder(tmp_path / "shared", MODELS[0], gpus=[gpu])
    ran = quick("calibrate", shared, "--out", tmp_path / "c.yaml")
    assert ran.code == 2 and "others were on its GPUs: a process of somebody else" in ran.err
    assert "no run is left to fit on" in ran.err


# -- public logs -------------------------------------------------------------------------------------------


def test_public_logs_give_the_medians_of_their_table(tmp_path: Path) -> None:
    logs = sorted((EVIDENCE / "logs").glob("*tp1pp1dp1*.log"))
    logs = [p for p in logs if p.name.startswith(("meta-llama-llama-3-1-8b", "qwen-qwen2-5", "openai", "microsoft"))]
    if not logs:
        pytest.skip("the raw logs are not beside this checkout")
    file = tmp_path / "h100.yaml"
    ran = quick("calibrate", *logs, "--gpu", "h100-sxm-80gb", "--out", file, "--json")
    assert ran.code == 0, ran.err
    assert "left out: microsoft-phi-2--h100-80gb--tp1pp1dp1--8192.FAILED.log: no pool was granted" in ran.err
    with (EVIDENCE / "h100_vllm_0.19.csv").open(newline="") as table:
        rows = [r for r in csv.DictReader(table) if r["source_url"].rsplit("/", 1)[-1] in {p.name for p in logs}]
    rows = [r for r in rows if r["kv_cache_gib"]]
    assert ran.document["runs"] == len(rows)
    found = {c["term"]: c for c in ran.document["constants"] if c["of"] == "tp=1 pp=1"}
    for term, column in (("runtime_at_init", "init_non_torch_gib"), ("non_torch_increase", "non_torch_increase_gib")):
        values = sorted(float(r[column]) for r in rows)
        middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        assert found[term]["bytes"] / GIB == pytest.approx(middle, abs=0.001), term
    graphs = next(c for c in ran.document["constants"] if c["of"] == "graphs, tp=1 pp=1")
    assert graphs["after"] < graphs["before"] and graphs["held_out"] < 0.07 * GIB  # the published one is good, too
    # A model that was not among them, by its own log.
    other = next(p for p in (EVIDENCE / "logs").glob("codellama-codellama-7b*.log"))
    ran = quick("import", other, "--gpu", "h100-sxm-80gb", "--out", tmp_path, "--json", "--calibration", file)
    terms = ran.document["prediction"]["terms"]["cuda_graphs"]
    splits = 32 * 512 * 32 * 128 * 4  # 32 parts of 512 tokens' 32 heads of 128, float32: 0.25 GiB
    graphs_bytes = graphs["bytes"] + 32 * 102 * graphs["bytes_per_unit"]
    assert terms["bytes"] == graphs_bytes + splits == pytest.approx(0.89 * GIB, rel=0.06)
    assert terms["source"] == (
        f"calibrated on {graphs['runs']} runs of this GPU, and 32 parts of FlashAttention's outputs"
    )


def test_a_calibrated_scenario_keeps_its_folder(tmp_path: Path) -> None:
    """A local model is still found once the calibration is there."""
    (tmp_path / "m").mkdir()
    config = scenario("Qwen/Qwen3-8B").config()
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    text = "name: s\nmodel: ./m\ngpu: {name: a100-sxm-80gb}\nengine: {vllm: '0.19'}\n"
    one = calibrated(parse_scenario(text, "s", tmp_path), written(tmp_path / "c.yaml", constants()))
    assert one.model_folder == tmp_path / "m" and one.config() == config


def test_the_document_has_the_tables_that_the_benchmark_prints(capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import calibration

    calibration.main()
    document = (ROOT / "docs" / "calibration.md").read_text()
    assert document.endswith(capsys.readouterr().out), "python -m benchmarks.calibration prints other tables"
