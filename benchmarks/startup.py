"""How long the analytic path takes as a whole process, beside Python alone and any peer that is installed.

    python benchmarks/startup.py [--runs 10]

Each command in turn, a fresh process each time, the median and the range of wall seconds. Peers are timed
where their command is found (pip install ridgepoint kvfit aiconfigurator vramscout): starting and printing
help, the least that they can do; ours is a whole prediction with its run folder and report.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = {"ridgepoint": "--help", "kvfit": "--help", "vramscout": "--help", "aiconfigurator": "--help"}


def wall_s(command: list[str]) -> float:
    """Wall seconds of one run of ``command``."""
    begun = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=10)
    runs = arguments.parse_args().runs
    with tempfile.TemporaryDirectory() as out:
        bench = [sys.executable, "-m", "harness"]
        run = [*bench, "run", "--analytic-only", "--out", out]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "bench --help": [*bench, "--help"],
            "bench run scenarios/70b_8k.yaml --analytic-only": [*run, "scenarios/70b_8k.yaml"],
            "bench run scenarios/70b_8k_int4.yaml --analytic-only": [*run, "scenarios/70b_8k_int4.yaml"],
        }
        commands |= {f"{peer} {word}": [found, word] for peer, word in PEERS.items() if (found := shutil.which(peer))}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):  # in turn, so that a slow moment of the machine hits all of them
            for name, command in commands.items():
                times[name].append(wall_s(command))
    print(f"{'command':<56}{'median s':>9}{'min':>7}{'max':>7}   ({runs} runs)")
    for name, seconds in times.items():
        print(f"{name:<56}{statistics.median(seconds):>9.3f}{min(seconds):>7.3f}{max(seconds):>7.3f}")


if __name__ == "__main__":
    main()
