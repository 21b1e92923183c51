"""A vLLM log -> a run folder as a run of ours leaves one: mode "imported", the log as engine.log, secrets masked.

The scenario is what the log states of its configuration; what it leaves open the caller says. The marks are the log's
own times, ns since its first. Nothing that a log says is opened, started or evaluated.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import __version__, catalog, store
from harness.engines import log, log_config, log_figures
from harness.errors import Problem, RecordError, ScenarioError, UsageError
from harness.ledger import Account, Phase
from harness.predict import predict
from harness.predict.overhead import cuda_total
from harness.predict.settings import device_gpu
from harness.scenario import Scenario, parse_scenario

MODE = "imported"
LONGEST = 50_000  # characters of a line: the arguments of a server are one
COMPLETED, REFUSED, DIED, CUT_SHORT = "completed", "refused_at_start", "died_under_load", "cut_short"

_LOADED = re.compile(r"Model loading took|Loading model weights took|KV cache size|# (?:GPU|cuda) blocks")
_STARTED = re.compile(
    r"init engine \(profile, create kv cache, warmup model\) took|Application startup complete|Uvicorn running on|"
    r"Starting vLLM (?:API )?server (?:\d+ )?on"
)
_DEAD = re.compile(r"EngineDeadError|fatal error|died unexpectedly|[Ee]ngine process failed|engine is dead")
_BEGINS = re.compile(r"non-default args: \{|args: Namespace\(")
# What containers and their runtimes put before a line: "vllm-1  | ", "2026-04-22T00:03:46.123Z ".
_PREFIX = re.compile(r"^(?:[\w./-]{1,80} +\| ?|\d{4}-\d\d-\d\dT[\d:.,]{5,30}(?:Z|[+-]\d\d:?\d\d)? +)+", re.ASCII)
_TIME = re.compile(r"\b(?:INFO|WARNING|ERROR|DEBUG) (\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)\b", re.ASCII)
_VLLM = re.compile(r"vllm|LLM engine|KV cache|GPU blocks|Model loading took|weights took", re.IGNORECASE)


@dataclass(frozen=True)
class Start:
    """One start of an engine, as its log tells it. ``marks``: phase -> ns since the first time in the log."""

    lines: tuple[str, ...]
    stated: log_config.Stated
    outcome: str
    reason: str
    marks: dict[str, int]
    starts: int


def read(path: Path) -> Start:
    """The last start in the log ``path``, of a huge one by its beginning and its end. Raises UsageError, one line."""
    lines = [_PREFIX.sub("", line) for line in _lines(path)]
    begins = [n for n, line in enumerate(lines) if _BEGINS.search(line)]
    own = lines[begins[-1] :] if len(begins) > 1 else lines
    stated = log_config.read(own if len(begins) < 2 else [*own, *lines[: begins[0]]])
    if not (stated.version or stated.model or stated.engine or log_figures.read(own)):
        known = sum(bool(_VLLM.search(line)) for line in lines)
        raise UsageError(
            f"{path}: no vLLM log that bench can read: {len(lines)} lines, {known} of them like vLLM's, none that "
            "states an engine's configuration or its memory (formats of 0.5 to 0.33 are known)"
        )
    outcome, reason, marks = _course(own)
    return Start(tuple(own), stated, outcome, reason, marks, max(len(begins), 1))


def _lines(path: Path) -> list[str]:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: expected a log file, this is {'a folder' if path.is_dir() else 'no plain file'}")
        with path.open("rb") as file:
            head = file.read(65_536)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: can't be read: {why}") from None
    if not head.strip():
        raise UsageError(f"{path}: empty")
    if b"\0" in head or head[:2] == b"\x1f\x8b":
        raise UsageError(f"{path}: not a text in UTF-8 (a packed log has to be unpacked first)")
    return log.read_lines(path, LONGEST)


def _course(lines: Sequence[str]) -> tuple[str, str, dict[str, int]]:
    """(outcome, reason, marks)."""
    marks: dict[str, int] = {}
    first: int | None = None
    now, ready = 0, len(lines)
    for n, line in enumerate(lines):
        if match := _TIME.search(line):
            stamp = _seconds(*map(int, match.groups()))
            first = stamp if first is None else first
            now = max(now, (stamp - first) * 10**9)
        marks.setdefault(str(Phase.START), now)
        if _LOADED.search(line):
            marks.setdefault(str(Phase.WEIGHTS_LOADED), now)
        if _STARTED.search(line) and str(Phase.IDLE) not in marks:
            marks[str(Phase.IDLE)], ready = now, n
    later = lines[ready:]
    if str(Phase.IDLE) in marks:
        if any(_DEAD.search(line) for line in later):
            return DIED, log.reason(later) or "the engine died, and the log does not say of what", marks
        return COMPLETED, "", marks
    reason = log.reason(lines)
    if reason:
        return REFUSED, reason, marks
    return CUT_SHORT, "the log ends before the engine was ready, and names no error", marks


def _seconds(month: int, day: int, hour: int, minute: int, second: int) -> int:
    """Of a time without its year; only differences count."""
    return (((month * 31 + day) * 24 + hour) * 60 + minute) * 60 + second


# -- the scenario --------------------------------------------------------------------------------------


def scenario(
    path: Path, start: Start, model: str | None = None, gpu: str | None = None, overrides: Sequence[str] = ()
) -> Scenario:
    """The log's configuration as a scenario. Raises UsageError that names what the log leaves open."""
    stated = start.stated
    version = None if stated.version else "its vLLM's version: say --set engine.vllm=0.19"
    given = {o.partition("=")[0].strip() for o in overrides}
    missing = [version] if version and "engine.vllm" not in given else []
    if model is None and not (stated.model and catalog.knows_model(stated.model)):
        name = f"a model of the catalogue (it has {stated.model!r})" if stated.model else "its model"
        missing.append(
            f"{name}: say --model with a name of `bench models` or a folder with config.json"
            + (", and how its weights are stored (--set weights.format=fp8)" if stated.model else "")
        )
    card = gpu or _named(stated.gpu)
    if card is None and not given & {"gpu.name", "gpu.memory"}:
        missing.append(f"its GPU: say --gpu with a name of `bench gpus`{_alike(start)}")
    quantization = None if model or "weights.format" in given else stated.quantization
    weights = "auto" if quantization is None else _weights(str(stated.model), quantization)
    if weights is None:
        missing.append(f"how {quantization} stores its weights: say --set weights.format=...")
    if missing:
        raise UsageError(f"{path}: the log does not state {'; nor '.join(missing)}")
    engine: dict[str, Any] = {k: _value(v) for k, v in stated.engine.items()}
    count = 1
    for key in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        count *= engine[key] if isinstance(engine.get(key), int) else 1
    data = {
        "name": re.sub(r"[^A-Za-z0-9]+", "_", path.stem).strip("_")[:60] or "log",
        "model": str(Path(model).absolute()) if model and Path(model).is_dir() else model or stated.model,
        "weights": {"format": weights},
        "gpu": {**({"name": card} if card else {}), "count": count},
        "engine": {**({"vllm": _modelled(stated.version)} if stated.version else {}), **engine},
    }
    try:
        made = parse_scenario(json.dumps(data), str(path), Path(), overrides)
    except ScenarioError as error:  # the line would be that of a text which nobody sees
        raise ScenarioError(
            p if p.where.startswith("--set") else Problem(str(path), p.key, p.message) for p in error.problems
        ) from None
    seen, device = _cuda_total(start), device_gpu(made)
    if seen is not None and device is not None and abs(cuda_total(device).bytes - seen) > seen // 10:
        size = cuda_total(device).bytes / 2**30
        raise UsageError(f"{path}: did not run on {device.name}, of {size:.2f} GiB: {_alike(start)[2:-1]}")
    return made


def _modelled(version: str) -> str:
    """``version``, or the oldest that a scenario can state: :func:`record` predicts nothing then."""
    return max(version, catalog.oldest_version(), key=catalog.version_key)


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)


def _named(name: str | None) -> str | None:
    try:
        return catalog.gpu(name).name if name else None
    except UsageError:
        return None


def _cuda_total(start: Start) -> int | None:
    return next((w["cuda_total_bytes"] for w in log_figures.read(start.lines) if "cuda_total_bytes" in w), None)


def _alike(start: Start) -> str:
    """Which GPUs of the catalogue have the memory that the log states."""
    total = _cuda_total(start)
    if total is None:
        return ""
    near = [g.name for g in catalog.gpus() if g.cuda_total_bytes and abs(g.cuda_total_bytes - total) < 2**23]
    seen = f"CUDA sees {total / 2**30:.2f} GiB on it"
    return f" ({seen}{', as on ' + ' and '.join(near) if near else ''})"


def _weights(model: str, quantization: str) -> str | None:
    """The weight format; auto where the model's own config says it, None where a log does not tell enough."""
    if catalog.model_config(model).get("quantization_config"):
        return "auto"
    return {"fp8": "fp8"}.get(quantization)


# -- the folder ----------------------------------------------------------------------------------------


def record(start: Start, run: Scenario, log_name: str, out: Path) -> store.RunFolder:
    """A run folder of the log, still to be finished. Raises RecordError."""
    prediction = _prediction(start, run)
    block, assumed = _block_size(start, prediction)
    notes = [*assumed, *_notes(start)]
    folder = store.RunFolder.create(out, run.name, MODE)
    try:
        folder.write_text(store.SCENARIO, run.as_yaml())
        folder.write_json(store.PREDICTION, prediction.as_dict())
        folder.write_text(store.ENGINE_LOG, "\n".join(start.lines) + "\n")
        folder.save_manifest(
            loadfit=__version__,
            scenario=run.name,
            question=run.question,
            digest=run.digest,
            mode=MODE,
            why=f"read from {log.printable(log_name)}",
            began_unix_s=int(time.time()),
            device="gpu",
            engine={
                "distribution": "vLLM", "version": start.stated.version or run.engine.vllm,
                "arguments": {k: _value(v) for k, v in start.stated.engine.items()},
            },
            cache_config={
                **({"num_gpu_blocks": start.stated.num_blocks} if start.stated.num_blocks else {}),
                **({"block_size": block} if block else {}),
            },
            marks=start.marks,
            notes=notes,
            outcome=start.outcome,
            reason=start.reason,
        )  # fmt: skip
    except RecordError:
        folder.discard()
        raise
    return folder


def _prediction(start: Start, run: Scenario) -> Account:
    """What the scenario is predicted to do; nothing, with the reason, where it can't be told."""
    try:
        catalog.engine_defaults(start.stated.version or run.engine.vllm)
        return predict(run)
    except UsageError as error:  # what vLLM refuses too, or a version that is not modelled
        return Account(notes=(f"Not predicted: {str(error).rstrip('.')}.",))


def _block_size(start: Start, prediction: Account) -> tuple[int | None, list[str]]:
    """(tokens in a block, what has to be said of it)."""
    if "block_size" in start.stated.engine or prediction.kv.block_size is None:
        return None, []
    size = prediction.kv.block_size
    if not prediction.kv.one_table:
        return None, ["Layers keep different spans: the log's tokens do not tell the blocks."]
    return size, [f"The log does not state the block size; blocks are counted by the predicted {size} tokens."]


def _notes(start: Start) -> list[str]:
    notes = ["An imported log: two decimals of a GiB, no reading of NVML, nothing of a load."]
    if start.starts > 1:
        notes.append(f"The log holds {start.starts} starts; the last one is read.")
    if start.stated.unread:
        notes.append(f"Not read from the log, so not predicted: {', '.join(start.stated.unread)}.")
    if "gpu_memory_utilization" not in start.stated.engine:
        notes.append("The log does not state gpu_memory_utilization: the version's default is taken.")
    return notes
