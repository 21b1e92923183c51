"""Keeps a run as a reference: a copy in results/reference/ without what speaks of the machine it ran on.

    python tools/keep_run.py results/70b_8k_int4/latest

The engine's log is reduced to the lines that the reader uses, with paths and host addresses left out; everything
else is kept as it is. Tests render these folders, so a reference is renewed only on purpose.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from harness import store
from harness.engines import log

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"
PATH_OR_ADDRESS = re.compile(r"(?<![\w.])/(?:[\w.@+-]+/)*[\w.@+-]+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|pid=\d+")


def keep(run: Path) -> Path:
    """Copy ``run`` to results/reference/<scenario>-<mode>; the new folder."""
    record = store.read(run)
    target = REFERENCE / f"{record.manifest['scenario']}-{record.mode}"
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(run.resolve(), target)
    used = [line for line in record.log_lines if log.stage(line) or log.quotable([line])]
    (target / store.ENGINE_LOG).write_text("".join(PATH_OR_ADDRESS.sub("…", line) + "\n" for line in used))
    return target


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(keep(Path(folder)))
