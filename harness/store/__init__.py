"""The run folder: the only module that knows the names inside ``results/<scenario>/<run>/``.

A folder is written under a name that ends in ``.partial`` and renamed when whole. JSON files are written
beside and renamed, so that none is ever half there; tables grow line by line and reach the disk at least
every second. What a killed run leaves behind can be read like any other: a last line cut short is dropped.
"""

from harness.store.names import (
    COLUMNS,
    COMPARISON,
    ENGINE_LOG,
    FRAME_COLUMNS,
    FRAMES,
    LOADING,
    MANIFEST,
    MEASUREMENT,
    PAGE,
    PARTIAL,
    PREDICTION,
    REHEARSAL,
    REPORT,
    RESUMED,
    SCENARIO,
    SCHEMA,
    STEPS,
)
from harness.store.reading import RunRecord, read
from harness.store.shapes import Place
from harness.store.writing import Frame, RunFolder, TableWriter, WriteError

__all__ = [
    "COLUMNS",
    "COMPARISON",
    "ENGINE_LOG",
    "FRAMES",
    "FRAME_COLUMNS",
    "LOADING",
    "MANIFEST",
    "MEASUREMENT",
    "PAGE",
    "PARTIAL",
    "PREDICTION",
    "REHEARSAL",
    "REPORT",
    "RESUMED",
    "SCENARIO",
    "SCHEMA",
    "STEPS",
    "Frame",
    "Place",
    "RunFolder",
    "RunRecord",
    "TableWriter",
    "WriteError",
    "read",
]  # fmt: skip
