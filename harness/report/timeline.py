"""The pool and the requests over a load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.ledger import Account
from harness.report import bars
from harness.report.reading import Reading


def lines(reading: Reading) -> Iterable[str]:
    """The picture of a run, where it has one."""
    found, top, unit = points(reading)
    if found:
        yield from picture(found, top, unit)


def picture(found: Sequence[tuple[float, float, float, float, float]], top: int | None, unit: str) -> Iterable[str]:
    """Four lines of bars over (when, blocks used, running, waiting, preemptions so far), and the axis."""
    end = found[-1][0] or 1
    series = (("blocks used", 1, top), ("running", 2, None), ("waiting", 3, None), ("preemptions", 4, None))
    for name, column, ceiling in series:
        line = bars.resample([(p[0] / end, p[column]) for p in found])
        peak = max(line)
        most = f"{peak:,.0f}" + (f" of {ceiling:,}" if ceiling else "")
        yield f"{name:>12} {bars.draw(line, ceiling or peak)} {most}"
    yield f"{'':>12} 0{'':{bars.WIDTH - 2}}{end:,.0f} {unit}"


def points(reading: Reading) -> tuple[list[tuple[float, float, float, float, float]], int | None, str]:
    """(when, blocks, running, waiting, preemptions so far), the blocks there are, and the unit of when."""
    record = reading.record
    steps = record.tables.get("steps")
    if steps is not None and len(steps):
        seconds = (steps["time_ns"] - steps["time_ns"].iloc[0]) / 1e9
        columns = (seconds, steps["blocks_used"], steps["running"], steps["waiting"], steps["preempted"].cumsum())
        measured = list(zip(*(c.tolist() for c in columns), strict=True))
        usable = (reading.measured or Account()).kv.usable_blocks
        return measured, usable, "s"
    by_time = bool(record.frames) and record.frames[-1][1] > 0
    frames = [(time_s if by_time else step, *rest) for step, time_s, *rest in record.frames]
    return frames, record.prediction.kv.usable_blocks, "s" if by_time else "steps"  # type: ignore[return-value]
