"""A GPU without a GPU: NVML's library compiled from ``fake.c``, for the real pynvml to talk to."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake.c")
NAME = "libnvidia-ml.so.1"
MIB = 2**20
# Of this process alone: the lock on a GPU knows no borders between test runs on one computer.
H100 = f"GPU-{uuid.uuid4()}"
H100_TOTAL = 85_520_809_984  # bytes, as NVML states an H100 80GB HBM3


def compile_library(folder: Path, *, old_driver: bool = False) -> Path:
    """The folder that holds the library, for LD_LIBRARY_PATH."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make an NVML of our own")
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-shared", "-fPIC", "-O1", f"-Wl,-soname,{NAME}", *(["-DOLD_DRIVER"] if old_driver else [])]
    subprocess.run([compiler, *flags, "-o", str(folder / NAME), str(SOURCE)], check=True)
    return folder


@dataclass
class Node:
    """What the library says, in a file that may change while it is in use."""

    library: Path
    state: Path
    lines: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see this node's GPUs."""
        return {"LD_LIBRARY_PATH": str(self.library), "FAKE_NVML": str(self.state)}

    def say(self, *lines: str) -> Node:
        """The state from now on."""
        self.lines = list(lines)
        beside = self.state.with_suffix(".new")
        beside.write_text("".join(f"{line}\n" for line in lines))
        beside.replace(self.state)
        return self

    def add(self, *lines: str) -> Node:
        """More of the state."""
        return self.say(*self.lines, *lines)


def device(
    name_of_it: str = H100, total: int = H100_TOTAL, reserved: int = 600 * MIB, used: int = 4 * MIB,
    name: str = "NVIDIA H100 80GB HBM3",
) -> str:  # fmt: skip
    """A line of the state: one GPU."""
    return f"device {name_of_it} {total} {reserved} {used} {name}"


def several(count: int) -> Iterable[str]:
    """Lines of ``count`` equal GPUs."""
    return (device(f"{H100[:-1]}{n}") for n in range(count))
