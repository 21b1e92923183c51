"""A run folder with all that is known before a run; of an analytic run that is all there is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from harness import __version__, store
from harness.errors import RecordError
from harness.ledger import Account
from harness.predict.simulated import simulated
from harness.scenario import Scenario


def analytic(scenario: Scenario, prediction: Account, out: Path, why: str) -> store.RunFolder:
    """A run folder that holds the prediction alone; still to be finished."""
    folder = begin(out, scenario, prediction, prediction, "analytic", why, "completed")
    if prediction.load.steps is not None:
        try:
            folder.write_frames(simulated(scenario, prediction.kv).timeline)
        except RecordError:
            folder.discard()
            raise
    return folder


def begin(
    out: Path, scenario: Scenario, prediction: Account, expected: Account, mode: str, why: str,
    outcome: str = "running", host: dict[str, Any] | None = None, series: store.Place | None = None,
) -> store.RunFolder:  # fmt: skip
    """A run folder with all that is known before the run; none is left where it can't be written."""
    folder = store.RunFolder.create(out, scenario.name, mode)
    try:
        folder.write_text(store.SCENARIO, scenario.as_yaml())
        for key, name in scenario.file_names().items():
            assert scenario.load is not None
            folder.write_text(name, scenario.load.files[key].text)
        folder.write_json(store.PREDICTION, prediction.as_dict())
        if expected is not prediction:
            folder.write_json(store.REHEARSAL, expected.as_dict())
        folder.save_manifest(
            loadfit=__version__,
            scenario=scenario.name,
            question=scenario.question,
            digest=scenario.digest,
            mode=str(mode),
            why=why,
            began_unix_s=int(time.time()),
            seed=scenario.load.seed if scenario.load else None,
            host=host,
            device="cpu" if scenario.on_cpu or mode != "measured" else "gpu",
            marks={},
            outcome=outcome,
            **({"series": series} if series else {}),
        )
    except RecordError:
        folder.discard()
        raise
    return folder
