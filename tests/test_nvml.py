"""GPUs through the real pynvml, answered by a library of our own (tests/fake_nvml): every trap of NVML has a case."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_nvml
import pytest
from fake_nvml import H100, H100_TOTAL, MIB, Node, device

ROOT = Path(__file__).parents[1]
# What a process of its own sees: pynvml opens its library once, so each case needs one.
ASK = """
import json, os
from dataclasses import asdict
from harness.devices.nvml import ACTIVITY, Nvml, NvmlError
try:
    with Nvml() as nvml:
        gpus = nvml.visible(os.environ.get("CUDA_VISIBLE_DEVICES"))
        seen = []
        for g in gpus:
            row = {k: getattr(g, k) for k in ("uuid", "name", "visible_as", "total_bytes", "memory_version", "mig",
                                              "unmeasurable", "missing")}
            if not g.unmeasurable:
                m = nvml.memory(g.handle)
                row |= {"memory": asdict(m), "discrepancy": m.discrepancy, "activity": nvml.activity(g.handle)[0],
                        "processes": [asdict(p) for p in nvml.processes(g.handle)[0] or ()],
                        "no_processes": nvml.processes(g.handle)[1], "peak": nvml.peak_by_accounting(g.handle, 77)}
            seen.append(row)
        print(json.dumps({"versions": nvml.versions(), "gpus": seen}))
except NvmlError as error:
    print(json.dumps({"error": str(error), "lost": error.lost}))
"""


def ask(node: Node, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, cwd=ROOT, timeout=60,
        env={**os.environ, **node.environment, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_gpu_is_read_whole(node: Node) -> None:
    node.add(f"process {H100} 77 {5 * MIB}")
    answer = ask(node)
    (gpu,) = answer["gpus"]
    assert answer["versions"] == {"driver": "550.54.15", "nvml": "12.550.54.15", "cuda": "12.4"}
    assert (gpu["uuid"], gpu["name"], gpu["visible_as"]) == (H100, "NVIDIA H100 80GB HBM3", "0")
    memory = gpu["memory"]
    assert memory == {"total": H100_TOTAL, "reserved": 600 * MIB, "used": 4 * MIB, "free": H100_TOTAL - 604 * MIB,
                      "version": "v2"}  # fmt: skip
    assert gpu["discrepancy"] == 0
    assert gpu["activity"] == {"gpu_percent": 97, "memory_percent": 61, "power_mw": 345_678, "temperature_c": 61,
                               "throttle_reasons": 4, "ecc_uncorrected": 0}  # fmt: skip
    assert gpu["processes"] == [{"pid": 77, "bytes": 5 * MIB}]
    assert gpu["missing"] == {} and gpu["peak"] == [None, "accounting mode is off"]


def test_an_old_driver_knows_version_1_only(tmp_path: Path) -> None:
    node = Node(fake_nvml.compile_library(tmp_path / "old", old_driver=True), tmp_path / "state").say(device())
    (gpu,) = ask(node)["gpus"]
    assert gpu["memory"] == {"total": H100_TOTAL, "reserved": None, "used": 604 * MIB, "free": H100_TOTAL - 604 * MIB,
                             "version": "v1"}  # fmt: skip
    assert gpu["discrepancy"] == 0
    assert "version 1" in gpu["missing"]["reserved_bytes"]
    assert gpu["activity"]["throttle_reasons"] == 4  # by its older name


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("init 9", "driver is not loaded"),
        ("init 4", "no permission"),
        ("init 18", "different versions"),
        ("init 13", "too old"),
    ],
)
def test_no_nvml_is_one_clear_line(line: str, words: str, node: Node) -> None:
    answer = ask(node.add(line))
    assert words in answer["error"] and not answer["lost"]


def test_nvml_absent(node: Node) -> None:
    answer = ask(node, LD_LIBRARY_PATH="")
    assert "libnvidia-ml.so.1 is not found" in answer["error"]


def test_a_lost_gpu_says_so(node: Node) -> None:
    answer = ask(node.add(f"lost {H100}"))
    assert answer["lost"] and "lost" in answer["error"]


def test_what_the_gpu_does_not_tell_is_missing_with_its_reason(node: Node) -> None:
    node.add("error nvmlDeviceGetPowerUsage 3", "error nvmlDeviceGetTotalEccErrors 3",
             "error nvmlDeviceGetComputeRunningProcesses_v3 4", "error nvmlDeviceGetUtilizationRates 999")  # fmt: skip
    (gpu,) = ask(node)["gpus"]
    assert gpu["activity"]["power_mw"] is None and gpu["activity"]["gpu_percent"] is None
    assert gpu["activity"]["temperature_c"] == 61
    assert gpu["missing"]["power_mw"] == gpu["missing"]["ecc_uncorrected"] == "not supported on this GPU"
    assert "NVML" in gpu["missing"]["gpu_percent"]
    assert "no permission" in gpu["no_processes"]


def test_unified_memory_is_refused_with_its_reason(node: Node) -> None:
    node.say(device(name="NVIDIA GB10"), "error nvmlDeviceGetMemoryInfo_v2 3", "error nvmlDeviceGetMemoryInfo 3")
    (gpu,) = ask(node)["gpus"]
    assert gpu["total_bytes"] is None and "unified memory" in gpu["unmeasurable"]


def test_processes_without_their_memory(node: Node) -> None:
    (gpu,) = ask(node.add(f"process {H100} 77 -1"))["gpus"]
    assert gpu["processes"] == [{"pid": 77, "bytes": None}]


def test_accounting_is_read_where_it_is_on(node: Node) -> None:
    (gpu,) = ask(node.add(f"accounting {H100} 77 {9 * MIB}"))["gpus"]
    assert gpu["peak"] == [9 * MIB, None]


# -- which GPUs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("1,0", [1, 0]),
        (" 2 ", [2]),
        ("", []),
        ("-1", []),
        ("0,9,1", [0]),  # as CUDA does: the first that names nothing ends the list
        ("0,0", [0]),
        (f"{H100[:-1]}2,1", [2, 1]),
        (f"{H100[:-1]}", []),  # the beginning of three
        ("GPU-nobody", []),
    ],
)
def test_cuda_visible_devices_is_respected(wanted: str, found: list[int], node: Node) -> None:
    node.say(*fake_nvml.several(3))
    answer = ask(node, CUDA_VISIBLE_DEVICES=wanted)
    assert [gpu["uuid"] for gpu in answer["gpus"]] == [f"{H100[:-1]}{n}" for n in found]


MIG = H100.replace("GPU-", "MIG-")
SLICE = f"mig {H100} {MIG} {40 * 1024 * MIB} {100 * MIB} {2 * MIB} NVIDIA H100 80GB HBM3 MIG 3g.40gb"


@pytest.mark.parametrize("wanted", [None, "0", MIG])
def test_mig_is_read_by_its_own_handle(wanted: str | None, node: Node) -> None:
    node.add(SLICE)
    (gpu,) = ask(node, **({} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted}))["gpus"]
    assert gpu["mig"] and gpu["uuid"] == gpu["visible_as"] == MIG
    assert gpu["memory"]["total"] == 40 * 1024 * MIB and gpu["memory"]["used"] == 2 * MIB
    assert gpu["activity"]["power_mw"] is None and "not supported" in gpu["missing"]["power_mw"]


# -- nothing is changed --------------------------------------------------------------------------------------


def test_no_setting_of_a_device_is_ever_changed() -> None:
    tree = ast.parse((ROOT / "harness" / "devices" / "nvml.py").read_text())
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.startswith("nvml")}
    assert "nvmlDeviceGetMemoryInfo" in used
    allowed = ("nvmlDeviceGet", "nvmlSystemGet", "nvmlDeviceIs", "nvmlEvent", "nvmlDeviceRegisterEvents", "nvmlInit",
               "nvmlShutdown", "nvmlMemory_v2")  # fmt: skip
    assert [name for name in used if not name.startswith(allowed)] == []
