"""The names and the figures of a run, as reports write them."""

from __future__ import annotations

from collections.abc import Callable

from harness.units import GIB, MIB

QUESTIONS = {
    "LOADS": "do the weights fit?",
    "ADMITS": "is a pool granted?",
    "STARTS": "does warm-up pass?",
    "HOLDS": "does the load hold?",
}
TERM_WORDS = {
    "weights": "weights",
    "runtime_at_init": "runtime at init",
    "other_processes": "other processes",
    "non_torch_increase": "non-torch increase",
    "activation_peak": "activation peak",
    "cuda_graphs": "CUDA graphs",
    "kv_available": "KV pool",
    "kv_cache": "KV cache",
    "kv_used": "of the pool, used",
    "allocator_slack": "allocator slack",
    "master_weights": "master weights",
    "optimizer": "optimizer states",
    "unattributed": "unattributed",
    "total": "total",
}
FIGURE_WORDS = {
    "block_size": "tokens in a block",
    "num_blocks": "blocks in the pool",
    "usable_tokens": "tokens in the pool",
    "max_concurrency": "max concurrency (vLLM's line)",
    "peak_blocks_needed": "blocks wanted at the peak",
    "peak_blocks_used": "blocks used at the peak",
    "peak_running": "requests running, peak",
    "peak_waiting": "requests waiting, peak",
    "preemptions": "preemptions",
    "steps": "scheduler steps",
    "tokens_scheduled": "tokens scheduled",
}
OUTCOMES = {
    "completed": "completed",
    "refused_at_start": "the engine refused to start",
    "hung_at_start": "the engine never became healthy",
    "died_under_load": "the engine died under load",
    "load_timed_out": "the load did not end in its time",
    "no_answers": "no request was answered",
    "requests_failed": "some requests failed",
    "interrupted": "interrupted",
    "device_lost": "a GPU was lost",
    "disturbed": "another process came onto the GPUs",
    "cut_short": "the log ends before the start does",
    "not_recorded": "the run could not be written down to its end",
}


def term_words(term: str) -> str:
    """A term as reports call it."""
    return TERM_WORDS.get(term, term)


def verdict(holds: bool | None) -> str:
    """yes, no or a dash."""
    return "–" if holds is None else "yes" if holds else "NO"


def number(value: float | None) -> str:
    """A count, or a ratio with two digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def sizes(largest: int) -> tuple[str, Callable[..., str]]:
    """The unit for figures up to ``largest`` bytes, and what writes bytes in it: (value, sign="")."""
    unit, scale, digits = ("GiB", GIB, 2) if largest >= 8 * GIB else ("MiB", MIB, 1)

    def size(value: float | None, sign: str = "") -> str:
        return "–" if value is None else f"{value / scale:{sign},.{digits}f}"

    return unit, size
