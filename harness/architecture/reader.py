"""Typed access to a config whose values may be anything."""

from __future__ import annotations

from typing import Any

from harness.errors import UsageError

LARGEST = 10**12  # no count of a config may exceed it


def show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Reader:
    """Typed access to a config whose values may be anything."""

    def __init__(self, config: dict[str, Any], keys: dict[str, str], within: str = "") -> None:
        """``keys``: our name -> the config's own; ``within``: what an error puts before a key."""
        self.config = config
        self._keys = keys
        self.within = within

    def key(self, name: str) -> str:
        """The family's own name of ``name``."""
        return self._keys.get(name, name)

    @property
    def positions(self) -> int:
        """Positions that the model was trained for."""
        return self.count("max_position_embeddings", largest=10**9)

    def count(self, name: str, default: int | None = None, largest: int = LARGEST) -> int:
        """A whole number of at least 1; ``default`` where the key is missing or null."""
        value = self.config.get(self.key(name))
        if value is None and default is not None:
            return default
        key = self.within + self.key(name)
        if value is None:
            raise UsageError(f"config: {key}: missing")
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"config: {key}: expected a whole number, got {show(value)}")
        if not 1 <= value <= largest:
            raise UsageError(f"config: {key}: expected 1 to {largest:,}, got {show(value)}")
        return value

    def number(self, name: str, default: int) -> int:
        """A whole number of at least 0; ``default`` where the key is missing or null."""
        return 0 if self.config.get(self.key(name)) in (0, False) else self.count(name, default=default)

    def inner(self, name: str) -> Reader:
        """The mapping under ``name``."""
        value = self.config.get(name)
        if not isinstance(value, dict):
            raise UsageError(f"config: {self.within}{name}: expected a mapping, got {show(value)}")
        return Reader(value, {}, f"{self.within}{name}.")

    def flag(self, name: str, default: bool) -> bool:
        """true or false; ``default`` where the key is missing or null."""
        value = self.config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise UsageError(f"config: {self.within}{name}: expected true or false, got {show(value)}")
        return value

    def factor(self) -> float:
        """The rope factor: a number from 1 to a million."""
        value = self.config.get("factor", 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 10**6:
            raise UsageError(
                f"config: rope_scaling.factor: expected a number of 1 or more, got {show(value)}"
            )
        return float(value)
