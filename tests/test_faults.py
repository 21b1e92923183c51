"""Faults that a run must survive: each ends in one clear line and an exit code, leaves no process, loses nothing.

The real command line runs as a process of its own against ``misbehaving_server.py`` in vLLM's place. The runs of
the tests that were collected are started ahead, a few at a time, for most of each one's seconds is waiting.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness import cli
from harness.engines import log, probes, vllm
from harness.errors import MachineError, UsageError
from harness.sampler import METRICS, read_metrics

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are followed in /proc")

SERVER = Path(__file__).with_name("misbehaving_server.py")
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "vocab_size": 4096, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip
LOAD = {"shape": "closed", "users": 3, "requests": 6, "prompt_tokens": 32, "output_tokens": 8, "seed": 3}
MEASURED = {
    "device": "cpu", "weights": {"load": "dummy"},
    "engine": {"vllm": "0.32", "max_model_len": 512, "block_size": 32, "kv_cache_memory_bytes": "2 MiB"},
}  # fmt: skip
REHEARSAL = {"gpu": {"name": "h100-sxm-80gb"}, "engine": {"vllm": "0.32", "max_model_len": 512}}
# What a terminal would act on, or what breaks a line.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# -- one run -------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run of the command line that is under way or has ended."""

    process: subprocess.Popen[bytes]
    home: Path
    mark: str
    out: Path
    stderr: str = ""
    stdout: str = ""
    left_behind: list[str] = field(default_factory=list)

    @property
    def code(self) -> int:
        return self.process.returncode

    @property
    def lines(self) -> list[str]:
        """The lines on stderr in which bench itself speaks of an end."""
        return [line for line in self.stderr.splitlines() if line.startswith("bench: ")]

    @property
    def folder(self) -> Path:
        """The run folder; there is exactly one."""
        found = [p for p in (self.out / "faults").iterdir() if p.is_dir() and not p.is_symlink()]
        assert len(found) == 1, found
        return found[0]

    @property
    def manifest(self) -> dict:
        return json.loads((self.folder / "manifest.json").read_text())

    def requests(self) -> list[dict[str, str]]:
        with (self.folder / "requests.csv").open(newline="") as file:
            return list(csv.DictReader(file))


def processes(mark: str) -> dict[int, str]:
    """Process id -> command line of the living processes whose environment holds ``mark``."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (place / "environ").read_bytes():
                found[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def wait_for(what: Callable[[], object], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def launch(
    home: Path, behaviour: str, *arguments: str, scenario: dict | None = None, limit: int | None = None,
    out: Path | None = None,
) -> Run:  # fmt: skip
    """Start ``bench run`` against the server that misbehaves as ``behaviour``."""
    home.mkdir(parents=True, exist_ok=True)
    document = {"name": "faults", "model": MODEL, "load": LOAD, **(scenario or MEASURED)}
    (home / "faults.yaml").write_text(json.dumps(document))  # JSON is YAML
    mark, out = uuid.uuid4().hex, out or home / "out"
    server = ["/nowhere/vllm"] if behaviour == "not_there" else [sys.executable, str(SERVER), behaviour]
    environment = {
        **os.environ,
        "LOADFIT_SERVER_COMMAND": json.dumps(server),
        "LOADFIT_TEST_FOLDER": str(home),
        "LOADFIT_TEST_MARK": mark,
        "TMPDIR": str(home / "tmp"),
    }
    (home / "tmp").mkdir(exist_ok=True)

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or 0, limit or 0))

    with (home / "stdout").open("wb") as stdout, (home / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness", "run", str(home / "faults.yaml"), "--out", str(out), *arguments],
            env=environment, stdout=stdout, stderr=stderr, cwd=home, start_new_session=True,
            preexec_fn=limit_files if limit else None,
        )  # fmt: skip
    return Run(process, home, mark, out)


def finish(run: Run, *, orphans_within_s: float = 0) -> Run:
    """Wait for its end; then no process of it may be left, at once or after what the guard's grace allows."""
    try:
        run.process.wait(90)
    except subprocess.TimeoutExpired:
        run.process.kill()
        raise
    wait_for(lambda: not processes(run.mark), orphans_within_s)
    left = processes(run.mark)
    run.left_behind = list(left.values())
    for pid in left:  # the test fails by them; they are not to stay for that
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.stdout = (run.home / "stdout").read_text()
    run.stderr = (run.home / "stderr").read_text()
    return run


def report(folder: Path, form: str, out: Path | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``bench report``, in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            cli.main(["report", str(folder), "--format", form, *(["--out", str(out)] if out else [])])
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return code, stdout.getvalue(), stderr.getvalue()


def assert_readable(folder: Path, scratch: Path) -> str:
    """The folder can be reported in every format; the text of the report."""
    texts, before = {}, {p: p.lstat().st_mtime_ns for p in (folder, *folder.iterdir())}
    for form in ("text", "markdown", "json", "csv"):
        code, texts[form], stderr = report(folder, form, scratch / "csv" if form == "csv" else None)
        assert (code, stderr) == (0, ""), (form, stderr)
        assert not UNPRINTABLE.search(texts[form]), form
    assert report(folder, "csv")[1].startswith("term,phase,predicted,low,high,measured")
    assert {p: p.lstat().st_mtime_ns for p in (folder, *folder.iterdir())} == before  # nothing is written there
    assert json.loads(texts["json"])["scenario"] == "faults"
    assert {p.name for p in (scratch / "csv").iterdir()} >= {"requests.csv", "rungs.csv", "marks.csv"}
    return texts["text"]


def assert_clean(run: Run) -> None:
    """No traceback, no process left, nothing of the temporary files left, no key in the folder."""
    assert "Traceback" not in run.stderr + run.stdout
    assert not UNPRINTABLE.search(run.stderr + run.stdout)
    assert run.left_behind == []
    assert list((run.home / "tmp").iterdir()) == []
    key = run.home / "key"
    if key.exists():
        secret = key.read_bytes()
        assert len(secret) > 20
        assert [p for p in run.out.rglob("*") if p.is_file() and secret in p.read_bytes()] == []


# -- the table -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A fault: what the server does and what the run must make of it."""

    name: str
    code: int
    outcome: str
    line: str = ""  # of stderr, a regular expression; "": none
    behaviour: str = ""  # its name unless given
    arguments: tuple[str, ...] = ("--measure",)
    scenario: dict | None = None
    answered: int | None = None  # requests with the status ok
    statuses: frozenset[str] = frozenset()  # of requests
    act: Callable[[Run], None] | None = None  # while it runs
    orphans_within_s: float = 0
    said: str = ""  # in the report
    whole: bool = True  # the folder has its whole name

    def __str__(self) -> str:
        return self.name


def expecting(**expect: bool | str) -> dict:
    return {**MEASURED, "expect": expect}


def limited(seconds: float) -> dict:
    return {**MEASURED, "load": {**LOAD, "timeout_s": seconds}}


def partial(run: Run) -> Path | None:
    return next(iter((run.out / "faults").glob("*.partial")), None)


def at_stage(run: Run, stage: str) -> None:
    """Wait until the run says that it has come to ``stage``."""
    assert wait_for(lambda: f"] {stage}" in (run.home / "stderr").read_text()), (run.home / "stderr").read_text()


def answers_on_disk(run: Run) -> int:
    folder = partial(run)
    file = folder and folder / "requests.csv"
    return file.read_text().count("\n") - 1 if file and file.exists() else 0


def interrupt(stage: str, *signals: signal.Signals, answers: int = 0) -> Callable[[Run], None]:
    def act(run: Run) -> None:
        at_stage(run, stage)
        assert wait_for(lambda: answers_on_disk(run) >= answers)
        began = time.monotonic()
        for n, number in enumerate(signals):
            if n:
                assert wait_for(lambda: "in order" in (run.home / "stderr").read_text())
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.process.pid, number)  # as a terminal does: the whole foreground group
        run.process.wait(30)
        # In order takes TERM, a grace of 5 s for an engine that is deaf, and the report; at once means it.
        assert time.monotonic() - began < (5 if len(signals) > 1 else 12)

    return act


INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
CASES = (
    # the engine at its start
    Case("refuses_usage", 4, "refused_at_start", "refused_at_start: error: unrecognized arguments: --made-up"),
    Case("refuses", 4, "refused_at_start", "ValueError: To serve at least one request"),
    Case("refuses_as_expected", 0, "refused_at_start", behaviour="refuses", scenario=expecting(starts=False)),
    Case("refuses_where_only_the_load_was_to_fail", 4, "refused_at_start", "ValueError: To serve",
         behaviour="refuses", scenario=expecting(holds=False)),
    Case("refuses_a_rehearsal", 4, "refused_at_start", "ValueError: To serve", behaviour="refuses",
         arguments=("--rehearse",), scenario={**REHEARSAL, "model": "meta-llama/Llama-3.1-8B-Instruct"}),
    Case("silent_exit", 4, "refused_at_start", "exit code 7, no reason in engine.log"),
    Case("killed_loading", 4, "refused_at_start", r"ended by signal 9 \(SIGKILL\)"),
    Case("not_there", 4, "refused_at_start", "can't be started: No such file"),
    Case("never_healthy", 4, "hung_at_start", "not healthy after 2 s", arguments=("--measure", "--start-timeout", "2")),
    Case("hangs", 4, "hung_at_start", "not healthy after 2 s", arguments=("--measure", "--start-timeout", "2")),
    # the engine under load
    Case("killed", 4, "died_under_load", r"ended by signal 9 \(SIGKILL\)", statuses=frozenset({"connection"})),
    Case("out_of_memory", 4, "died_under_load", "CUDA out of memory"),
    Case("out_of_memory_as_expected", 0, "died_under_load", behaviour="out_of_memory",
         scenario=expecting(starts=True, holds=False)),
    Case("crashes_where_memory_was_to_end", 4, "died_under_load", "KeyError", behaviour="crashes",
         scenario=expecting(starts=True, holds=False)),
    Case("worker_killed", 4, "died_under_load", r"died unexpectedly \(exit code: -9\)", answered=2,
         statuses=frozenset({"ok", "http"})),
    # its answers
    Case("all_500", 4, "no_answers", "none of 6 requests was answered: 500 .*made to fail", answered=0),
    Case("some_500", 4, "requests_failed", "1 of 6 requests failed; the first: 500", answered=5),
    Case("drops", 4, "requests_failed", "3 of 6 requests failed", answered=3, statuses=frozenset({"ok", "connection"})),
    Case("short", 4, "no_answers", "3 tokens instead of 8", answered=0, statuses=frozenset({"cut"})),
    Case("garbage", 4, "no_answers", "the stream can't be read", answered=0),
    Case("endless", 4, "load_timed_out", r"2 of 6 requests ended within load.timeout_s = 3 s", answered=2,
         scenario=limited(3), statuses=frozenset({"ok", "unfinished"})),
    Case("endless_as_expected", 0, "load_timed_out", behaviour="endless",
         scenario={**limited(3), "expect": {"holds": False}}),
    Case("no_tokenizer", 4, "no_answers", "does not tokenize", scenario={**MEASURED, "weights": {}, "model": "model"}),
    Case("hostile", 4, "no_answers", r"500 <script>alert\(1\)</script>", said="<script>"),
    # its side channels: the run goes on
    Case("fine", 0, "completed", answered=6, said="completed"),
    Case("fine_where_it_was_to_fail", 1, "completed", behaviour="fine", scenario=expecting(holds=False)),
    Case("fine_rehearsal", 0, "completed", behaviour="fine", arguments=("--rehearse",), answered=6,
         scenario={**REHEARSAL, "model": "meta-llama/Llama-3.1-8B-Instruct", "expect": {"holds": True}}),
    Case("no_metrics", 0, "completed", answered=6),
    Case("bad_metrics", 0, "completed", answered=6),
    Case("hanging_metrics", 0, "completed", answered=6),
    Case("no_steps", 0, "completed", answered=6),
    Case("half_steps", 0, "completed", answered=6, said="steps.csv: its last line was cut short"),
    Case("no_pause", 0, "completed", answered=6),
    Case("odd_probe", 0, "completed", answered=6),
    Case("odd_log", 0, "completed", answered=6),
    Case("noisy", 0, "completed", answered=6),
    # we are told to end
    Case("ctrl_c_at_start", 130, "interrupted", "interrupted: SIGINT .pool granted; 0 of 6", behaviour="hangs",
         act=interrupt("pool granted", INT)),
    Case("ctrl_c_deaf_engine", 130, "interrupted", "interrupted: SIGINT", behaviour="deaf",
         act=interrupt("server starts", INT)),
    Case("ctrl_c_under_load", 130, "interrupted", "interrupted: SIGINT .under load; 2 of 6", behaviour="endless",
         act=interrupt("under load", INT, answers=2), answered=2, statuses=frozenset({"ok", "unfinished"})),
    Case("term_under_load", 130, "interrupted", "interrupted: SIGTERM .under load; 2 of 6", behaviour="endless",
         act=interrupt("under load", TERM, answers=2), answered=2),
    Case("terminal_closed", 130, "interrupted", "interrupted: SIGHUP", behaviour="endless",
         act=interrupt("under load", HUP, answers=2), answered=2),
    Case("ctrl_c_twice", 130, "running", "stopped at once", behaviour="deaf", whole=False,
         act=interrupt("server starts", INT, INT), orphans_within_s=15, said="interrupted"),
)  # fmt: skip


def run_case(case: Case, home: Path) -> Run:
    shutil.copytree(model_folder(home), home / "model", dirs_exist_ok=True)
    behaviour = case.behaviour or case.name
    run = launch(home, behaviour, *case.arguments, scenario=case.scenario)
    try:
        if case.act:
            case.act(run)
        return finish(run, orphans_within_s=case.orphans_within_s)
    finally:
        if run.process.poll() is None:
            run.process.kill()


def model_folder(home: Path) -> Path:
    source = home / "source"
    source.mkdir(parents=True)
    (source / "config.json").write_text(json.dumps(MODEL))
    return source


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Run]]]:
    """Name of a case -> its run; all collected cases are begun, four at a time."""
    names = {item.callspec.params["case"].name for item in request.session.items
             if "case" in getattr(getattr(item, "callspec", None), "params", {}) and item.module is request.module}
    names |= {"fine"}  # its folder is what others damage
    with ThreadPoolExecutor(4) as pool:
        yield {c.name: pool.submit(run_case, c, tmp_path_factory.mktemp("fault") / c.name) for c in CASES
               if c.name in names}  # fmt: skip
        pool.shutdown(wait=True, cancel_futures=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fault_of_the_engine_ends_in_order(case: Case, runs: dict[str, Future[Run]], tmp_path: Path) -> None:
    run = runs[case.name].result()
    assert run.code == case.code, run.stderr
    assert_clean(run)
    spoken = [line for line in run.lines if "ending the run in order" not in line]
    assert len(spoken) == bool(case.line), run.stderr
    assert not case.line or re.search(case.line, spoken[0]), spoken
    assert (run.folder.suffix != ".partial") == case.whole
    assert run.manifest["outcome"] == case.outcome
    text = assert_readable(run.folder, tmp_path)
    assert case.said in text
    if case.answered is not None:
        assert sum(row["status"] == "ok" for row in run.requests()) == case.answered
    if case.statuses:
        assert {row["status"] for row in run.requests()} >= case.statuses
    if case.code == 0 and case.outcome == "completed":
        assert (run.out / "faults" / "latest").resolve() == run.folder.resolve()


def test_markdown_of_a_hostile_engine_is_inert(runs: dict[str, Future[Run]]) -> None:
    _, markdown, _ = report(runs["hostile"].result().folder, "markdown")
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", markdown)
    assert "alert" in outside
    assert not re.search(r"(?<!\\)[<`|]script|(?<!\\)<", outside)


# -- bench itself is killed --------------------------------------------------------------------------------

MOMENTS: dict[str, Callable[[Run], object]] = {
    "folder": partial,
    "guard": lambda run: len(processes(run.mark)) > 1,
    "loading": lambda run: len(processes(run.mark)) > 4,
    "under_load": lambda run: answers_on_disk(run) >= 2,
    "stopping": lambda run: "] stopping" in (run.home / "stderr").read_text(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_bench_killed_leaves_no_engine_and_a_readable_folder(moment: str, tmp_path: Path) -> None:
    behaviour = "fine" if moment == "stopping" else "endless"
    run = launch(tmp_path, behaviour, "--measure")
    later_s = random.Random(f"{moment}/{time.time_ns()}").uniform(0, 0.2)
    try:
        assert wait_for(lambda: MOMENTS[moment](run))
        time.sleep(later_s)  # a moment that nobody chose
    finally:
        run.process.kill()
    finish(run, orphans_within_s=vllm.GRACE_S + 10)
    assert run.left_behind == [], later_s
    assert "Traceback" not in run.stderr
    if not (run.folder / "manifest.json").exists():
        code, _, stderr = report(run.folder, "text")
        assert (code, stderr.count("\n")) == (2, 1) and "cut short before the run began" in stderr
        return
    text = assert_readable(run.folder, tmp_path)
    if run.folder.suffix == ".partial" and moment != "stopping":
        assert "interrupted" in text
    if moment == "under_load":
        assert sum(row["status"] == "ok" for row in run.requests()) >= 2
        assert run.manifest["engine"]["arguments"]["block_size"] == 32
    # A scenario's folder names the run that was cut short, or the whole one before it.
    assert report(run.folder.parent, "text")[0] == 0


LOST = {
    "no_scheduler_probe": ("scheduler_cls", "ModuleNotFoundError: No module named 'vllm.v1'", "/metrics"),
    "no_worker_probe": ("worker_extension_cls", "ModuleNotFoundError: import of harness.engines.worker_probe", "log"),
}


@pytest.mark.parametrize("behaviour", LOST)
def test_a_probe_that_does_not_load_is_left_out_and_the_run_goes_on(behaviour: str, tmp_path: Path) -> None:
    name, said, instead = LOST[behaviour]
    run = finish(launch(tmp_path, behaviour, "--measure"))
    assert (run.code, run.lines) == (0, [])
    assert_clean(run)
    assert re.search(rf"^faults: the engine could not load our {name} \({said}.*: once more without it$",
                     run.stderr, re.MULTILINE)  # fmt: skip
    folders = sorted(p for p in (run.out / "faults").iterdir() if not p.is_symlink())
    first, second = (json.loads((f / "manifest.json").read_text()) for f in folders)
    assert (first["outcome"], second["outcome"]) == ("refused_at_start", "completed")
    assert first["engine"]["arguments"].keys() - second["engine"]["arguments"].keys() == {name}
    assert second["answers"] == {"ok": 6}
    assert (run.out / "faults" / "latest").resolve() == folders[1]
    (note,) = second["notes"]
    assert said in note and instead in note
    text = assert_readable(folders[1], tmp_path)
    assert f"could not load our {name}" in re.sub(r"\s+", " ", text)


def test_a_start_that_a_probe_cost_is_no_repeat(tmp_path: Path) -> None:
    run = finish(launch(tmp_path, "no_worker_probe", "--measure", scenario={**MEASURED, "repeats": 2}))
    assert (run.code, run.lines, run.left_behind) == (0, [], [])
    manifests = [json.loads(p.read_text()) for p in sorted(run.out.glob("faults/2*/manifest.json"))]
    told = [(m["outcome"], m.get("series", {}).get("repeat")) for m in manifests]
    refused = ("refused_at_start", None)
    assert told == [refused, ("completed", 1), refused, ("completed", 2)]


def test_a_pace_is_not_kept_without_the_scheduler_probe(tmp_path: Path) -> None:
    load = {**LOAD, "shape": "poisson", "rate": 50.0}
    del load["users"]
    scenario = {**REHEARSAL, "model": "meta-llama/Llama-3.1-8B-Instruct", "load": load}
    run = finish(launch(tmp_path, "no_scheduler_probe", "--rehearse", scenario=scenario))
    assert run.code == 4 and run.manifest["outcome"] == "refused_at_start"
    assert "No module named 'vllm.v1'" in run.lines[0]


def test_whose_fault_a_traceback_is() -> None:
    probe = "/x/harness/engines/worker_probe.py"
    through = [
        f'(Worker pid=7) ERROR 01-02 03:04:05 [core.py:1]   File "{probe}", line 150, in count_then_process',
        "(Worker pid=7) ERROR 01-02 03:04:05 [core.py:1]     return process(model, *args, **kwargs)",
        '(Worker pid=7) ERROR 01-02 03:04:05 [core.py:1]   File "/y/vllm/loader.py", line 3, in process',
        "(Worker pid=7) ERROR 01-02 03:04:05 [core.py:1] torch.OutOfMemoryError: CUDA out of memory.",
    ]
    assert probes.at_fault(through) == {}
    ours = [*through[:2], through[3].replace("torch.OutOfMemoryError: CUDA out of memory.", "TypeError: no")]
    assert probes.at_fault(ours) == {"worker_extension_cls": "TypeError: no"}
    # Two workers speak at once: each has a traceback of its own.
    other = [line.replace("pid=7", "pid=8") for line in through]
    assert probes.at_fault([line for pair in zip(other, through, strict=True) for line in pair]) == {}
    conflict = "AssertionError: Worker class <class 'Worker'> already has an attribute x, which conflicts with the " \
               "worker extension class <class 'harness.engines.worker_probe.WorkerProbe'>."  # fmt: skip
    assert list(probes.at_fault([conflict])) == ["worker_extension_cls"]
    assert set(probes.at_fault(["ModuleNotFoundError: No module named 'harness'"])) == set(probes.LOST)
    # What was given to the engine is no fault.
    assert probes.at_fault(["INFO 1 2 [x.py:1] non-default args: {'scheduler_cls': 'harness.engines.scheduler_probe'}",
                            "ValueError: of harness.engines.scheduler_probe.RecordingScheduler"]) == {}  # fmt: skip


def test_a_later_run_that_was_cut_short_is_told(runs: dict[str, Future[Run]], tmp_path: Path) -> None:
    shutil.copytree(runs["fine"].result().out / "faults", tmp_path / "faults", symlinks=True)
    whole = (tmp_path / "faults" / "latest").resolve()
    shutil.copytree(whole, tmp_path / "faults" / "29991231-000000-measured.partial")
    code, stdout, stderr = report(tmp_path / "faults", "text")
    assert code == 0 and "completed" in stdout
    assert stderr.count("\n") == 1 and "29991231-000000-measured.partial" in stderr


# -- the port, the results folder --------------------------------------------------------------------------


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = finish(launch(tmp_path, "fine", "--measure", "--port", str(port)))
    assert run.code == 3
    assert len(run.lines) == 1 and f"port {port} is taken" in run.lines[0]
    assert_clean(run)
    assert not run.out.exists()


@pytest.mark.parametrize("mode", ["--measure", "--analytic-only"])
def test_a_file_in_the_place_of_the_results(mode: str, tmp_path: Path) -> None:
    out = tmp_path / "results"
    out.write_text("mine")
    run = finish(launch(tmp_path, "fine", mode, out=out))
    assert run.code == 2
    assert len(run.lines) == 1 and "no run folder can be made" in run.lines[0]
    assert_clean(run)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("mode", ["--measure", "--analytic-only"])
def test_a_results_folder_that_can_not_be_written(mode: str, tmp_path: Path) -> None:
    out = tmp_path / "results"
    with read_only(out):
        run = finish(launch(tmp_path, "fine", mode, out=out))
    assert run.code == 2
    assert len(run.lines) == 1 and "no run folder can be made" in run.lines[0]
    assert_clean(run)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
    else:  # modes do not bind root
        with mounted(folder, "ro,size=64k"):
            yield


# -- the disk is full --------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A tmpfs at ``folder``; the test is skipped where this user may not mount."""
    folder.mkdir(exist_ok=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_told_that_the_disk_is_full(run: Run, why: str) -> None:
    assert run.code == 3, run.stderr
    assert len(run.lines) == 1 and why in run.lines[0], run.stderr
    assert_clean(run)


@pytest.mark.parametrize("pages", range(9))
def test_a_disk_that_is_full_from_the_start(pages: int, tmp_path: Path) -> None:
    """One page more at each: another file is the one that finds no room."""
    out = tmp_path / "results"
    with mounted(out, "size=64k"):
        with contextlib.suppress(OSError), (out / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        os.truncate(out / "filler", (16 - pages) * 4096)
        run = finish(launch(tmp_path, "fine", "--analytic-only", out=out))
        folders = list((out / "faults").glob("2*")) if (out / "faults").exists() else []
        if run.code == 0:  # there was room for all of it
            assert pages > 5
            assert_readable(folders[0], tmp_path)
            return
        assert_told_that_the_disk_is_full(run, "No space left on device")
        if folders:  # the prediction was written, what is computed from it was not
            assert folders[0].suffix == ".partial"
            assert_readable(folders[0], tmp_path)
            assert "Four rungs" in run.stdout


@pytest.mark.parametrize("inodes", [2, 3, 4, 5, 6, 7, 8, 10])
def test_a_disk_without_room_for_another_file(inodes: int, tmp_path: Path) -> None:
    out = tmp_path / "results"
    with mounted(out, f"size=1m,nr_inodes={inodes}"):
        run = finish(launch(tmp_path, "fine", "--measure", out=out))
        if inodes == 2:  # not even the folder
            assert run.code == 2
            assert len(run.lines) == 1 and "no run folder can be made" in run.lines[0]
            assert_clean(run)
            return
        assert_told_that_the_disk_is_full(run, "No space left on device")
        folders = list((out / "faults").glob("2*"))
        if folders:
            assert_readable(folders[0], tmp_path)


def test_a_disk_that_fills_under_load(tmp_path: Path) -> None:
    out = tmp_path / "results"
    (tmp_path / "fill").write_text(str(out / "filler"))
    load = {**LOAD, "requests": 3000, "users": 30}
    with mounted(out, "size=256k"):
        run = finish(launch(tmp_path, "fills_disk", "--measure", out=out, scenario={**MEASURED, "load": load}))
        assert_told_that_the_disk_is_full(run, "can't be written: No space left on device")
        assert run.folder.suffix == ".partial"
        text = assert_readable(run.folder, tmp_path)
        assert "interrupted" in text
        # What was on the disk before is still there.
        assert run.manifest["marks"].keys() >= {"start", "idle", "load"}
        assert sum(row["status"] == "ok" for row in run.requests()) >= 2


@pytest.mark.parametrize(("mode", "limit"), [("--analytic-only", 300), ("--analytic-only", 2500), ("--measure", 2500)])
def test_a_file_that_may_not_grow(mode: str, limit: int, tmp_path: Path) -> None:
    """As a full disk, without the right to mount one: the kernel refuses every byte beyond the limit."""
    run = finish(launch(tmp_path, "fine", mode, limit=limit))
    assert run.code == 3, run.stderr
    assert len(run.lines) == 1 and "File too large" in run.lines[0]
    assert_clean(run)
    for folder in (run.out / "faults").glob("2*"):
        assert_readable(folder, tmp_path)


def test_a_table_that_may_not_grow_ends_the_run_and_keeps_what_there_is(tmp_path: Path) -> None:
    run = finish(launch(tmp_path, "endless", "--measure", limit=12_000))  # the memory table comes there first
    assert run.code == 3, run.stderr
    assert len(run.lines) == 1 and "memory.csv can't be written: File too large" in run.lines[0]
    assert str(run.folder) in run.lines[0]
    assert_clean(run)
    assert run.manifest["outcome"] == "not_recorded" and run.manifest["answers"]["ok"] == 2
    assert sum(row["status"] == "ok" for row in run.requests()) == 2
    assert "could not be written down" in assert_readable(run.folder, tmp_path).replace("\n", " ")


# -- a folder that was damaged -----------------------------------------------------------------------------

FILES = (
    "manifest.json", "scenario.yaml", "prediction.json", "measurement.json", "comparison.json", "report.md",
    "engine.log", "memory.csv", "metrics.csv", "requests.csv", "steps.csv",
)  # fmt: skip
INDISPENSABLE = ("manifest.json", "scenario.yaml")


def damage(kind: str, raw: bytes, rng: random.Random) -> bytes | None:
    if kind == "missing":
        return None
    if kind == "empty":
        return b""
    if kind == "cut":
        return raw[: rng.randrange(len(raw))]
    if kind == "garbage":
        return rng.randbytes(5000)
    spoilt = bytearray(raw)  # "spoilt": some bytes are others
    for _ in range(1 + len(raw) // 200):
        spoilt[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(spoilt)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("kind", "times"), [("missing", 1), ("empty", 1), ("garbage", 2), ("cut", 6), ("spoilt", 6)])
def test_a_damaged_folder_is_reported_as_far_as_it_goes(
    kind: str, times: int, name: str, runs: dict[str, Future[Run]], tmp_path: Path
) -> None:
    whole = runs["fine"].result().folder
    for n in range(times):
        folder = tmp_path / f"{n}-measured.partial"
        shutil.copytree(whole, folder)
        raw = damage(kind, (whole / name).read_bytes(), random.Random(f"{kind}/{name}/{n}"))
        (folder / name).unlink()
        if raw is not None:
            (folder / name).write_bytes(raw)
        for form in ("text", "json", "markdown", "csv"):
            code, stdout, stderr = report(folder, form, tmp_path / "frames" if form == "csv" else None)
            assert not UNPRINTABLE.search(stdout + stderr)
            if code == 0:
                assert stderr == "" and stdout
            else:  # one clear line, and only for what nothing can be told without
                assert (code, name in INDISPENSABLE) == (2, True), (name, n, form, stderr)
                assert stderr.startswith("bench: ") and str(folder) in stderr
                assert name == "scenario.yaml" or stderr.count("\n") == 1, stderr


ODD = ("x", "\x1b[31mred", 7, -1, 0.5, None, True, [], {}, [1], {"a": 1}, 10**400, float("nan"))


def make_odd(tree: dict | list, rng: random.Random) -> None:
    """Take one value of a JSON document away, or put another in its place."""
    while True:
        key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        below = tree[key]
        if isinstance(below, (dict, list)) and below and rng.random() < 0.7:
            tree = below
        elif rng.random() < 0.3:
            del tree[key]
            return
        else:
            tree[key] = rng.choice(ODD)
            return


@pytest.mark.parametrize("name", ["manifest.json", "prediction.json"])
def test_a_folder_of_another_shape(name: str, runs: dict[str, Future[Run]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["fine"].result().folder, folder)
    whole = (folder / name).read_text()
    for n in range(80):
        tree = json.loads(whole)
        make_odd(tree, random.Random(n))
        (folder / name).write_text(json.dumps(tree))
        code, stdout, stderr = report(folder, ("text", "json")[n % 2])
        assert code == 0 or (code == 2 and name == "manifest.json" and stderr.count("\n") == 1), (n, stderr)
        assert not UNPRINTABLE.search(stdout + stderr)


def test_a_scenario_that_was_changed_since_is_told(runs: dict[str, Future[Run]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["fine"].result().folder, folder)
    assert "is not what was run" not in report(folder, "text")[1]
    text = (folder / "scenario.yaml").read_text()
    (folder / "scenario.yaml").write_text(text.replace("requests: 6", "requests: 7"))
    assert "is not what was run" in report(folder, "text")[1].replace("\n", " ")


def test_whole_rows_survive_beside_spoilt_ones(runs: dict[str, Future[Run]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["fine"].result().folder, folder)
    lines = (folder / "requests.csv").read_bytes().splitlines(keepends=True)
    lines[2] = b'1,32,8,"\x00\xff\n'  # an open quote would swallow all that follows
    lines[4] = b"3,32,many,8,1,2,3,ok,,\n"
    (folder / "requests.csv").write_bytes(b"".join(lines) + b"6,32,8")
    assert report(folder, "csv", tmp_path / "frames")[0] == 0
    with (tmp_path / "frames" / "requests.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    text = report(folder, "text")[1]
    assert "requests.csv: 2 lines can't be read" in text and "requests.csv: its last line was cut short" in text


def test_a_report_that_can_not_be_written(runs: dict[str, Future[Run]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for form in ("csv", "markdown"):
        code, _, stderr = report(runs["fine"].result().folder, form, tmp_path / "file" / "below")
        assert (code, stderr.count("\n")) == (2, 1)
        assert "can't be written" in stderr


# -- the guard ---------------------------------------------------------------------------------------------


def guarded(tmp_path: Path, *command: str, grace_s: float = 5) -> tuple[subprocess.Popen[bytes], Path]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.engines.guard", str(grace_s), str(scratch), *command], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    return process, scratch


@pytest.mark.parametrize(
    ("command", "code"),
    [(("sh", "-c", "exit 0"), 0), (("sh", "-c", "exit 7"), 7), (("sh", "-c", "kill -9 $$"), 137),
     (("sh", "-c", "kill -TERM $$"), 143), (("/nowhere/vllm",), 127)],
)  # fmt: skip
def test_the_guard_passes_the_exit_code_on(command: tuple[str, ...], code: int, tmp_path: Path) -> None:
    process, scratch = guarded(tmp_path, *command)
    assert process.wait(20) == code
    assert not scratch.exists()


@pytest.mark.parametrize("how", ["close", "terminate"])
def test_the_guard_ends_those_who_left_the_session_and_do_not_listen(how: str, tmp_path: Path) -> None:
    deaf = "import os, signal, time; os.setsid(); signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {deaf + '; time.sleep(600)'!r}])"
    # The parent goes at once: its child has lost it, and comes to the guard.
    process, _ = guarded(tmp_path, "sh", "-c", f'"{sys.executable}" -c "$0"; sleep 600', parent, grace_s=0.2)
    assert process.stdout is not None and process.stdin is not None
    pid = int(process.stdout.readline())
    if how == "close":
        process.stdin.close()
    else:
        process.terminate()
    process.wait(20)
    assert not Path(f"/proc/{pid}").exists()


# -- what enters -------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_a_huge_binary_log_is_read_in_bounds(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    with path.open("wb") as out:
        out.write(b"ValueError: the beginning\n")
        for _ in range(8):
            out.write(b"a" * (4 << 20) + b"\n" + bytes(range(256)) * 4096 + b"\n" + b"x.y" * 700_000)
        out.write(b"\nRuntimeError: the end\n")
    lines = log.read_lines(path)
    assert max(map(len, lines)) <= log.MAX_LINE and sum(map(len, lines)) <= 2 * log.MAX_BYTES + 100
    assert lines[0] == "ValueError: the beginning" and lines[-1] == "RuntimeError: the end"
    assert log.reason(lines) == "ValueError: the beginning"  # and the search takes no square of the length
    assert log.reason(["a" * log.MAX_LINE] * 4_000) is None
    tail = vllm.LogTail(path)
    seen = sum(len(tail.new_lines()) for _ in range(30))
    tail.close()
    assert seen > 1000


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain – text", "plain – text"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c", "abc"),
        ("one\r\ntwo\tthree\x00", "one two three "),
        ("cut \x1b[", "cut "),
        ("\u202etxet\u2066", " txet "),
        ("half \ud800 pair", "half   pair"),
        ("\x9b31m", " 31m"),
    ],
)
def test_printable(raw: str, clean: str) -> None:
    assert log.printable(raw) == clean
    assert not UNPRINTABLE.search(clean)


def test_metrics_that_are_no_numbers() -> None:
    rng = random.Random(5)
    page = (
        'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} NaN\n'
        'vllm:num_preemptions_total{engine="0"} +Inf\nvllm:kv_cache_usage_perc{engine="0"} 0.5\n'
    )
    read = read_metrics(page.splitlines())
    assert read == {**dict.fromkeys(METRICS), "running": 3.0, "kv_cache_usage": 0.5}
    for _ in range(500):
        spoilt = "".join(chr(rng.randrange(1, 256)) if rng.random() < 0.05 else c for c in page)
        assert set(read_metrics(spoilt.split("\n"))) == set(METRICS)


def test_another_server_needs_no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "installed", lambda: None)
    with pytest.raises(MachineError, match="vLLM is not installed"):
        vllm.require_cpu_build()
    monkeypatch.setenv(vllm.OTHER_SERVER, '["server"]')
    assert vllm.OTHER_SERVER in vllm.require_cpu_build().distribution
    monkeypatch.setenv(vllm.OTHER_SERVER, "server --port 1")
    with pytest.raises(UsageError, match="not a JSON list"):
        vllm.require_cpu_build()
