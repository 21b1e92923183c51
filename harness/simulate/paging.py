"""The same load on three ways of allocating the KV cache: what paging saves, and what a page size costs.

The contiguous allocators are those that PagedAttention was measured against (Kwon et al., "Efficient Memory
Management for Large Language Model Serving with PagedAttention", SOSP 2023, section 6.1): one reserves
max_model_len tokens for each request ("Orca (Max)"), one the next power of two of what the request will
reach, by a buddy allocator ("Orca (Pow2)", which has to know the output's length beforehand). Both hold a
request's whole reservation from its admission to its end, so they never preempt. The scheduler around
them is the same; prefix caching is off, for contiguous memory shares nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.errors import UsageError
from harness.scenario import Load
from harness.simulate.limits import Limits
from harness.simulate.lockstep import Sequence
from harness.simulate.scheduler import Run, by_blocks, check
from harness.simulate.step_time import TIMELESS, StepTime
from harness.simulate.tables import described

BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Use:
    """What an allocator did with the pool. Tokens are means over the steps of the load.

    ``block_size`` is None for a contiguous allocator; ``at_once`` the most requests that ran together.
    """

    allocator: str
    block_size: int | None
    at_once: int
    reserved_tokens: float
    used_tokens: float
    preemptions: int
    steps: int

    @property
    def wasted_share(self) -> float:
        """Of what is reserved, the share that holds no token's KV."""
        return 1 - self.used_tokens / self.reserved_tokens


def compare(load: Load, limits: Limits, step_time: StepTime = TIMELESS) -> tuple[Use, ...]:
    """The load on as many tokens of KV as ``limits`` have, in each way of allocating; ``step_time`` as in ``simulate``.

    An allocator that can't serve the longest request at all is left out. Raises UsageError where vLLM's
    own blocks can't, and where counting does not tell what the load does.
    """
    if limits.tables:
        raise UsageError(f"paging is compared on full attention alone; this model has {described(limits.tables)}")
    check(load, limits)
    load = load.model_copy(update={"shared_prefix_tokens": 0, "shared_prefixes": 1})
    limits = replace(limits, enable_prefix_caching=False)
    if by_blocks(load, limits):
        raise UsageError(
            "paging is compared by a scheduler without priorities, adapters, proposed tokens and (where asynchronous) "
            "long_prefill_token_threshold"
        )
    tokens = (limits.num_blocks - 1) * limits.block_size

    def paged(size: int) -> Limits:
        return replace(limits, block_size=size, num_blocks=tokens // size + 1)

    # A block that takes a whole request is a reservation of max_model_len.
    whole = paged(limits.max_model_len)
    uses = [
        _use("contiguous, max_model_len", None, _Metered, load, whole, step_time),
        _use("contiguous, power of two", None, _PowersOfTwo, load, replace(whole, num_blocks=tokens + 1), step_time),
    ]
    uses += [_use(f"blocks of {size}", size, _Metered, load, paged(size), step_time) for size in BLOCK_SIZES]
    return tuple(use for use in uses if use)


def _use(
    allocator: str, size: int | None, kind: type[_Metered], load: Load, limits: Limits, step_time: StepTime
) -> Use | None:
    if limits.num_blocks < 2:
        return None
    try:
        if size is not None:
            check(load, limits)
        run = kind(load, limits, limits.num_blocks, step_time)
        run.finish()
    except UsageError:
        return None
    return Use(
        allocator, size, run.peak_running, run.reserved_sum / run.steps, run.used_sum / run.steps, run.preemptions,
        run.steps,
    )  # fmt: skip


class _Metered(Run):
    """A run that adds up the tokens reserved and the tokens that have KV after each schedule."""

    def __init__(self, load: Load, limits: Limits, num_blocks: int, step_time: StepTime) -> None:
        super().__init__(load, limits, num_blocks, step_time)
        self.reserved_sum = self.used_sum = 0
        self._used = self._seen = 0  # tokens with KV of all that run; tokens scheduled up to the last step

    def _skip_ahead(self) -> None:
        steps, used, held, running = self.steps, self._used, self.pool.used, len(self.running)
        super()._skip_ahead()
        before_last = self.steps - steps - 1  # the last one of them was observed
        if before_last > 0:
            self.decoding.clock -= before_last + 1
            taken = self.decoding.blocks_over(before_last)
            self.decoding.clock += before_last + 1
            self.used_sum += before_last * used + before_last * (before_last + 1) // 2 * running
            self.reserved_sum += self._reserved_over(before_last, before_last * held + taken)

    def _reserved_over(self, steps: int, blocks: int) -> int:
        """Tokens reserved in ``steps`` steps, in which ``blocks`` blocks are held all together."""
        return blocks * self.limits.block_size

    def _observe(self) -> None:
        super()._observe()
        self._used += self.tokens_scheduled - self._seen
        self._seen = self.tokens_scheduled
        self.used_sum += self._used
        self.reserved_sum += self._reserved()

    def _reserved(self) -> int:
        return self.pool.used * self.limits.block_size

    def _free(self, seq: Sequence, *, for_good: bool = False) -> None:
        self._used -= seq.computed
        super()._free(seq, for_good=for_good)


class _PowersOfTwo(_Metered):
    """Reserves for each request the power of two that its prompt and output reach, in one piece.

    ``limits`` are those of the other contiguous allocator, but for a pool that is never short: what can be
    admitted is up to the buddy allocator.
    """

    def __init__(self, load: Load, limits: Limits, num_blocks: int, step_time: StepTime) -> None:
        super().__init__(load, limits, num_blocks, step_time)
        self._buddies = Buddies(num_blocks - 1)
        self._pieces: dict[int, tuple[int, int]] = {}  # request -> its piece

    def _reserved(self) -> int:
        return sum(size for _, size in self._pieces.values())

    def _reserved_over(self, steps: int, blocks: int) -> int:
        return steps * self._reserved()

    def _would_admit(self, seq: Sequence, budget: int) -> bool:
        return super()._admissible(seq, budget) > 0 and self._buddies.fits(_power_of_two(seq.end))

    def _admissible(self, seq: Sequence, budget: int) -> int:
        new = super()._admissible(seq, budget)
        if not new:
            return 0
        size = _power_of_two(seq.end)
        piece = self._buddies.take(size)
        if piece is None:
            if not self.running:
                raise UsageError(f"no piece of {size:,} tokens in the pool")
            return 0
        self._pieces[seq.index] = (piece, size)
        return new

    def _free(self, seq: Sequence, *, for_good: bool = False) -> None:
        self._buddies.give_back(*self._pieces.pop(seq.index))
        super()._free(seq, for_good=for_good)


def _power_of_two(tokens: int) -> int:
    return 1 << (tokens - 1).bit_length()


class Buddies:
    """A buddy allocator over ``size`` units: pieces are powers of two, and lie at multiples of their size."""

    def __init__(self, size: int) -> None:
        self._free: dict[int, set[int]] = {}  # size of a piece -> where such pieces lie
        start = 0
        for power in reversed(range(size.bit_length())):
            if size >> power & 1:
                self._free[1 << power] = {start}
                start += 1 << power

    def fits(self, size: int) -> bool:
        """Whether a piece of ``size`` can be had."""
        return any(places and s >= size for s, places in self._free.items())

    def take(self, size: int) -> int | None:
        """The place of a piece of ``size``, a power of two, split off the smallest that will do; None: none will."""
        fitting = min((s for s, places in self._free.items() if places and s >= size), default=None)
        if fitting is None:
            return None
        place = self._free[fitting].pop()
        while fitting > size:
            fitting //= 2
            self._free.setdefault(fitting, set()).add(place + fitting)
        return place

    def give_back(self, place: int, size: int) -> None:
        """Free a piece, joined with its buddy as long as that is free too."""
        while place ^ size in self._free.get(size, ()):
            self._free[size].discard(place ^ size)
            place, size = min(place, place ^ size), 2 * size
        self._free.setdefault(size, set()).add(place)
