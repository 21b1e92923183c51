"""``bench paging``, as a report and as one JSON document."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.ledger import Account
from harness.report.parts import Report, Section, Table
from harness.scenario import Scenario
from harness.simulate.paging import Use
from harness.units import GIB, human

SCHEMA = 1


def build(scenario: Scenario, account: Account, uses: tuple[Use, ...]) -> Report:
    """The report: a row for each allocator on the pool of ``account``."""
    kv = account.kv
    bytes_per_token = kv.bytes_per_token or 0
    rows = [
        (
            use.allocator + (" (the engine's)" if use.block_size == kv.block_size else ""),
            f"{use.at_once:,}", _gib(use.reserved_tokens * bytes_per_token), _gib(use.used_tokens * bytes_per_token),
            _gib((use.reserved_tokens - use.used_tokens) * bytes_per_token), f"{100 * use.wasted_share:.1f} %",
            f"{use.preemptions:,}", f"{use.steps:,}",
        )
        for use in uses
    ]  # fmt: skip
    heads = ("allocator", "at once", "reserved", "used", "wasted", "share", "preempted", "steps")
    pool = (kv.usable_blocks or 0) * (kv.block_size or 0)
    sentences = [
        "Bytes in GiB are means over the steps of the load; wasted is what is reserved and holds no token's KV.",
        "A contiguous piece is held from admission to end, so it is never preempted: what it costs is room.",
    ]
    if len(uses) < 11:
        sentences.append("Left out: what can't serve the longest request at all.")
    lead = [
        f"The load of {scenario.name} on {pool:,} tokens of KV ({human(pool * bytes_per_token)}), allocated in each "
        "way; the scheduler is the same and prefix caching is off."
    ]
    if account.calibration:
        lead.append(account.calibration)
    section = Section("The same load in each way", tuple(sentences), Table(heads, tuple(rows)))
    return Report(f"{scenario.name} · paging", tuple(lead), (section,))


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def document(scenario: Scenario, account: Account, uses: tuple[Use, ...]) -> dict[str, Any]:
    """The one JSON document; tokens and bytes are means over the steps."""
    per_token = account.kv.bytes_per_token or 0
    return {
        "schema": SCHEMA,
        "scenario": scenario.name,
        "calibration": account.calibration or None,
        "kv": asdict(account.kv),
        "allocators": [
            {
                **asdict(use), "wasted_share": use.wasted_share,
                "reserved_bytes": round(use.reserved_tokens * per_token),
                "used_bytes": round(use.used_tokens * per_token),
            }
            for use in uses
        ],
    }  # fmt: skip
