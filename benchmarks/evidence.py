"""Prints each public run beside what is predicted from its configuration alone.

    python -m benchmarks.evidence

One line a run: weights and KV pool, predicted and measured, in GiB. `bench evidence` sums the errors up by term and
family; docs/accuracy.md says which rows were used in a fit.
"""

from __future__ import annotations

from harness.evidence import compared
from harness.units import GIB


def main() -> None:
    """Print the table and its worst errors."""
    runs = [run for run in compared() if run.error("weights") is not None and run.error("kv") is not None]
    print(f"{'run':<64}{'weights':>9}{'measured':>9}{'error %':>9}{'KV pool':>9}{'measured':>9}{'error':>8}")
    shares, pools = [], []
    for run in runs:
        weights, kv = (run.predicted[term] - run.measured[term] for term in ("weights", "kv"))
        shares.append(100 * weights / run.measured["weights"])
        pools.append(kv / GIB)
        print(
            f"{run.label[:63]:<64}{run.predicted['weights'] / GIB:>9.2f}{run.measured['weights'] / GIB:>9.2f}"
            f"{shares[-1]:>+9.2f}{run.predicted['kv'] / GIB:>9.2f}{run.measured['kv'] / GIB:>9.2f}{pools[-1]:>+8.3f}"
        )
    print(
        f"{len(runs)} runs: worst weights {max(map(abs, shares)):.2f} %, KV pool mean error "
        f"{sum(map(abs, pools)) / len(pools):.3f} GiB, worst {max(map(abs, pools)):.3f} GiB"
    )


if __name__ == "__main__":
    main()
