"""``load``: requests, how many, how long and when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from harness.architecture import Architecture
from harness.scenario.fields import Fault, Part, Tokens

if TYPE_CHECKING:
    from harness.scenario.scenario import Scenario


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


def _length_tag(value: Any) -> str | None:
    """Which form of Lengths; None or an unknown name where a mapping doesn't say."""
    if isinstance(value, dict):
        kind = value.get("distribution")
        return kind if isinstance(kind, str) else None
    return str(getattr(value, "distribution", "")) if isinstance(value, BaseModel) else "fixed"


LENGTH_FORMS: dict[str, type[BaseModel] | None] = {
    "fixed": None, "uniform": Uniform, "normal": Normal, "lognormal": Lognormal,
}  # fmt: skip
_LENGTHS = "a whole number of tokens, or a distribution such as {distribution: uniform, low: 1, high: 512}"
Lengths = Annotated[
    Annotated[Tokens, Tag("fixed")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Normal, Tag("normal")]
    | Annotated[Lognormal, Tag("lognormal")],
    Discriminator(_length_tag),
]


Rate = Annotated[float, Field(gt=0, le=1e6)]
TIMED = ("constant", "poisson", "gamma", "ramp")


class Load(Part):
    """Requests: how many, how long, and when."""

    shape: Literal["closed", "burst", "constant", "poisson", "gamma", "ramp"] = Field(
        description="closed: each user sends the next request when the last one ends; burst: all at once; constant, "
        "poisson, gamma: at a rate, whatever the answers; ramp: poisson at a rate that grows or falls"
    )
    rate: Rate | None = Field(None, description="requests per second; of a ramp, at its beginning")
    end_rate: Rate | None = Field(None, description="of a ramp: requests per second at its end")
    burstiness: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="of a gamma load: the shape of the gaps' distribution; 1 is poisson, less is burstier"
    )
    users: Annotated[int, Field(ge=1, le=100_000)] | None = Field(None, description="of a closed load")
    requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="how many requests are sent in all")
    prompt_tokens: Lengths = Field(description=_LENGTHS)
    output_tokens: Lengths = Field(description=_LENGTHS)
    shared_prefix_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        0, description="how many first tokens all prompts have in common, such as a system prompt"
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        1800.0, description="the load is given up after this many seconds"
    )

    @property
    def concurrency(self) -> int:
        """The most requests that are under way at once, were nothing to hold them back."""
        return min(self.requests, self.users) if self.users else self.requests


def load_faults(s: Scenario, load: Load, architecture: Architecture | None) -> Iterator[Fault]:
    """Faults that lie between keys."""
    if load.shape == "closed" and load.users is None:
        yield ("load", "users"), "missing: a closed load has users"
    if load.shape == "burst" and load.users is not None:
        yield ("load", "users"), "a burst has no users: all its requests come at once"
    if load.shape in TIMED and load.users is not None:
        yield ("load", "users"), f"a {load.shape} load has no users: its requests come at a rate, answered or not"
    keys = {"rate": TIMED, "end_rate": ("ramp",), "burstiness": ("gamma",)}
    for key, shapes in keys.items():
        if (load.shape in shapes) != (getattr(load, key) is not None):
            wrong = "missing: a {0} load has one" if load.shape in shapes else "a {0} load has none"
            yield ("load", key), wrong.format(load.shape)
    if load.users is not None and load.users > load.requests:
        yield ("load", "users"), f"{load.users} users but {load.requests} requests: some would have nothing to send"
    for key in ("prompt_tokens", "output_tokens"):
        lengths = getattr(load, key)
        if not isinstance(lengths, int) and lengths.low > lengths.high:
            yield ("load", key), f"low ({lengths.low:,}) is above high ({lengths.high:,})"
    shortest = load.prompt_tokens if isinstance(load.prompt_tokens, int) else load.prompt_tokens.low
    if load.shared_prefix_tokens >= shortest:
        yield (
            ("load", "shared_prefix_tokens"),
            f"expected less than the shortest prompt ({shortest:,} tokens), which it is the beginning of",
        )
    if load.shared_prefix_tokens and s.engine.long_prefill_token_threshold:
        yield ("load", "shared_prefix_tokens"), "not simulated yet beside engine.long_prefill_token_threshold"
    limit, whose = s.engine.max_model_len, "engine.max_model_len"
    if limit is None and architecture is not None:
        limit, whose = architecture.default_model_len, f"the model's own {architecture.max_len_key}"
    longest = longest_request(load)
    if limit is not None and longest > limit:
        yield (
            ("load", "prompt_tokens"),
            f"prompt and output reach {longest:,} tokens, above {whose} ({limit:,})",
        )


def longest_request(load: Load) -> int:
    """Tokens (prompt + output) of the longest request that the load can draw."""
    ends = [x if isinstance(x, int) else x.high for x in (load.prompt_tokens, load.output_tokens)]
    return sum(ends)
