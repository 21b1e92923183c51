"""The state of the pool and the scheduler over a load, in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

MAX_POINTS = 8192


class Point(NamedTuple):
    """The state after the schedule of ``step`` (from 1), at ``time_s``. Between two points blocks grow steadily.

    In a long timeline a point stands for all since the one before: the highest of each.
    """

    step: int
    blocks_used: int
    running: int
    waiting: int
    preemptions: int
    time_s: float = 0.0


class Timeline:
    """Points in order; beyond ``max_points`` neighbours are merged, so that peaks stay."""

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self._points: list[Point] = []
        self._max = max_points
        self._each = self._left = 1  # how many points make one, and how many the last one still takes

    def add(self, point: Point) -> None:
        """Append ``point``."""
        if self._left < self._each:
            self._points[-1] = _merge(self._points[-1], point)
        else:
            if len(self._points) >= self._max:
                pairs = zip(self._points[::2], self._points[1::2], strict=True)
                self._points = [_merge(a, b) for a, b in pairs]
                self._each = self._left = 2 * self._each
            self._points.append(point)
        self._left = self._left - 1 or self._each

    def points(self) -> tuple[Point, ...]:
        """All points so far."""
        return tuple(self._points)


def _merge(a: Point, b: Point) -> Point:
    return Point(
        b.step, max(a.blocks_used, b.blocks_used), max(a.running, b.running), max(a.waiting, b.waiting), b.preemptions,
        b.time_s,
    )  # fmt: skip
