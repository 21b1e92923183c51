"""Writes anew what is generated: the golden reports and the README's first screen, from results/reference.

    python tools/refresh_docs.py

Look at the difference before you commit it: a changed figure is a changed product.
"""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GAP = "\n  [...]\n"


def first_screen(report: str) -> str:
    """The parts of the 70B's report that a first screen has room for."""
    lines = report.splitlines()

    def part(begin: str, end: str) -> str:
        start = next(i for i, line in enumerate(lines) if line.startswith(begin))
        stop = next(i for i in range(start + 1, len(lines)) if lines[i].startswith(end))
        return "\n".join(lines[start:stop]).strip("\n")

    table = part("Block pool and load", "  tokens in a block")
    parts = [
        part("70b_8k_int4", "Why"),
        part("Four rungs", "Memory for"),
        table,
        part("  blocks used at the peak", "  scheduler steps"),
        part("Over the load", "The engine's own words"),
    ]
    return GAP.join(parts)


def main() -> None:
    """Write the goldens, then the README."""
    runpy.run_path(str(ROOT / "tests" / "test_report.py"), run_name="__main__")
    readme = ROOT / "README.md"
    head, rest = readme.read_text(encoding="utf-8").split("```text\n", 1)
    tail = rest.split("```", 1)[1]
    report = (ROOT / "tests" / "golden" / "70b_8k_int4-rehearsal.txt").read_text(encoding="utf-8")
    readme.write_text(f"{head}```text\n{first_screen(report)}\n```{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
