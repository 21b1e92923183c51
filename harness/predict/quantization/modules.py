"""Lists of module names as quantization tools write them: exact names, parts of names, globs, regular expressions."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from harness.errors import UsageError

LONGEST_PATTERN = 1000


# What the name of a module can begin with: a pattern of that kind need not be looked for further in.
_ROOTS = ("model.", "language_model.", "backbone.")


@dataclass(frozen=True)
class Modules:
    """A list of modules: whole names, what names begin with, and patterns that are searched for."""

    names: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()
    beginnings: frozenset[str] = frozenset()

    @cached_property
    def _lengths(self) -> tuple[int, ...]:
        return tuple({len(b) for b in self.beginnings})

    def has(self, candidates: Iterable[str]) -> bool:
        """Whether any of the names that one module may have is in the list."""
        return any(
            c in self.names
            or any(c[:n] in self.beginnings for n in self._lengths)
            or any(p.search(c) for p in self.patterns)
            for c in candidates
        )


def exact(names: list[str]) -> Modules:
    """As vLLM's fp8 reads them (``is_layer_skipped``, quant_utils.py, 0.32): whole names; one expert stands for all."""
    experts = {n[: n.index(".experts") + len(".experts")] for n in names if ".experts" in n}
    return Modules(frozenset(names) | experts)


def parts_of_names(names: list[str]) -> Modules:
    """As vLLM's AWQ reads them: what occurs in a module's name."""
    return Modules(frozenset(), _any(re.escape(n) for n in names))


def globs(names: list[str]) -> Modules:
    """As vLLM's ModelOpt reads them (``is_layer_excluded``, modelopt.py, 0.32): a part of a name, or a glob."""
    stems = {n: n.removesuffix("*") for n in names}
    from_the_root = {n for n, stem in stems.items() if n.startswith(_ROOTS) and not set(stem) & set("*?[")}
    others = [n for n in names if n not in from_the_root]
    return Modules(
        frozenset(),
        _any([*(re.escape(stems[n]) for n in others), *(rf"\A{fnmatch.translate(n)}" for n in others if "*" in n)]),
        frozenset(stems[n] for n in from_the_root),
    )


def names_or_regexes(names: list[str], key: str) -> Modules:
    """As compressed-tensors reads them: a whole name, or after ``re:`` what a name begins with."""
    return Modules(
        frozenset(n for n in names if not n.startswith("re:")),
        tuple(regex(n[3:], key) for n in names if n.startswith("re:")),
    )


def regex(text: str, key: str) -> re.Pattern[str]:
    """``text`` as what a name begins with. Raises UsageError for one that is no regular expression."""
    try:
        if len(text) > LONGEST_PATTERN:
            raise ValueError
        return re.compile(rf"\A(?:{text})")
    except (re.error, ValueError, OverflowError, RecursionError):
        raise UsageError(f"config: {key}: {text[:60]!r} is no regular expression that can be used") from None


def _any(patterns: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    text = "|".join(patterns)
    return (re.compile(text),) if text else ()
