"""Three ways to run a scenario, and what each asks of the machine."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from pathlib import Path

from harness.engines import pretrained, standin, vllm
from harness.errors import MachineError
from harness.ledger import Account, KvPool
from harness.predict import limits
from harness.predict.simulated import simulated, step_time_of
from harness.scenario import Scenario
from harness.simulate import TIMELESS, Limits, StepTime
from harness.simulate.tables import described


class Mode(StrEnum):
    """analytic: arithmetic; rehearsal: real vLLM, stand-in model; measured: the scenario's own device."""

    ANALYTIC = "analytic"
    REHEARSAL = "rehearsal"
    MEASURED = "measured"


@dataclass(frozen=True)
class Session:
    """What a rehearsal or a measured run serves.

    ``expected`` is the account to compare with: the prediction itself for a measured run, the prediction
    of the stand-in's own blocks for a rehearsal. ``real_text``: the model has a tokenizer and weights.
    """

    mode: Mode
    plan: vllm.ServerPlan
    expected: Account
    vocab_size: int
    real_text: bool
    engine: vllm.Installed
    pace: StepTime | None = None  # what the steps of a rehearsal are held to

    def close(self) -> None:
        """Remove what was written for this session alone."""
        shutil.rmtree(self.plan.scratch, ignore_errors=True)


def choose(scenario: Scenario, prediction: Account) -> tuple[Mode, str]:
    """The most real mode that this machine can do, and the reason in words."""
    wanted = Mode.MEASURED if scenario.on_cpu else Mode.REHEARSAL
    why = obstacle(wanted, scenario, prediction)
    if why:
        return Mode.ANALYTIC, why
    if wanted is Mode.MEASURED:
        return wanted, "the scenario's device is this computer"
    return wanted, "the scenario's GPU is not measured here: real vLLM on this CPU, stand-in model, as many KV tokens"


def obstacle(mode: Mode, scenario: Scenario, prediction: Account) -> str | None:
    """Why ``mode`` can't be done here, or None where it can."""
    if mode is Mode.ANALYTIC:
        return None
    if scenario.load is None:
        return "the scenario has no load"
    if mode is Mode.MEASURED and not scenario.on_cpu:
        return "measuring on a GPU is not in this version; --rehearse measures the load's paging on this CPU"
    if mode is Mode.REHEARSAL and scenario.on_cpu:
        return "the scenario's device is this computer: it is measured, not rehearsed (--measure)"
    admits = prediction.rung("ADMITS")
    if mode is Mode.REHEARSAL and (admits is None or not admits.holds):
        return "no KV pool is granted, so there is nothing to rehearse: the prediction is the result"
    holds = prediction.rung("HOLDS")
    if mode is Mode.REHEARSAL and holds is not None and holds.holds is None:
        return f"HOLDS is {holds.reason}, and so has the stand-in model"
    if mode is Mode.REHEARSAL and (tables := limits_of(scenario, prediction.kv).tables):
        return f"this model has {described(tables)}, the stand-in one of full attention"
    try:
        vllm.require_cpu_build()
    except MachineError as error:
        return str(error)
    return None


def prepare(mode: Mode, scenario: Scenario, prediction: Account) -> Session:
    """The session of a rehearsal or a measured run. Raises MachineError with what is missing."""
    why = obstacle(mode, scenario, prediction)
    if why:
        raise MachineError(f"--{'rehearse' if mode is Mode.REHEARSAL else 'measure'}: {why}")
    engine = vllm.require_cpu_build()
    make = _rehearsal if mode is Mode.REHEARSAL else _measured
    scratch = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix="loadfit-"))
        return make(scenario, prediction, engine, scratch)
    except BaseException as error:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError):
            raise MachineError(f"the model's folder can't be made: {error}") from None
        raise


def limits_of(scenario: Scenario, kv: KvPool) -> Limits:
    """The scheduler's limits that the scenario's engine has on the pool ``kv``."""
    return limits.bounds(scenario, kv.num_blocks or 0)


# Limits that no argument of the same name gives.
_NOT_ARGUMENTS = ("num_blocks", "tables", "speculation")


def _scheduler_arguments(bounds: Limits) -> dict[str, str | int | float | bool]:
    """All limits but the pool, which is given in its own way, and the options that are at vLLM's default."""
    arguments = {
        f.name: getattr(bounds, f.name)
        for f in fields(bounds)
        if f.name not in _NOT_ARGUMENTS and (f.default is MISSING or getattr(bounds, f.name) != f.default)
    }
    arguments |= {"enable_prefix_caching": bounds.enable_prefix_caching, "disable_uvicorn_access_log": True}
    return {**arguments, **vllm.probe_arguments()}


def _rehearsal(scenario: Scenario, prediction: Account, engine: vllm.Installed, scratch: Path) -> Session:
    assert scenario.load is not None
    double = standin.stand_in(limits_of(scenario, prediction.kv))
    model = scratch / "model"
    double.write(model)
    own = double.limits
    # Requests that come by the clock meet the engine as busy as the GPU's would be.
    pace = step_time_of(scenario) if scenario.load.timed else None
    concurrency = own.num_blocks / -(-own.max_model_len // own.block_size)
    expected = Account(
        kv=KvPool(
            bytes_per_token=standin.BYTES_PER_TOKEN,
            bytes_per_block=standin.BYTES_PER_TOKEN * own.block_size,
            block_size=own.block_size,
            num_blocks=own.num_blocks,
            tokens=int(concurrency * own.max_model_len),  # as vLLM counts them
            max_concurrency=concurrency,
        ),
        load=simulated(scenario, prediction.kv, own, pace or TIMELESS).figures,
        notes=double.notes,
    )
    arguments: dict[str, str | int | float | bool] = {
        **_scheduler_arguments(own),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "kv_cache_memory_bytes": double.kv_cache_memory_bytes,
    }
    environment = {"HF_HUB_OFFLINE": "1"}
    if pace:
        file = scratch / "pace.json"
        fixed_ps = [pace.step(tokens, 0, 0) for tokens in range(own.max_num_batched_tokens + 1)]
        file.write_text(json.dumps({"fixed_ps": fixed_ps, "kv_ps": pace.kv_ps, "pair_ps": pace.pair_ps}))
        environment[vllm.PACE] = str(file)
    else:
        # Time means nothing here: a token by itself for each event would keep the server from taking requests.
        arguments["stream_interval"] = 128
    plan = vllm.ServerPlan(model, scratch, arguments, environment=environment)
    return Session(Mode.REHEARSAL, plan, expected, standin.VOCAB_SIZE, False, engine, pace)


def _measured(scenario: Scenario, prediction: Account, engine: vllm.Installed, scratch: Path) -> Session:
    config = scenario.config()
    folder = _weights_folder(scenario, scratch)
    dummy = folder is None
    if folder is None:
        folder = scratch / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arguments: dict[str, str | int | float | bool] = {
        **_scheduler_arguments(limits_of(scenario, prediction.kv)),
        "enforce_eager": scenario.engine.enforce_eager,
        "dtype": scenario.engine.dtype,
        "kv_cache_dtype": scenario.engine.kv_cache_dtype,
    }
    for name in ("kv_cache_memory_bytes", "num_gpu_blocks_override", "gpu_memory_utilization"):
        value = getattr(scenario.engine, name)
        if value is not None:
            arguments[name] = value
    if dummy:
        arguments |= {"load_format": "dummy", "skip_tokenizer_init": True}
    plan = vllm.ServerPlan(
        folder, scratch, arguments, environment={"HF_HUB_OFFLINE": "1"},
        trust_remote_code=scenario.engine.trust_remote_code,
    )  # fmt: skip
    return Session(Mode.MEASURED, plan, prediction, int(config["vocab_size"]), not dummy, engine)


def _weights_folder(scenario: Scenario, scratch: Path) -> Path | None:
    """The folder of real weights, or None where random ones are to be made up."""
    if scenario.weights.load == "dummy":
        return None
    if scenario.model_folder is not None:
        return scenario.model_folder
    if scenario.model == pretrained.NAME:
        return pretrained.folder_of(pretrained.NAME) or pretrained.make()
    raise MachineError(
        f"the weights of {scenario.model_name} are not on this computer: name a local folder, "
        f"{pretrained.NAME}, or say weights: {{load: dummy}}"
    )
