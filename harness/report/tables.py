"""A run as pandas frames, from its folder alone.

``load_run(path)`` gives a :class:`Run`; every frame's columns are documented on its attribute.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness import store
from harness.ledger import Account
from harness.measure import PROCESS_COLUMNS, processes
from harness.report.reading import Reading, understand


@dataclass(frozen=True)
class Run:
    """A run read back.

    ``manifest``   dict: mode, outcome, reason, marks (phase -> monotonic ns), engine, host, sampling.
    ``terms``      phase, term, predicted, low, high, measured, error (bytes; predicted - measured),
                   error_pct, inside (measured within low..high), source.
    ``rungs``      rung, predicted, measured, agree (True/False/None), margin, margin_low, margin_high (bytes),
                   limited_by, reason, measured_reason.
    ``figures``    figure, gpu (predicted for the scenario's device), here (predicted for what ran), measured,
                   error (here - measured): the pool and the load, in counts.
    ``memory``     time_ns, pid, process (api_server, engine_core, worker, helper, starting), rss_bytes, pss_bytes.
    ``devices``    time_ns, uuid, total_bytes, reserved_bytes, used_bytes, free_bytes, memory_version (v1 or v2 of the
                   reading; v1: reserved is in used), gpu_percent, memory_percent, power_mw, temperature_c,
                   throttle_reasons (bits), ecc_uncorrected, xid: NVML's readings of each GPU.
    ``metrics``    time_ns, kv_cache_usage (0..1), running, waiting, preemptions, generation_tokens: from /metrics.
    ``steps``      time_ns, blocks_used, running, waiting, preempted, tokens, blocked_on_kv (0/1), kv_tokens (context
                   that decoding requests read), pairs ((query, key) pairs of prefills), paced_ns (what a timed
                   rehearsal waited for; 0: not), took_ns: one row for each
                   scheduler step that scheduled tokens.
    ``requests``   index, prompt_tokens, output_tokens (asked), tokens_out (the engine's count), sent_ns, first_ns,
                   end_ns, status (ok, cut, http, connection, unfinished), error, text.
    ``processes``  process, at_init, idle, peak_under_load: PSS in bytes of each kind of process.
    ``marks``      phase, time_ns.

    Times are monotonic nanoseconds of one host; bytes are whole numbers; what could not be read is missing (NaN).
    """

    path: Path
    manifest: dict[str, Any]
    prediction: Account
    measurement: Account | None
    terms: pd.DataFrame
    rungs: pd.DataFrame
    figures: pd.DataFrame
    memory: pd.DataFrame
    devices: pd.DataFrame
    metrics: pd.DataFrame
    steps: pd.DataFrame
    requests: pd.DataFrame
    processes: pd.DataFrame
    marks: pd.DataFrame

    def frames(self) -> dict[str, pd.DataFrame]:
        """Name -> frame, for all eleven."""
        return {name: value for name, value in vars(self).items() if isinstance(value, pd.DataFrame)}

    def to_csv(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write every frame as ``<name>.csv`` into ``folder``; the paths."""
        return write(self.frames(), Path(folder))


def write(frames: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write each of ``frames`` as ``<name>.csv`` into ``folder``; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, frame in frames.items():
        paths.append(folder / f"{name}.csv")
        paths[-1].unlink(missing_ok=True)  # what lies there may be a link to a file of somebody's
        frame.to_csv(paths[-1], index=False)
    return paths


def load_run(path: str | os.PathLike[str]) -> Run:
    """The run in folder ``path``, whole or cut short. Raises RecordError where it is no run folder."""
    return from_reading(understand(store.read(Path(path))))


def from_reading(reading: Reading) -> Run:
    """The frames of a run that was already read."""
    record, comparison = reading.record, reading.comparison
    return Run(
        path=record.path,
        manifest=record.manifest,
        prediction=record.prediction,
        measurement=reading.measured,
        terms=_frame(comparison.terms),
        rungs=_frame(comparison.rungs),
        figures=_frame(comparison.figures),
        **{name: record.tables.get(name, pd.DataFrame(columns=list(store.COLUMNS[name]))) for name in store.COLUMNS},
        processes=processes(record) if record.mode == "measured" else pd.DataFrame(columns=list(PROCESS_COLUMNS)),
        marks=pd.DataFrame(
            {"phase": list(record.marks), "time_ns": list(record.marks.values())}
        ).sort_values("time_ns", ignore_index=True),
    )


def _frame(rows: Any) -> pd.DataFrame:
    data = [asdict(row) for row in rows]
    frame = pd.DataFrame(data)
    for column in ("predicted", "low", "high", "measured", "error", "margin", "margin_low", "margin_high"):
        values = [row.get(column) for row in data]
        if column in frame and any(type(v) is int for v in values) and not any(type(v) is float for v in values):
            frame[column] = pd.array(values, dtype="Int64")  # whole bytes, with a place for the missing ones
    return frame
