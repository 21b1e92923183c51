"""The report of a training step, from the same folder and for the same formats as a server's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.compare import check
from harness.ledger import TRAINING_STATED, Account, Rung, StepRung, Term
from harness.predict.finetune import checked
from harness.predict.finetune.parameters import Parameter, adapters, parameters, targets
from harness.predict.finetune.states import (
    compute_bytes,
    nf4_bytes,
    optimizer_bytes,
    size,
    trainable,
    trained_bytes,
    unquantized_bytes,
)
from harness.predict.finetune.step import BETWEEN, MOMENTS
from harness.predict.finetune.ways import ways
from harness.report.compared import rungs_table
from harness.report.parts import Report, Section, Table
from harness.report.words import term_words, verdict
from harness.scenario import Scenario, Training
from harness.units import GIB, human

if TYPE_CHECKING:
    from harness.report.reading import Reading

MOMENT_WORDS = {"between_steps": "between steps", "loss": "loss", "backward": "backward", "update": "update"}
QUESTIONS = {"LOADS": "does what stays fit?", "STEPS": "does a step fit?"}
AT = {
    "between_steps": "between steps", "loss": "at the loss", "backward": "in the backward pass",
    "update": "at the update",
}  # fmt: skip
METHOD_WORDS = {
    "full": "all parameters train",
    "lora": "LoRA beside a frozen 16-bit base",
    "qlora": "LoRA beside a frozen 4-bit base",
}


def build(reading: Reading) -> Report:
    """The report of a fine-tuning run."""
    scenario, account = reading.scenario, reading.record.prediction
    met, failed = check(scenario.expect, reading.comparison)
    sections = [
        Section(_heading(account), tuple(_explain(scenario, account)), flowing=True),
        Section("Two rungs", table=rungs_table(reading.comparison, QUESTIONS)),
        Section("One training step, GiB on the device", table=_moments_table(account), chart="memory"),
        Section("Where the bytes come from", table=_sources_table(account)),
        Section("What is held in which type", table=_types_table(scenario)),
        Section("The adapters", table=_adapters_table(scenario)),
        Section("Ways on this device", table=_ways_table(scenario)),
        Section("Notes", sentences=account.notes),
    ]
    return Report(
        title=f"{scenario.name} · {reading.record.mode}",
        lead=tuple(_lead(scenario, account)),
        sections=tuple(s for s in sections if s.sentences or (s.table and s.table.rows)),
        expectation_met=met,
        expectation_failed=tuple(failed),
    )


def document(scenario: Scenario, account: Account) -> dict[str, Any]:
    """The ``training`` of the JSON document: rungs, terms by moment, adapters by module, the usual ways."""
    architecture, training = checked(scenario)
    return {
        "rungs": [
            {"rung": r.rung, "holds": r.holds, "margin_bytes": r.margin_bytes, "limited_by": r.limited_by}
            for r in account.rungs
        ],
        "moments": {
            moment: {
                e.term: {"bytes": e.bytes, "low": e.low, "high": e.high, "source": e.source}
                for e in account.ledger if e.phase == moment
            }
            for moment in MOMENTS
        },
        "parameters": architecture.parameters,
        "trainable_parameters": size(trainable(architecture, training), 1),
        "adapters": None if training.method == "full" else [
            {"name": p.name, "shape": list(p.shape), "count": p.count, "parameters": p.elements * p.count}
            for p in adapters(architecture, training.lora)
        ],
        "ways": [asdict(w) for w in ways(scenario)],
    }  # fmt: skip


def _lead(scenario: Scenario, account: Account) -> Iterator[str]:
    if scenario.question:
        yield scenario.question.strip()
    t, gpu = _training(scenario), scenario.gpu
    device = (gpu.name or f"GPU of {human(gpu.memory)}") if gpu else "a GPU"
    yield (
        f"Fine-tuning {scenario.model_name} on one {device}: {METHOD_WORDS[t.method]}; {t.optimizer}, {t.precision}, "
        f"{t.micro_batch} x {t.sequence_length:,} tokens, gradient checkpointing "
        f"{'on' if t.gradient_checkpointing else 'off'}, {t.attn_implementation} attention."
    )
    yield f"Predicted to reach: {account.highest or 'neither rung'}."
    yield "Analytic: arithmetic; a training step is predicted, not run."


def _training(scenario: Scenario) -> Training:
    assert scenario.training is not None
    return scenario.training


# -- words ---------------------------------------------------------------------------------------------


def _failed(account: Account) -> Rung | None:
    return next((r for r in account.rungs if r.holds is False), None)


def _heading(account: Account) -> str:
    return "Why this way is closed" if _failed(account) else "Why this way is open"


def _peak(account: Account) -> str:
    return max(MOMENTS[1:], key=lambda m: account.ledger.bytes_of(Term.TOTAL, m) or 0)


def _explain(scenario: Scenario, account: Account) -> Iterator[str]:
    architecture, training = checked(scenario)
    count = size(trainable(architecture, training), 1)
    if training.method == "full":
        yield f"All {count:,} parameters train."
    else:
        yield (
            f"{count:,} numbers train, {100 * count / architecture.parameters:.2f} % of the model's "
            f"{architecture.parameters:,}, which are frozen."
        )
    peak, failed = _peak(account), _failed(account)
    between, top = (account.ledger.bytes_of(Term.TOTAL, m) for m in (BETWEEN, peak))
    takes = "would take" if failed else "takes"
    yield f"{human(between)} stay on the device between steps; a step {takes} it to {human(top)}, {AT[peak]}."
    moment = BETWEEN if failed and failed.rung == StepRung.LOADS else peak
    limit = (failed or account.rungs[-1]).limited_by or ""
    held = human(account.ledger.bytes_of(limit, moment))
    if failed:
        missing = human(-(failed.margin_bytes or 0))
        yield f"It is closed {AT[moment]}, {missing} short: the {term_words(limit)} ({held}) no longer fit."
    else:
        left = human(account.rungs[-1].margin_bytes)
        yield f"The largest part of that is the {term_words(limit)} ({held}); {left} are left."


# -- tables --------------------------------------------------------------------------------------------


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:,.2f}"


def _moments_table(account: Account) -> Table:
    rows = [
        (term_words(term), *(_gib(account.ledger.bytes_of(term, m)) for m in MOMENTS))
        for term in (*TRAINING_STATED, Term.TOTAL)
        if account.ledger.find(term)
    ]
    totals = [account.ledger.find(Term.TOTAL, m) for m in MOMENTS]
    rows.append(("low – high", *(f"{_gib(e.low)} – {_gib(e.high)}" if e else "" for e in totals)))
    return Table(("term", *(MOMENT_WORDS[m] for m in MOMENTS)), tuple(rows))


def _sources_table(account: Account) -> Table:
    """Each term at the peak of the step, or between steps where only that is reached."""
    moment = _peak(account)
    rows = tuple(
        (term_words(e.term), _gib(e.bytes), e.source)
        for e in account.ledger if e.phase == moment and e.term != Term.TOTAL
    )  # fmt: skip
    return Table(("term", f"GiB, {MOMENT_WORDS[moment]}", "from"), rows, frozenset({0, 2}))


def _adapters_table(scenario: Scenario) -> Table | None:
    architecture, training = checked(scenario)
    if training.method == "full":
        return None
    r, layers = training.lora.rank, architecture.layers
    rows = [
        (m.name, f"{m.outputs:,} x {m.inputs:,}", f"{r} x {m.inputs:,}", f"{m.outputs:,} x {r}", str(layers),
         f"{r * (m.inputs + m.outputs) * layers:,}")
        for m in targets(architecture, training.lora)
    ]  # fmt: skip
    rows.append(("all", "", "", "", "", f"{size(trainable(architecture, training), 1):,}"))
    return Table(("beside", "frozen W", "A", "B", "layers", "numbers in A and B"), tuple(rows))


def _types_table(scenario: Scenario) -> Table:
    """Numbers, their type and bits, and bytes: of the model, of what trains and of the optimizer."""
    architecture, t = checked(scenario)
    trained, everything = trainable(architecture, t), tuple(parameters(architecture))
    linear, rest = [p for p in everything if p.module], [p for p in everything if not p.module]
    each = trained_bytes(t)
    if t.method == "full":
        rows = [_held("parameters, trained", trained, each)]
    elif t.method == "lora":
        rows = [_held("the model, frozen", everything, compute_bytes(t))]
    else:
        packed = sum(nf4_bytes(p.elements, t.double_quant) * p.count for p in linear)
        rows = [
            _row("linear layers, frozen", size(linear, 1), "nf4", packed),
            _held("embeddings, lm_head, norms, frozen", rest, unquantized_bytes(t)),
        ]
    if t.method != "full":
        rows.append(_held("adapters A and B, trained", trained, each))
    rows.append(_held("gradients", trained, each))
    rows.append(_row(f"states of {t.optimizer}", size(trained, 1), "per trained number", optimizer_bytes(trained, t)))
    products = "fp32" if compute_bytes(t) == 4 else "16-bit"
    rows.append(("products and what they keep", "", products, str(8 * compute_bytes(t)), ""))
    return Table(("part", "numbers", "type", "bits each", "GiB"), tuple(rows), frozenset({0, 2}))


def _held(part: str, tensors: Sequence[Parameter], each: int) -> tuple[str, ...]:
    return _row(part, size(tensors, 1), "fp32" if each == 4 else "16-bit", size(tensors, each))


def _row(part: str, count: int, kind: str, held: int) -> tuple[str, ...]:
    return part, f"{count:,}", kind, f"{8 * held / count:.4g}", _gib(held)


def _ways_table(scenario: Scenario) -> Table:
    rows: Iterable[tuple[str, ...]] = (
        (w.method, f"{w.optimizer}, {w.precision}", "on" if w.gradient_checkpointing else "off", _gib(w.between_steps),
         _gib(w.peak), verdict(w.fits), term_words(w.limited_by or "–"))
        for w in ways(scenario)
    )  # fmt: skip
    heads = ("method", "optimizer, precision", "checkpointing", "between steps", "peak", "fits", "closed by")
    return Table(heads, tuple(rows), frozenset({0, 1, 2, 6}))
