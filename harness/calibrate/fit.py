"""The constants that cases tell, each with its error before, after, and on what was held out.

An offset is the median of what the law leaves. Graphs are a line over all layers' graphs where three numbers ran, by
the medians of Theil and Sen (one odd run does not move it); else the published slope stays. With experts they are one
rate, bytes a captured size. Held out are all runs of a model at once, or single runs where there is one model alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from statistics import median
from typing import TypeVar

from harness.calibrate.cases import Case, Key, Seen
from harness.predict.calibrated import WORDS
from harness.scenario.calibration import Constant
from harness.units import GIB

T = TypeVar("T")
LEAST = 3  # runs, fewer are not held out; depths, fewer tell no slope
MODELS = 8  # from which an interval may become narrower
PRINTED = GIB // 200  # half of the last decimal of a log


def fit(cases: Iterable[Case]) -> list[Constant]:
    """The constants, by term and by what they are constants of."""
    seen: dict[Key, list[Seen]] = defaultdict(list)
    for case in cases:
        for key, one in case.seen:
            seen[key].append(one)
    return [_constant(term, of, seen[term, of]) for term, of in sorted(seen, key=_order)]


def _order(key: Key) -> tuple[int, str]:
    return list(WORDS).index(key[0]), key[1]


def _constant(term: str, of: str, seen: list[Seen]) -> Constant:
    size, each = _solve(seen)
    out = _held_out(seen)
    return Constant.model_validate({
        "term": term,
        "of": of,
        "bytes": size,
        "bytes_per_unit": each,
        "below": _room(seen, out, min(s.published.bytes - s.published.low for s in seen)),
        "above": _room(seen, [-e for e in out], min(s.published.high - s.published.bytes for s in seen)),
        "runs": len(seen),
        "before": middle(abs(s.published.bytes - s.measured) for s in seen),
        "after": middle(abs(e) for e in _errors(seen, size, each)),
        "held_out": middle(abs(e) for e in out) if out else None,
    })  # fmt: skip


def _room(seen: Sequence[Seen], out: Sequence[int], published: int) -> int | None:
    """How far the interval goes to one side, where the held-out runs were off by ``out``; None: as ``published``.

    The next of k models lies in the range of k held-out ones with a probability of (k - 1) / (k + 1), so few models
    make an interval wider and never narrower.
    """
    if not out:
        return None
    most = max(0, *out) + PRINTED
    return most if most > published or len({s.model for s in seen}) >= MODELS else None


def _solve(seen: Sequence[Seen]) -> tuple[int, int]:
    """(bytes, bytes for each unit)."""
    if seen[0].rate:
        return 0, middle((s.measured - s.law) / s.units for s in seen)
    each = _slope(seen)
    return middle(s.measured - s.law - each * s.units for s in seen), each


def _slope(seen: Sequence[Seen]) -> int:
    """The median slope between two depths where there are three of them, else the published one."""
    by_depth: dict[int, list[int]] = defaultdict(list)
    for s in seen:
        by_depth[s.units].append(s.measured - s.law)
    if len(by_depth) < LEAST:
        return seen[0].slope
    middles = {units: median(sizes) for units, sizes in by_depth.items()}
    slopes = [(middles[b] - middles[a]) / (b - a) for a, b in combinations(sorted(middles), 2)]
    return max(round(median(slopes)), 0)


def _held_out(seen: Sequence[Seen]) -> list[int]:
    """Errors (predicted less measured) of runs that the fit did not have; none where too few are there."""
    if len(seen) < LEAST:
        return []
    return [e for one, rest in splits(seen, [s.model for s in seen]) for e in _errors([one], *_solve(rest))]


def splits(items: Sequence[T], models: Sequence[str]) -> Iterator[tuple[T, list[T]]]:
    """Each of ``items`` and those to fit without it: without its model's, where there are several models."""
    several = len(set(models)) > 1
    for n, one in enumerate(items):
        yield one, [
            x for m, x in enumerate(items) if (models[m] != models[n] if several else m != n)
        ]  # fmt: skip


def _errors(seen: Iterable[Seen], size: int, each: int) -> list[int]:
    return [s.law + size + each * s.units - s.measured for s in seen]


def middle(values: Iterable[float]) -> int:
    return round(median(values))
