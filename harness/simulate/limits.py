"""What bounds the scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from harness.simulate.tables import FULL, Table


@dataclass(frozen=True)
class Speculation:
    """Draft tokens: ``tokens`` a step, of which ``accepted`` are right on average (a part of the load, not of the
    engine). ``lookahead``: slots that the drafter writes past them; ``rows``: tokens of the budget that it takes for
    itself; ``drops_block``: it needs the last block of a found prefix computed again.

    Source: ``num_lookahead_tokens`` (vllm/config/vllm.py), ``max_num_new_slots_for_drafting`` and
    ``use_eagle_block_drop`` (vllm/config/speculative.py), 0.32.
    """

    tokens: int = 0
    accepted: float = 0.0
    lookahead: int = 0
    rows: int = 0
    drops_block: bool = False

    def right(self, guesses: int) -> int:
        """Of the drafts of a request's guess number ``guesses`` (from 0), how many are right: as even as can be."""
        hundredths = round(100 * self.accepted)
        return (guesses + 1) * hundredths // 100 - guesses * hundredths // 100


@dataclass(frozen=True)
class Limits:
    """What bounds the scheduler, by vLLM's names. ``num_blocks`` counts the null block, as vLLM does.

    ``tables``: the model's block tables where it has other than one of full attention. ``encoder_tokens``: of each
    request, where there is an encoder.
    ``in_flight_tokens``: scheduled and not yet settled, at most (``max_in_flight_tokens``).
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0  # 0: none
    cuts_lone_prefill: bool = False  # the threshold holds for a request that is alone, too: before 0.31
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    async_scheduling: bool = False
    scheduling_policy: str = "fcfs"
    max_loras: int = 0  # adapters in a step, at most; 0: none are served
    speculation: Speculation = Speculation()
    tables: tuple[Table, ...] = ()
    encoder_tokens: int = 0

    @property
    def in_flight_tokens(self) -> int:
        """``VllmConfig.max_in_flight_tokens`` (vllm/config/vllm.py, 0.32), without pipeline stages."""
        return self.max_num_batched_tokens * (1 + self.async_scheduling)

    @property
    def block_tables(self) -> tuple[Table, ...]:
        """The model's block tables."""
        return self.tables or (Table(FULL, self.block_size),)
