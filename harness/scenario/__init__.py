"""The scenario language: a strict YAML file, checked whole, with every fault named at its line.

``load_scenario(path)`` returns a frozen :class:`Scenario` or raises :class:`ScenarioError` that lists
all faults of the file at once, each as ``file:line: key: what was expected``. One file a mapping.
"""

from harness.scenario.calibration import Calibration, calibrated, minor
from harness.scenario.device import Gpu
from harness.scenario.engine import Engine
from harness.scenario.expect import Expect
from harness.scenario.lengths import Empirical, Lengths, Lognormal, Normal, Uniform, longest, shortest
from harness.scenario.load import Load, longest_prompt, longest_request
from harness.scenario.reading import load_scenario, parse_scenario, place_of
from harness.scenario.scenario import Scenario, schema
from harness.scenario.slo import Slo
from harness.scenario.trace import Trace
from harness.scenario.training import Lora, Training
from harness.scenario.weights import Weights

__all__ = [
    "Calibration", "Empirical", "Engine", "Expect", "Gpu", "Lengths", "Load", "Lognormal", "Lora", "Normal", "Scenario",
    "Slo", "Trace", "Training", "Uniform", "Weights", "calibrated", "load_scenario", "longest", "longest_prompt",
    "longest_request", "minor", "parse_scenario", "place_of", "schema", "shortest",
]  # fmt: skip
