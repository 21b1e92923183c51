"""Step times against public runs: each row of harness/catalog/evidence/latency.csv from its configuration alone.

    python -m benchmarks.latency [--markdown]

The whole load is simulated with the predicted step times and compared with what the run's own benchmark printed. Where
no pool is predicted for a run that had one (its memory flags are not told) and its requests came one by one, the pool
is taken as ample. ``--markdown`` prints the table of docs/latency.md.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from harness.architecture import from_config
from harness.predict import predict, settings
from harness.predict.limits import bounds
from harness.predict.step_time import clock
from harness.scenario import parse_scenario
from harness.simulate import StepTime, simulate

AMPLE = 100_000
# Columns of the table -> figures of the simulation, and what a second is in them.
METRICS = {
    "duration_s": ("duration_s", 1), "ttft_mean_ms": ("ttft_mean_s", 1000), "ttft_p50_ms": ("ttft_p50_s", 1000),
    "itl_p50_ms": ("itl_p50_s", 1000), "tpot_mean_ms": ("tpot_mean_s", 1000), "tpot_p50_ms": ("tpot_p50_s", 1000),
}  # fmt: skip
# What a metric tells of: the time to the first token of a lone short prompt is mostly the API server's.
PREFILL, DECODE, WHOLE = "prefill", "decode", "whole load"


@dataclass(frozen=True)
class Compared:
    """One metric of one run, in seconds. ``aspect``: what it tells of; ``fitted``: a share was fitted on the run."""

    run: str
    gpu: str
    metric: str
    aspect: str
    fitted: bool
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1


def compared() -> Iterator[Compared]:
    """Every metric of every run."""
    text = (files("harness.catalog") / "evidence" / "latency.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        users = f"users: {row['users']}, " if row["users"] else ""
        scenario = parse_scenario(f"""
name: {row["id"]}
model: {row["model"]}
weights: {{format: {row["weights"]}}}
gpu: {{name: {row["gpu"]}, count: {row["count"]}}}
engine: {{vllm: "{row["vllm"]}", max_model_len: {row["max_model_len"]}}}
load: {{shape: {row["shape"]}, {users}requests: {row["requests"]}, prompt_tokens: {row["prompt_tokens"]},
  output_tokens: {row["output_tokens"]}}}
""")
        architecture = from_config(scenario.config())
        chosen = settings(scenario, architecture)
        step_time = clock(scenario, architecture, chosen)
        assert isinstance(step_time, StepTime) and scenario.load is not None
        blocks = predict(scenario).kv.num_blocks or AMPLE
        figures = simulate(scenario.load, bounds(scenario, blocks), step_time).figures
        for column, (figure, scale) in METRICS.items():
            value = getattr(figures, figure)
            if row[column] and value:
                yield Compared(
                    row["id"], row["gpu"], column, _aspect(column, row), row["fitted"] == "yes", value,
                    float(row[column]) / scale,
                )  # fmt: skip


def _aspect(column: str, row: dict[str, str]) -> str:
    if row["shape"] == "burst":
        return WHOLE
    return PREFILL if column.startswith("ttft") else DECODE


def table() -> Iterator[str]:
    """The lines of the table in docs/latency.md."""
    yield "| run | metric | tells of | predicted, s | measured, s | error | |"
    yield "| --- | --- | --- | --: | --: | --: | --- |"
    for c in compared():
        name = c.metric.rsplit("_", 1)[0].replace("_", " ")
        yield (
            f"| {c.run} | {name} | {c.aspect} | {c.predicted:.3g} | {c.measured:.3g} | {100 * c.error:+.0f} % | "
            f"{'fitted' if c.fitted else ''} |"
        )


def main() -> None:
    """Print the comparison."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--markdown", action="store_true", help="the table of docs/latency.md")
    if arguments.parse_args().markdown:
        print("\n".join(table()))
        return
    for c in compared():
        values = f"{c.predicted:>10.4g}{c.measured:>10.4g}{100 * c.error:>+7.0f} %"
        print(f"{c.run:<18}{c.metric:<14}{c.aspect:<12}{values} {'fitted' if c.fitted else ''}")


if __name__ == "__main__":
    main()
