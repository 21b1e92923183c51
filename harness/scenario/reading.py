"""From the text of a scenario to a :class:`Scenario`, or to all of its faults at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from harness import catalog, scenario_text
from harness.architecture import from_config
from harness.errors import Problem, ScenarioError, UsageError, nearest
from harness.files import read_plain
from harness.scenario.calibration import calibration_faults
from harness.scenario.device import device_faults
from harness.scenario.engine import engine_faults
from harness.scenario.fields import Fault
from harness.scenario.lengths import LENGTH_FORMS
from harness.scenario.load import load_faults
from harness.scenario.scenario import Scenario, config_folder
from harness.scenario.slo import slo_faults
from harness.scenario.speculative import speculative_faults
from harness.scenario.training import training_faults
from harness.scenario.weights import weight_faults


def load_scenario(path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario in the file ``path`` with ``key.path=value`` overrides applied.

    Raises ScenarioError with all the faults found.
    """
    path = Path(path)
    return parse_scenario(_read(path), str(path), path.parent, overrides)


def place_of(path: str | Path, overrides: Sequence[str], key: str) -> str:
    """Where what :func:`load_scenario` reads says ``key``: "scenarios/a.yaml:7", "--set gpu.count"."""
    tree, _, made = _parts(_read(Path(path)), lambda line: f"{path}:{line}", overrides)
    steps = key.split(".")
    return scenario_text.place(made, steps) or f"{path}:{scenario_text.line_of(tree, steps)}"


def _read(path: Path) -> bytes:
    try:
        return read_plain(path, scenario_text.MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ScenarioError([Problem(str(path), "", f"can't be read: {why}{_instead(path, error)}")]) from None


def _instead(path: Path, error: Exception) -> str:
    """What was meant, where the folder tells."""
    try:
        if isinstance(error, FileNotFoundError):
            return nearest(path.name, (p.name for p in path.parent.glob("*.yaml") if p.name != path.name))
        inside = [path / "scenario.yaml", path / "latest" / "scenario.yaml"]
        return next((f"; a run's scenario is in {file}" for file in inside if file.is_file()), "")
    except (OSError, ValueError):
        return ""


def parse_scenario(
    raw: bytes | str, where: str = "scenario", folder: Path = Path(), overrides: Sequence[str] = ()
) -> Scenario:
    """As :func:`load_scenario`, from text. ``folder`` is what relative model paths are relative to."""

    def at(line: int) -> str:
        return f"{where}:{line}"

    tree, data, made = _parts(raw, at, overrides)

    def locate(path: Sequence[Any]) -> str:
        return scenario_text.place(made, path) or at(scenario_text.line_of(tree, path))

    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as error:
        problems = scenario_text.explain(error, Scenario, _FORMS, locate)
        model = data.get("model")
        if isinstance(model, str) and not any(p.key == "model" for p in problems) and not _is_known(model, folder):
            problems.append(Problem(locate(("model",)), "model", _no_such_model(model, folder)))
        raise ScenarioError(scenario_text.in_order(problems)) from None
    scenario._folder = folder
    faults = [Problem(locate(path), ".".join(path), text) for path, text in _inconsistencies(scenario)]
    if faults:
        raise ScenarioError(scenario_text.in_order(faults))
    return scenario


def _parts(
    raw: bytes | str, at: scenario_text.Place, overrides: Sequence[str]
) -> tuple[Any, dict[str, Any], dict[tuple[str, ...], str]]:
    """(the document with its lines, its data with the overrides made, what each override made)."""
    tree = scenario_text.read_yaml(raw, at)
    data = scenario_text.plain(tree, at)
    if isinstance(data, dict) and not _of_another_kind(data):
        return tree, data, scenario_text.apply_overrides(data, overrides)
    got = "an empty file" if data is None else "a list" if isinstance(data, list) else scenario_text.show(data)
    if isinstance(data, dict):
        got = "a file of bench calibrate (--calibration takes it)" if "constants" in data else ", ".join(data)[:60]
    raise ScenarioError([Problem(at(1), "", f"expected the keys name, model, gpu, ..., got {got}")])


def _of_another_kind(data: dict[str, Any]) -> bool:
    """A manifest, a config, a calibration: one line for the file, not one for each of its keys."""
    return not {"name", "model"} & data.keys() and len(data.keys() - Scenario.model_fields.keys()) > 2


# The keys whose value has several forms, by the tags above.
_FORMS: dict[str, dict[str, type[BaseModel] | None]] = {
    "prompt_tokens": dict(LENGTH_FORMS),
    "output_tokens": dict(LENGTH_FORMS),
    "turn_tokens": dict(LENGTH_FORMS),
    "model": {"name": None, "config": None},
}


def _inconsistencies(s: Scenario) -> Iterator[Fault]:
    """Faults that lie between keys."""
    yield from device_faults(s)
    yield from calibration_faults(s)
    yield from training_faults(s)
    if s.kind == "serve":
        yield from engine_faults(s)
        yield from speculative_faults(s)
        yield from slo_faults(s)
        yield from weight_faults(s.weights)
    architecture = None
    if isinstance(s.model, str) and not _is_known(s.model, s._folder):
        yield ("model",), _no_such_model(s.model, s._folder)
    else:
        try:
            architecture = from_config(s.config())
        except UsageError as error:
            yield _config_fault(s, str(error))
    if s.load is not None and s.kind == "serve":
        unread = list(s.load.read_files(s._folder))
        yield from unread or load_faults(s, s.load, architecture)


def _is_known(model: str, folder: Path) -> bool:
    return config_folder(model, folder) is not None or catalog.knows_model(model)


def _no_such_model(model: str, folder: Path) -> str:
    if model.startswith((".", "/", "~")):
        return f"no config.json in {scenario_text.show(model)} (looked from {folder.absolute()})"
    if (refused := catalog.refusal(model)) is not None:
        return refused
    return (
        f"unknown model {scenario_text.show(model)}{nearest(model, catalog.model_names())} (`bench models` lists "
        "the known ones; a folder with config.json or the config itself will do too)"
    )


def _config_fault(s: Scenario, text: str) -> Fault:
    key = re.match(r"config: (\w+): ", text)
    if isinstance(s.model, str) or key is None:
        return ("model",), text
    return ("model", key[1]), text[key.end() :]
