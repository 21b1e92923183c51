"""A run folder or a vLLM log -> what a fit asks of it: the scenario as it ran, and what each term measured."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import device_ledger, imported, store
from harness.errors import LoadfitError, UsageError
from harness.ledger import Ledger, Phase, RungName, Term
from harness.measure import measure
from harness.predict.refitted import GRAPHS_RESERVED
from harness.scenario import Scenario, parse_scenario

if TYPE_CHECKING:
    import pandas as pd

_VERSION = re.compile(r"\d{1,6}\.\d{1,6}(?:\.\d{1,6})?", re.ASCII)


@dataclass(frozen=True)
class Run:
    """``measured``: bytes by term, of the fullest rank when idle, and what vLLM estimated for its graphs; what is not
    known is not there."""

    name: str
    scenario: Scenario
    measured: dict[str, int]
    steps: pd.DataFrame | None = None

    @property
    def model(self) -> str:
        """The model that ran."""
        return self.scenario.model_name


def of_log(path: Path, model: str | None, gpu: str | None, overrides: Sequence[str]) -> Run | str:
    """The run that a log tells of, or why nothing is fitted on it. Raises UsageError as ``bench import`` does."""
    start = imported.read(path)
    scenario = imported.scenario(path, start, model, gpu, overrides)
    with tempfile.TemporaryDirectory(prefix="loadfit-") as folder:
        record = store.read(imported.record(start, scenario, path.name, Path(folder)).path)
        return _of(record, path.name, _as_ran(scenario, record))


def of_folder(path: Path) -> Run | str:
    """The run in a run folder, or why nothing is fitted on it. Raises LoadfitError where it can't be."""
    record = store.read(path)
    if not record.real:
        raise UsageError(f"{path}: {record.mode}: nothing was measured on the scenario's device")
    try:
        scenario = parse_scenario(record.scenario_yaml, str(path / store.SCENARIO), path)
    except LoadfitError as error:
        raise UsageError(f"{path}: the scenario kept there can't be read: {error}") from None
    if scenario.on_cpu:
        raise UsageError(f"{path}: ran on this computer (device: cpu): a calibration is for a GPU")
    if record.attached:
        raise UsageError(f"{path}: attached to a server that was there before: it tells no term of its start")
    return _of(record, path.parent.name + "/" + path.name, _as_ran(scenario, record))


def _as_ran(scenario: Scenario, record: store.RunRecord) -> Scenario:
    """``scenario`` with the vLLM that ran, where it states another one."""
    found = _VERSION.match(str(record.manifest.get("engine", {}).get("version", "")))
    if found is None or found[0] == scenario.engine.vllm:
        return scenario
    return scenario.model_copy(update={"engine": scenario.engine.model_copy(update={"vllm": found[0]})})


def _of(record: store.RunRecord, name: str, scenario: Scenario) -> Run | str:
    strangers = [s for gpu in record.gpus for s in gpu["strangers"]]
    if strangers:
        return f"others were on its GPUs: {strangers[0]}"
    account = measure(record)
    admits = account.rung(RungName.ADMITS) if account else None
    if account is None or admits is None or not admits.holds:
        return f"no pool was granted: {record.manifest.get('reason') or record.outcome}"
    measured = _terms(account.ledger)
    for rank in device_ledger.ranks(record)[:1]:
        estimated, _ = rank.figure("graphs_estimated_bytes")
        if estimated is not None:
            measured[GRAPHS_RESERVED] = estimated
    if not measured:
        return "it states none of the terms (a log at DEBUG states all of them)"
    return Run(name, scenario, measured, record.tables.get("steps"))


def _terms(ledger: Ledger) -> dict[str, int]:
    """Of the first device when idle: the fullest."""
    idle = [e for e in ledger if e.phase == Phase.IDLE and e.bytes is not None]
    first = next((e.device for e in idle), None)
    wanted = (
        Term.RUNTIME_AT_INIT, Term.NON_TORCH_INCREASE, Term.ACTIVATION_PEAK, Term.CUDA_GRAPHS, Term.KV_AVAILABLE,
    )  # fmt: skip
    return {e.term: e.bytes for e in idle if e.device == first and e.term in wanted and e.bytes is not None}
