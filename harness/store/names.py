"""What stands in a run folder: the files and the columns of its tables."""

from __future__ import annotations

SCHEMA = 1
PARTIAL = ".partial"
MANIFEST = "manifest.json"
SCENARIO = "scenario.yaml"
PREDICTION = "prediction.json"
REHEARSAL = "rehearsal.json"
MEASUREMENT = "measurement.json"
COMPARISON = "comparison.json"
REPORT = "report.md"
PAGE = "report.html"
ENGINE_LOG = "engine.log"
STEPS = "steps.csv"
FRAMES = "simulated.csv"  # the timeline of an analytic run
RESUMED = "resumed"  # a mark: those who start together are let go
LOADING = "loading"  # a mark beside the phases: the worker begins to load the weights

# table -> its columns; steps.csv is written by the scheduler probe inside the engine.
COLUMNS: dict[str, tuple[str, ...]] = {
    "memory": ("time_ns", "pid", "process", "rss_bytes", "pss_bytes"),
    "devices": (
        "time_ns", "uuid", "total_bytes", "reserved_bytes", "used_bytes", "free_bytes", "memory_version", "gpu_percent",
        "memory_percent", "power_mw", "temperature_c", "throttle_reasons", "ecc_uncorrected", "xid",
    ),
    "metrics": ("time_ns", "kv_cache_usage", "running", "waiting", "preemptions", "generation_tokens"),
    "requests": (
        "index", "prompt_tokens", "output_tokens", "tokens_out", "sent_ns", "first_ns", "end_ns",
        "status", "error", "text",
    ),
    "steps": ("time_ns", "blocks_used", "running", "waiting", "preempted", "tokens", "blocked_on_kv"),
}  # fmt: skip


# Of a simulated timeline.
FRAME_COLUMNS = ("step", "time_s", "blocks_used", "running", "waiting", "preemptions")
