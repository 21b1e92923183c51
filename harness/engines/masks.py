"""Keeps keys and tokens out of what is written down and shown.

Values are known from the environment: the guard takes them out of the engine's words before they reach the disk.
In text from elsewhere (an answer, a log that was made without us) they are known by their form.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

MASK = "***"
_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)
_SHORTEST = 8  # characters: shorter ones would be found in ordinary words
# Values that give access: after a name that says so, or by their own form.
_NAMES = r"(?:api[_-]?key|token|secret|password|passwd|authorization|access[_-]?key(?:[_-]id)?)"
_FORMS = (
    re.compile(
        rf"({_NAMES}['\"]?\s*[=:]\s*)(\[[^\]]*\]?|'[^']*'?|\"[^\"]*\"?|(?:Bearer\s+)?[^\s,)}}'\"]+)", re.IGNORECASE
    ),
    re.compile(rf"(--[\w-]{{0,40}}{_NAMES}\s+)(\S+)", re.IGNORECASE),
    re.compile(r"()\b((?:hf_|gh[pousr]_|glpat-)[A-Za-z0-9]{10,}|sk-[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{12,})"),
    re.compile(r"(Bearer\s+)([^\s'\",)]+)", re.IGNORECASE),
    re.compile(r"(://)([^/\s:@'\"]*:[^/\s@'\"]+)(?=@)"),
)
_NO_SECRET = re.compile(r"[\[]?'?\"?(?:None|null|True|False|auto|\*+)?'?\"?\]?,?|\d+(?:\.\d+)?", re.IGNORECASE)


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without ``secrets``, and without what has the form of one: a hub token, a bearer, a URL's password, a
    named key."""
    for secret in filter(None, secrets):
        text = text.replace(secret, MASK)
    for form in _FORMS:
        text = form.sub(lambda m: m[0] if _NO_SECRET.fullmatch(m[2]) else m[1] + MASK, text)
    return text


def values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The secrets that ``environment`` holds, the longest first: one may begin with another."""
    found = {v for k, v in environment.items() if _SECRET_NAME.search(k)}
    return tuple(sorted((v for v in found if len(v) >= _SHORTEST), key=len, reverse=True))


class Masked:
    """A stream of bytes without ``secrets``, wherever it is cut. All that can't be the beginning of one is handed on at
    once."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = tuple(os.fsencode(secret) for secret in secrets)
        self._longest = max(map(len, self._secrets), default=1)
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """What may be written now."""
        text = self._rest + piece
        for secret in self._secrets:
            text = text.replace(secret, MASK.encode())
        keep = next((n for n in range(min(len(text), self._longest - 1), 0, -1) if self._may_begin(text[-n:])), 0)
        self._rest = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> bytes:
        """What was kept back."""
        return self._rest

    def _may_begin(self, end: bytes) -> bool:
        return any(secret.startswith(end) for secret in self._secrets)
