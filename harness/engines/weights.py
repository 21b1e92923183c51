"""Where the weights of a run come from: a folder, the hub by name, or nowhere."""

from __future__ import annotations

from pathlib import Path

from harness.architecture import from_config
from harness.catalog import WeightFormat
from harness.engines import pretrained
from harness.errors import MachineError
from harness.predict import settings
from harness.predict.quantization import config_quantization
from harness.scenario import Scenario


def folder_on_cpu(scenario: Scenario) -> Path | None:
    """The folder of real weights, or None where random ones are to be made up."""
    if scenario.weights.load == "dummy":
        return None
    if scenario.model_folder is not None:
        return _without_pickles(scenario.model_folder)
    if scenario.model == pretrained.NAME:
        return pretrained.folder_of(pretrained.NAME) or pretrained.make()
    raise MachineError(
        f"the weights of {scenario.model_name} are not on this computer: name a local folder, "
        f"{pretrained.NAME}, or say weights: {{load: dummy}}"
    )


def stored_format(scenario: Scenario) -> WeightFormat:
    """The format that the model's own config states."""
    config = scenario.config()
    return config_quantization(config, from_config(config)).main


def source(scenario: Scenario) -> Path | str:
    """Where the weights come from: a folder, or the hub by name. Raises MachineError where these aren't the
    scenario's."""
    if scenario.weights.load == "dummy":
        return ""
    if not isinstance(scenario.model, str):
        raise MachineError("an inline config has no weights: say weights: {load: dummy}")
    stored, wanted = stored_format(scenario), settings(scenario).weight_format
    if stored != wanted:
        raise MachineError(
            f"the weights of {scenario.model_name} are {stored.name}, the scenario's are {wanted.name}: name the "
            "repository or folder that holds those, or say weights: {load: dummy} (random ones take the same memory)"
        )
    return _without_pickles(scenario.model_folder) if scenario.model_folder else scenario.model


_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def _without_pickles(folder: Path) -> Path:
    """``folder``, whose weights are safetensors: vLLM takes those where there are any, else the pickles beside them.

    Raises MachineError. From the hub vLLM loads them with weights_only alone (model_loader/weight_utils.py, 0.32).
    """
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        if pickles:
            raise MachineError(
                f"{folder / pickles[0]}: weights in a pickle, which may run code when it is loaded, are refused: save "
                "them as safetensors"
            )
    return folder
