"""The one JSON document of ``bench run --json``: a key that can't be filled is null, never left out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.compare import check
from harness.ledger import STATED, Account, Entry, RungName
from harness.report.reading import Reading

SCHEMA = 1


def document(reading: Reading) -> dict[str, Any]:
    """The document of one run."""
    met, failed = check(reading.scenario.expect, reading.comparison, reading.scenario.slo)
    measured = reading.measured
    training: dict[str, Any] = {}
    if reading.scenario.kind == "finetune":
        from harness.report import finetune

        training = {"training": finetune.document(reading.scenario, reading.record.prediction)}
    return {
        "schema": SCHEMA,
        "scenario": reading.scenario.name,
        "mode": reading.record.mode,
        "outcome": reading.record.outcome,
        "calibration": reading.record.prediction.calibration or None,
        "trust_remote_code": reading.scenario.engine.trust_remote_code,
        "run_dir": str(reading.record.path),
        "expectation": {"met": met, "failed": failed},
        "prediction": _account(reading.record.prediction),
        "measurement": _account(measured) if measured else None,
        "engine_says": list(measured.engine_says if measured else reading.record.prediction.engine_says),
        **training,
    }


def _account(account: Account) -> dict[str, Any]:
    rungs = [(name, account.rung(name)) for name in RungName]
    return {
        "terms": {str(term): _term(account, term) for term in STATED},
        "kv": asdict(account.kv),
        "rungs": [
            {
                "rung": str(name),
                "holds": rung.holds if rung else None,
                "margin_bytes": rung.margin_bytes if rung else None,
                "limited_by": rung.limited_by if rung else None,
            }
            for name, rung in rungs
        ],
        "load": asdict(account.load),
    }


def _term(account: Account, term: str) -> dict[str, Any]:
    entries = [e for e in account.ledger if e.term == term]
    entry = next((e for e in entries if e.bytes is not None), entries[0] if entries else Entry("", "", term, None))
    return {"bytes": entry.bytes, "low": entry.low, "high": entry.high, "source": entry.source or None}
