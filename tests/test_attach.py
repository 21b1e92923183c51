"""``bench run --attach``: a server that somebody else runs is driven, read from outside, and left as it is."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Ran, bench
from fake_nvml import MIB, Node, device
from test_gpu_runs import SCENARIO

from harness.engines.attached import attach
from harness.errors import MachineError, UsageError
from harness.report.tables import load_run

SERVER = Path(__file__).with_name("misbehaving_server.py")
KEY = "a-key-of-somebody-else"
USED = 70_000 * MIB


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL of a server that serves well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "VLLM_API_KEY": KEY, "LOADFIT_STEPS": str(tmp_path / "not-ours.csv")}
    process = subprocess.Popen(
        [sys.executable, str(SERVER), "fine", "--port", str(port)], env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url)
        yield url
        _wait(url)  # it is still there
        assert process.poll() is None
    finally:
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        below = [subprocess.run(["pgrep", "-P", c], capture_output=True, text=True).stdout.split() for c in children]
        process.kill()
        process.wait()
        for pid in [*children, *(p for pids in below for p in pids)]:
            os.kill(int(pid), 9)


def _wait(url: str) -> None:
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server did not come up")


def run(url: str, tmp_path: Path, node: Node, *more: str, scenario: dict | None = None, key: str = KEY) -> Ran:
    (tmp_path / "a.yaml").write_text(json.dumps(scenario or SCENARIO))
    out = ("--out", str(tmp_path / "out"))
    return bench("run", tmp_path / "a.yaml", "--attach", url, *out, *more, **node.environment, VLLM_API_KEY=key)


def test_it_is_driven_and_read_from_outside(server: str, tmp_path: Path, node: Node) -> None:
    node.say(device(used=USED))
    ran = run(server, tmp_path, node, "--json")
    assert ran.code == 0, ran.err
    result = load_run(ran.folder)
    assert ran.document["outcome"] == "completed"
    assert (result.requests["status"] == "ok").all() and len(result.requests) == 6
    account = result.measurement
    assert account is not None
    assert (account.kv.num_blocks, account.kv.block_size) == (129, 32)  # from /metrics
    assert account.load.peak_blocks_used == 64  # half of 128, as /metrics has it
    assert account.ledger.bytes_of("total", "load") == USED  # nobody saw the GPU quiet
    assert "no quiet baseline" in account.ledger.find("total", "load").source
    assert account.ledger.bytes_of("weights", "idle") is None
    assert [r.holds for r in account.rungs[:3]] == [True] * 3
    assert KEY not in ran.out + ran.err
    assert [p for p in ran.folder.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()] == []
    assert not any("strangers" in line for line in ran.err.splitlines())


def test_the_report_says_what_could_not_be_seen(server: str, tmp_path: Path, node: Node) -> None:
    ran = run(server, tmp_path, node)
    assert ran.code == 0, ran.err
    assert "was there before us" in ran.out and "steps.csv is missing" not in ran.out


def test_a_load_that_it_cannot_take_is_refused(server: str, tmp_path: Path, node: Node) -> None:
    ran = run(server, tmp_path, node, "--set", "load.prompt_tokens=4000")
    assert ran.code == 3 and "the server's max_model_len is 512" in ran.err.splitlines()[-1]


def test_a_wrong_key_is_one_line(server: str, tmp_path: Path, node: Node) -> None:
    ran = run(server, tmp_path, node, key="wrong")
    assert ran.code == 3 and "refuses the key (set VLLM_API_KEY)" in ran.err.splitlines()[-1]


def test_another_gpu_than_the_scenarios_is_not_read(server: str, tmp_path: Path, node: Node) -> None:
    node.say(device(name="NVIDIA L4", total=24_152_899_584))
    ran = run(server, tmp_path, node)
    assert ran.code == 0 and "The GPUs' memory was not read: the scenario's GPU is h100-sxm-80gb" in " ".join(
        ran.out.split()
    )


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://name:secret@127.0.0.1:1", "file:///etc/passwd", ""])
def test_what_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as error:
        attach(url)
    assert "secret" not in str(error.value)


def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(MachineError, match="no server answers at"):
            attach(f"127.0.0.1:{probe.getsockname()[1]}")


def test_a_redirection_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization") if self.path == "/taken" else None)
            self.send_response(302)
            self.send_header("Location", "/taken")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        with pytest.raises(MachineError, match="/v1/models answers 302"):
            attach(f"http://127.0.0.1:{elsewhere.server_port}")
        elsewhere.shutdown()
    assert asked == [None]


def test_attach_is_measured_and_nothing_else(tmp_path: Path) -> None:
    ran = bench("run", "scenarios/70b_8k.yaml", "--attach", "http://127.0.0.1:1", "--analytic-only", "--out", tmp_path)
    assert ran.code == 2 and "--attach" in ran.err


def test_repeats_go_to_the_same_server_and_say_so(server: str, tmp_path: Path, node: Node) -> None:
    node.say(device(used=USED))
    ran = run(server, tmp_path, node, "--set", "repeats=2")
    assert ran.code == 0, ran.err
    assert "repeat 2 of 2: the same server" in ran.err
    told = " ".join(ran.out.split())
    assert "measured · 2 repeats" in told and "one server that was there before" in told
    assert "what its prefix cache keeps of the one before is not computed again" in told
