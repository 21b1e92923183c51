"""``bench doctor`` on nodes of every kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import bench
from fake_nvml import H100, MIB, Node, device


def doctor(node: Node, **environment: str) -> dict[str, dict[str, Any]]:
    ran = bench("doctor", "--json", **{**node.environment, **environment})
    assert ran.code == 0, ran.err
    assert ran.document["schema"] == 1
    return {c["name"]: c for key in ("checks", "measures") for c in ran.document[key]}


def test_a_node_with_a_gpu(node: Node) -> None:
    told = doctor(node)
    assert told["NVIDIA driver"] == {"name": "NVIDIA driver", "found": "550.54.15, NVML 12.550.54.15, CUDA up to 12.4",
                                     "ok": True, "remedy": ""}  # fmt: skip
    assert "79.65 GiB" in told["GPU 0"]["found"] and "gpu: {name: h100-sxm-80gb}" in told["GPU 0"]["found"]
    assert told["device memory, every 20 ms"]["ok"] is told["the driver's reserve apart"]["ok"] is True
    assert "GPU 0 processes" not in told and "GPU 0 lock" not in told


def test_a_node_without_a_driver(node: Node) -> None:
    told = doctor(node, LD_LIBRARY_PATH="")
    assert told["NVIDIA driver"]["ok"] is False and "--gpus all" in told["NVIDIA driver"]["remedy"]
    assert told["measured on its GPUs"]["ok"] is told["device memory, every 20 ms"]["ok"] is False
    assert told["predicted"]["ok"] is True


@pytest.mark.parametrize(
    ("lines", "name", "words"),
    [
        ((device(), f"process {H100} 4242 {9 * 1024 * MIB}"), "GPU 0 processes", "4242 (9.00 GiB)"),
        ((device(name="NVIDIA GB10"), "error nvmlDeviceGetMemoryInfo_v2 3"), "GPU 0", "unified memory"),
        ((device(), "error nvmlDeviceGetPowerUsage 3"), "GPU 0 untold", "power_mw: not supported"),
        ((device(name="NVIDIA Made Up 1"),), "GPU 0", "gpu: {memory: 81559 MiB}"),
        (("init 4",), "NVIDIA driver", "no permission"),
        (("device GPU-1 1 0 0 X", "lost GPU-1"), "NVIDIA driver", "the GPU is lost"),
        ((), "GPUs", "none visible"),
    ],
)
def test_what_is_wrong_is_named(lines: tuple[str, ...], name: str, words: str, node: Node) -> None:
    told = doctor(node.say(*lines))
    assert words in told[name]["found"], told[name]


def test_no_secret_is_shown(node: Node) -> None:
    ran = bench("doctor", **node.environment, HF_TOKEN="hf_neverShownNeverShown")
    assert ran.code == 0 and "HF_TOKEN is set" in ran.out
    assert "neverShown" not in ran.out + ran.err


def test_it_starts_no_engine_and_imports_none() -> None:
    import subprocess
    import sys

    code = "import sys; from harness.doctor import machine, measures; machine(); measures(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "vllm"} & set(json.loads(done.stdout.replace("'", '"')))
