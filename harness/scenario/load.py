"""``load``: requests, how many, how long and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness.architecture import Architecture
from harness.scenario.fields import Fault, FilePart, Part
from harness.scenario.lengths import LENGTHS, Lengths, longest, shortest
from harness.scenario.trace import Trace

if TYPE_CHECKING:
    from harness.scenario.scenario import Scenario

Rate = Annotated[float, Field(ge=1e-6, le=1e6)]
AT_A_RATE = ("constant", "poisson", "gamma", "ramp")
# The keys that some shapes have and others have not.
_OF_SHAPES = {
    "users": ("closed",), "rate": AT_A_RATE, "end_rate": ("ramp",), "burstiness": ("gamma",), "trace": ("trace",),
    "prompt_tokens": ("closed", "burst", *AT_A_RATE), "output_tokens": ("closed", "burst", *AT_A_RATE),
}  # fmt: skip
_MISSING = {"prompt_tokens": LENGTHS, "output_tokens": LENGTHS}
_WHY = {
    ("burst", "users"): "a burst has no users: all its requests come at once",
    ("closed", "users"): "missing: a closed load has users",
    ("trace", "prompt_tokens"): "a trace has its own lengths",
    ("trace", "output_tokens"): "a trace has its own lengths",
}


Priorities = Annotated[list[Annotated[int, Field(ge=-(2**31), lt=2**31)]], Field(min_length=1, max_length=1000)]


class Load(Part):
    """Requests: how many, how long, and when."""

    shape: Literal["closed", "burst", "constant", "poisson", "gamma", "ramp", "trace"] = Field(
        description="closed: each user sends the next request when the last one ends; burst: all at once; constant, "
        "poisson, gamma: at a rate, whatever the answers; ramp: poisson at a rate that grows or falls; "
        "trace: the first ones of a recording"
    )
    users: Annotated[int, Field(ge=1, le=100_000)] | None = Field(None, description="of a closed load")
    rate: Rate | None = Field(None, description="requests per second; of a ramp, at its beginning")
    end_rate: Rate | None = Field(None, description="of a ramp: requests per second at its end")
    burstiness: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="of a gamma load: the shape of the gaps' distribution; 1 is poisson, less is burstier"
    )
    trace: Trace | None = Field(None, description="such as {file: traces/mooncake.jsonl, format: mooncake}")
    requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        description="how many requests are sent in all"
    )
    prompt_tokens: Lengths | None = Field(None, description=LENGTHS)
    output_tokens: Lengths | None = Field(None, description=LENGTHS)
    shared_prefix_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        0, description="how many first tokens prompts have in common, such as a system prompt"
    )
    shared_prefixes: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        1, description="how many such prefixes there are; each conversation begins with one of them, each as likely"
    )
    priorities: Priorities | None = Field(
        None, description="a request's priority is one of these, each as likely; the least goes first"
    )
    adapters: Annotated[int, Field(ge=0, le=100_000)] = Field(
        0, description="LoRA adapters that conversations ask for, one each; engine.max_loras of them run at once"
    )
    accepted_tokens: Annotated[float, Field(ge=0, le=1024)] | None = Field(
        None, description="of the tokens that engine.speculative_config proposes, how many a step takes on average"
    )
    turns: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1, description="requests of a conversation: each prompt is all that was said before and something new"
    )
    turn_tokens: Lengths | None = Field(None, description="what a later turn adds to the prompt: " + LENGTHS)
    think_s: Annotated[float, Field(ge=0, le=86_400)] = Field(
        0.0, description="seconds from an answer to the user's next request"
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="each request asks for the log probabilities of so many tokens beside the one that was drawn"
    )
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="the same of every token of the prompt; judged, and not sent, for a stream has none of them"
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        1800.0, description="the load is given up after this many seconds"
    )

    @property
    def conversations(self) -> int:
        """How many conversations there are; each request is one where there are no turns."""
        return self.requests // self.turns

    @property
    def common_tokens(self) -> int:
        """How many first tokens all prompts have in common."""
        return self.shared_prefix_tokens if self.shared_prefixes == 1 else 0

    @property
    def concurrency(self) -> int:
        """The most requests that are under way at once, were nothing to hold them back."""
        return min(self.conversations, self.users or self.conversations)

    @property
    def open(self) -> bool:
        """Whether requests come at times of their own, answered or not."""
        return self.rate is not None or self.trace is not None

    @property
    def timed(self) -> bool:
        """Whether it takes a clock to tell when requests come."""
        return self.open or self.think_s > 0

    @property
    def files(self) -> dict[str, FilePart]:
        """The keys that name a file."""
        parts = {key: getattr(self, key) for key in ("trace", "prompt_tokens", "output_tokens", "turn_tokens")}
        return {key: part for key, part in parts.items() if isinstance(part, FilePart)}

    def read_files(self, folder: Path) -> Iterator[Fault]:
        """Take in the files that are named; the faults of those that can't be read.

        Raises ScenarioError with the line of a file that can't be right.
        """
        for key, part in self.files.items():
            try:
                part.read(folder)
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                yield ("load", key, "file"), f"{part.path} can't be read: {why}"


def load_faults(s: Scenario, load: Load, architecture: Architecture | None) -> Iterator[Fault]:
    """Faults that lie between keys."""
    wrong = list(_shape_faults(load)) + list(_conversation_faults(load))
    yield from wrong
    if load.users is not None and load.users > load.conversations:
        what = "requests" if load.turns == 1 else "conversations"
        yield ("load", "users"), f"{load.users} users but {load.conversations} {what}: some would have nothing to send"
    if load.trace is not None and load.trace.rows and load.requests > len(load.trace.rows):
        yield ("load", "requests"), f"the trace has {len(load.trace.rows):,} requests, got {load.requests:,}"
    for key in ("prompt_tokens", "output_tokens", "turn_tokens"):
        lengths = getattr(load, key)
        if lengths is not None and shortest(lengths) > longest(lengths):
            yield ("load", key), f"low ({lengths.low:,}) is above high ({lengths.high:,})"
    if wrong:
        return
    least = shortest(load.prompt_tokens) if load.prompt_tokens is not None else min(_prompts(load))
    if load.shared_prefix_tokens >= least:
        yield (
            ("load", "shared_prefix_tokens"),
            f"expected less than the shortest prompt ({least:,} tokens), which it is the beginning of",
        )
    if load.shared_prefixes > 1 and not load.shared_prefix_tokens:
        yield ("load", "shared_prefixes"), "there are no shared prefixes: say load.shared_prefix_tokens"
    if load.shared_prefixes > 1 and load.trace is not None:
        yield ("load", "shared_prefixes"), "a trace has its own prompts"
    if load.priorities is not None and s.engine.scheduling_policy != "priority":
        yield ("load", "priorities"), "vLLM takes none unless engine.scheduling_policy is priority"
    if load.accepted_tokens is not None:
        proposed = s.engine.speculative_config.num_speculative_tokens if s.engine.speculative_config else 0
        if load.accepted_tokens > proposed:
            yield ("load", "accepted_tokens"), f"engine.speculative_config proposes {proposed} tokens"
    if load.adapters and not s.engine.enable_lora:
        yield ("load", "adapters"), "without engine.enable_lora: true there are none"
    limit, whose = s.engine.max_model_len, "engine.max_model_len"
    if limit is None and architecture is not None:
        limit, whose = architecture.default_model_len, f"the model's own {architecture.max_len_key}"
    most = longest_request(load)
    if limit is not None and most > limit:
        what = "a conversation reaches" if load.turns > 1 else "prompt and output reach"
        yield ("load", "trace" if load.trace else "prompt_tokens"), f"{what} {most:,} tokens, above {whose} ({limit:,})"


def _shape_faults(load: Load) -> Iterator[Fault]:
    """Keys that the shape needs and does not have, or has and can't have."""
    for key, shapes in _OF_SHAPES.items():
        given = getattr(load, key) is not None
        if given != (load.shape in shapes):
            a_load = f"an {load.shape} load" if load.shape[0] in "aeiou" else f"a {load.shape} load"
            text = f"{a_load} has none" if given else f"missing: {_MISSING.get(key, f'{a_load} has one')}"
            yield ("load", key), _WHY.get((load.shape, key), text)


def _conversation_faults(load: Load) -> Iterator[Fault]:
    if load.turns > 1 and load.trace is not None:
        yield ("load", "turns"), "a trace has its own prompts"
    if load.turns > 1 and load.turn_tokens is None:
        yield ("load", "turn_tokens"), "missing: what a later turn of a conversation adds to the prompt"
    if load.turns == 1 and load.turn_tokens is not None:
        yield ("load", "turn_tokens"), "there are no later turns: say load.turns"
    if load.requests % load.turns:
        yield ("load", "requests"), f"expected whole conversations of {load.turns} turns, got {load.requests}"
    if load.think_s and load.turns == 1 and load.shape != "closed":
        yield ("load", "think_s"), "nobody sends a next request: the load is neither closed nor of several turns"


def _prompts(load: Load) -> list[int]:
    return [r.prompt_tokens for r in load.trace.rows[: load.requests]] if load.trace else []


def longest_prompt(load: Load) -> int:
    """Tokens of the longest prompt that the load can draw."""
    if load.trace is not None:
        return max(_prompts(load))
    assert load.output_tokens is not None
    return longest_request(load) - longest(load.output_tokens)


def longest_request(load: Load) -> int:
    """Tokens (prompt + output) of the longest request that the load can draw."""
    if load.trace is not None:
        return max(r.prompt_tokens + r.output_tokens for r in load.trace.rows[: load.requests])
    assert load.prompt_tokens is not None and load.output_tokens is not None
    first = longest(load.prompt_tokens) + longest(load.output_tokens)
    if load.turn_tokens is None:
        return first
    return first + (load.turns - 1) * (longest(load.turn_tokens) + longest(load.output_tokens))
