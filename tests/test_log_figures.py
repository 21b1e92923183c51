"""What the workers' log lines state, by the names under which the worker probe gives it."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

from harness.engines import log_figures
from harness.engines.log import read_lines

GIB = 2**30
EVIDENCE = Path(__file__).resolve().parents[2] / "shared" / "evidence"
LOGS = sorted((EVIDENCE / "logs").glob("*.log"))
# column of the table -> the probe's name
COLUMNS = {
    "init_free_gib": "free_at_init_bytes", "cuda_total_gib": "cuda_total_bytes", "requested_gib": "requested_bytes",
    "weights_gib": "model_bytes", "activation_peak_gib": "activation_peak_bytes",
    "non_torch_increase_gib": "non_torch_bytes", "cuda_graph_estimated_gib": "graphs_estimated_bytes",
    "cuda_graph_actual_gib": "graphs_bytes", "kv_cache_gib": "available_bytes",
}  # fmt: skip


def gib(size: float) -> int:
    return round(size * GIB)


def test_every_figure_of_a_recent_log() -> None:
    start = (
        "(EngineCore pid=7) INFO 01-02 03:04:05 [gpu_worker.py:1] Free memory on device (78.68/79.19 GiB) on startup. "
        "Desired GPU memory utilization is (0.92, 72.85 GiB). Actual usage is 15.9 GiB for consumed memory (weights + "
        "non-torch), 2.1 GiB for peak activation, and 0.87 GiB for CUDAGraph memory. Replace gpu_memory_utilization "
        "config with `--kv-cache-memory=1` (53.0 GiB) to fit. Current kv cache memory in use is 54.01 GiB."
    )
    lines = [
        "(EngineCore pid=7) INFO 01-02 03:04:05 [gpu_model_runner.py:1] Model loading took 14.99 GiB memory and 3 s",
        "(EngineCore pid=7) INFO 01-02 03:04:05 [gpu_worker.py:1] CUDA graph memory profiling is enabled (default "
        "since v0.21.0). The current --gpu-memory-utilization=0.9200 is equivalent to 0.9114 without it.",
        "(EngineCore pid=7) INFO 01-02 03:04:05 [gpu_worker.py:1] Available KV cache memory: 54.01 GiB",
        start,
    ]
    assert log_figures.read(lines) == [{
        "model_bytes": gib(14.99), "available_bytes": gib(54.01), "free_at_init_bytes": gib(78.68),
        "cuda_total_bytes": gib(79.19), "requested_bytes": gib(72.85), "consumed_bytes": gib(15.9),
        "activation_peak_bytes": gib(2.1), "graphs_bytes": gib(0.87), "graphs_applied": 1,
    }]  # fmt: skip


def test_the_words_are_those_of_the_installed_vllm() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    source = Path(spec.submodule_search_locations[0], "v1/worker/gpu_worker.py").read_text(encoding="utf-8")
    for words in (
        "Free memory on device ", "on startup. ", "Actual usage is ", "for consumed memory (weights + non-torch)",
        "for peak activation, and ", "for CUDAGraph memory", "Available KV cache memory: %s GiB",
        "CUDA graph memory profiling is enabled",
    ):  # fmt: skip
        assert words in source, words


def test_each_worker_has_its_own() -> None:
    lines = [f"(Worker_TP{n} pid={10 + n}) INFO 1 2 [x.py:1] Model loading took {7 + n}.5 GiB memory" for n in range(3)]
    assert log_figures.read(lines) == [{"model_bytes": gib(7.5 + n)} for n in range(3)]


def test_a_log_that_states_nothing() -> None:
    assert log_figures.read(["", "Model loading took a while", "Available KV cache memory: much GiB"]) == []


@pytest.mark.skipif(not LOGS, reason="the raw logs are not beside this checkout")
def test_all_figures_of_the_public_runs() -> None:
    with (EVIDENCE / "h100_vllm_0.19.csv").open(newline="") as file:
        rows = {row["source_url"].rsplit("/", 1)[-1]: row for row in csv.DictReader(file)}
    compared = 0
    for path in LOGS:
        workers = log_figures.read(read_lines(path))
        for column, name in COLUMNS.items():
            if rows[path.name][column]:
                stated = [w[name] / GIB for w in workers if name in w]
                assert any(abs(s - float(rows[path.name][column])) < 0.001 for s in stated), (path.name, column)
                compared += 1
    assert compared == 381
