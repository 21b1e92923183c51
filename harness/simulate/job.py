"""A request of the stepwise scheduler, and what it has in a step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from harness.simulate.latency import Come
from harness.simulate.prefixes import Names
from harness.simulate.tables import Row
from harness.traffic import Request


class Job(Come):
    """A request under way, in tokens: ``tokens`` there are; ``computed`` have KV, or will have it when the steps under
    way have ended; ``placeholders`` are to come from those steps, ``in_flight`` are computed by them; of those,
    ``stale`` were so when it was preempted. ``drafts`` are guesses for the next step, ``guesses`` counts their steps.

    ``rank``: who goes first under the policy ``priority``. ``seat``: counts admissions. ``since``: where it is steady,
    the clock's reading when it became so.
    """

    __slots__ = (
        "adapter", "computed", "decodes", "drafts", "end", "ended", "guesses", "in_flight", "junction", "named",
        "names", "placeholders", "prefills", "prompt", "ran", "rank", "rows", "runs", "seat", "since", "stale",
        "tokens",
    )  # fmt: skip

    def __init__(
        self, request: Request, came_ps: int, later: deque[Request], number: int, names: Names, tables: int
    ) -> None:
        super().__init__(request, came_ps, later)
        self.rank, self.adapter = (request.priority, number), request.adapter
        self.names = names
        self.prompt = self.tokens = request.prompt_tokens
        self.end = request.prompt_tokens + request.output_tokens
        self.computed = self.placeholders = self.drafts = self.in_flight = self.stale = self.guesses = 0
        self.junction = self.seat = 0
        self.since: int | None = None
        self.rows: list[Row] = [[] for _ in range(tables)]
        self.named = [0] * tables  # blocks from the start that have their names, or never will
        self.ran = self.runs = self.ended = False
        self.prefills, self.decodes = True, False  # computes what is known already; had a token in its last step


class Part(NamedTuple):
    """What one request has in a step: ``drafts`` of its ``tokens`` are guesses; ``samples``: it gets new tokens."""

    job: Job
    tokens: int
    drafts: int
    padded: bool
    samples: bool


@dataclass
class UnderWay:
    """A step: what is in it, beside a token for each of so many that are ``steady``, and when it ends."""

    parts: list[Part]
    steady: int
    ended_ps: int
