"""What a quantization_config says, method aside: which modules have which format; and readers for its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness import catalog
from harness.architecture.reader import Reader, show
from harness.catalog import WeightFormat
from harness.errors import UsageError
from harness.predict.quantization.modules import Modules

KEY = "quantization_config"


@dataclass(frozen=True)
class Scheme:
    """Which modules have which format.

    ``rules``: the first whose modules a part is among decides, None in it: not quantized. ``default``: that of all
    other linear layers. ``lm_head``: whether it is the lm_head's too; ``only``: the one kind of part that it is for.
    ``patterns``: all names that the rules hold.
    """

    method: str
    default: WeightFormat | None
    rules: tuple[tuple[Modules, WeightFormat | None], ...] = ()
    patterns: tuple[str, ...] = ()
    lm_head: bool = False
    only: str | None = None
    kv_cache_dtype: str | None = None

    def format_of(self, names: tuple[str, ...], kind: str) -> WeightFormat | None:
        """The format of a part of ``kind`` that a checkpoint calls by one of ``names``."""
        for modules, found in self.rules:
            if modules.has(names):
                return found
        if kind == "lm_head" and not self.lm_head:
            return None
        return self.default if self.only in (None, kind) else None


def names(read: Reader, *keys: str) -> list[str]:
    """The list of module names under the first of ``keys`` that is there."""
    for key in keys:
        value = read.config.get(key)
        if value:
            if not isinstance(value, list) or not all(isinstance(n, str) for n in value):
                raise UsageError(f"config: {read.within}{key}: expected a list of module names, got {show(value)}")
            return value
    return []


def one_of(read: Reader, key: str, known: tuple[Any, ...], default: Any = None) -> Any:
    value = read.config.get(key, default)
    if value not in known or isinstance(value, bool):
        raise UsageError(f"config: {read.within}{key}: expected {' or '.join(map(str, known))}, got {show(value)}")
    return value


def grouped(read: Reader, base: str, key: str = "group_size") -> WeightFormat:
    """``base`` in the groups that ``key`` states; -1: one for each output channel."""
    size = read.config.get(key)
    if size == -1 and not isinstance(size, bool):
        return catalog.weight_format(f"{base}-channel")
    return catalog.weight_format(f"{base}-g{read.count(key, largest=4096)}")
