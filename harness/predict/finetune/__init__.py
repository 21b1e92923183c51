"""A fine-tuning scenario -> Account: the terms of one training step at four moments, and two rungs.

LOADS: what stays on the device between steps fits. STEPS: the peak of a step fits. Pure arithmetic, as for serving.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.architecture import SLIDING, Architecture, from_config
from harness.errors import UsageError
from harness.ledger import TRAINING_STATED, Account, Entry, Ledger, Rung, StepRung, Term
from harness.predict import overhead
from harness.predict.estimate import Estimate
from harness.predict.finetune.parameters import require_supported, targets
from harness.predict.finetune.step import BETWEEN, Moment, moments
from harness.predict.settings import device_gpu
from harness.scenario import Scenario, Training
from harness.units import gib

DEVICE = "gpu0"


def predict_finetune(scenario: Scenario) -> Account:
    """What a training step of ``scenario`` takes and whether it fits. Raises UsageError where it can't be judged."""
    architecture, training = checked(scenario)
    gpu = device_gpu(scenario)
    assert gpu is not None
    total, runtime = overhead.cuda_total(gpu), overhead.context(gpu)
    steps = moments(architecture, training)
    return Account(
        ledger=Ledger(tuple(e for m in steps for e in _entries(m, runtime))),
        rungs=judge(steps, total, runtime),
        notes=tuple(_notes(training, total)),
    )


def checked(scenario: Scenario) -> tuple[Architecture, Training]:
    """The model and the training of ``scenario``. Raises UsageError for what is not modelled."""
    training = scenario.training
    if training is None:
        raise UsageError("training: missing: such as {method: qlora, sequence_length: 2048}")
    architecture = from_config(scenario.config())
    require_supported(architecture)
    if training.method != "full":
        try:
            targets(architecture, training.lora)
        except UsageError as error:
            raise UsageError(f"training.lora.target_modules: {error}") from None
    length, limit = training.sequence_length, architecture.max_model_len
    if length > limit:
        raise UsageError(f"training.sequence_length: {length:,} is above the model's own limit ({limit:,})")
    windows = [k.window for layer in architecture.kv_layers for k in layer if k.kind == SLIDING and k.window]
    if windows and length > min(windows):
        raise UsageError(
            f"training.sequence_length: {length:,} is above the sliding window ({min(windows):,}), where a mask of "
            "all pairs is made: not supported yet"
        )
    return architecture, training


def judge(steps: Iterable[Moment], total: Estimate, runtime: Estimate) -> tuple[Rung, Rung]:
    """LOADS and STEPS on a device of ``total`` bytes with ``runtime`` of them taken before."""
    between, *others = steps
    peak = max(others, key=lambda m: m.bytes)
    loads = _rung(StepRung.LOADS, between, total, runtime)
    if not loads.holds:
        return loads, Rung(StepRung.STEPS, False, reason="not reached: a rung below it fails")
    return loads, _rung(StepRung.STEPS, peak, total, runtime)


def _rung(name: str, moment: Moment, total: Estimate, runtime: Estimate) -> Rung:
    parts = {Term.RUNTIME_AT_INIT: runtime, **moment.terms}
    used, low, high = (sum(getattr(e, end) for e in parts.values()) for end in ("bytes", "low", "high"))
    margin = total.bytes - used
    where = "between steps" if moment.name == BETWEEN else f"at the peak of a step ({moment.name})"
    reason = f"{gib(used)} of {gib(total.bytes)} GiB {where}"
    return Rung(name, margin >= 0, margin, _limit(parts, total.bytes), total.low - high, total.high - low, reason)


def _limit(parts: dict[Term, Estimate], room: int) -> str:
    """The term that no longer fits when they come in turn; the largest where all fit."""
    for term in TRAINING_STATED:
        room -= parts[term].bytes if term in parts else 0
        if room < 0:
            return term
    return max(parts, key=lambda t: parts[t].bytes)


def _entries(moment: Moment, runtime: Estimate) -> list[Entry]:
    parts = {Term.RUNTIME_AT_INIT: runtime, **moment.terms}
    rows = [
        Entry(moment.name, DEVICE, term, e.bytes, e.low, e.high, e.source)
        for term in TRAINING_STATED if (e := parts.get(term)) is not None
    ]  # fmt: skip
    low, high = (sum(getattr(e, end) for e in parts.values()) for end in ("low", "high"))
    used = sum(e.bytes for e in parts.values())
    return [*rows, Entry(moment.name, DEVICE, Term.TOTAL, used, low, high, "sum of the terms above")]


def _notes(training: Training, total: Estimate) -> Iterable[str]:
    yield (
        "A step of transformers in PyTorch's allocated bytes: what the allocator reserves beyond them (fragmentation) "
        "is in no term. Adapters without dropout, batches without padding."
    )
    if training.optimizer.startswith("paged"):
        yield "Paged states are counted as being on the host; on the device they take what room is left."
    if total.low != total.high and total.source.startswith("NVML"):
        yield f"CUDA's total is estimated from NVML's: {total.source}."
