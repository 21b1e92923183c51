"""Bytes in and out of text.

Inside the product a size is an ``int`` of bytes. GiB (2**30) is used only where people read;
GB always means 10**9, as on a data sheet.
"""

from __future__ import annotations

import re
from decimal import Decimal

KIB = 2**10
MIB = 2**20
GIB = 2**30
GB = 10**9

_UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": GB, "TB": 10**12,
    "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Bytes from ``80 GiB``, ``24GB``, ``100000000`` (bytes). Raises ValueError on anything else."""
    if isinstance(text, bool):
        raise ValueError("a size like '80 GiB' or a whole number of bytes")
    if isinstance(text, int):
        if text < 0:
            raise ValueError("a size of zero bytes or more")
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) and len(text) < 40 else None
    if match is None:
        raise ValueError("a size like '80 GiB' or a whole number of bytes")
    unit = (match[2] or "B").upper()
    if unit not in _UNITS:
        raise ValueError("a size in B, KB, MB, GB, TB, KiB, MiB, GiB or TiB")
    return round(Decimal(match[1]) * _UNITS[unit])


def gib(size: int | float | None, digits: int = 2) -> str:
    """``size`` bytes as GiB text (``"14.99"``), or an en dash where the reading is missing."""
    return "–" if size is None else f"{size / GIB:.{digits}f}"


def human(size: int | None) -> str:
    """``size`` bytes with the unit that suits it: ``"640 B"``, ``"32.0 KiB"``, ``"14.99 GiB"``."""
    if size is None:
        return "–"
    for name, scale, digits in (("GiB", GIB, 2), ("MiB", MIB, 1), ("KiB", KIB, 1)):
        if abs(size) >= scale:
            return f"{size / scale:.{digits}f} {name}"
    return f"{size} B"
