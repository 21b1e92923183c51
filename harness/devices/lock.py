"""One bench at a time on a GPU, or on a series of repeats: a lock that the kernel lets go when its holder ends,
however it ends.

An abstract Unix socket named after what is held (a GPU's UUID): nothing on disk, no permissions, and whoever finds it
taken can ask the kernel which process holds it. It reaches as far as the network namespace: two containers don't see
each other.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable

from harness.errors import MachineError


class TakenError(Exception):
    """Another process holds it; the text says which."""


def hold(uuids: Iterable[str]) -> list[socket.socket]:
    """Lock each of ``uuids`` until the sockets are closed. Raises MachineError where another bench holds one."""
    held: list[socket.socket] = []
    for uuid in uuids:
        try:
            held.append(take(uuid))
        except TakenError as taken:
            release(held)
            raise MachineError(
                f"another bench measures on {uuid} ({taken}): two on one GPU would measure each other; wait "
                "for it, or choose another GPU with CUDA_VISIBLE_DEVICES"
            ) from None
    return held


def take(name: str) -> socket.socket:
    """Hold ``name`` until the socket is closed. Raises TakenError."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(f"\0loadfit/{name}")
        lock.listen(64)  # nobody is let in: those who ask wait here
    except OSError:
        lock.close()
        raise TakenError(_holder(name)) from None
    return lock


def release(held: Iterable[socket.socket]) -> None:
    """Let go."""
    for lock in held:
        lock.close()


def _holder(name: str) -> str:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.settimeout(1)
        asker.connect(f"\0loadfit/{name}")
        credentials = asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return f"process {struct.unpack('3i', credentials)[0]}"
    return "its process can't be told"
