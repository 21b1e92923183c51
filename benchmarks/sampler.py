"""What sampling costs and how far apart its readings come.

    python -m benchmarks.sampler [--gpus N] [--interval MS] [--seconds S]

On a node with NVIDIA's driver its GPUs are read; elsewhere the NVML that the tests compile stands in for them, whose
answers cost less than a driver's (memory about 3 us instead of 12, the figures of activity 1 to 2 ms less).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def sample(seconds: float, interval_s: float) -> dict[str, float]:
    """The facts of a DeviceSampler that ran so long."""
    import time

    from harness.devices.nvml import Nvml
    from harness.sampler import DeviceSampler
    from harness.store import COLUMNS, TableWriter

    with Nvml() as nvml, tempfile.TemporaryDirectory() as folder:
        gpus = nvml.visible(os.environ.get("CUDA_VISIBLE_DEVICES"))
        sampler = DeviceSampler(nvml, gpus, TableWriter(Path(folder) / "devices.csv", COLUMNS["devices"]), interval_s)
        sampler.start()
        time.sleep(seconds)
        sampler.end()
        return {**sampler.facts(), "gpus": len(gpus)}


def _stand_in(gpus: int, folder: Path) -> dict[str, str]:
    """The environment in which the tests' NVML answers for ``gpus`` GPUs."""
    sys.path.insert(0, str(ROOT / "tests"))
    import fake_nvml  # type: ignore[import-not-found]

    node = fake_nvml.Node(fake_nvml.compile_library(folder / "lib"), folder / "state")
    return {**node.say(*fake_nvml.several(gpus)).environment, "LOADFIT_STAND_IN": "1"}


def _here() -> bool:
    from harness.devices.nvml import Nvml
    from harness.errors import MachineError

    try:
        Nvml().close()
    except MachineError:
        return False
    return True


def main() -> None:
    """Print one line."""
    options = argparse.ArgumentParser()
    options.add_argument("--gpus", type=int, default=1, help="of the stand-in")
    options.add_argument("--interval", type=float, default=20.0, help="ms")
    options.add_argument("--seconds", type=float, default=20.0)
    given = options.parse_args()
    if not _here():  # a library is found where the process looks for it when it starts
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, **_stand_in(given.gpus, Path(folder))}
            subprocess.run([sys.executable, "-m", "benchmarks.sampler", *sys.argv[1:]], env=environment, check=True)
        return
    facts = sample(given.seconds, given.interval / 1000)
    stood_in = "the stand-in's" if os.environ.get("LOADFIT_STAND_IN") else "this node's"
    print(
        f"{facts['gpus']} of {stood_in} GPUs every {1000 * facts['interval_s']:.0f} ms for {facts['wall_s']:.0f} s: "
        f"{facts['sweeps']} sweeps, {100 * facts['cpu_s'] / facts['wall_s']:.2f} % of a core, longest gap "
        f"{1000 * facts['longest_gap_s']:.1f} ms"
    )
    print(json.dumps(facts), file=sys.stderr)


if __name__ == "__main__":
    main()
