"""The simulated scheduler beside vLLM's own, in one process, and how the simulation's cost grows.

    python -m benchmarks.simulate [--million]

First table: seconds and peak memory of this process by the number of requests, of running requests and of
output tokens, and with --million a million mixed requests. Second table, with vLLM (the extra cpu): the same
load on the same pool. vLLM's steps are timed in its loop alone (schedule and
update_from_output), ours over a whole call of ``simulate``, the second run that finds the need of a load
that does not fit included; the median of several calls. Both must end with equal counts.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.scenario import Load
from harness.simulate import Limits, Simulation, simulate
from harness.simulate.tables import FULL, SLIDING, Table

TESTS = Path(__file__).resolve().parent.parent / "tests"


def lengths(mean: int, spread: float) -> Any:
    """A uniform distribution of ``mean``, ``spread`` of it to either side."""
    return {"distribution": "uniform", "low": max(int(mean * (1 - spread)), 1), "high": int(mean * (1 + spread))}


WINDOWS = (Table(SLIDING, 32, 128), Table(FULL, 16))  # gpt-oss
# (what, requests, prompt, output tokens, limits[, more of the load]): the pools of the recorded table, ample ones,
# and what is followed block by block.
BESIDE_VLLM: list[tuple[Any, ...]] = [
    *((f"64 x (2000 + 1000), {n:,} blocks", 64, 2000, 1000, Limits(n, 16, 64, 8192, 4096))
      for n in (12_500, 10_000, 8_000, 4_096, 1_200)),
    ("75 running, 2000 + 1000", 75, 2000, 1000, Limits(20_000, 16, 75, 8192, 4096)),
    ("256 running, 500 + 1000", 256, 500, 1000, Limits(40_000, 16, 256, 8192, 4096)),
    ("256 users, 2048 x mixed lengths", 2048, 800, 400, Limits(12_000, 16, 256, 8192, 4096)),
    ("64 users, mixed, 8 prefixes of 512", 1024, 800, 400, Limits(3_000, 16, 64, 8192, 4096),
     {"shared_prefix_tokens": 512, "shared_prefixes": 8, "prompt_tokens": lengths(1400, 0.5)}),
    ("64 users, mixed, gpt-oss's tables", 1024, 800, 400, Limits(6_000, 16, 64, 8192, 4096, tables=WINDOWS), {}),
]  # fmt: skip
TOKENS = 8192


def timed(load: Load, limits: Limits, least_s: float = 0.3) -> tuple[Simulation, float]:
    """The simulation, and the median seconds of as many calls as take ``least_s``."""
    seconds: list[float] = []
    while sum(seconds) < least_s:
        begun = time.perf_counter()
        simulation = simulate(load, limits)
        seconds.append(time.perf_counter() - begun)
    return simulation, statistics.median(seconds)


def beside_vllm() -> None:
    """The second table."""
    sys.path.insert(0, str(TESTS))
    theirs = importlib.import_module("vllm_scheduler")
    print(f"\n{'load and pool':<34}{'steps':>8}{'preempted':>10}{'vLLM steps/s':>14}{'ours steps/s':>14}{'ratio':>8}")
    for what, requests, prompt, output, limits, *more in BESIDE_VLLM:
        mixed = requests > 1000
        load = Load.model_validate(
            {
                "shape": "closed", "users": min(requests, limits.max_num_seqs), "requests": requests, "seed": 1,
                "prompt_tokens": lengths(prompt, 0.9) if mixed else prompt,
                "output_tokens": lengths(output, 0.9) if mixed else output, **(more[0] if more else {}),
            }
        )  # fmt: skip
        loop: list[float] = []
        real = theirs.run(load, limits, loop_seconds=loop)
        ours, seconds = timed(load, limits)
        assert replace(ours.figures, peak_blocks_needed=None) == real, (ours.figures, real)
        a, b = real.steps / loop[0], real.steps / seconds
        print(f"{what:<34}{real.steps:>8,}{real.preemptions:>10,}{a:>14,.0f}{b:>14,.0f}{b / a:>7,.0f}x", flush=True)


def growth(million: bool) -> None:
    """The first table."""

    def row(what: str, requests: int, output: int, seqs: int, usable: float) -> None:
        need = seqs * (2000 + output) // 16
        load = Load.model_validate(
            {"shape": "burst", "requests": requests, "prompt_tokens": lengths(2000, 0.9),
             "output_tokens": lengths(output, 0.9)}
        )  # fmt: skip
        limits = Limits(int(need * usable), 16, seqs, TOKENS, 40_000)
        simulation, seconds = timed(load, limits)
        f, peak = simulation.figures, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{what:<44}{f.steps:>12,}{f.preemptions:>10,}{seconds:>9.2f} s{1e6 * seconds / requests:>9.1f} us"
            f"{(f.steps or 0) / seconds:>14,.0f}{peak:>8,.0f} MiB",
            flush=True,
        )

    print(f"{'a burst of mixed requests, 2000 + output':<44}{'steps':>12}{'preempted':>10}{'seconds':>11}"
          f"{'a request':>12}{'steps/s':>14}{'peak RSS':>12}")  # fmt: skip
    for requests in (1_000, 10_000, 100_000):
        row(f"{requests:,} requests, 64 running, ample", requests, 500, 64, 2)
    for requests in (1_000, 10_000, 100_000):
        row(f"{requests:,} requests, up to 64 running, short", requests, 500, 64, 0.4)
    for seqs in (16, 256, 1024):
        row(f"10,000 requests, {seqs:,} running, ample", 10_000, 500, seqs, 2)
    for seqs in (16, 256, 1024):
        row(f"10,000 requests, up to {seqs:,} running, short", 10_000, 500, seqs, 0.4)
    for output in (50, 5_000, 10_000):
        row(f"10,000 requests, 64 running, {output:,} output tokens", 10_000, output, 64, 2)
    if million:
        row("1,000,000 requests, 256 running, ample", 1_000_000, 500, 256, 2)
        row("1,000,000 requests, up to 256 running, short", 1_000_000, 500, 256, 0.4)


def main() -> None:
    """Print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--million", action="store_true", help="also a million requests (minutes)")
    million = arguments.parse_args().million
    growth(million)
    if importlib.util.find_spec("vllm"):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        beside_vllm()


if __name__ == "__main__":
    main()
