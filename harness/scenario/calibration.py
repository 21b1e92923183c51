"""``calibration``: constants of the memory model and shares of the roofline that runs on one GPU have refitted.

``bench calibrate`` writes such a mapping as a file, ``--calibration FILE`` puts it into a scenario; so a run folder,
which keeps its scenario, has it whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationError

from harness import __version__, catalog, scenario_text
from harness.errors import Problem, ScenarioError, UsageError
from harness.files import read_plain
from harness.scenario.device import Efficiency, GpuName
from harness.scenario.fields import LARGEST_BYTES, Fault, Part

if TYPE_CHECKING:
    from harness.scenario.scenario import Scenario

FORMAT: Final = 1
Bytes = Annotated[int, Field(ge=-LARGEST_BYTES, le=LARGEST_BYTES)]
Room = Annotated[int, Field(ge=0, le=LARGEST_BYTES)]
Share = Annotated[float, Field(ge=0)]
Runs = Annotated[int, Field(ge=1, le=100_000)]
Text = Annotated[str, Field(max_length=500)]


def minor(version: str) -> str:
    """``"0.19"`` of ``"0.19.1"``."""
    return ".".join(version.split(".")[:2])


def _version(text: str) -> str:
    try:
        catalog.version_key(text)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return text


class Constant(Part):
    """A fitted constant. Bytes; errors are absolute, the median over the runs."""

    term: Literal["runtime_at_init", "non_torch_increase", "activation_peak", "cuda_graphs", "graphs_reserved"]
    of: Text = Field(description="what it is a constant of: the ranks, the model runner, the kind of graphs")
    bytes: Bytes
    bytes_per_unit: Bytes = Field(0, description="of graphs, for each of a layer; with experts, for each captured size")
    below: Room | None = Field(None, description="how far the interval goes below; the published one where not given")
    above: Room | None = Field(None, description="how far it goes above")
    runs: Runs
    before: Room = Field(description="error of the published constant on these runs")
    after: Room = Field(description="error of this one on the runs that it was fitted on")
    held_out: Room | None = Field(None, description="error on runs that were left out of the fit")


class StepTimes(Efficiency):
    """Shares of the roofline. Errors are shares of a step's time, the median over steps and runs."""

    runs: Runs
    before: Share
    after: Share
    held_out: Share | None = None


class PoolError(Part):
    """How far the KV pool was off, bytes: the median over the runs whose pool is known."""

    runs: Runs
    before: Room
    after: Room
    held_out: Room | None = None


class Calibration(Part):
    """What ``bench calibrate`` found on runs of one GPU under one vLLM."""

    format: Literal[1] = Field(description="of the file")
    loadfit: Text = Field(description="the loadfit whose laws the constants belong to")
    gpu: GpuName = Field(description="a catalogue name (`bench gpus`)")
    mig: Text | None = None
    vllm: Annotated[str, AfterValidator(_version)] = Field(description="the minor version, such as '0.19'")
    made: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] = Field(description="a day such as '2026-11-24'")
    runs: Runs
    made_from: Annotated[list[Text], Field(max_length=10_000)] = Field(description="the runs by their names")
    constants: Annotated[list[Constant], Field(max_length=1000)] = Field(description="[] where none was told")
    step_times: StepTimes | None = None
    pool: PoolError | None = None
    not_refitted: dict[str, Text] = Field({}, description="what stays as published, and why")

    def constant(self, term: str, of: str) -> Constant | None:
        """The constant of ``term`` for ``of``; None where no run told it."""
        return next((c for c in self.constants if (c.term, c.of) == (term, of)), None)

    @property
    def device(self) -> str:
        """The GPU, and the slice of it."""
        return f"{self.gpu} {self.mig}" if self.mig else self.gpu


def load_calibration(path: Path) -> Calibration:
    """The calibration in the file ``path``. Raises UsageError, with all its faults at their lines."""
    try:
        raw = read_plain(path, scenario_text.MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"--calibration {path}: can't be read: {why}") from None

    def at(line: int) -> str:
        return f"{path}:{line}"

    tree = scenario_text.read_yaml(raw, at)
    data = scenario_text.plain(tree, at)
    if not isinstance(data, dict) or "format" not in data:
        raise ScenarioError([Problem(at(1), "", "no calibration: bench calibrate writes them")])
    if data["format"] != FORMAT:
        line, got = scenario_text.line_of(tree, ["format"]), scenario_text.show(data["format"])
        raise ScenarioError([Problem(at(line), "format", f"this bench reads {FORMAT}, got {got}: make it again")])
    try:
        return Calibration.model_validate(data)
    except ValidationError as error:
        problems = scenario_text.explain(error, Calibration, {}, lambda p: at(scenario_text.line_of(tree, p)))
        raise ScenarioError(problems) from None


def calibrated(scenario: Scenario, path: Path) -> Scenario:
    """``scenario`` predicted with the calibration in the file ``path``.

    Raises UsageError where that is none, or not one for this scenario's GPU and vLLM.
    """
    found = load_calibration(path)
    if found.loadfit != __version__:
        raise UsageError(
            f"--calibration {path}: made by loadfit {found.loadfit}, whose laws may be others than those of "
            f"{__version__}: make it again"
        )
    made = scenario.model_copy(update={"calibration": found})
    for _, text in calibration_faults(made):
        raise UsageError(f"--calibration {path}: {text} ({scenario.name})")
    return made


def calibration_faults(s: Scenario) -> Iterator[Fault]:
    """A calibration that is not of this scenario's GPU and vLLM."""
    c, at = s.calibration, ("calibration",)
    if c is None:
        return
    if s.kind == "finetune":
        yield at, "a training step has none of the constants that it holds"
    elif s.gpu is None:
        yield at, f"made for {c.device}; the scenario's device is this computer"
    elif (s.gpu.name, s.gpu.mig) != (c.gpu, c.mig):
        named = " ".join(filter(None, (s.gpu.name, s.gpu.mig))) or "known by its memory alone"
        yield at, f"made for {c.device}; the scenario's GPU is {named}"
    elif minor(s.engine.vllm) != minor(c.vllm):
        yield at, f"made under vLLM {c.vllm}; the scenario's is {s.engine.vllm}"
