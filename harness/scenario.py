"""The scenario language: a strict YAML file, checked whole, with every fault named at its line.

``load_scenario(path)`` returns a frozen :class:`Scenario` or raises :class:`ScenarioError` that lists
all faults of the file at once, each as ``file:line: key: what was expected``.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from harness import catalog
from harness.errors import Problem, ScenarioError, UsageError, nearest
from harness.units import parse_bytes

MAX_FILE_BYTES = 2**20
MAX_NODES = 20_000


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

    name: Annotated[str, BeforeValidator(_gpu_name)] | None = Field(
        None, description="a catalogue name (`bench gpus`)"
    )
    memory: Size | None = Field(
        None, description="total memory as the driver states it, where the catalogue doesn't know the GPU"
    )
    count: Annotated[int, Field(ge=1, le=1024)] = 1


class Engine(Part):
    """vLLM's arguments by vLLM's own names; what is not given takes that version's default."""

    vllm: Annotated[str, Field(pattern=r"^\d+\.\d+(\.\d+)?$")] = Field(
        catalog.DEFAULT_VLLM, description="the version to predict for, quoted: '0.33'"
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


def _length_tag(value: Any) -> str:
    kind = value.get("distribution") if isinstance(value, dict) else getattr(value, "distribution", None)
    if isinstance(kind, str) and kind in ("normal", "lognormal"):
        return kind
    return "uniform" if isinstance(value, (dict, BaseModel)) else "fixed"


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
    requests: Annotated[int, Field(ge=1, le=1_000_000)]
    prompt_tokens: Lengths
    output_tokens: Lengths
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
    limited_by: str | None = Field(None, description="the term that stops the first rung not reached")

    def items(self) -> list[tuple[str, Any]]:
        """(key, expected) for what is stated."""
        return [(k, v) for k, v in self.model_dump().items() if v is not None]


def _model_tag(value: Any) -> str:
    return "config" if isinstance(value, dict) else "name"


class Scenario(Part):
    """One scenario file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    question: Annotated[str, Field(max_length=2000)] = ""
    model: Annotated[
        Annotated[str, Field(min_length=1, max_length=500), Tag("name")]
        | Annotated[dict[str, Any], Tag("config")],
        Discriminator(_model_tag),
    ] = Field(description="catalogue name (`bench models`), a local folder with config.json, or the config itself")
    weights: Weights = Weights()
    gpu: Gpu | None = None
    device: Literal["cpu"] | None = Field(None, description="cpu: this computer, instead of a gpu")
    engine: Engine = Engine()
    load: Load | None = None
    expect: Expect = Expect()

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
        return self.model if isinstance(self.model, str) else "inline config"

    @property
    def model_folder(self) -> Path | None:
        """The local folder that holds config.json, or None."""
        if not isinstance(self.model, str):
            return None
        path = Path(self.model).expanduser()
        path = path if path.is_absolute() else self._folder / path
        return path if (path / "config.json").is_file() else None

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
        """The scenario as resolved, without what was left at its default."""
        from ruamel.yaml import YAML

        out = io.StringIO()
        yaml = YAML()
        yaml.width = 110
        yaml.dump(json.loads(self.model_dump_json(exclude_unset=True)), out)
        return out.getvalue()

    @property
    def digest(self) -> str:
        """sha256 of the resolved scenario, defaults included: equal digests, equal scenarios."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


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
    except OSError as error:
        near = nearest(path.stem, [p.stem for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else [])
        raise ScenarioError([Problem(str(path), "", f"can't be read: {error.strerror or error}{near}")]) from None
    return parse_scenario(raw, str(path), path.parent, overrides)


def parse_scenario(
    raw: bytes | str, where: str = "scenario", folder: Path = Path(), overrides: Sequence[str] = ()
) -> Scenario:
    """As :func:`load_scenario`, from text. ``folder`` is what relative model paths are relative to."""
    tree = _read_yaml(raw, where)
    if not isinstance(tree, dict):
        raise ScenarioError([Problem(f"{where}:1", "", "expected a mapping with the keys name, model, gpu, ...")])
    problems: list[Problem] = []
    data = _plain(tree, where, (), problems)
    if problems:
        raise ScenarioError(problems)
    overridden = _apply_overrides(data, overrides)

    def locate(path: Sequence[Any]) -> str:
        for n in range(len(path), 0, -1):
            if ".".join(map(str, path[:n])) in overridden:
                return f"--set {'.'.join(map(str, path[:n]))}"
        return f"{where}:{_line(tree, path)}"

    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as error:
        raise ScenarioError(_explain(error, locate)) from None
    scenario._folder = folder
    faults = [Problem(locate(path), ".".join(path), text) for path, text in _inconsistencies(scenario)]
    if faults:
        raise ScenarioError(faults)
    return scenario


def _read_yaml(raw: bytes | str, where: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(raw) > MAX_FILE_BYTES:
        raise ScenarioError([Problem(where, "", "larger than 1 MiB: not a scenario")])
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        return YAML(typ="rt", pure=True).load(text)
    except UnicodeDecodeError:
        raise ScenarioError([Problem(f"{where}:1", "", "not UTF-8 text")]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = " ".join(str(error.problem or error.context or "not YAML").split())
        raise ScenarioError([Problem(f"{where}:{line}", "", f"not valid YAML: {what[:200]}")]) from None
    except RecursionError:
        raise ScenarioError([Problem(f"{where}:1", "", "nested too deeply")]) from None
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError,
            AssertionError, NotImplementedError) as error:  # fmt: skip
        # ruamel lets some malformed documents out as plain Python errors.
        what = " ".join(str(error).split()) or type(error).__name__
        raise ScenarioError([Problem(f"{where}:1", "", f"not valid YAML: {what[:200]}")]) from None


def _plain(node: Any, where: str, path: tuple[Any, ...], problems: list[Problem]) -> Any:
    """ruamel's nodes as plain dicts, lists and scalars; what YAML allows and a scenario doesn't is a problem."""
    budget = [MAX_NODES]

    def fault(node: Any, path: tuple[Any, ...], text: str) -> None:
        line = getattr(getattr(node, "lc", None), "line", None)
        at = f"{where}:{line + 1}" if isinstance(line, int) else where
        problems.append(Problem(at, ".".join(map(str, path)), text))

    def walk(node: Any, path: tuple[Any, ...]) -> Any:
        budget[0] -= 1
        if budget[0] == 0:
            fault(node, (), f"more than {MAX_NODES} values: not a scenario")
        if budget[0] <= 0:
            return None
        if len(path) > 20:
            fault(node, path[:3], "nested too deeply")
            return None
        if isinstance(node, dict):
            out = {}
            for key, value in node.items():
                if isinstance(key, str):
                    out[str(key)] = walk(value, (*path, str(key)))
                else:
                    fault(node, path, f"expected keys of text, got {_show(key)}")
            return out
        if isinstance(node, (list, tuple)):
            return [walk(value, (*path, i)) for i, value in enumerate(node)]
        if isinstance(node, bool) or node is None:
            return node
        if type(node).__name__ == "ScalarBoolean":
            return bool(node)
        if isinstance(node, int):
            return int(node)
        if isinstance(node, float):
            return float(node)
        if isinstance(node, str):
            return str(node)
        fault(node, path, f"expected text, a number, true or false, a list or a mapping, got {_show(node)}")
        return None

    return walk(node, path)


def _apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> set[str]:
    """``engine.max_model_len=4096`` written into ``data``; the paths that were set."""
    done = set()
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key):
            raise UsageError(f"--set {text}: expected KEY=VALUE, such as engine.max_model_len=4096")
        where = f"--set {key}"
        faults: list[Problem] = []
        plain = _plain(_read_yaml(value, where), where, (), faults)
        if faults:
            raise ScenarioError(faults)
        *parents, last = key.split(".")
        target = data
        for parent in parents:
            child = target.get(parent)
            if not isinstance(child, dict):
                child = target[parent] = {}
            target = child
        target[last] = plain
        done.add(key)
    return done


def _line(tree: Any, path: Sequence[Any]) -> int:
    """The line (from 1) of the deepest node of ``path`` that the document has."""
    line, node = 0, tree
    for step in path:
        try:
            if isinstance(node, dict) and step in node:
                line = node.lc.key(step)[0]
            elif isinstance(node, list) and isinstance(step, int) and step < len(node):
                line = node.lc.item(step)[0]
            else:
                break
            node = node[step]
        except (AttributeError, KeyError, TypeError, IndexError):
            break
    return int(line) + 1


# -- explaining ------------------------------------------------------------------------------------

_TAGS = {"fixed", "uniform", "normal", "lognormal", "name", "config"}
_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
}


def _show(value: Any) -> str:
    text = json.dumps(value, default=lambda v: type(v).__name__) if not isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for arg in get_args(annotation):
        yield from _models_in(arg)


def _keys_at(path: Sequence[Any]) -> dict[str, Any]:
    """Field name -> FieldInfo of the mapping(s) that may stand at ``path``."""
    models: list[type[BaseModel]] = [Scenario]
    for step in path:
        found: list[type[BaseModel]] = []
        for model in models:
            info = model.model_fields.get(str(step))
            if info is not None:
                found.extend(_models_in(info.annotation))
                for meta in info.metadata:
                    found.extend(_models_in(meta))
        models = found
    return {k: v for m in models for k, v in m.model_fields.items()}


def _explain(error: ValidationError, locate: Any) -> list[Problem]:
    problems: dict[tuple[str, str], Problem] = {}
    for fault in error.errors(include_url=False):
        path = tuple(
            step for i, step in enumerate(fault["loc"]) if not (i and step in _TAGS and _is_tag(fault["loc"], i))
        )
        kind, value, context = fault["type"], fault.get("input"), fault.get("ctx", {})
        if kind == "missing":
            info = _keys_at(path[:-1]).get(str(path[-1]))
            what = f" ({info.description})" if info is not None and info.description else ""
            text = f"missing{what}"
        elif kind == "extra_forbidden":
            known = [k for k in _keys_at(path[:-1]) if not k.startswith("_")]
            text = f"unknown key{nearest(str(path[-1]), known) or '; known here: ' + ', '.join(sorted(known))}"
        elif kind == "literal_error":
            options = re.findall(r"'([^']*)'", context.get("expected", ""))
            text = f"expected {context.get('expected')}, got {_show(value)}{nearest(str(value), options)}"
        elif kind in _KINDS:
            text = f"expected {_KINDS[kind]}, got {_show(value)}"
            if kind == "string_type" and isinstance(value, float):
                text += " (write it in quotes)"
        elif kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
            word = {"greater_than": "above", "greater_than_equal": "at least", "less_than": "below"}.get(kind, "at most")
            bound = next(iter(context.values()))
            text = f"expected {word} {bound:,}, got {_show(value)}"
        elif kind == "string_pattern_mismatch" and path and path[-1] == "vllm":
            text = f"expected a version like '0.33' or '0.32.0', got {_show(value)}"
        elif kind == "string_pattern_mismatch":
            text = f"expected letters, digits, '.', '_' or '-' (80 at most), got {_show(value)}"
        elif kind == "value_error":
            reason = str(context.get("error", fault["msg"]))
            text = reason if "unknown" in reason else f"expected {reason}, got {_show(value)}"
        else:
            text = f"{fault['msg'].lower()}, got {_show(value)}"
        problem = Problem(locate(path), ".".join(map(str, path)), text)
        problems.setdefault((problem.key, problem.message), problem)
    return sorted(problems.values(), key=lambda p: (p.where.rpartition(":")[0], _number(p.where), p.key))


def _is_tag(loc: tuple[Any, ...], i: int) -> bool:
    """Whether step ``i`` of a pydantic location is a union's tag rather than a key."""
    return loc[i - 1] in ("prompt_tokens", "output_tokens", "model")


def _number(where: str) -> int:
    tail = where.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


# -- what single fields can't say ------------------------------------------------------------------


def _inconsistencies(s: Scenario) -> Iterator[tuple[tuple[str, ...], str]]:
    """Faults that lie between keys, as (path, text)."""
    if s.gpu is None and s.device is None:
        yield ("gpu",), "missing: name a GPU (gpu: {name: h100-sxm-80gb}) or say device: cpu"
    if s.gpu is not None and s.device is not None:
        yield ("device",), "given beside gpu: a scenario has one device"
    if s.gpu is not None and s.gpu.name is None and s.gpu.memory is None:
        yield ("gpu", "name"), "missing: a catalogue name (`bench gpus`) or memory: 24 GiB"
    if s.gpu is not None and s.gpu.name is not None and s.gpu.memory is not None:
        yield ("gpu", "memory"), "given beside name: the catalogue knows this GPU's memory"
    if s.gpu is not None and s.gpu.memory is not None and s.gpu.memory < 2**28:
        yield ("gpu", "memory"), f"expected at least 256 MiB, got {s.gpu.memory:,} bytes"
    tp, pp, count = s.tensor_parallel_size, s.engine.pipeline_parallel_size, s.count
    if tp * pp != count:
        yield (
            ("engine", "tensor_parallel_size" if s.engine.tensor_parallel_size else "pipeline_parallel_size"),
            f"tensor_parallel_size x pipeline_parallel_size is {tp} x {pp} = {tp * pp}, but gpu.count is {count}",
        )
    if s.on_cpu and s.engine.gpu_memory_utilization is None and s.engine.kv_cache_memory_bytes is None and (
        s.engine.num_gpu_blocks_override is None
    ):
        yield (
            ("engine", "kv_cache_memory_bytes"),
            "missing: on this computer say how large the KV pool is (kv_cache_memory_bytes: 256 MiB)",
        )
    if s.weights.group_size is not None and catalog.weight_format(s.weights.format).bits != 4:
        yield ("weights", "group_size"), f"only int4 weights have groups, not {s.weights.format}"
    if isinstance(s.model, str) and s.model_folder is None and not catalog.knows_model(s.model):
        if s.model.startswith((".", "/", "~")):
            yield ("model",), f"no config.json in {s.model!r} (looked from {s._folder or '.'})"
        else:
            yield (
                ("model",),
                f"unknown model {_show(s.model)}{nearest(s.model, catalog.model_names())} (`bench models` lists them; "
                "or a folder with config.json, or the config itself)",
            )
    if s.load is not None:
        yield from _load_faults(s)


def _load_faults(s: Scenario) -> Iterator[tuple[tuple[str, ...], str]]:
    load = s.load
    assert load is not None
    if load.shape == "closed" and load.users is None:
        yield ("load", "users"), "missing: a closed load has users"
    if load.shape == "burst" and load.users is not None:
        yield ("load", "users"), "a burst has no users: all its requests come at once"
    if load.users is not None and load.users > load.requests:
        yield ("load", "users"), f"{load.users} users but {load.requests} requests: some would have nothing to send"
    for key in ("prompt_tokens", "output_tokens"):
        lengths = getattr(load, key)
        if not isinstance(lengths, int) and lengths.low > lengths.high:
            yield ("load", key), f"low ({lengths.low}) is above high ({lengths.high})"
    longest = longest_request(load)
    if s.engine.max_model_len is not None and longest > s.engine.max_model_len:
        yield (
            ("load", "prompt_tokens"),
            f"prompt and output reach {longest:,} tokens, above engine.max_model_len {s.engine.max_model_len:,}",
        )


def longest_request(load: Load) -> int:
    """Tokens (prompt + output) of the longest request that the load can draw."""
    ends = [x if isinstance(x, int) else x.high for x in (load.prompt_tokens, load.output_tokens)]
    return sum(ends)
