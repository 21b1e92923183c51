"""Three ways to run a scenario, and what each asks of the machine."""

from __future__ import annotations

from enum import StrEnum

from harness.architecture import from_config
from harness.devices import match, nvml
from harness.engines import vllm, weights
from harness.errors import MachineError
from harness.ledger import Account, KvPool
from harness.predict import limits
from harness.predict.settings import device_gpu
from harness.scenario import Scenario
from harness.simulate import Limits
from harness.simulate.tables import described


class Mode(StrEnum):
    """analytic: arithmetic; rehearsal: real vLLM, stand-in model; measured: the scenario's own device."""

    ANALYTIC = "analytic"
    REHEARSAL = "rehearsal"
    MEASURED = "measured"


def choose(scenario: Scenario, prediction: Account) -> tuple[Mode, str]:
    """The most real mode that this machine can do, and the reason in words."""
    unmeasured = obstacle(Mode.MEASURED, scenario, prediction)
    if unmeasured is None:
        if scenario.on_cpu:
            return Mode.MEASURED, "the scenario's device is this computer"
        gpus, _ = gpus_here(scenario)
        return Mode.MEASURED, f"the scenario's device is here: {_names(gpus)}"
    if scenario.on_cpu:
        return Mode.ANALYTIC, unmeasured
    why = obstacle(Mode.REHEARSAL, scenario, prediction)
    if why:
        return Mode.ANALYTIC, why if not _gpu_here() else f"{unmeasured}; {why}"
    here = unmeasured if _gpu_here() else "the scenario's GPU is not measured here"
    return Mode.REHEARSAL, f"{here}: real vLLM on this CPU, stand-in model, as many KV tokens"


def obstacle(mode: Mode, scenario: Scenario, prediction: Account) -> str | None:
    """Why ``mode`` can't be done here, or None where it can."""
    if mode is Mode.ANALYTIC:
        return None
    if scenario.kind == "finetune":
        return "a training step is predicted, not run"
    if scenario.load is None:
        return "the scenario has no load"
    if from_config(scenario.config()).encoder_tokens:
        return "each request of such a model brings audio, which bench has none of"
    if scenario.load.adapters:
        return "the load asks for LoRA adapters, and there are none to serve"
    asked = scenario.engine.speculative_config
    if asked is not None and isinstance(asked.model, dict):
        return "the drafter is a config: there are no weights of it"
    if mode is Mode.MEASURED and scenario.engine.entrypoint != "server":
        return "engine.entrypoint: what is measured is a server"
    try:
        if mode is Mode.MEASURED and scenario.gpu is not None:
            gpus_here(scenario)
            weights.source(scenario)
            vllm.require_gpu_build()
            return None
        return _not_rehearsed(scenario, prediction) if mode is Mode.REHEARSAL else _no_cpu_build()
    except MachineError as error:
        return str(error)


def _not_rehearsed(scenario: Scenario, prediction: Account) -> str | None:
    if scenario.on_cpu:
        return "the scenario's device is this computer: it is measured, not rehearsed (--measure)"
    admits = prediction.rung("ADMITS")
    if admits is None or not admits.holds:
        return "no KV pool is granted, so there is nothing to rehearse: the prediction is the result"
    holds = prediction.rung("HOLDS")
    if holds is not None and holds.holds is None:
        return f"HOLDS is {holds.reason}, and so has the stand-in model"
    if limits_of(scenario, prediction.kv).speculation.tokens:
        return "nobody proposes tokens to the stand-in model"
    if tables := limits_of(scenario, prediction.kv).tables:
        return f"this model has {described(tables)}, the stand-in one of full attention"
    return _no_cpu_build()


def _no_cpu_build() -> str | None:
    vllm.require_cpu_build()
    return None


def gpus_here(scenario: Scenario) -> tuple[tuple[nvml.Gpu, ...], list[str]]:
    """This node's GPUs that the scenario means. Raises MachineError."""
    meant = device_gpu(scenario)
    assert meant is not None
    return match.choose(meant, scenario.count, nvml.here())


def _gpu_here() -> bool:
    try:
        return bool(nvml.here())
    except MachineError:
        return False


def _names(gpus: tuple[nvml.Gpu, ...]) -> str:
    names = [gpu.name for gpu in gpus]
    each = (f"{names.count(n)} x {n}" if names.count(n) > 1 else n for n in dict.fromkeys(names))
    return ", ".join(each)


def limits_of(scenario: Scenario, kv: KvPool) -> Limits:
    """The scheduler's limits that the scenario's engine has on the pool ``kv``."""
    return limits.bounds(scenario, kv.num_blocks or 0)
