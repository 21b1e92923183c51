"""A predicted size with its interval and its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """``bytes`` lies between ``low`` and ``high`` (bytes); ``source`` is a formula or the runs behind it."""

    bytes: int
    low: int
    high: int
    source: str

    @classmethod
    def exact(cls, size: int, source: str) -> Estimate:
        """A size without an interval: it is set, or follows from what is set."""
        return cls(size, size, size, source)

    @classmethod
    def within(cls, size: float, below: float, above: float, source: str) -> Estimate:
        """``size`` with ``below`` and ``above`` bytes of room on either side; never less than nothing."""
        return cls(max(round(size), 0), max(round(size - below), 0), max(round(size + above), 0), source)
