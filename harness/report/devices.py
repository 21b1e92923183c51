"""The GPUs of a run: what each held at the marks, and over time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.device_ledger import baseline, device_samples
from harness.ledger import Account, Phase, Term
from harness.report import bars
from harness.report.parts import Table
from harness.units import MIB, gib, human

if TYPE_CHECKING:
    import pandas as pd

    from harness.store import RunRecord

_PHASES = (Phase.WEIGHTS_LOADED, Phase.IDLE, Phase.LOAD, Phase.DRAIN)
# mark -> its letter under the timeline
_LETTERS = {"loading": "l", "weights_loaded": "w", "idle": "i", "load": "L", "drain": "d", "stop": "s"}


def table(record: RunRecord, measured: Account | None) -> Table | None:
    """One row for each GPU: GiB above its quiet baseline at each mark, and how busy and hot it was at most."""
    if not record.gpus or measured is None:
        return None
    rows = []
    for n, gpu in enumerate(record.gpus):
        samples = device_samples(record, gpu["uuid"])
        totals = [measured.ledger.find(Term.TOTAL, phase, f"gpu{n}") for phase in _PHASES]
        rows.append(
            (
                f"{n} {gpu['name'].removeprefix('NVIDIA ')}",
                gib(gpu["total_bytes"]),
                gib(baseline(record, samples)),
                *(gib(total.bytes if total else None) for total in totals),
                _most(samples, "gpu_percent", 1, " %"),
                _most(samples, "power_mw", 1000, " W"),
                _most(samples, "temperature_c", 1, " °C"),
            )
        )
    columns = ("GPU", "GiB", "quiet", "weights in", "idle", "peak", "after", "busy", "power", "warm")
    return Table(columns, tuple(rows))


def _most(samples: pd.DataFrame, column: str, scale: int, unit: str) -> str:
    value = samples[column].max() if len(samples) else float("nan")
    return "–" if value != value else f"{value / scale:,.0f}{unit}"


def timeline(record: RunRecord) -> Iterator[str]:
    """A line of bars for each GPU, its whole memory for a full bar, and the marks under them."""
    frame = record.tables.get("devices")
    if frame is None or not len(frame):
        return
    begin, end = int(frame["time_ns"].min()), int(frame["time_ns"].max())
    span = max(end - begin, 1)
    for n, gpu in enumerate(record.gpus):
        samples = device_samples(record, gpu["uuid"])
        if not len(samples):
            continue
        points = zip(((samples["time_ns"] - begin) / span).tolist(), samples["used_bytes"].tolist(), strict=True)
        total = int(samples["total_bytes"].iloc[-1])
        line = bars.draw(bars.resample(list(points)), total)
        yield f"{f'GPU {n}':>12} {line} {gib(int(samples['used_bytes'].max()))} of {gib(total)} GiB"
    marks = [" "] * bars.WIDTH
    for mark, letter in _LETTERS.items():
        at = (record.marks.get(mark, -1) - begin) / span
        if 0 <= at <= 1:
            marks[min(int(at * bars.WIDTH), bars.WIDTH - 1)] = letter
    yield f"{'':>12} {''.join(marks).rstrip()}"
    yield f"{'':>12} 0{'':{bars.WIDTH - 2}}{span / 1e9:,.0f} s"
    yield "             l loading  w weights loaded  i idle  L load  d all sent  s stop"


_QUIET = 16 * MIB  # of movement; a driver alone moves by less
# The bits of nvmlClocksEventReasons that say that a GPU ran slower than it could.
_SLOWED = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake",
}  # fmt: skip


def health(record: RunRecord) -> Iterator[str]:
    """XID and ECC errors, and what held the clocks down."""
    for n, gpu in enumerate(record.gpus):
        samples = device_samples(record, gpu["uuid"])
        for xid in sorted(set(samples["xid"].dropna().astype(int))):
            yield f"GPU {n} reported XID {xid} during the run: see the kernel's log and NVIDIA's list of XID errors."
        before = samples[samples["time_ns"] < record.marks.get("start", 0)]["used_bytes"]
        if len(before) and before.max() - before.min() > _QUIET:
            yield (
                f"GPU {n} was not quiet before the engine started: its use moved by "
                f"{human(int(before.max() - before.min()))}, so every figure above the baseline is that uncertain."
            )
        errors = samples["ecc_uncorrected"].dropna()
        if len(errors) and errors.iloc[-1]:
            yield f"GPU {n} has counted {int(errors.iloc[-1])} uncorrected ECC errors since its driver was loaded."
        if gpu["accounting_peak_bytes"] is not None:
            peak = gib(gpu["accounting_peak_bytes"])
            yield f"GPU {n}: the driver's own accounting has {peak} GiB at our process's peak."
        reasons = samples["throttle_reasons"].dropna().astype(int).tolist()
        slowed = [f"{words} ({100 * sum(bool(r & bit) for r in reasons) / len(reasons):.0f} % of the readings)"
                  for bit, words in _SLOWED.items() if any(r & bit for r in reasons)]  # fmt: skip
        if slowed:
            yield f"GPU {n}'s clocks were held down by: {', '.join(slowed)}."
    versions = record.manifest.get("nvml")
    if versions:
        yield (
            f"NVIDIA driver {versions.get('driver')}, NVML {versions.get('nvml')}, CUDA up to {versions.get('cuda')}; "
            f"PyTorch {record.manifest.get('engine', {}).get('torch') or 'not told'}."
        )
    sampling = record.manifest.get("device_sampling")
    if sampling:
        share = 100 * sampling["cpu_s"] / max(sampling["wall_s"], 0.001)
        yield (
            f"The GPUs were read every {1000 * sampling['interval_s']:.0f} ms ({sampling['sweeps']:,} times, longest "
            f"gap {1000 * sampling['longest_gap_s']:.0f} ms, {share:.1f} % of a core)."
        )
        if sampling["discrepancy_bytes"]:
            yield (
                f"NVML's own parts missed its total by up to {abs(sampling['discrepancy_bytes']):,} bytes: its "
                "readings are not to be trusted to more than that."
            )
