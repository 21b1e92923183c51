"""``slo``: what the load's latencies are to stay below, in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness.scenario.fields import Fault, Part

if TYPE_CHECKING:
    from harness.scenario.scenario import Scenario

Limit = Annotated[float, Field(gt=0, le=86_400)] | None


class Slo(Part):
    """The most that a quantile of a latency may be, by the names of vLLM's benchmark."""

    ttft_mean_s: Limit = Field(None, description="from a request's coming to its first token")
    ttft_p50_s: Limit = None
    ttft_p95_s: Limit = None
    ttft_p99_s: Limit = None
    itl_mean_s: Limit = Field(None, description="from a token to the next")
    itl_p50_s: Limit = None
    itl_p95_s: Limit = None
    itl_p99_s: Limit = None
    tpot_mean_s: Limit = Field(None, description="the mean time between a request's tokens")
    tpot_p50_s: Limit = None
    tpot_p95_s: Limit = None
    tpot_p99_s: Limit = None
    e2e_mean_s: Limit = Field(None, description="from a request's coming to its last token")
    e2e_p50_s: Limit = None
    e2e_p95_s: Limit = None
    e2e_p99_s: Limit = None

    @property
    def limits(self) -> dict[str, float]:
        """What is stated: the figure's name -> the most it may be, in seconds."""
        return {name: limit for name, limit in self.model_dump().items() if limit is not None}

    @property
    def of_a_request(self) -> dict[str, float]:
        """What one request has to meet to count as good: the strictest limits of ttft, tpot (or itl) and e2e."""
        strictest: dict[str, float] = {}
        for name, limit in self.limits.items():
            latency = name.split("_")[0].replace("itl", "tpot")
            strictest[latency] = min(limit, strictest.get(latency, limit))
        return strictest


def slo_faults(s: Scenario) -> Iterator[Fault]:
    """Faults that lie between keys."""
    if s.slo is not None and not s.slo.limits:
        yield ("slo",), "expected a limit such as ttft_p95_s: 2, got none"
    if s.slo is None and s.expect.slo is not None:
        yield ("expect", "slo"), "the scenario states no slo"
