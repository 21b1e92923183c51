"""What the mappings of a scenario are made of: strictness, and the types of single values."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PrivateAttr, Tag

from harness.files import read_plain
from harness.units import parse_bytes

LARGEST_BYTES = 2**50
LARGEST_FILE = 2**30  # of recorded requests: ten million of them


def _bytes(value: Any) -> int:
    if not isinstance(value, (str, int)):
        raise ValueError("a size like '80 GiB' or a whole number of bytes")
    return parse_bytes(value)


Size = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=str | int)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]



def _model_tag(value: Any) -> str:
    return "config" if isinstance(value, dict) else "name"


NameOrConfig = Annotated[
    Annotated[str, Field(min_length=1, max_length=500), Tag("name")] | Annotated[dict[str, Any], Tag("config")],
    Discriminator(_model_tag),
]

Fault = tuple[tuple[str, ...], str]  # path, text


class Part(BaseModel):
    """A mapping of the scenario: strict, frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class FilePart(Part):
    """A mapping that names a file, which is read when the scenario is."""

    file: Annotated[str, Field(min_length=1, max_length=500)] = Field(description="relative to the scenario's folder")
    _path: Path = PrivateAttr(Path())
    _text: str = PrivateAttr("")

    @property
    def path(self) -> Path:
        """Where it was read."""
        return self._path

    @property
    def text(self) -> str:
        """What was read."""
        return self._text

    @property
    def digest(self) -> str:
        """sha256 of what was read."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def read(self, folder: Path) -> None:
        """Take in the file. Raises ScenarioError with the line at fault, OSError or ValueError where there is none."""
        self._path = folder / self.file
        self._text = read_plain(self._path, LARGEST_FILE).decode("utf-8", "replace")
        self._take(self._text.splitlines())

    @abstractmethod
    def _take(self, lines: list[str]) -> None:
        """Make of the lines what they mean. Raises ScenarioError with the line at fault."""
