"""What a run is doing, on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from harness import run


@contextlib.contextmanager
def watching() -> Iterator[run.Progress]:
    """A Progress to hand to a run; what it says is shown until the block ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield run.Progress(on_change=_Lines())
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(), TextColumn("{task.fields[live]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None, live="", count="")

        def change(state: run.Progress) -> None:
            bar.update(
                task, description=state.stage, completed=state.done, total=state.total or None, live=_live(state),
                count=_count(state),
            )  # fmt: skip

        yield run.Progress(on_change=change)


class _Lines:
    """A line whenever the stage changes, and under load every five seconds."""

    def __init__(self) -> None:
        self._stage, self._told, self._began = "", 0.0, time.monotonic()

    def __call__(self, state: run.Progress) -> None:
        now = time.monotonic()
        if state.stage == self._stage and not (state.total and state.stage == "under load" and now - self._told > 5):
            return
        self._stage, self._told = state.stage, now
        with contextlib.suppress(OSError):  # nobody reads it: the run goes on
            said = f"[{now - self._began:6.1f} s] {state.stage} {_count(state)}{_live(state)}".rstrip()
            print(said, file=sys.stderr, flush=True)


def _count(state: run.Progress) -> str:
    return f"{state.done}/{state.total} requests" if state.total and state.stage == "under load" else ""


def _live(state: run.Progress) -> str:
    live = state.live
    if state.stage != "under load" or "running" not in live:
        return ""
    return (
        f" · pool {100 * live.get('kv_cache_usage', 0):.0f} % · {live['running']:.0f} running · "
        f"{live.get('waiting', 0):.0f} waiting · {live.get('preemptions', 0):.0f} preemptions"
    )
