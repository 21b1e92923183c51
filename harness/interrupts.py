"""Ctrl-C and its kin while an engine runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from harness.errors import EXIT_INTERRUPTED

T = TypeVar("T")

class Interrupts:
    """Ctrl-C, TERM and a terminal that closes: the first ends the run in order, a second one at once.

    They are heard until the engine is stopped, so that nothing cuts the stopping short. Ended at once,
    we leave the engine to its guard.
    """

    def __init__(self) -> None:
        self.heard = ""
        self._cancel: Callable[[], object] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                with contextlib.suppress(ValueError):  # not the main thread: its owner handles signals
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: object) -> None:
        again, self.heard = self.heard, self.heard or signal.Signals(number).name
        text = "stopped at once; the engine is being ended" if again else (
            f"{self.heard}: ending the run in order (once more: at once)"
        )  # fmt: skip
        with contextlib.suppress(OSError):
            os.write(2, f"\nbench: {text}\n".encode())
        if again:
            os._exit(EXIT_INTERRUPTED)
        if self._cancel:
            self._cancel()

    def run(self, main: Coroutine[Any, Any, T]) -> T | None:
        """What ``main`` returns; None where a signal ended it."""

        async def watched() -> T | None:
            task, loop = asyncio.ensure_future(main), asyncio.get_running_loop()
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            if self.heard:
                task.cancel()
            try:
                return await task
            except asyncio.CancelledError:
                return None
            finally:
                self._cancel = None

        return asyncio.run(watched())
