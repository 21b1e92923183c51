"""What the report of a run says, before any format."""

from __future__ import annotations

from harness.compare import check
from harness.explain import explain, heading
from harness.report import devices, latency, timeline
from harness.report.compared import figures_table, process_table, rungs_table, terms_table
from harness.report.parts import Report, Section, Table
from harness.report.reading import Reading
from harness.report.sentences import engine_words, lead, notes


def build(reading: Reading) -> Report:
    """The report of a run."""
    if reading.scenario.kind == "finetune":
        from harness.report import finetune  # with all that trains; a server's report does without

        return finetune.build(reading)
    record, comparison = reading.record, reading.comparison
    met, failed = check(reading.scenario.expect, comparison, reading.scenario.slo)
    sections = [
        Section(heading(comparison), tuple(explain(reading.scenario, record.prediction, comparison)), flowing=True),
        Section("Four rungs", table=rungs_table(comparison)),
        Section("Memory for each device", table=terms_table(comparison.terms), chart="memory"),
        Section("The GPUs over the run", table=devices.table(record, reading.measured)),
        Section("GPU memory over the run", quoted=tuple(devices.timeline(record)), chart="gpus"),
        Section("Memory by process", table=process_table(reading)),
        Section("Block pool and load", table=figures_table(comparison)),
        Section("Latency, seconds", tuple(latency.throughput(comparison)),
                Table(*latency.table(comparison), left=frozenset({0, 1})), chart="waits"),
        Section("SLO", table=Table(*latency.slo_table(reading.scenario.slo, comparison))),
        Section("Over the load", quoted=tuple(timeline.lines(reading)), chart="load"),
        Section("The engine's own words", quoted=tuple(engine_words(reading))),
        Section("Notes", sentences=tuple(notes(reading))),
    ]  # fmt: skip
    return Report(
        title=f"{reading.scenario.name} · {record.mode}",
        lead=tuple(lead(reading)),
        sections=tuple(s for s in sections if s.sentences or s.quoted or (s.table and s.table.rows)),
        expectation_met=met,
        expectation_failed=tuple(failed),
    )
