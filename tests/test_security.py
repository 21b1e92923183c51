"""The threats of ``docs/security.md``: where no other test shows what the product does, one here does.

Real processes where there are any: the command line against ``misbehaving_server.py``, our client against a socket that
says what no HTTP library would.
"""

from __future__ import annotations

import ast
import asyncio
import gzip
import json
import os
import pickle
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, bench
from misbehaving_server import OTHERS
from rich.console import Console
from test_faults import MEASURED, MODEL, SERVER, Run, assert_clean, finish, launch, processes, report, wait_for

from harness import store
from harness.architecture.folder import read_config, read_headers
from harness.client import LONGEST_ANSWER, Client
from harness.engines import attached, masks, vllm
from harness.errors import MachineError, RecordError, ScenarioError, UsageError
from harness.report import html, markdown, text
from harness.report.parts import Report, Section, Table
from harness.sampler import METRICS, read_cache_config, read_metrics
from harness.scenario import load_scenario, parse_scenario
from harness.traffic import Request

HF = "hf_aTokenThatNobodyShouldEverSee"
FORMS = ("text", "markdown", "json", "csv")


def everything_of(run: Run, scratch: Path) -> bytes:
    """All that a run leaves or says: its folder, its streams, its reports."""
    said = [run.stdout.encode(), run.stderr.encode()]
    said += [p.read_bytes() for p in run.out.rglob("*") if p.is_file()]
    for form in FORMS:
        said += [s.encode() for s in report(run.folder, form, scratch if form == "csv" else None)[1:]]
    return b"\n".join(said + [p.read_bytes() for p in scratch.rglob("*.csv")])


# -- the document itself -----------------------------------------------------------------------------------


def test_every_threat_names_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "docs/security.md").read_text(encoding="utf-8").splitlines() if "`test_" in line]
    assert len(rows) > 20
    for row in rows:
        for file, name in re.findall(r"`(test_\w+)\.py::(\w+)`", row):
            tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
            assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, row
        assert not re.search(r"`test_\w+`", row), row  # with its file, or the check above would pass it by


# -- secrets -----------------------------------------------------------------------------------------------


def test_secrets_are_in_no_file_no_report_and_no_process_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine itself says them, in its log and in its answers."""
    monkeypatch.setenv("HF_TOKEN", HF)
    run = launch(tmp_path / "home", "tells_secrets", "--measure")
    lines: set[str] = set()
    while run.process.poll() is None:
        lines.update(processes(run.mark).values())
        time.sleep(0.05)
    finish(run)
    assert_clean(run)
    assert run.code == 4 and any("guard" in line for line in lines) and any("EngineCore" in line for line in lines)
    key = (run.home / "key").read_text()
    everything = everything_of(run, tmp_path / "csv")
    for secret in (key, HF, OTHERS):
        assert secret.encode() not in "\n".join(lines).encode()
        # In the log as the engine wrote it, what came from no environment of ours is left; reports do without.
        left = everything.replace((run.folder / "engine.log").read_bytes(), b"") if secret == OTHERS else everything
        assert secret.encode() not in left
    log = (run.folder / "engine.log").read_text()
    assert log.count("said in pieces: ***, and Authorization: Bearer ***\n") == 2


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (f"token {HF} refused", "token *** refused"),
        ("Authorization: Bearer abc.def-123456", "Authorization: ***"),
        ("GET https://me:pass@hub.co/x", "GET https://***@hub.co/x"),
        ("args: {'api_key': ['one-key'], 'port': 1}", "args: {'api_key': ***, 'port': 1}"),
        ("api_key=None, hf_token='abcdefgh'", "api_key=None, hf_token=***"),
        ("vllm serve --api-key abcdef --port 1", "vllm serve --api-key *** --port 1"),
        ('{"password": "abc"}', '{"password": ***}'),
        *[(plain, plain) for plain in ("http://127.0.0.1:8000/v1 max_num_batched_tokens=8192",
                                       "HF_TOKEN is set; tokens: 4096; tokenizer=x", "a key: that", "token budget")],
    ],
)  # fmt: skip
def test_secrets_are_known_by_their_form(said: str, left: str) -> None:
    assert masks.mask(said) == left


def test_a_masked_stream_holds_back_only_what_may_be_a_secret() -> None:
    secrets = masks.values(
        {"HF_TOKEN": "abcabcabd", "MY_API_KEY": "short", "PATH": "/usr/bin:/bin", "A_SECRET": "xyzxyzxyz"}
    )
    assert set(secrets) == {"abcabcabd", "xyzxyzxyz"}
    whole = b"1 abcabcabcabd 2 xyzxyzxyzxyz ab"
    for size in range(1, len(whole)):
        masked = masks.Masked(secrets)
        out = b"".join(masked.feed(whole[i : i + size]) for i in range(0, len(whole), size)) + masked.end()
        assert out == b"1 abc*** 2 ***xyz ab", size
    assert masks.Masked(secrets).feed(b"the pool is granted\n") == b"the pool is granted\n"


def test_a_url_with_a_password_is_refused_without_being_shown(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(json.dumps({"name": "a", "model": MODEL, **MEASURED}))
    ran = bench("run", tmp_path / "a.yaml", "--attach", "http://me:verysecret@127.0.0.1:1", "--out", tmp_path / "out")
    assert ran.code == 2 and "no credentials in the URL" in ran.err and "verysecret" not in ran.err + ran.out


# -- what we start -----------------------------------------------------------------------------------------


def test_our_server_listens_on_loopback_with_a_key_of_its_own(tmp_path: Path) -> None:
    keys = set()
    for n in range(2):
        run = finish(launch(tmp_path / str(n), "silent_exit", "--measure"))
        keys.add((run.home / "key").read_text())
        environment = json.loads((run.home / "environment").read_text())
        assert environment["VLLM_SERVER_DEV_MODE"] == "1"  # the probe needs it
        assert environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "0"
        assert vllm.ON_LOOPBACK.items() <= environment.items()
    assert len(keys) == 2 and min(map(len, keys)) >= 32
    line = vllm.command_line(vllm.ServerPlan(tmp_path, tmp_path, {"seed": 1}), 8123)
    assert [line[i + 1] for i, word in enumerate(line) if word == "--host"] == ["127.0.0.1"]
    assert "--trust-remote-code" not in line


def environment_of(arguments: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a server that is started with ``arguments``."""
    monkeypatch.setenv("LOADFIT_TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("LOADFIT_SERVER_COMMAND", json.dumps([sys.executable, str(SERVER), "silent_exit"]))
    (tmp_path / "scratch").mkdir()
    server = vllm.Server(vllm.ServerPlan("x", tmp_path / "scratch", arguments), tmp_path / "log", tmp_path / "steps")
    server.start()
    assert wait_for(lambda: server.exit_code is not None)
    server.stop()
    return json.loads((tmp_path / "environment").read_text())


def test_without_a_probe_there_are_no_dev_endpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")  # whatever the shell says
    assert environment_of({}, tmp_path, monkeypatch)["VLLM_SERVER_DEV_MODE"] == "0"


def test_a_ray_cluster_keeps_its_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "192.0.2.7")
    ray = environment_of({"distributed_executor_backend": "ray"}, tmp_path, monkeypatch)
    assert ray["VLLM_HOST_IP"] == "192.0.2.7" and "GLOO_SOCKET_IFNAME" not in ray


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"hos": "0.0.0.0"}, "bench sets this itself"),
        ({"middlewar": "os.system"}, "bench sets this itself"),
        ({"grpc_port": 1}, "bench sets this itself"),
        ({"some_new_plugin": "x"}, "bench sets this itself"),
        ({"ssl_keyfile": "/etc/ssl/key"}, "bench sets this itself"),
        ({"profiler_config": "{}"}, "bench sets this itself"),
        ({"trust_remote": True}, "say engine.trust_remote_code"),
        ({"allowed_origins": "--host=0.0.0.0"}, "would be read as an argument"),
        ({"structured_outputs_config": '{"reasoning_parser_pl\\u0075gin": "/tmp/x.py"}'}, "would load code"),
        ({"attention_config": '{"a": [{"debug-dump-path": "/etc"}]}'}, "would load code"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_that_reaches_out_of_the_run_is_refused(arguments: dict, why: str) -> None:
    document = {"name": "a", "model": MODEL, **MEASURED}
    document["engine"] = {**MEASURED["engine"], "arguments": arguments}
    with pytest.raises(ScenarioError, match=why):
        parse_scenario(json.dumps(document))


def test_arguments_as_others_give_them_are_welcome() -> None:
    given = {"reasoning_parser": "qwen3", "seed": -1, "compilation_config": '{"mode": 0}', "max_logprobs": 5}
    document = {"name": "a", "model": MODEL, **MEASURED, "engine": {**MEASURED["engine"], "arguments": given}}
    assert parse_scenario(json.dumps(document)).engine.arguments == given


def test_remote_code_is_trusted_only_where_the_scenario_says_so_and_every_report_tells(tmp_path: Path) -> None:
    scenario = {**MEASURED, "engine": {**MEASURED["engine"], "trust_remote_code": True}}
    trusting = finish(launch(tmp_path / "a", "fine", "--measure", scenario=scenario))
    wary = finish(launch(tmp_path / "b", "fine", "--measure"))
    for run, trusted in ((trusting, True), (wary, False)):
        assert run.code == 0
        assert ("trust_remote_code: true" in report(run.folder, "text")[1]) == trusted
        assert ("trust\\_remote\\_code: true" in report(run.folder, "markdown")[1]) == trusted
        assert json.loads(report(run.folder, "json")[1])["trust_remote_code"] is trusted
        assert run.manifest["engine"]["trust_remote_code"] is trusted


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_weights_in_a_pickle_are_refused(name: str, tmp_path: Path) -> None:
    home, mark = tmp_path / "home", tmp_path / "was-loaded"
    model = home / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(MODEL))
    (model / name).write_bytes(pickle.dumps(Bomb(mark)))
    run = finish(launch(home, "fine", "--measure", scenario={**MEASURED, "weights": {}, "model": "model"}))
    assert run.code == 3 and len(run.lines) == 1 and f"{name}: weights in a pickle" in run.lines[0]
    assert_clean(run)
    assert not mark.exists() and not (home / "key").exists()  # nothing was even started


def test_vllm_reads_a_hubs_pickles_as_weights_only() -> None:
    """What we rest on for a model of the hub, whose files can't be seen before."""
    from importlib.util import find_spec

    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    loader = Path(spec.submodule_search_locations[0]) / "model_executor/model_loader"
    trees = [ast.parse((loader / file).read_text()) for file in ("weight_utils.py", "default_loader.py")]
    nodes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)]
    calls = [n for n in nodes if ast.unparse(n.func) == "torch.load"]
    assert calls
    assert all(any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in c.keywords) for c in calls)


def test_the_product_has_no_shell_no_pickle_and_evaluates_nothing() -> None:
    forbidden = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "torch.load", "marshal.loads",
                 "subprocess.getoutput", "pd.read_pickle", "yaml.load", "numpy.load", "np.load"}  # fmt: skip
    for file in (ROOT / "harness").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in forbidden, f"{file}:{node.lineno}"
                assert not any(k.arg == "shell" for k in node.keywords), f"{file}:{node.lineno}"


# -- a server that means harm ------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
BOMB = gzip.compress(bytes(64 << 20))


def _forever(head: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    def answer(to: socket.socket) -> None:
        to.sendall(head)
        while True:
            to.sendall(piece)

    return answer


ANSWERS: dict[str, Callable[[socket.socket], None]] = {
    "headers": _forever(HEAD, b"X-More: and more\r\n"),
    "one_header": _forever(HEAD + b"X-Long: ", b"a" * 65536),
    "one_line": _forever(HEAD + b"\r\n", b"a" * 65536),
    "events": _forever(HEAD + b"\r\n", b'data: {"choices":[{"text":"' + b"x" * 30000 + b'"}]}\n\n'),
    "blank_lines": _forever(HEAD + b"\r\n", b"\n" * 65536),
    "bomb": lambda to: to.sendall(HEAD + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + BOMB),
    "error": _forever(b"HTTP/1.1 500 No\r\n\r\n", b"a" * 65536),
    "deep": lambda to: to.sendall(HEAD + b'Connection: close\r\n\r\ndata: {"usage":{' + b"[" * 500_000 + b"\n\n"),
}


@pytest.fixture
def listening() -> Iterator[Callable[[Callable[[socket.socket], None]], tuple[str, list[int]]]]:
    """Starts a server that gives one answer to all; its URL, and how many bytes it got rid of for each connection."""
    sockets: list[socket.socket] = []

    def start(answer: Callable[[socket.socket], None]) -> tuple[str, list[int]]:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)
        sent: list[int] = []

        class Counted:
            def __init__(self, to: socket.socket) -> None:
                self.to, self.n = to, len(sent)
                sent.append(0)

            def sendall(self, data: bytes) -> None:
                self.to.sendall(data)
                sent[self.n] += len(data)

        def serve(to: socket.socket) -> None:
            with to:
                try:
                    to.recv(65536)
                    answer(Counted(to))  # type: ignore[arg-type]
                except OSError:
                    pass

        def accept() -> None:
            while True:
                try:
                    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}", sent

    yield start
    for server in sockets:
        server.close()


REQUEST = Request(index=0, prompt_tokens=8, output_tokens=8)


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_without_an_end_is_given_up(kind: str, listening: Callable) -> None:
    url, sent = listening(ANSWERS[kind])

    async def ask() -> tuple:
        async with Client(url, "key", "m") as client:
            answer = await asyncio.wait_for(client.complete(REQUEST, [1] * 8, keep_text=True), 20)
            return answer, await client.metrics(), await client.post("/pause", timeout_s=5), await client.healthy()

    began = time.monotonic()
    answer, page, posted, _ = asyncio.run(ask())
    assert answer.status in ("http", "connection", "cut") and len(answer.error) <= 320
    assert len(answer.text) < 2 << 20
    if kind not in ("bomb", "deep"):
        assert page is None and posted is None
    else:  # what it is, as it is: nothing was unpacked
        assert page is None or len(page) < 1 << 20
    # What the kernel's buffers take beside.
    assert max(sent) < LONGEST_ANSWER + (16 << 20) and time.monotonic() - began < 30


def test_a_redirection_is_no_way_to_have_the_load_or_the_key(listening: Callable) -> None:
    thief, stolen = listening(lambda to: to.sendall(HEAD + b"\r\n"))
    moved = f"HTTP/1.1 307 Go\r\nLocation: {thief}/v1\r\nContent-Length: 0\r\n\r\n".encode()
    url, _ = listening(lambda to: to.sendall(moved))

    async def ask() -> tuple:
        async with Client(url, "key", "m") as client:
            answer = await client.complete(REQUEST, [1] * 8, keep_text=False)
            return answer, await client.healthy(), await client.metrics(), await client.post("/pause")

    answer, *others = asyncio.run(ask())
    assert answer.status == "http" and answer.error.startswith("307")
    assert others == [False, None, None] and stolen == []


@pytest.mark.parametrize("kind", ["drip", *ANSWERS])
def test_an_attached_server_without_an_end_is_one_line(
    kind: str, listening: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(to: socket.socket) -> None:
        for byte in HEAD * 100:
            to.sendall(bytes([byte]))
            time.sleep(0.05)

    monkeypatch.setattr(attached, "TIMEOUT_S", 1.0)
    url, _ = listening({"drip": drip, **ANSWERS}[kind])
    began = time.monotonic()
    with pytest.raises(MachineError, match=r"^--attach: [^\n]*$"):
        attached.attach(url)
    assert time.monotonic() - began < 5


def test_a_run_goes_on_beside_a_flood(tmp_path: Path) -> None:
    run = launch(tmp_path, "floods", "--measure", scenario={**MEASURED, "load": {**LOAD_OF_ONE, "timeout_s": 30}})
    peak = 0
    while run.process.poll() is None:
        try:
            status = Path(f"/proc/{run.process.pid}/status").read_text()
        except OSError:
            break
        peak = max([peak, *(int(kb) for kb in re.findall(r"VmHWM:\s+(\d+)", status))])
        time.sleep(0.05)
    finish(run)
    assert_clean(run)
    assert run.code == 4 and "the stream can't be read: more than" in run.lines[0]
    assert 0 < peak < 400 << 10  # KiB


LOAD_OF_ONE = {"shape": "closed", "users": 1, "requests": 2, "prompt_tokens": 32, "output_tokens": 8, "seed": 3}


def test_a_malicious_metrics_page() -> None:
    line = 'vllm:num_requests_running{engine="0",model_name="' + "[red]\\\\n\\x1b[2J" + '"} 1\n'
    began = time.monotonic()
    values = read_metrics((line * 300_000).splitlines())
    assert time.monotonic() - began < 5
    assert set(values) == set(METRICS) and all(v is None or isinstance(v, float) for v in values.values())
    info = 'vllm:cache_config_info{num_gpu_blocks="../../etc",block_size="9"} 1\n'
    assert read_cache_config((info * 10).splitlines()) == {"block_size": 9}


# -- what is shown -----------------------------------------------------------------------------------------

HOSTILE = "[red]a[/red] [/b] \x1b[31mb\x1b]0;t\x07 | c | <script>x</script> `d` [e](javascript:f) ![g](h) \x9b2J"


def hostile_report() -> Report:
    table = Table((HOSTILE, HOSTILE), ((HOSTILE, HOSTILE),))
    return Report(HOSTILE, (HOSTILE,), (Section(HOSTILE, (HOSTILE,), table, quoted=(HOSTILE, "```", "# x")),))


def test_no_text_is_markup_on_a_terminal() -> None:
    console = Console(force_terminal=True, width=100, color_system="truecolor")
    with console.capture() as captured:
        text.show(hostile_report(), console)
    narrow = Console(force_terminal=True, width=40, color_system="truecolor")
    with narrow.capture() as squeezed:
        text.show(hostile_report(), narrow)
    for shown in (captured.get(), squeezed.get(), text.render(hostile_report())):
        assert "[red]" in shown and "[/b]" in shown
        own = re.sub(r"\x1b\[[0-9;]*m", "", shown)  # the colours are ours: bold heads and no others
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", own)
        assert "\x1b[31m" not in shown and "\x1b]0" not in shown


def test_no_text_is_markup_in_markdown() -> None:
    shown = markdown.render(hostile_report())
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", shown)
    assert "script" in outside and not re.search(r"(?<!\\)[<>`]|(?<!\\)\]\(|(?<!\\)!\[", outside.replace("\\!", "!"))
    rows = [line for line in outside.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)


def test_no_text_is_markup_in_html() -> None:
    shown = html.page(hostile_report(), [(HOSTILE, None)], {})
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
    assert "default-src 'none'" in shown


def test_an_error_is_printable_whoever_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, "architectures": ["\x1b[31m\x9bEvil[red]"]}))
    ran = bench("models", "--config", tmp_path)
    assert ran.code == 2 and ran.err.startswith("bench: ") and not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ran.err)


# -- files of others ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder."""
    run = finish(launch(tmp_path_factory.mktemp("whole"), "fine", "--measure"))
    assert run.code == 0
    return run.folder


def copied(whole: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for file in whole.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


NAMES = ("manifest.json", "scenario.yaml", "prediction.json", "engine.log", "requests.csv", "steps.csv", "memory.csv")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_somebody_else_shows_no_file_of_ours(name: str, whole: Path, tmp_path: Path) -> None:
    """By a link; and a pipe or a device in a file's place keeps nobody waiting."""
    secret = tmp_path / "id_rsa"
    secret.write_text("ValueError: PRIVATE-KEY-OF-MINE\n")
    for n, kind in enumerate(("link", "device", "pipe")):
        folder = copied(whole, tmp_path / str(n) / "20260101-000000-measured")
        (folder / name).unlink()
        if kind == "pipe":
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to(secret if kind == "link" else "/dev/zero")
        for form in FORMS:
            out = tmp_path / "csv" if form == "csv" else None
            code, stdout, stderr = report(folder, form, out)
            assert code == 0 or (code == 2 and stderr.startswith("bench: "))
            assert "PRIVATE-KEY" not in stdout + stderr
            if form == "text" and code == 0:
                assert name in stdout and re.search("not a (plain )?file" if kind == "pipe" else "a link to", stdout)
        assert not any("PRIVATE-KEY" in file.read_text() for file in (tmp_path / "csv").glob("*"))


def test_nothing_is_written_through_a_link_of_somebody_else(whole: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "requests.csv").write_text("mine")
    away = copied(whole, tmp_path / "elsewhere" / "run")
    scenario = tmp_path / "results" / "faults"
    folder = copied(whole, scenario / "20260101-000000-measured")
    (scenario / "latest").symlink_to(away)
    before = sorted(p.name for p in folder.iterdir())
    for named in (scenario / "latest", folder):  # a latest that leads out of the results, a run of somebody else
        code, stdout, stderr = report(named, "csv")
        assert (code, stderr) == (0, "") and stdout.startswith("term,phase,predicted")
    assert sorted(p.name for p in away.iterdir()) == sorted(p.name for p in folder.iterdir()) == before
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "requests.csv").symlink_to(mine / "requests.csv")
    assert report(folder, "csv", frames)[0] == 0
    assert (mine / "requests.csv").read_text() == "mine" and not (frames / "requests.csv").is_symlink()
    # The scenario's own folder is a link out of the results.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "faults").symlink_to(mine)
    with pytest.raises(RecordError, match="leads out of"):
        store.RunFolder.create(tmp_path / "out", "faults", "measured")
    assert sorted(p.name for p in mine.iterdir()) == ["requests.csv"]


def test_a_latest_that_leads_away_is_replaced_and_not_followed(whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.write_text("mine")
    folder = store.RunFolder.create(tmp_path / "out", "faults", "measured")
    (folder.path.parent / "latest").symlink_to(target)
    done = folder.finish()
    assert target.read_text() == "mine" and (folder.path.parent / "latest").resolve() == done.resolve()


@pytest.mark.parametrize("name", ["../out", "/tmp/x", "a/b", "..", ".hidden", "-rf", "a\nb", "$(x)"])
def test_a_scenarios_name_is_no_path(name: str) -> None:
    with pytest.raises(ScenarioError, match="name"):
        parse_scenario(json.dumps({"name": name, "model": MODEL, **MEASURED}))


@pytest.mark.timeout(30)
def test_a_scenario_or_config_without_an_end_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"#" * (3 << 20))
    for path in (tmp_path / "pipe.yaml", tmp_path / "huge.yaml", Path("/dev/zero")):
        with pytest.raises(ScenarioError, match=r"not a plain file|larger than 1 MiB|more than the 1,048,576"):
            load_scenario(path)
    (tmp_path / "config.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "model.safetensors")
    for read in (read_config, read_headers):
        with pytest.raises(UsageError, match="not a plain file"):
            read(tmp_path)
