"""The walls: who may import whom, and what an import may pull in."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "vllm", "transformers", "pynvml", "pandas", "numpy", "pyarrow", "aiohttp"}
# The two modules that run inside vLLM's own processes.
INSIDE_VLLM = {"harness/engines/scheduler_probe.py", "harness/engines/worker_probe.py"}


def test_the_layers_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def pulled_in(code: str) -> set[str]:
    """The heavy modules in sys.modules after ``code`` in a fresh interpreter."""
    tell = "import sys, json; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tell}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import harness",
        "import harness.predict",
        "import harness; harness.predict(harness.load_scenario('scenarios/70b_8k_int4.yaml'))",
        "import harness.cli",
    ],
)
def test_the_analytic_half_is_light(code: str) -> None:
    assert pulled_in(code) == set()


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_whole_analytic_run_is_light(arguments: list[str], tmp_path: Path) -> None:
    arguments = ["run", "scenarios/70b_8k.yaml", "--analytic-only", "--out", str(tmp_path), *arguments]
    code = f"""
from harness.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert end.code == 0
"""
    assert pulled_in(code) == set()
    assert list(tmp_path.glob("70b_8k/*/manifest.json"))


def test_the_watch_sees_what_is_heavy() -> None:
    assert "aiohttp" in pulled_in("import harness.client")


def imports_of(path: Path) -> set[str]:
    """The outermost names of every module that ``path`` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_only_what_runs_inside_vllm_imports_it() -> None:
    files = {str(p.relative_to(ROOT)): imports_of(p) for p in (ROOT / "harness").rglob("*.py")}
    assert len(files) > 40
    assert {f for f, names in files.items() if "vllm" in names} == INSIDE_VLLM
    assert {f for f, names in files.items() if "pynvml" in names} <= {"harness/devices/nvml.py"}


def test_what_runs_inside_vllm_brings_nothing_of_ours() -> None:
    for file in INSIDE_VLLM:
        assert "harness" not in imports_of(ROOT / file), file
