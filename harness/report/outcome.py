"""Whether a run is a result, or one that did not come to its end."""

from __future__ import annotations

from harness.compare import check
from harness.report.reading import Reading


def is_result(reading: Reading) -> bool:
    """Whether it ran to its end, or failed as its scenario expects: that is a result, not an error."""
    if reading.record.outcome in ("completed", "cut_short"):
        return True
    met, _ = check(reading.scenario.expect, reading.comparison, reading.scenario.slo)
    return bool(met) and _expected(reading)


def _expected(reading: Reading) -> bool:
    """Whether the engine's failure is one that the scenario speaks of.

    A stand-in is never expected to fail, and a crash of the engine under load is no lack of memory.
    """
    outcome, expect = reading.record.outcome, reading.scenario.expect
    if not reading.record.real:
        return False
    if outcome in ("refused_at_start", "hung_at_start"):
        return False in (expect.loads, expect.admits, expect.starts)
    holds = reading.measured.rung("HOLDS") if reading.measured else None
    out_of_memory = outcome == "died_under_load" and holds is not None and holds.limited_by == "memory"
    return expect.holds is False and (out_of_memory or outcome == "load_timed_out")
