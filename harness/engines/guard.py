"""Starts a server and sees to it that nothing of it outlives us, whatever happens to us.

    python -m harness.engines.guard GRACE_S SCRATCH COMMAND [ARG ...]

The one who starts the guard holds the other end of its standard input. When that end closes, by intent
or because its holder was killed, the guard ends the command: TERM, then KILL to every descendant that is
still there after GRACE_S seconds; and it removes the folder SCRATCH. On Linux it is the subreaper of all of
them, so a grandchild that lost its parent comes back here instead of escaping. It exits with the command's
own code (128 + signal where a signal ended it). What the command says goes through the guard, who takes out the
keys and tokens of its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import IO

from harness.engines import masks

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _descendants() -> list[int]:
    import psutil

    return [p.pid for p in psutil.Process().children(recursive=True)]


def _kill_all(deadline: float) -> None:
    """KILL every descendant until none is left; a killed one may still hand us its children."""
    while time.monotonic() < deadline:
        pids = _descendants()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not pids:
            return
        time.sleep(0.02)


def _hand_on(said: IO[bytes]) -> None:
    """Copy ``said`` to our own output, masked. A disk that is full is no reason to let the command wait."""
    masked = masks.Masked(masks.values(os.environ))
    while piece := os.read(said.fileno(), 1 << 16):
        _write(masked.feed(piece))
    _write(masked.end())


def _write(text: bytes) -> None:
    with contextlib.suppress(OSError):
        while text:
            text = text[os.write(sys.stdout.fileno(), text) :]


def main(argv: list[str]) -> int:
    """Run the command of ``argv`` under guard; returns its exit code."""
    grace_s, scratch, command = float(argv[0]), argv[1], argv[2:]
    try:
        return _guard(command, grace_s)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _guard(command: list[str], grace_s: float) -> int:
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    for ignored in (signal.SIGINT, signal.SIGHUP):  # a Ctrl-C is the holder's to handle
        signal.signal(ignored, signal.SIG_IGN)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )  # fmt: skip
    except OSError as error:
        print(f"guard: error: {command[0]} can't be started: {error.strerror}", file=sys.stderr, flush=True)
        return 127

    def watch_holder() -> None:
        while os.read(0, 1024):
            pass
        stop.set()

    threading.Thread(target=watch_holder, daemon=True).start()
    assert child.stdout is not None
    said = threading.Thread(target=_hand_on, args=(child.stdout,), daemon=True)
    said.start()
    while child.poll() is None and not stop.wait(0.05):
        pass
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    code = child.poll()
    _kill_all(time.monotonic() + 10)
    said.join(5)  # all who could write are gone
    if code is None:
        return 128 + signal.SIGKILL
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
