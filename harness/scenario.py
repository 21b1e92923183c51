"""The scenario language: a strict YAML file, checked whole, with every fault named at its line.

``load_scenario(path)`` returns a frozen :class:`Scenario` or raises :class:`ScenarioError` that lists
all faults of the file at once, each as ``file:line: key: what was expected``.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from harness import catalog, scenario_text
from harness.architecture import Architecture, from_config
from harness.errors import Problem, ScenarioError, UsageError, nearest
from harness.units import parse_bytes

SMALLEST_GPU_BYTES = 2**28
LARGEST_BYTES = 2**50
GROUP_SIZES = (32, 64, 128)


def _bytes(value: Any) -> int:
    if not isinstance(value, (str, int)):
        raise ValueError("a size like '80 GiB' or a whole number of bytes")
    return parse_bytes(value)


def _gpu_name(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return catalog.gpu(value).name
        except UsageError as error:
            raise ValueError(str(error)) from None
    return value


def _weight_format(value: Any) -> Any:
    if isinstance(value, str):
        try:
            catalog.weight_format(value)
        except UsageError as error:
            raise ValueError(str(error)) from None
    return value


Size = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=str | int)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]


def _limit(value: Any) -> Any:
    if isinstance(value, str) and value not in LIMITS:
        raise ValueError(
            f"unknown term {scenario_text.show(value)}{nearest(value, LIMITS)} (known: {', '.join(LIMITS)})"
        )
    return value


# What can stop a rung: the terms of the ledger, and what a run can die of.
LIMITS = (
    "kv_cache", "weights", "runtime_at_init", "non_torch_increase", "activation_peak", "cuda_graphs", "memory",
    "engine",
)  # fmt: skip


class Part(BaseModel):
    """A mapping of the scenario: strict, frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Weights(Part):
    """How the weights are stored."""

    format: Annotated[str, BeforeValidator(_weight_format)] = Field(
        "auto",
        description="auto (the config's own dtype), fp32, fp16, bf16, fp8, int8, int4, or with the method and "
        "the group size in the name: awq-int4-g128, gptq-int4-g128",
    )
    group_size: Annotated[int, Field(ge=8, le=4096)] | None = Field(
        None, description="weights that share one scale (int4 only; 128 unless given)"
    )
    load: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights of the same size")


class Gpu(Part):
    """One kind of GPU: by catalogue name, or by its memory."""

    name: Annotated[str, BeforeValidator(_gpu_name)] | None = Field(None, description="a catalogue name (`bench gpus`)")
    memory: Size | None = Field(
        None, description="total memory as the driver states it, where the catalogue doesn't know the GPU"
    )
    count: Annotated[int, Field(ge=1, le=1024)] = 1


class Engine(Part):
    """vLLM's arguments by vLLM's own names; what is not given takes that version's default."""

    vllm: Annotated[str, Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){1,2}$")] = Field(
        catalog.DEFAULT_VLLM, description="a version in quotes, such as '0.33' or '0.32.0'"
    )
    max_model_len: Tokens | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    block_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1, le=65_536)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    pipeline_parallel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    kv_cache_memory_bytes: Size | None = None
    num_gpu_blocks_override: Annotated[int, Field(ge=2, le=2**40)] | None = None
    trust_remote_code: bool = False
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        0, description="the most prompt tokens that one request may take in a step beside others; 0: no such limit"
    )
    scheduler_reserve_full_isl: bool = Field(
        True, description="a request is admitted only when its whole input fits the free blocks"
    )
    watermark: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="the share of the pool that an admission must leave free"
    )
    async_scheduling: bool = Field(
        False, description="simulate the scheduler one step ahead of the model, as a GPU's vLLM has it by default"
    )
    scheduling_policy: Literal["fcfs"] = Field("fcfs", description="first come, first served (priority: not yet)")


class Uniform(Part):
    """Whole numbers from ``low`` to ``high``, each as likely."""

    distribution: Literal["uniform"]
    low: Tokens
    high: Tokens


class Normal(Part):
    """A bell around ``mean``, cut to ``low``..``high``."""

    distribution: Literal["normal"]
    mean: Annotated[float, Field(gt=0, le=1e7)]
    stdev: Annotated[float, Field(ge=0, le=1e7)]
    low: Tokens
    high: Tokens


class Lognormal(Part):
    """A long tail: ``median`` and the ``sigma`` of the logarithm, cut to ``low``..``high``."""

    distribution: Literal["lognormal"]
    median: Annotated[float, Field(gt=0, le=1e7)]
    sigma: Annotated[float, Field(ge=0, le=10)]
    low: Tokens
    high: Tokens


def _length_tag(value: Any) -> str | None:
    """Which form of Lengths; None or an unknown name where a mapping doesn't say."""
    if isinstance(value, dict):
        kind = value.get("distribution")
        return kind if isinstance(kind, str) else None
    return str(getattr(value, "distribution", "")) if isinstance(value, BaseModel) else "fixed"


_LENGTHS = "a whole number of tokens, or a distribution such as {distribution: uniform, low: 1, high: 512}"
Lengths = Annotated[
    Annotated[Tokens, Tag("fixed")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Normal, Tag("normal")]
    | Annotated[Lognormal, Tag("lognormal")],
    Discriminator(_length_tag),
]


class Load(Part):
    """Requests: how many, how long, and when."""

    shape: Literal["closed", "burst"] = Field(
        description="closed: each user sends the next request when the last one ends; burst: all at once"
    )
    users: Annotated[int, Field(ge=1, le=100_000)] | None = Field(None, description="of a closed load")
    requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="how many requests are sent in all")
    prompt_tokens: Lengths = Field(description=_LENGTHS)
    output_tokens: Lengths = Field(description=_LENGTHS)
    shared_prefix_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        0, description="how many first tokens all prompts have in common, such as a system prompt"
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        1800.0, description="the load is given up after this many seconds"
    )

    @property
    def concurrency(self) -> int:
        """The most requests that are under way at once, were nothing to hold them back."""
        return min(self.requests, self.users) if self.users else self.requests


class Expect(Part):
    """What the author expects; it makes the scenario a check."""

    loads: bool | None = None
    admits: bool | None = None
    starts: bool | None = None
    holds: bool | None = None
    limited_by: Annotated[str, BeforeValidator(_limit)] | None = Field(
        None, description="the term that stops the first rung not reached"
    )

    def items(self) -> list[tuple[str, Any]]:
        """(key, expected) for what is stated."""
        return [(k, v) for k, v in self.model_dump().items() if v is not None]


def _model_tag(value: Any) -> str:
    return "config" if isinstance(value, dict) else "name"


class Scenario(Part):
    """One scenario file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")] = Field(
        description="a name of letters, digits, '.', '_' or '-' (80 at most)"
    )
    question: Annotated[str, Field(max_length=2000)] = ""
    model: Annotated[
        Annotated[str, Field(min_length=1, max_length=500), Tag("name")] | Annotated[dict[str, Any], Tag("config")],
        Discriminator(_model_tag),
    ] = Field(description="a catalogue name (`bench models`), a folder with config.json, or the config itself")
    weights: Weights = Field(Weights(), description="such as {format: fp8}")
    gpu: Gpu | None = Field(None, description="such as {name: h100-sxm-80gb, count: 1}")
    device: Literal["cpu"] | None = Field(None, description="cpu: this computer, instead of a gpu")
    engine: Engine = Field(Engine(), description="such as {max_model_len: 8192}")
    load: Load | None = Field(
        None,
        description="such as {shape: closed, users: 4, requests: 8, prompt_tokens: 512, output_tokens: 128}",
    )
    expect: Expect = Field(Expect(), description="such as {starts: true, holds: false}")

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
        return self.engine.tensor_parallel_size or max(self.count // self.engine.pipeline_parallel_size, 1)

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
        return _config_folder(self.model, self._folder) if isinstance(self.model, str) else None

    def config(self) -> dict[str, Any]:
        """The model's Hugging Face config as a dict. Raises UsageError where there is none."""
        if not isinstance(self.model, str):
            return dict(self.model)
        folder = self.model_folder
        if folder is None:
            return catalog.model_config(self.model)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder / 'config.json'} can't be read: {error}") from None
        if not isinstance(config, dict):
            raise UsageError(f"{folder / 'config.json'} is not a JSON object")
        return config

    def as_yaml(self) -> str:
        """The scenario as resolved, without what was left at its default.

        A local folder is replaced by the config in it, so that the text can be read anywhere.
        """
        from ruamel.yaml import YAML

        data = json.loads(self.model_dump_json(exclude_unset=True))
        if self.model_folder is not None:
            data["model"] = {**self.config(), "_name_or_path": self.model}
        out = io.StringIO()
        yaml = YAML()
        yaml.width = 110
        yaml.dump(data, out)
        return out.getvalue()

    @property
    def digest(self) -> str:
        """sha256 of the resolved scenario: equal digests, equal scenarios.

        What is at its default is left out but for vLLM's version, the default that moves with ours: so a
        key that the language gains later changes no digest of an older record.
        """
        data = self.model_dump_json(exclude_defaults=True) + self.engine.vllm
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


# -- reading ---------------------------------------------------------------------------------------


def load_scenario(path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario in the file ``path`` with ``key.path=value`` overrides applied.

    Raises ScenarioError with all the faults found.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        near = nearest(path.name, _names_beside(path))
        raise ScenarioError([Problem(str(path), "", f"can't be read: {why}{near}")]) from None
    return parse_scenario(raw, str(path), path.parent, overrides)


def _names_beside(path: Path) -> list[str]:
    try:
        return [p.name for p in path.parent.glob("*.yaml")]
    except (OSError, ValueError):
        return []


def parse_scenario(
    raw: bytes | str, where: str = "scenario", folder: Path = Path(), overrides: Sequence[str] = ()
) -> Scenario:
    """As :func:`load_scenario`, from text. ``folder`` is what relative model paths are relative to."""

    def at(line: int) -> str:
        return f"{where}:{line}"

    tree = scenario_text.read_yaml(raw, at)
    data = scenario_text.plain(tree, at)
    if not isinstance(data, dict):
        got = "an empty file" if data is None else "a list" if isinstance(data, list) else scenario_text.show(data)
        raise ScenarioError([Problem(at(1), "", f"expected the keys name, model, gpu, ..., got {got}")])
    made = scenario_text.apply_overrides(data, overrides)

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


# The keys whose value has several forms, by the tags above.
_LENGTH_FORMS = {"fixed": None, "uniform": Uniform, "normal": Normal, "lognormal": Lognormal}
_FORMS: dict[str, dict[str, type[BaseModel] | None]] = {
    "prompt_tokens": dict(_LENGTH_FORMS),
    "output_tokens": dict(_LENGTH_FORMS),
    "model": {"name": None, "config": None},
}


# -- what single fields can't say ------------------------------------------------------------------


Fault = tuple[tuple[str, ...], str]  # path, text


def _inconsistencies(s: Scenario) -> Iterator[Fault]:
    """Faults that lie between keys."""
    yield from _device_faults(s)
    yield from _engine_faults(s)
    given, named = s.weights.group_size, catalog.weight_format(s.weights.format)
    if given is not None and named.bits != 4:
        yield ("weights", "group_size"), f"only int4 weights have groups, not {s.weights.format}"
    elif given is not None and "-g" in named.name and named.group_size != given:
        yield ("weights", "group_size"), f"expected {named.group_size} as in format {s.weights.format}, got {given}"
    group = given or named.group_size
    if named.bits == 4 and group is not None and group not in GROUP_SIZES:
        key = "group_size" if given else "format"
        yield ("weights", key), f"vLLM's 4-bit kernels have groups of 32, 64 or 128, got {group}"
    architecture = None
    if isinstance(s.model, str) and not _is_known(s.model, s._folder):
        yield ("model",), _no_such_model(s.model, s._folder)
    else:
        try:
            architecture = from_config(s.config())
        except UsageError as error:
            yield _config_fault(s, str(error))
    if s.load is not None:
        yield from _load_faults(s, s.load, architecture)


def _device_faults(s: Scenario) -> Iterator[Fault]:
    if s.gpu is None:
        if s.device is None:
            yield ("gpu",), "missing: name a GPU (gpu: {name: h100-sxm-80gb}) or say device: cpu"
        elif not (
            s.engine.gpu_memory_utilization or s.engine.kv_cache_memory_bytes or s.engine.num_gpu_blocks_override
        ):
            yield (
                ("engine", "kv_cache_memory_bytes"),
                "missing: on this computer say how large the KV pool is (kv_cache_memory_bytes: 256 MiB)",
            )
        return
    if s.device is not None:
        yield ("device",), "given beside gpu: a scenario has one device"
    if s.gpu.name is None and s.gpu.memory is None:
        yield ("gpu", "name"), "missing: a catalogue name (`bench gpus`), or give memory: 24 GiB"
    if s.gpu.name is not None and s.gpu.memory is not None:
        yield ("gpu", "memory"), "given beside name: the catalogue knows this GPU's memory"
    elif s.gpu.memory is not None and not SMALLEST_GPU_BYTES <= s.gpu.memory <= LARGEST_BYTES:
        yield ("gpu", "memory"), f"expected 256 MiB to 1 PiB, got {s.gpu.memory:,} bytes"


def _engine_faults(s: Scenario) -> Iterator[Fault]:
    tp, pp, count = s.tensor_parallel_size, s.engine.pipeline_parallel_size, s.count
    if tp * pp != count:
        yield (
            ("engine", "tensor_parallel_size" if s.engine.tensor_parallel_size else "pipeline_parallel_size"),
            f"tensor_parallel_size x pipeline_parallel_size is {tp} x {pp} = {tp * pp}, but "
            + (f"gpu.count is {count}" if s.gpu else "device: cpu is one device"),
        )
    block, multiple = s.engine.block_size, 32 if s.on_cpu else 16
    if block is not None and block % multiple:
        backend = "the CPU backend pages" if s.on_cpu else "GPU attention backends page"
        yield ("engine", "block_size"), f"{backend} in multiples of {multiple} tokens, got {block}"
    if s.engine.async_scheduling and s.on_cpu:
        yield ("engine", "async_scheduling"), "vLLM on this computer schedules synchronously"
    if s.engine.async_scheduling and s.engine.long_prefill_token_threshold:
        yield ("engine", "async_scheduling"), "not simulated yet beside engine.long_prefill_token_threshold"
    size = s.engine.kv_cache_memory_bytes
    if size is not None and size > LARGEST_BYTES:
        yield ("engine", "kv_cache_memory_bytes"), f"expected at most 1 PiB, got {size:,} bytes"
    try:
        catalog.engine_defaults(s.engine.vllm)
    except UsageError as error:
        yield ("engine", "vllm"), str(error)


def _config_folder(model: str, folder: Path) -> Path | None:
    try:
        path = folder / Path(model).expanduser()
        return path if (path / "config.json").is_file() else None
    except (OSError, RuntimeError, ValueError):  # a name that can't be a path, the home of nobody
        return None


def _is_known(model: str, folder: Path) -> bool:
    return _config_folder(model, folder) is not None or catalog.knows_model(model)


def _no_such_model(model: str, folder: Path) -> str:
    if model.startswith((".", "/", "~")):
        return f"no config.json in {scenario_text.show(model)} (looked from {folder.absolute()})"
    return (
        f"unknown model {scenario_text.show(model)}{nearest(model, catalog.model_names())} (`bench models` lists "
        "the known ones; a folder with config.json or the config itself will do too)"
    )


def _config_fault(s: Scenario, text: str) -> Fault:
    key = re.match(r"config: (\w+): ", text)
    if isinstance(s.model, str) or key is None:
        return ("model",), text
    return ("model", key[1]), text[key.end() :]


def _load_faults(s: Scenario, load: Load, architecture: Architecture | None) -> Iterator[Fault]:
    if load.shape == "closed" and load.users is None:
        yield ("load", "users"), "missing: a closed load has users"
    if load.shape == "burst" and load.users is not None:
        yield ("load", "users"), "a burst has no users: all its requests come at once"
    if load.users is not None and load.users > load.requests:
        yield ("load", "users"), f"{load.users} users but {load.requests} requests: some would have nothing to send"
    for key in ("prompt_tokens", "output_tokens"):
        lengths = getattr(load, key)
        if not isinstance(lengths, int) and lengths.low > lengths.high:
            yield ("load", key), f"low ({lengths.low:,}) is above high ({lengths.high:,})"
    shortest = load.prompt_tokens if isinstance(load.prompt_tokens, int) else load.prompt_tokens.low
    if load.shared_prefix_tokens >= shortest:
        yield (
            ("load", "shared_prefix_tokens"),
            f"expected less than the shortest prompt ({shortest:,} tokens), which it is the beginning of",
        )
    if load.shared_prefix_tokens and s.engine.long_prefill_token_threshold:
        yield ("load", "shared_prefix_tokens"), "not simulated yet beside engine.long_prefill_token_threshold"
    limit, whose = s.engine.max_model_len, "engine.max_model_len"
    if limit is None and architecture is not None:
        limit, whose = architecture.default_model_len, f"the model's own {architecture.max_len_key}"
    longest = longest_request(load)
    if limit is not None and longest > limit:
        yield (
            ("load", "prompt_tokens"),
            f"prompt and output reach {longest:,} tokens, above {whose} ({limit:,})",
        )


def longest_request(load: Load) -> int:
    """Tokens (prompt + output) of the longest request that the load can draw."""
    ends = [x if isinstance(x, int) else x.high for x in (load.prompt_tokens, load.output_tokens)]
    return sum(ends)
