"""A server that already runs and that we did not start: we drive it, and leave it as it is.

Nothing of its log, its scheduler or its workers can be had; /metrics can, and NVML where it runs on this computer.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.engines.log import printable
from harness.engines.masks import mask
from harness.errors import MachineError, UsageError

KEY = "VLLM_API_KEY"  # of the environment, as vLLM itself has it
TIMEOUT_S = 5.0
LONGEST_ANSWER = 1 << 20


@dataclass
class Attached:
    """Stands where :class:`harness.engines.vllm.Server` stands. ``url``: without a path."""

    url: str
    name: str  # that it serves the model under
    max_model_len: int | None
    version: str
    started = False
    stopped = False
    exit_code = None
    log_path = Path("engine.log")  # never written

    @property
    def key(self) -> str:
        """From the environment; empty where the server asks for none."""
        return os.environ.get(KEY, "")

    @property
    def local(self) -> bool:
        """Whether it runs on this computer."""
        host = urllib.parse.urlsplit(self.url).hostname or ""
        try:
            here = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
            there = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
        except OSError:
            return False
        return any(ipaddress.ip_address(address).is_loopback or address in here for address in there)

    @property
    def guard_pid(self) -> int:
        """There is no guard."""
        raise AssertionError("an attached server has no guard")

    def start(self) -> None:
        """It runs."""

    def stop(self) -> None:
        """It is not ours to stop."""

    def why(self) -> str:
        """Its own words are not to be had."""
        return "the attached server's log is not ours to read"


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would take the key with it."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the answer stands as an error."""


def attach(url: str) -> Attached:
    """The server at ``url``. Raises UsageError for what is no plain URL, MachineError where no vLLM answers there."""
    try:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a bracket left open, a port beyond 65,535
        plain = None
    if not plain:
        raise UsageError(f"--attach: expected a URL such as http://127.0.0.1:8000, got {printable(url)[:200]!r}")
    if parts.username or parts.password:
        raise UsageError(f"--attach: no credentials in the URL: a key goes into the environment as {KEY}")
    base = f"{parts.scheme}://{parts.netloc}"
    models = _get(base, "/v1/models")
    try:
        first = models["data"][0]
        name, longest = str(first["id"]), first.get("max_model_len")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise MachineError(f"--attach: {base} answers, but /v1/models names no model") from None
    try:
        version = str(_get(base, "/version").get("version", ""))
    except (MachineError, AttributeError):
        version = ""
    name, version = (mask(printable(said), (os.environ.get(KEY, ""),)) for said in (name, version))
    return Attached(base, name, longest if type(longest) is int else None, version[:40])


def _get(base: str, path: str) -> Any:
    """The JSON there. A server that drips is not waited for: ``TIMEOUT_S`` is of each piece, twice as long of all."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(_ask(base, path))
        except MachineError as error:
            found.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * TIMEOUT_S)
    if not found:
        raise MachineError(f"--attach: {base}: {path} has not answered within {2 * TIMEOUT_S:.0f} s")
    if isinstance(found[0], MachineError):
        raise found[0]
    return found[0]


def _ask(base: str, path: str) -> Any:
    request = urllib.request.Request(base + path, headers={"Authorization": f"Bearer {os.environ.get(KEY, '')}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())  # the key goes nowhere else
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return json.loads(answer.read(LONGEST_ANSWER))
    except urllib.error.HTTPError as error:
        why = f"it refuses the key (set {KEY})" if error.code in (401, 403) else f"{path} answers {error.code}"
        raise MachineError(f"--attach: {base}: {why}") from None
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        reason = getattr(error, "reason", None) or error
        raise MachineError(f"--attach: no server answers at {base}: {printable(str(reason))[:200]}") from None
