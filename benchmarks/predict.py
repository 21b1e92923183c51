"""How long one prediction takes once loaded, and 10,000 of a sweep in one process.

    python -m benchmarks.predict
"""

from __future__ import annotations

import time

from harness.predict import predict
from harness.scenario import Scenario, parse_scenario

MODELS = ("llama-3.1-70b", "gpt-oss-20b", "deepseek-v3", "gemma-2-27b")
POINTS = 10_000


def point(model: str, share: float = 0.9, tokens: int = 8192) -> Scenario:
    """A scenario without a load."""
    return parse_scenario(
        f"name: x\nmodel: {model}\ngpu: {{name: h100, count: 8}}\n"
        f"engine: {{max_model_len: {tokens}, gpu_memory_utilization: {share}}}\n"
    )


def main() -> None:
    """Print milliseconds a prediction by model, and seconds for the sweep."""
    for model in MODELS:
        scenario = point(model)
        predict(scenario)
        start = time.perf_counter()
        for _ in range(200):
            predict(scenario)
        print(f"{model:16} {(time.perf_counter() - start) / 200 * 1e3:.2f} ms")
    base = point(MODELS[0])
    start = time.perf_counter()
    for i in range(POINTS):
        engine = base.engine.model_copy(update={"max_num_batched_tokens": 1024 + i})
        predict(base.model_copy(update={"engine": engine}))
    print(f"{POINTS:,} points  {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
