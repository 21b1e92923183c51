"""What bounds the scheduler of a scenario's engine."""

from __future__ import annotations

from harness.errors import UsageError
from harness.predict.settings import Settings
from harness.scenario import Engine
from harness.simulate import Limits


def limits_of(engine: Engine, settings: Settings, num_blocks: int) -> Limits:
    """The limits that the scenario's engine, resolved to ``settings``, has on a pool of ``num_blocks``.

    Raises UsageError where vLLM would refuse them (``SchedulerConfig.verify_max_model_len``, 0.32).
    """
    tokens, longest = settings.max_num_batched_tokens, settings.max_model_len
    if tokens < longest and not engine.enable_chunked_prefill:
        raise UsageError(
            f"engine.enable_chunked_prefill: without it max_num_batched_tokens ({tokens:,}) must be at least "
            f"max_model_len ({longest:,})"
        )
    if engine.long_prefill_token_threshold > longest:
        raise UsageError(
            f"engine.long_prefill_token_threshold: {engine.long_prefill_token_threshold:,} is above max_model_len "
            f"({longest:,})"
        )
    return Limits(
        num_blocks=num_blocks,
        block_size=settings.block_size * settings.decode_context_parallel_size,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_model_len=settings.max_model_len,
        enable_prefix_caching=settings.enable_prefix_caching,
        enable_chunked_prefill=engine.enable_chunked_prefill,
        long_prefill_token_threshold=engine.long_prefill_token_threshold,
        scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl,
        watermark=engine.watermark,
        async_scheduling=engine.async_scheduling,
    )
