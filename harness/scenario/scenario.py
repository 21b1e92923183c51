"""One scenario file as an object."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from harness import catalog
from harness.architecture.folder import read_config
from harness.scenario.calibration import Calibration
from harness.scenario.device import Gpu
from harness.scenario.engine import Engine
from harness.scenario.expect import Expect
from harness.scenario.fields import NameOrConfig, Part
from harness.scenario.load import Load
from harness.scenario.slo import Slo
from harness.scenario.training import Training
from harness.scenario.weights import Weights


class Scenario(Part):
    """One scenario file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")] = Field(
        description="a name of letters, digits, '.', '_' or '-' (80 at most)"
    )
    kind: Literal["serve", "finetune"] = Field("serve", description="serve: a vLLM server; finetune: a training step")
    question: Annotated[str, Field(max_length=2000)] = ""
    model: NameOrConfig = Field(
        description="a catalogue name (`bench models`), a folder with config.json, or the config itself"
    )
    weights: Weights = Field(Weights(), description="such as {format: fp8}")
    gpu: Gpu | None = Field(None, description="such as {name: h100-sxm-80gb, count: 1}")
    device: Literal["cpu"] | None = Field(None, description="cpu: this computer, instead of a gpu")
    engine: Engine = Field(Engine(), description="such as {max_model_len: 8192}")
    load: Load | None = Field(
        None,
        description="such as {shape: closed, users: 4, requests: 8, prompt_tokens: 512, output_tokens: 128}",
    )
    slo: Slo | None = Field(None, description="such as {ttft_p95_s: 2, itl_p95_s: 0.1}")
    training: Training | None = Field(None, description="of kind: finetune, such as {method: qlora}")
    expect: Expect = Field(Expect(), description="such as {starts: true, holds: false}")
    calibration: Calibration | None = Field(None, description="what `bench calibrate` found (--calibration FILE)")
    repeats: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="how often a rehearsal or a measured run is done, each time with a fresh engine"
    )

    _folder: Path = Path()

    @property
    def on_cpu(self) -> bool:
        """True where the scenario's device is this computer."""
        return self.device == "cpu"

    @property
    def count(self) -> int:
        """Devices that the model is spread over."""
        return self.gpu.count if self.gpu else 1

    @property
    def tensor_parallel_size(self) -> int:
        """As given, else all devices that the pipeline stages leave."""
        others = self.engine.pipeline_parallel_size * self.engine.data_parallel_size
        return self.engine.tensor_parallel_size or max(self.count // others, 1)

    @property
    def model_name(self) -> str:
        """What reports call the model."""
        if isinstance(self.model, str):
            return self.model
        name = self.model.get("_name_or_path")
        return name if isinstance(name, str) and name else "inline config"

    @property
    def model_folder(self) -> Path | None:
        """The local folder that holds config.json, or None."""
        return config_folder(self.model, self._folder) if isinstance(self.model, str) else None

    def config_source(self, folder: Path | None) -> str:
        """Where :meth:`config` is from, in words. ``folder``: :attr:`model_folder`."""
        if not isinstance(self.model, str):
            return "the inline config"
        return "the catalogue's config" if folder is None else "config.json"

    def config(self) -> dict[str, Any]:
        """The model's Hugging Face config as a dict. Raises UsageError where there is none."""
        if not isinstance(self.model, str):
            return dict(self.model)
        folder = self.model_folder
        if folder is None:
            return catalog.model_config(self.model)
        return read_config(folder)

    def file_names(self) -> dict[str, str]:
        """Keys of the load that name a file -> what its copy beside a resolved scenario is called."""
        files = self.load.files if self.load else {}
        return {key: f"load-{key}{part.path.suffix}" for key, part in files.items()}

    def as_yaml(self) -> str:
        """The scenario as resolved, without what was left at its default.

        A local folder is replaced by the config in it, and files are named as in :meth:`file_names`, so that the text
        can be read beside copies of them.
        """
        from ruamel.yaml import YAML

        data = json.loads(self.model_dump_json(exclude_unset=True))
        if self.model_folder is not None:
            data["model"] = {**self.config(), "_name_or_path": self.model}
        for key, name in self.file_names().items():
            data["load"][key]["file"] = name
        out = io.StringIO()
        yaml = YAML()
        yaml.width = 110
        yaml.dump(data, out)
        return out.getvalue()

    @property
    def digest(self) -> str:
        """sha256 of the resolved scenario: equal digests, equal scenarios.

        What is at its default is left out but for vLLM's version, the default that moves with ours: so a
        key that the language gains later changes no digest of an older record. How often it is repeated
        makes it no other scenario.
        """
        data = self.model_dump_json(exclude_defaults=True, exclude={"repeats"}) + self.engine.vllm
        for part in self.load.files.values() if self.load else ():  # what is in a file counts, not what it is called
            data = data.replace(json.dumps(part.file), json.dumps(part.digest))
        if self.model_folder is not None:
            data += json.dumps(self.config(), sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()


def schema() -> dict[str, Any]:
    """The JSON Schema of the language (draft 2020-12), for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "loadfit scenario",
        **Scenario.model_json_schema(),
    }


def config_folder(model: str, folder: Path) -> Path | None:
    """The folder that ``model`` names and that holds a config.json, or None."""
    try:
        path = folder / Path(model).expanduser()
        return path if (path / "config.json").is_file() else None
    except (OSError, RuntimeError, ValueError):  # a name that can't be a path, the home of nobody
        return None
