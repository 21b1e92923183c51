"""What bounds the scheduler of a scenario's engine."""

from __future__ import annotations

from harness.architecture import CHUNKED, COMPRESSOR, CROSS, SLIDING, STATE, Architecture, from_config
from harness.errors import UsageError
from harness.predict.kv_groups import Group, groups
from harness.predict.settings import Settings, settings
from harness.scenario import Engine, Load, Scenario
from harness.simulate import Limits, Speculation
from harness.simulate import tables as kinds

# The others keep every token.
_KINDS = {
    SLIDING: kinds.SLIDING, COMPRESSOR: kinds.SLIDING, CHUNKED: kinds.CHUNKED, STATE: kinds.STATE, CROSS: kinds.CROSS
}


def bounds(scenario: Scenario, num_blocks: int) -> Limits:
    """:func:`limits_of` the scenario's engine and model."""
    architecture = from_config(scenario.config())
    return limits_of(scenario.engine, settings(scenario, architecture), num_blocks, architecture, scenario.load)


def not_simulated(architecture: Architecture, chosen: Settings, load: Load | None) -> str | None:
    """What the simulated scheduler lacks for this model and load, or None."""
    if chosen.data_parallel_size > 1:
        return f"the load is spread over {chosen.data_parallel_size} engines, one is simulated"
    if chosen.num_speculative_tokens and (load is None or load.accepted_tokens is None):
        return "how many proposed tokens are taken depends on the models and the text: load.accepted_tokens tells it"
    if chosen.draft and chosen.draft.takes and len(groups(architecture, chosen)) > 1:
        return "a drafter that is fed with hidden states, beside several block tables, is not simulated"
    if chosen.model_runner == "v0":
        return "the scheduler of V0 (vLLM before 0.8) is not simulated"
    if load and load.adapters and not chosen.defaults.skipped_keep_their_place:
        return "how vLLM before 0.31 queues requests that wait for an adapter's slot is not simulated"
    if chosen.enable_prefix_caching and any(g.kind == STATE for g in groups(architecture, chosen)):
        return (
            "prefix caching of layers that keep a state is not simulated (engine.enable_prefix_caching: false turns it "
            "off)"
        )
    return None


def limits_of(
    engine: Engine, chosen: Settings, num_blocks: int, architecture: Architecture, load: Load | None
) -> Limits:
    """The limits that the scenario's engine, resolved to ``chosen``, has on a pool of ``num_blocks`` under ``load``.

    Raises UsageError where vLLM would refuse them (``SchedulerConfig.verify_max_model_len``, 0.32).
    """
    tokens, longest = chosen.max_num_batched_tokens, chosen.max_model_len
    threshold = 0 if architecture.encoder_tokens else engine.long_prefill_token_threshold
    if tokens < longest and not chosen.enable_chunked_prefill:
        raise UsageError(
            f"engine.enable_chunked_prefill: without it max_num_batched_tokens ({tokens:,}) must be at least "
            f"max_model_len ({longest:,})"
        )
    if threshold > longest:
        raise UsageError(
            f"engine.long_prefill_token_threshold: {threshold:,} is above max_model_len ({longest:,})"
        )
    if 0 < threshold <= chosen.num_speculative_tokens:
        raise UsageError(
            f"engine.long_prefill_token_threshold: {threshold:,} is less than a proposal's "
            f"{chosen.num_speculative_tokens + 1:,} rows (vLLM 0.32 fails an assertion)"
        )
    return Limits(
        num_blocks=num_blocks,
        block_size=chosen.block_size * chosen.decode_context_parallel_size,
        max_num_seqs=chosen.max_num_seqs,
        max_num_batched_tokens=chosen.max_num_batched_tokens,
        max_model_len=chosen.max_model_len,
        enable_prefix_caching=chosen.enable_prefix_caching,
        enable_chunked_prefill=chosen.enable_chunked_prefill,
        long_prefill_token_threshold=threshold,
        cuts_lone_prefill=chosen.defaults.cuts_lone_prefill,
        scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl,
        watermark=engine.watermark,
        async_scheduling=engine.async_scheduling,
        scheduling_policy=engine.scheduling_policy,
        max_loras=chosen.max_loras,
        speculation=_speculation(engine, load),
        tables=_tables(groups(architecture, chosen), architecture.encoder_tokens),
        encoder_tokens=architecture.encoder_tokens,
    )


def _speculation(engine: Engine, load: Load | None) -> Speculation:
    """A drafter writes a slot for each token that it proposes; a model of its own takes one token of the budget a
    request; one that is fed with hidden states takes none, but needs those of a found prefix's last block again."""
    asked = engine.speculative_config
    if asked is None:
        return Speculation()
    accepted = load.accepted_tokens if load and load.accepted_tokens else 0.0
    lookahead = asked.num_speculative_tokens if asked.drafts else 0
    follows = asked.takes_states
    rows = int(asked.drafts and not follows)
    return Speculation(asked.num_speculative_tokens, accepted, lookahead, rows, drops_block=follows)


def _tables(found: tuple[Group, ...], encoder_tokens: int) -> tuple[kinds.Table, ...]:
    """The block tables; none to tell where there is one that keeps every token."""
    tables = tuple(
        kinds.Table(
            _KINDS.get(g.kind, kinds.FULL), g.block_size * g.ranks, encoder_tokens if g.kind == CROSS else g.window or 0
        ) for g in found
    )  # fmt: skip
    return () if [t.kind for t in tables] == [kinds.FULL] else tables
