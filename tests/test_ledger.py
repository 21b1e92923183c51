"""The shape that predictions and measurements share."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ledger import (
    ADDITIVE,
    STATED,
    TRAINING_STATED,
    Account,
    Entry,
    KvPool,
    Ledger,
    LoadFigures,
    Phase,
    Rung,
    RungName,
    Term,
)

IDLE = [
    Entry(Phase.IDLE, "gpu0", Term.WEIGHTS, 30, 29, 31, "tensors"),
    Entry(Phase.IDLE, "gpu0", Term.KV_AVAILABLE, 50),
    Entry(Phase.IDLE, "gpu0", Term.CUDA_GRAPHS, None, source="not told"),
    Entry(Phase.IDLE, "gpu0", Term.TOTAL, 80),
]
LOAD = [Entry(Phase.LOAD, "gpu0", Term.KV_USED, 40), Entry(Phase.LOAD, "gpu0", Term.UNATTRIBUTED, -2)]


def test_the_terms_that_every_account_states() -> None:
    assert [str(t) for t in STATED] == [
        "weights", "runtime_at_init", "non_torch_increase", "activation_peak", "cuda_graphs", "kv_available",
    ]  # fmt: skip
    assert set(Term) - set(ADDITIVE) - set(TRAINING_STATED) == {Term.KV_USED, Term.TOTAL}


def test_what_is_unknown_is_none_and_not_zero() -> None:
    ledger = Ledger((*IDLE, *LOAD))
    assert ledger.bytes_of("cuda_graphs") is None
    assert ledger.bytes_of("activation_peak") is None
    assert ledger.bytes_of("weights", Phase.LOAD) is None
    found = ledger.find(Term.CUDA_GRAPHS)
    assert found is not None and found.source == "not told"


def test_one_entry_for_each_phase_device_and_term() -> None:
    assert Ledger((*IDLE, Entry(Phase.IDLE, "gpu1", Term.WEIGHTS, 1))).find("weights", device="gpu1") is not None
    with pytest.raises(ValueError, match="one entry for each phase, device and term"):
        Ledger((*IDLE, Entry(Phase.IDLE, "gpu0", Term.WEIGHTS, 1)))


@pytest.mark.parametrize(("blocks", "usable"), [(None, None), (0, 0), (1, 0), (100, 99)])
def test_the_null_block_serves_nobody(blocks: int | None, usable: int | None) -> None:
    assert KvPool(num_blocks=blocks).usable_blocks == usable


@pytest.mark.parametrize(
    ("holds", "highest"),
    [
        ((False, False, False, False), None),
        ((True, False, False, False), "LOADS"),
        ((True, True, True, False), "STARTS"),
        ((True, True, True, True), "HOLDS"),
        ((True, None, True, True), "LOADS"),  # a rung above one that could not be judged is not reached
        ((None, True, True, True), None),
    ],
)
def test_the_highest_rung(holds: tuple[bool | None, ...], highest: str | None) -> None:
    account = Account(rungs=tuple(Rung(n, h) for n, h in zip(RungName, holds, strict=True)))
    assert account.highest == highest
    assert account.rung("ADMITS") == Rung("ADMITS", holds[1])
    assert account.rung("FLIES") is None


NUMBERS = st.none() | st.integers(-(2**60), 2**60)


def records(cls: Any, **given_: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    rest = {f.name: NUMBERS for f in fields(cls) if f.name not in given_}
    return st.builds(cls, **given_, **rest)


ENTRIES = records(Entry, phase=st.sampled_from(list(Phase)), device=st.sampled_from(["gpu0", "cpu"]),
                  term=st.sampled_from(list(Term)), source=st.text())  # fmt: skip
ACCOUNTS = st.builds(
    Account,
    ledger=st.lists(ENTRIES, unique_by=lambda e: (e.phase, e.device, e.term)).map(lambda e: Ledger(tuple(e))),
    kv=records(KvPool),
    rungs=st.lists(records(Rung, rung=st.sampled_from(list(RungName)), holds=st.none() | st.booleans(),
                           limited_by=st.none() | st.text(), reason=st.text())).map(tuple),
    load=records(LoadFigures),
    engine_says=st.lists(st.text()).map(tuple),
    notes=st.lists(st.text()).map(tuple),
)  # fmt: skip


@given(ACCOUNTS)
def test_an_account_survives_json(account: Account) -> None:
    assert Account.from_dict(json.loads(json.dumps(account.as_dict()))) == account


def test_an_account_of_another_version_is_read() -> None:
    data = Account(ledger=Ledger(tuple(IDLE)), load=LoadFigures(steps=3)).as_dict()
    data["mood"] = "fine"
    data["load"]["joules"] = 5
    data["ledger"][0]["colour"] = "red"
    del data["notes"], data["rungs"]
    assert Account.from_dict(data) == Account(ledger=Ledger(tuple(IDLE)), load=LoadFigures(steps=3))
    assert Account.from_dict({}) == Account()
