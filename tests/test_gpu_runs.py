"""Measured runs on GPUs that are not there: the real command line, the real pynvml, an NVML of our own and a server
that replays a real run. What can go wrong with a GPU ends in one clear line, an exit code, and a readable folder."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import conftest
import fake_nvml
import pytest
from fake_nvml import H100, MIB, Node, device
from gpu_server import BLOCK_BYTES, BLOCKS, IDLE, LATE, LOADED, RUN
from test_faults import processes, report

from harness.engines import vllm
from harness.ledger import ADDITIVE, Account
from harness.report.tables import Run, load_run

GIB = 2**30
SERVER = Path(__file__).with_name("gpu_server.py")
SCENARIO = {
    "name": "gpu", "model": "meta-llama/Llama-3.1-8B-Instruct", "weights": {"load": "dummy"},
    "gpu": {"name": "h100-sxm-80gb"},
    "engine": {"vllm": "0.19", "max_model_len": 8192, "gpu_memory_utilization": 0.95, "enable_prefix_caching": False},
    "load": {"shape": "closed", "users": 3, "requests": 6, "prompt_tokens": 32, "output_tokens": 8, "seed": 3},
}  # fmt: skip
TWO = {**SCENARIO, "gpu": {"name": "h100-sxm-80gb", "count": 2}}


@dataclass
class Ran:
    code: int
    out: str
    err: str
    folder: Path | None

    @property
    def lines(self) -> list[str]:
        """What bench itself says of an end."""
        return [line for line in self.err.splitlines() if line.startswith("bench: ")]

    @property
    def manifest(self) -> dict[str, Any]:
        assert self.folder is not None
        return json.loads((self.folder / "manifest.json").read_text())

    @property
    def run(self) -> Run:
        assert self.folder is not None
        return load_run(self.folder)

    @property
    def measured(self) -> Account:
        account = self.run.measurement
        assert account is not None
        return account


def start(node: Node, home: Path, behaviour: str, *arguments: str, scenario: dict | None = None,
          **environment: str) -> subprocess.Popen[str]:  # fmt: skip
    home.mkdir(exist_ok=True)
    (home / "gpu.yaml").write_text(json.dumps(scenario or SCENARIO))
    command = [sys.executable, "-m", "harness", "run", str(home / "gpu.yaml"), "--out", str(home / "out"), *arguments]
    server = json.dumps([sys.executable, str(SERVER), behaviour])
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
        env={**os.environ, **node.environment, "LOADFIT_SERVER_COMMAND": server, **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], home: Path) -> Ran:
    try:
        out, err = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    folders = [p for p in (home / "out").glob("gpu/*") if not p.is_symlink()]
    assert len(folders) <= 1
    assert "Traceback" not in err + out
    return Ran(process.returncode, out, err, folders[0] if folders else None)


def bench(node: Node, home: Path, behaviour: str, *arguments: str, **more: Any) -> Ran:
    return finish(start(node, home, behaviour, *arguments, **more), home)


def gib(account: Account, term: str, phase: str = "idle", device: str = "gpu0") -> float | None:
    entry = account.ledger.find(term, phase, device)
    assert entry is not None, (term, phase, device)
    return None if entry.bytes is None else entry.bytes / GIB


def assert_sums(account: Account) -> None:
    totals = [e for e in account.ledger if e.term == "total" and e.bytes is not None]
    assert totals
    for total in totals:
        parts = [e for e in account.ledger if (e.phase, e.device) == (total.phase, total.device) and e.term in ADDITIVE]
        assert sum(e.bytes or 0 for e in parts) == total.bytes, (total.phase, total.device)


# -- the ledger -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replayed(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    home = tmp_path_factory.mktemp("replayed")
    node = Node(nvml_library, home / "state").say(device(f"{H100}-replayed"))
    return bench(node, home / "run", "fine", "--interval", "20")


TERMS = {
    "weights": RUN["model"], "runtime_at_init": RUN["cuda_total"] - RUN["free_at_init"],
    "non_torch_increase": RUN["non_torch"], "activation_peak": RUN["activation_peak"], "cuda_graphs": RUN["graphs"],
    "kv_available": RUN["available"],
}  # fmt: skip


def test_a_node_with_the_scenarios_gpu_measures(replayed: Ran) -> None:
    assert replayed.code == 0, replayed.err
    assert replayed.err.startswith("gpu: measured: the scenario's device is here: NVIDIA H100 80GB HBM3\n")
    assert replayed.manifest["outcome"] == "completed"


def test_the_ledger_is_that_of_the_log(replayed: Ran) -> None:
    for term, expected in TERMS.items():
        assert gib(replayed.measured, term) == pytest.approx(expected, abs=0.01), term
    assert gib(replayed.measured, "total") == pytest.approx(IDLE, abs=0.001)  # NVML's, above the quiet baseline
    assert_sums(replayed.measured)


def test_each_phase_has_the_devices_own_total(replayed: Ran) -> None:
    account = replayed.measured
    assert gib(account, "total", "weights_loaded") == pytest.approx(0.51 + RUN["model"], abs=0.01)
    assert gib(account, "total", "load") == pytest.approx(LOADED, abs=0.001)
    assert gib(account, "activation_peak", "load") == pytest.approx(1.2, abs=0.001)  # since the peaks were reset
    growth = gib(account, "non_torch_increase", "load") - gib(account, "non_torch_increase")
    assert growth == pytest.approx(LATE, abs=0.001)


def test_the_pool_and_its_use(replayed: Ran) -> None:
    kv = replayed.measured.kv
    assert (kv.num_blocks, kv.block_size, kv.bytes_per_block) == (BLOCKS, 16, BLOCK_BYTES)
    assert (kv.tokens, kv.max_concurrency) == (476_016, 58.11)
    used = replayed.measured.ledger.bytes_of("kv_used", "load")
    assert used == replayed.measured.load.peak_blocks_used * BLOCK_BYTES > 0


def test_measured_lies_inside_what_was_predicted(replayed: Ran) -> None:
    terms = replayed.run.terms
    idle = terms[(terms["phase"] == "idle")].set_index("term")["inside"]
    assert {term: idle[term] for term in TERMS} == dict.fromkeys(TERMS, True)


def test_the_report_shows_the_gpu(replayed: Ran) -> None:
    for words in (
        "0 H100 80GB HBM3", "GPU 0 ", "of 79.65 GiB", "driver 550.54.15", "held down by: power cap (100 %",
        "The GPUs were read",
    ):  # fmt: skip
        assert words in replayed.out, words


def test_the_report_comes_from_the_folder_alone(replayed: Ran) -> None:
    """Written again in a process that knows no NVML and no server."""
    assert replayed.folder is not None
    command = [sys.executable, "-m", "harness", "report", str(replayed.folder)]
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == replayed.out.partition("\nRun folder:")[0].strip()


def test_the_run_calibrates_the_next_prediction(replayed: Ran, tmp_path: Path) -> None:
    assert replayed.folder is not None
    (tmp_path / "next.yaml").write_text(json.dumps(SCENARIO))
    file = tmp_path / "h100.yaml"
    fitted = conftest.bench("calibrate", replayed.folder, "--out", file)
    assert fitted.code == 0, fitted.err
    assert "Fewer than three runs: none can be held out" in fitted.out
    assert re.search(r"Not refitted: step times: gpu/\S+: the steps' work was not recorded\.", fitted.out)
    ran = conftest.bench(
        "run", tmp_path / "next.yaml", "--analytic-only", "--calibration", file, "--json", "--out", tmp_path
    )
    terms = ran.document["prediction"]["terms"]
    for term in ("runtime_at_init", "non_torch_increase", "activation_peak", "cuda_graphs"):
        assert terms[term]["bytes"] / GIB == pytest.approx(gib(replayed.measured, term), abs=1e-6), term
        assert "calibrated on 1 run of this GPU" in terms[term]["source"]
    assert terms["kv_available"]["bytes"] / GIB == pytest.approx(RUN["available"], abs=0.02)


def test_samples_come_as_often_as_asked_for(replayed: Ran) -> None:
    sampling, frame = replayed.manifest["device_sampling"], replayed.run.devices
    assert sampling["interval_s"] == 0.02
    assert frame["time_ns"].diff().median() < 0.03e9
    assert sampling["sweeps"] == len(frame) > 100
    assert sampling["longest_gap_s"] >= 0.02
    assert 0 < sampling["cpu_s"] < 0.1 * sampling["wall_s"]
    assert (frame["total_bytes"] == frame["reserved_bytes"] + frame["used_bytes"] + frame["free_bytes"]).all()


def test_without_the_probe_the_log_tells(node: Node, tmp_path: Path) -> None:
    ran = bench(node, tmp_path / "run", "no_probe")
    assert ran.code == 0
    for term, expected in TERMS.items():
        assert gib(ran.measured, term) == pytest.approx(expected, abs=0.01), term
        assert "log line" in ran.measured.ledger.find(term).source
    assert gib(ran.measured, "allocator_slack") is None
    assert_sums(ran.measured)
    assert "The worker probe did not answer" in ran.out


def test_the_real_log_gives_the_same_ledger(node: Node, tmp_path: Path) -> None:
    log = Path(__file__).parents[2] / "shared/evidence/logs/meta-llama-llama-3-1-8b---h100-80gb--tp1pp1dp1--8192.log"
    if not log.exists():
        pytest.skip("the raw logs are not beside this checkout")
    ran = bench(node, tmp_path / "run", "no_probe", LOADFIT_TEST_LOG=str(log))
    assert ran.code == 0
    for term, expected in TERMS.items():
        assert gib(ran.measured, term) == pytest.approx(expected, abs=0.01), term


# -- several GPUs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["fine", "other_order"])
def test_workers_and_gpus_are_joined_by_uuid(behaviour: str, node: Node, tmp_path: Path) -> None:
    node.say(*fake_nvml.several(3))
    ran = bench(node, tmp_path / "run", behaviour, scenario=TWO)
    assert ran.code == 0, ran.err
    account, manifest = ran.measured, ran.manifest
    assert [g["uuid"][-1] for g in manifest["gpus"]] == ["0", "1"]
    assert manifest["engine"]["arguments"]["tensor_parallel_size"] == 2
    first = next(e.device for e in account.ledger if e.term == "weights")
    assert first == ("gpu0" if behaviour == "fine" else "gpu1")  # the rank with the least for its pool comes first
    assert {e.device for e in account.ledger} == {"gpu0", "gpu1"}
    assert_sums(account)


def test_the_engine_sees_the_gpus_that_are_sampled_and_no_others(node: Node, tmp_path: Path) -> None:
    node.say(*fake_nvml.several(4))
    (tmp_path / "seen").mkdir()
    ran = bench(node, tmp_path / "run", "fine", scenario=TWO, CUDA_VISIBLE_DEVICES="3,1,0")
    assert ran.code == 0, ran.err
    seen = json.loads((tmp_path / "seen" / "environment").read_text())
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["CUDA_DEVICE_ORDER"]) == ("3,1", "PCI_BUS_ID")
    assert [g["uuid"][-1] for g in ran.manifest["gpus"]] == ["3", "1"]


# -- faults ---------------------------------------------------------------------------------------------------

MIG = H100.replace("GPU-", "MIG-")
SLICE = f"mig {H100} {MIG} {40 * 1024 * MIB} {100 * MIB} {2 * MIB} NVIDIA H100 80GB HBM3 MIG 3g.40gb"
NO_MEMORY = ("error nvmlDeviceGetMemoryInfo_v2 3", "error nvmlDeviceGetMemoryInfo 3")
SMALL = {**SCENARIO, "gpu": {"memory": "40 GiB"}}
L4 = device(total=24_152_899_584, name="NVIDIA L4")


@dataclass(frozen=True)
class Case:
    """What the node is like, what the server does, and what must come of it."""

    name: str
    code: int
    line: str = ""  # of stderr, a regular expression; "": none
    outcome: str = "completed"  # "": not even a folder
    said: str = ""  # in the report
    behaviour: str = "fine"
    state: tuple[str, ...] = (device(),)
    arguments: tuple[str, ...] = ("--measure",)
    scenario: dict | None = None
    environment: tuple[tuple[str, str], ...] = ()
    old_driver: bool = False
    restless: bool = False  # somebody takes memory while the quiet GPU is read

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("nvml_absent", 3, "--measure: no NVIDIA driver here: libnvidia-ml.so.1 is not found", "",
         environment=(("LD_LIBRARY_PATH", ""),)),
    Case("driver_not_loaded", 3, "--measure: the NVIDIA driver is not loaded", "", state=("init 9",)),
    Case("driver_too_old_to_start", 3, "this NVIDIA driver is too old", "", state=("init 13",)),
    Case("driver_without_version_2", 0, said="the driver knows version 1 of the memory reading only", old_driver=True),
    Case("permission_denied", 3, "no permission to ask the NVIDIA driver", "", state=("init 4",)),
    Case("processes_not_permitted", 0, said="processes not read: no permission",
         state=(device(), "error nvmlDeviceGetComputeRunningProcesses_v3 4")),
    Case("fields_not_available", 0, said="power_mw not read: not supported on this GPU",
         state=(device(), "error nvmlDeviceGetPowerUsage 3", "error nvmlEventSetCreate 3")),
    Case("lost_at_start", 3, "the GPU is lost", "", state=(device(), f"lost {H100}")),
    Case("lost_under_load", 3, f"device_lost: {H100}: the GPU is lost", "device_lost", behaviour="lost",
         said="could not be read to the end"),
    Case("xid_under_load", 0, said="GPU 0 reported XID 79", behaviour="xid"),
    Case("stranger_from_the_start", 0, said="Process 4242 (9.00 GiB) is on NVIDIA H100 80GB HBM3 before the engine",
         state=(device(), f"process {H100} 4242 {9 * GIB}")),
    Case("stranger_from_the_start_refused", 3, r"--isolation fail: process 4242 \(9.00 GiB\) is on", "",
         state=(device(), f"process {H100} 4242 {9 * GIB}"), arguments=("--measure", "--isolation", "fail")),
    Case("stranger_mid_run", 0, behaviour="stranger", said="Process 424242 (3.00 GiB) came onto NVIDIA H100"),
    Case("stranger_mid_run_refused", 3, r"disturbed: --isolation fail: process 424242 \(3.00 GiB\) came onto",
         "disturbed", behaviour="stranger", arguments=("--measure", "--isolation", "fail")),
    Case("mig", 0, said="MIG 3g.40gb", state=(device(), SLICE), scenario=SMALL),
    Case("mig_by_its_profile", 0, said="MIG 3g.40gb", state=(device(), SLICE),
         scenario={**SCENARIO, "gpu": {"name": "h100-sxm-80gb", "mig": "3g.40gb"}}),
    Case("mig_of_another_profile", 3, "the scenario's GPU is h100-sxm-80gb in a slice of 1g.10gb", "",
         state=(device(), SLICE), scenario={**SCENARIO, "gpu": {"name": "h100-sxm-80gb", "mig": "1g.10gb"}}),
    Case("others_that_the_scenario_states", 0, said="other processes",
         state=(device(used=2 * GIB),), scenario={**SCENARIO, "gpu": {"name": "h100-sxm-80gb", "in_use": "2 GiB"}}),
    Case("mig_where_a_whole_gpu_was_meant", 3, r"the scenario's GPU is h100-sxm-80gb, this node's is .*MIG 3g.40gb", "",
         state=(device(), SLICE)),
    Case("unified_memory", 3, "NVIDIA GB10 can't be measured: .*unified memory", "",
         state=(device(name="NVIDIA GB10"), *NO_MEMORY)),
    Case("another_gpu", 3, r"this node's is NVIDIA L4 .*--set gpu.name=l4-24gb", "", state=(L4,)),
    Case("another_amount_of_memory", 3, r"has 24.00 GiB, this node's is NVIDIA H100", "",
         scenario={**SCENARIO, "gpu": {"memory": "24 GiB"}}),
    Case("ecc_takes_some", 0, said="This NVIDIA H100 80GB HBM3 states 78.81 GiB, the catalogue 79.65 GiB",
         state=(device(total=80_700 * MIB),)),
    Case("a_container_with_the_hosts_process_ids", 0, behaviour="host_pids",
         said="process ids are the host's, not this container's"),
    Case("strangers_among_the_hosts_process_ids", 0, behaviour="host_pids_and_a_stranger",
         said="2 processes came onto NVIDIA H100 80GB HBM3 where the engine has one"),
    Case("not_quiet_before_the_start", 0, said="was not quiet before the engine started: its use moved by 36.0 MiB",
         restless=True),
    Case("accounting_is_on", 0, said="the driver's own accounting has 75.00 GiB at our process's peak",
         behaviour="accounted"),
    Case("too_few", 3, "the scenario has 2 GPUs, this process sees 1", "", scenario=TWO),
    Case("none_visible", 3, "the driver shows no GPU to this process", "",
         environment=(("CUDA_VISIBLE_DEVICES", ""),)),
    Case("out_of_memory_under_load", 4, "died_under_load: .*CUDA out of memory", "died_under_load",
         behaviour="out_of_memory"),
    Case("odd_answers_of_the_probe", 0, behaviour="odd_probe", said="The worker probe did not answer"),
)  # fmt: skip


def _own(case: Case) -> str:
    """The end of the UUID of the GPU that is this case's alone."""
    return f"{H100[4:]}-{case.name}"


@pytest.fixture(scope="module")
def cases(
    request: pytest.FixtureRequest, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Ran]]]:
    """Name of a case -> its run; all that were collected are begun, four at a time, for most of each is waiting."""
    names = {item.callspec.params["case"].name for item in request.session.items
             if "case" in getattr(getattr(item, "callspec", None), "params", {}) and item.module is request.module}
    old = fake_nvml.compile_library(tmp_path_factory.mktemp("old"), old_driver=True)

    def run(case: Case, home: Path) -> Ran:
        state = [line.replace(H100[4:], _own(case)) for line in case.state]  # two runs on one GPU are another test's
        node = Node(old if case.old_driver else nvml_library, home / "nvml.state").say(*state)
        more = dict(case.environment)
        running = start(node, home / "run", case.behaviour, *case.arguments, scenario=case.scenario, **more)
        if case.restless:
            assert _soon(lambda: list((home / "run").glob("out/gpu/*/devices.csv")))
            time.sleep(0.3)
            node.say(device(f"{H100[:4]}{_own(case)}", used=40 * MIB))
        return finish(running, home / "run")

    with ThreadPoolExecutor(4) as pool:
        yield {c.name: pool.submit(run, c, tmp_path_factory.mktemp(c.name)) for c in CASES if c.name in names}
        pool.shutdown(wait=True, cancel_futures=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fault_of_the_node_ends_in_order(case: Case, cases: dict[str, Future[Ran]]) -> None:
    ran = cases[case.name].result()
    assert ran.code == case.code, ran.err
    assert len(ran.lines) == bool(case.line), ran.err
    assert not case.line or re.search(case.line.replace(H100[4:], _own(case)), ran.lines[0]), ran.lines
    assert re.sub(r"\s+", " ", case.said) in re.sub(r"\s+", " ", ran.out)
    assert (ran.folder is not None) == bool(case.outcome)
    if ran.folder:
        assert ran.manifest["outcome"] == case.outcome
        assert_sums(ran.measured)


def test_two_benches_on_one_gpu(node: Node, tmp_path: Path) -> None:
    first = start(node, tmp_path / "first", "endless")
    try:
        assert _soon(lambda: list((tmp_path / "first").glob("out/gpu/*/devices.csv")))
        second = bench(node, tmp_path / "second", "fine")
        assert second.code == 3 and second.folder is None
        assert re.search(rf"another bench measures on {H100} \(process {first.pid}\)", second.lines[0])
    finally:
        first.send_signal(signal.SIGINT)
        assert finish(first, tmp_path / "first").code == 130
    assert bench(node, tmp_path / "third", "fine").code == 0  # it was let go


# How many runs are killed; a soak has more: LOADFIT_KILLS=50 pytest tests/test_gpu_runs.py -k killed
KILLS = int(os.environ.get("LOADFIT_KILLS", "4"))
LASTS_S = 6.0  # a run, from its folder to its end


def test_runs_killed_at_any_moment_leave_no_process_and_a_readable_folder(nvml_library: Path, tmp_path: Path) -> None:
    def kill(n: int) -> tuple[Path, list[str]]:
        """The folder, and who is left of the processes, of a run that gets SIGKILL in the n-th part of its time."""
        after_s, mark = (n + random.random()) / KILLS * LASTS_S, uuid.uuid4().hex
        for attempt in range(10):
            home = tmp_path / f"{n}.{attempt}"
            home.mkdir()
            node = Node(nvml_library, home / "nvml.state").say(device(f"{H100}-{mark}"))
            running = start(node, home / "run", "fine", LOADFIT_TEST_MARK=mark)
            assert _soon(lambda at=home / "run/out/gpu": list(at.glob("*.partial")))  # type: ignore[misc]
            time.sleep(after_s)
            running.kill()
            running.communicate()
            if running.returncode == -signal.SIGKILL:
                break
            after_s *= 0.8  # it had ended
        _soon(lambda: not processes(mark), vllm.GRACE_S + 10)
        (folder,) = (p for p in (home / "run/out/gpu").iterdir() if not p.is_symlink())
        return folder, list(processes(mark).values())

    with ThreadPoolExecutor(4) as pool:
        killed = list(pool.map(kill, range(KILLS)))
    assert [left for _, left in killed if left] == []
    moments = Counter()
    for folder, _ in killed:
        code, shown, said = report(folder, "text")
        if not (folder / "manifest.json").exists():
            assert (code, said.count("\n")) == (2, 1) and "cut short before the run began" in said
            moments["before it began"] += 1
            continue
        assert (code, said) == (0, "") and "gpu" in shown
        marks = list(json.loads((folder / "manifest.json").read_text())["marks"])
        moments[marks[-1] if marks else "at its beginning"] += 1
        if folder.suffix == ".partial" and "stop" not in marks:
            assert "interrupted" in shown
    print(f"killed after: {dict(moments)}")


def _soon(what: Callable[[], object], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
