"""Files that come from anybody: read in bounds, and only where they are plain files."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_plain(path: Path, largest: int, *, links: bool = True) -> bytes:
    """The whole file. Raises OSError where it is no plain file (a pipe would have us wait, a device has no end), larger
    than ``largest`` bytes, or a link and ``links`` is False."""
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    try:
        opened = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not links:
            raise OSError(errno.ELOOP, "a link to elsewhere") from None
        raise
    with os.fdopen(opened, "rb") as file:
        status = os.fstat(opened)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        if status.st_size > largest:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, more than the {largest:,} that are read")
        return file.read(largest)
