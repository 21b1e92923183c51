"""What a rehearsal or a measured run serves, made ready: the model's folder, the engine's arguments, the devices."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from harness import modes
from harness.architecture import from_config
from harness.devices import nvml
from harness.engines import arguments, dummy, probes, standin, vllm, weights
from harness.engines.attached import Attached
from harness.errors import MachineError
from harness.ledger import Account, KvPool
from harness.modes import Mode, limits_of
from harness.predict import settings
from harness.predict.simulated import simulated, step_time_of
from harness.scenario import Scenario, longest_request
from harness.simulate import TIMELESS, Limits, StepTime

Arguments = dict[str, Any]


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
    gpus: tuple[nvml.Gpu, ...] = ()  # to be sampled; none where the device is this computer
    notes: tuple[str, ...] = ()
    server: Attached | None = None  # one that runs already, in place of the plan's

    def close(self) -> None:
        """Remove what was written for this session alone."""
        shutil.rmtree(self.plan.scratch, ignore_errors=True)


def prepare(mode: Mode, scenario: Scenario, prediction: Account) -> Session:
    """The session of a rehearsal or a measured run. Raises MachineError with what is missing."""
    why = modes.obstacle(mode, scenario, prediction)
    if why:
        raise MachineError(f"--{'rehearse' if mode is Mode.REHEARSAL else 'measure'}: {why}")
    on_gpu = mode is Mode.MEASURED and not scenario.on_cpu
    engine = vllm.require_gpu_build() if on_gpu else vllm.require_cpu_build()
    make = _rehearsal if mode is Mode.REHEARSAL else _on_gpu if on_gpu else _measured
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


# Limits that no argument of the same name gives.
def without(session: Session, lost: Mapping[str, str]) -> Session:
    """``session`` without the probes that the engine could not load (argument -> its words), which its notes tell."""
    plan = session.plan
    plan = replace(plan, arguments={name: value for name, value in plan.arguments.items() if name not in lost})
    engine = f"vLLM {session.engine.version}".rstrip()
    notes = (f"{engine} could not load our {name} ({said}): {probes.LOST[name]}." for name, said in lost.items())
    return replace(session, plan=plan, notes=(*session.notes, *notes))


_NOT_ARGUMENTS = ("num_blocks", "tables", "speculation", "max_loras", "cuts_lone_prefill")


def scheduler_arguments(bounds: Limits) -> Arguments:
    """All limits but the pool, which is given in its own way, and the options that are at vLLM's default."""
    arguments = {
        f.name: getattr(bounds, f.name)
        for f in fields(bounds)
        if f.name not in _NOT_ARGUMENTS and (f.default is MISSING or getattr(bounds, f.name) != f.default)
    }
    arguments |= {"enable_prefix_caching": bounds.enable_prefix_caching, "disable_uvicorn_access_log": True}
    return {**arguments, **probes.arguments()}


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
    given: Arguments = {
        **scheduler_arguments(own),
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
        given["stream_interval"] = 128
    plan = vllm.ServerPlan(model, scratch, given, environment=environment)
    return Session(Mode.REHEARSAL, plan, expected, standin.VOCAB_SIZE, False, engine, pace)


def _measured(scenario: Scenario, prediction: Account, engine: vllm.Installed, scratch: Path) -> Session:
    config = scenario.config()
    folder = weights.folder_on_cpu(scenario)
    made_up = folder is None
    if folder is None:
        folder = scratch / "model"
        dummy.write(config, folder)
    given: Arguments = {
        **scheduler_arguments(limits_of(scenario, prediction.kv)),
        "enforce_eager": scenario.engine.enforce_eager,
        "dtype": scenario.engine.dtype,
        "kv_cache_dtype": scenario.engine.kv_cache_dtype,
    }
    given |= {name: value for name, value in _changed(scenario).items() if name not in given}
    if made_up:
        given |= {"load_format": "dummy", "skip_tokenizer_init": True}
    given, left_out = _understood(given, scenario, engine)
    plan = vllm.ServerPlan(
        folder, scratch, given, environment={"HF_HUB_OFFLINE": "1"},
        trust_remote_code=scenario.engine.trust_remote_code,
    )  # fmt: skip
    return Session(
        Mode.MEASURED, plan, prediction, int(config["vocab_size"]), not made_up, engine, notes=tuple(left_out)
    )


# -- on GPUs -----------------------------------------------------------------------------------------------


def _on_gpu(scenario: Scenario, prediction: Account, engine: vllm.Installed, scratch: Path) -> Session:
    """The scenario's own engine on this node's GPUs. What the scenario leaves open is given as it was predicted, but
    for the block size, which some attention backends choose themselves."""
    gpus, notes = modes.gpus_here(scenario)
    resolved = settings(scenario)
    bounds = limits_of(scenario, prediction.kv)
    given = {**scheduler_arguments(bounds), "async_scheduling": bounds.async_scheduling}
    given |= probes.arguments(asynchronous=bounds.async_scheduling)
    del given["block_size"]
    given |= {
        "dtype": resolved.dtype,
        "gpu_memory_utilization": resolved.gpu_memory_utilization,
        "tensor_parallel_size": resolved.tensor_parallel_size,
        "pipeline_parallel_size": resolved.pipeline_parallel_size,
    }
    given |= {name: value for name, value in _changed(scenario).items() if name not in given}
    model, made_up = weights.source(scenario), scenario.weights.load == "dummy"
    stages = scenario.engine.pp_layer_partition
    if made_up:
        model = scratch / "model"
        dummy.write(dummy.config(scenario.config(), weights.stored_format(scenario), resolved.weight_format), model)
        given |= {"load_format": "dummy", "skip_tokenizer_init": True}
    given, left_out = _understood(given, scenario, engine)
    plan = vllm.ServerPlan(
        model, scratch, given, trust_remote_code=scenario.engine.trust_remote_code,
        # NVML's order, so that an index means one GPU to all; and no other GPU than those that are sampled.
        environment={
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.visible_as for gpu in gpus),
            **({"VLLM_PP_LAYER_PARTITION": ",".join(map(str, stages))} if stages else {}),
            **({"HF_HUB_OFFLINE": "1"} if made_up else {}),
        },
    )  # fmt: skip
    vocabulary = from_config(scenario.config()).vocab
    return Session(
        Mode.MEASURED, plan, prediction, vocabulary, not made_up, engine, gpus=gpus, notes=(*notes, *left_out)
    )  # fmt: skip


_NOT_FLAGS = {"vllm", "entrypoint", "arguments", "trust_remote_code", "pp_layer_partition"}  # said otherwise


def _changed(scenario: Scenario) -> Arguments:
    """The keys of the scenario's engine that are not at their default."""
    return scenario.engine.model_dump(exclude_defaults=True, exclude=_NOT_FLAGS)


def _understood(given: Arguments, scenario: Scenario, engine: vllm.Installed) -> tuple[Arguments, list[str]]:
    """``given`` and the scenario's further arguments, as far as the installed vLLM's parser knows them, and a note on
    what of our own it doesn't. Raises MachineError where that is one that the scenario states."""
    known = arguments.known() if engine.version else None
    asked = scenario.engine.arguments
    if known is None:
        return {**given, **asked}, []
    strange = [name for name in (*given, *asked) if name not in known]
    of_scenario = [n for n in strange if n in asked or n in scenario.engine.model_fields_set]
    if of_scenario:
        key = f"engine.{of_scenario[0]}" if of_scenario[0] not in asked else f"engine.arguments.{of_scenario[0]}"
        raise MachineError(f"{key}: vLLM {engine.version} here has no --{of_scenario[0].replace('_', '-')}")
    notes = [f"vLLM {engine.version} has no --{name.replace('_', '-')}: left out." for name in strange]
    return {k: v for k, v in {**given, **asked}.items() if k in known}, notes


# -- a server that already runs ----------------------------------------------------------------------------


def attach(scenario: Scenario, prediction: Account, server: Attached) -> Session:
    """A measured run on ``server``. Its GPUs are read where it runs on this computer and they are the scenario's.

    Raises MachineError where it can't take the scenario's load.
    """
    if scenario.load is None:
        raise MachineError("--attach: the scenario has no load")
    longest = longest_request(scenario.load)
    if server.max_model_len is not None and longest > server.max_model_len:
        raise MachineError(
            f"--attach: the load reaches {longest:,} tokens a request, the server's max_model_len is "
            f"{server.max_model_len:,}"
        )
    gpus, notes = _gpus_of(scenario, server)
    if server.name.rpartition("/")[2].lower() != scenario.model_name.rpartition("/")[2].lower():
        notes.append(f"The server calls its model {server.name}, the scenario {scenario.model_name}.")
    plan = vllm.ServerPlan(server.name, Path(tempfile.mkdtemp(prefix="loadfit-")), {})
    engine = vllm.Installed("vLLM, attached", server.version)
    vocabulary = from_config(scenario.config()).vocab
    return Session(
        Mode.MEASURED, plan, prediction, vocabulary, False, engine, gpus=gpus, notes=tuple(notes), server=server
    )  # fmt: skip


def _gpus_of(scenario: Scenario, server: Attached) -> tuple[tuple[nvml.Gpu, ...], list[str]]:
    if scenario.gpu is None:
        return (), []
    if not server.local:
        return (), ["The attached server runs on another computer: its GPUs' memory was not read."]
    try:
        return modes.gpus_here(scenario)
    except MachineError as error:
        return (), [f"The GPUs' memory was not read: {error}."]
