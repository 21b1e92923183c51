"""Bars of text: a value over time on one line."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 64
_BARS = " ▁▂▃▄▅▆▇█"


def resample(points: Sequence[tuple[float, float]], width: int = WIDTH) -> list[float]:
    """The highest value in each of ``width`` equal slices of time (0 to 1); a slice without a point keeps the last."""
    slices: list[float | None] = [None] * width
    for when, value in points:
        i = min(int(when * width), width - 1)
        slices[i] = value if slices[i] is None else max(slices[i] or 0.0, value)
    out, last = [], float(points[0][1])
    for value_or_none in slices:
        last = last if value_or_none is None else value_or_none
        out.append(last)
    return out


def draw(values: Sequence[float], ceiling: float) -> str:
    """One bar for each value; anything above zero shows."""
    if not ceiling:
        return " " * len(values)
    top = len(_BARS) - 1
    return "".join(_BARS[0 if v <= 0 else max(1, min(top, round(v / ceiling * top)))] for v in values)
