"""vLLM V1's scheduler and block pool without vLLM: what a load does to a pool, in counts.

``simulate(load, limits)`` answers with the same figures that a real run yields. What is modelled: first
come first served, prefill in chunks or whole, the threshold for long prefills, the token budget,
``max_num_seqs``, admission by the whole input or the first chunk, the watermark, preemption by
recomputation, synchronous and asynchronous scheduling, prefix caching: these are counted (``scheduler``). Arbitrary
shared prefixes, priorities, windows and several block tables, draft tokens and adapters go block by block
(``stepwise``), which takes longer.
What is not modelled is refused where the scenario is read.
"""

from harness.simulate.limits import Limits, Speculation
from harness.simulate.pool import BlockPool
from harness.simulate.scheduler import Simulation, holds, simulate
from harness.simulate.step_time import TIMELESS, StepTime
from harness.simulate.timeline import Point

__all__ = [
    "TIMELESS", "BlockPool", "Limits", "Point", "Simulation", "Speculation", "StepTime", "holds", "simulate",
]  # fmt: skip
