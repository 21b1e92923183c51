"""How long prompts and outputs are: a number, or a distribution."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, PrivateAttr, Tag

from harness.errors import Problem, ScenarioError
from harness.scenario.fields import FilePart, Part, Tokens
from harness.scenario_text import show


class Uniform(Part):
    """Whole numbers from ``low`` to ``high``, each as likely."""

    distribution: Literal["uniform"]
    low: Tokens
    high: Tokens


class Normal(Part):
    """A bell around ``mean``, cut to ``low``..``high``."""

    distribution: Literal["normal"]
    mean: Annotated[float, Field(gt=0, le=1e7)]
    stdev: Annotated[float, Field(ge=0, le=1e7)]
    low: Tokens
    high: Tokens


class Lognormal(Part):
    """A long tail: ``median`` and the ``sigma`` of the logarithm, cut to ``low``..``high``."""

    distribution: Literal["lognormal"]
    median: Annotated[float, Field(gt=0, le=1e7)]
    sigma: Annotated[float, Field(ge=0, le=10)]
    low: Tokens
    high: Tokens


class Empirical(FilePart):
    """Lengths seen somewhere: a text file with one whole number a line, each as likely."""

    distribution: Literal["empirical"]
    _seen: tuple[int, ...] = PrivateAttr((1,))

    @property
    def seen(self) -> tuple[int, ...]:
        """The numbers in the file."""
        return self._seen

    @property
    def low(self) -> int:
        """The shortest."""
        return min(self._seen)

    @property
    def high(self) -> int:
        """The longest."""
        return max(self._seen)

    def _take(self, lines: list[str]) -> None:
        seen = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            if not line.strip().isdecimal() or not 1 <= int(line) <= 10_000_000:
                text = f"expected a whole number of tokens from 1 to 10,000,000, got {show(line)}"
                raise ScenarioError([Problem(f"{self.path}:{number}", "", text)])
            seen.append(int(line))
        if not seen:
            raise ScenarioError([Problem(f"{self.path}:1", "", "expected a whole number of tokens a line, got none")])
        self._seen = tuple(seen)


def _length_tag(value: Any) -> str | None:
    """Which form of Lengths; None or an unknown name where a mapping doesn't say."""
    if isinstance(value, dict):
        kind = value.get("distribution")
        return kind if isinstance(kind, str) else None
    return str(getattr(value, "distribution", "")) if isinstance(value, BaseModel) else "fixed"


LENGTH_FORMS: dict[str, type[BaseModel] | None] = {
    "fixed": None, "uniform": Uniform, "normal": Normal, "lognormal": Lognormal, "empirical": Empirical,
}  # fmt: skip
LENGTHS = "a whole number of tokens, or a distribution such as {distribution: uniform, low: 1, high: 512}"
Lengths = Annotated[
    Annotated[Tokens, Tag("fixed")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Normal, Tag("normal")]
    | Annotated[Lognormal, Tag("lognormal")]
    | Annotated[Empirical, Tag("empirical")],
    Discriminator(_length_tag),
]


def shortest(lengths: Lengths) -> int:
    """The least that can be drawn."""
    return lengths if isinstance(lengths, int) else lengths.low


def longest(lengths: Lengths) -> int:
    """The most that can be drawn."""
    return lengths if isinstance(lengths, int) else lengths.high
