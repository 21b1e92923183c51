"""How many ranks can share a model: vLLM's refusals, with the scenario's key and the nearest right numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from harness.architecture import Architecture
from harness.errors import UsageError
from harness.scenario import Scenario

_MOST = 1024


def check_ranks(scenario: Scenario, architecture: Architecture) -> None:
    """Raises UsageError where the scenario's ranks can't share the model, or a request's tokens."""
    engine, tp = scenario.engine, scenario.tensor_parallel_size
    pp, dp, dcp = engine.pipeline_parallel_size, engine.data_parallel_size, engine.decode_context_parallel_size
    if pp > architecture.layers:
        raise UsageError(
            f"engine.pipeline_parallel_size: {pp} is more than the model's {architecture.layers} layers"
        )
    stages = engine.pp_layer_partition or ()
    if stages and sum(stages) != architecture.layers:
        raise UsageError(
            f"engine.pp_layer_partition: sum(partitions)={sum(stages)} does not match "
            f"num_hidden_layers={architecture.layers}."
        )

    def split(ranks: int) -> None:
        sees, tower_ranks = tower_split(scenario, architecture, ranks)
        expert_ranks = 1 if engine.enable_expert_parallel else ranks * dp
        architecture.check_split(ranks, tower_ranks if sees else 1, expert_ranks)

    if engine.tensor_parallel_size:
        _check("engine.tensor_parallel_size", tp, range(1, _MOST + 1), split)
    else:
        _check("gpu.count", tp, range(1, _MOST // (pp * dp) + 1), split, each=pp * dp)
    _check(
        "engine.decode_context_parallel_size", dcp, range(1, tp + 1),
        lambda ranks: check_context_split(architecture, tp, ranks),
    )  # fmt: skip


def _check(key: str, asked: int, choice: Iterable[int], refuse: Callable[[int], None], each: int = 1) -> None:
    """``refuse`` what was ``asked``, and say which of ``choice`` are nearest to it and not refused, times ``each``."""
    try:
        refuse(asked)
    except UsageError as error:
        good = [n for n in choice if _passes(refuse, n)]
        near = [*[n for n in good if n < asked][-1:], *[n for n in good if n > asked][:1]]
        would_do = f"; {' or '.join(str(n * each) for n in near)} would do" if near else ""
        raise UsageError(f"{key}: {str(error).rstrip('.')}{would_do}") from None


def _passes(refuse: Callable[[int], None], ranks: int) -> bool:
    try:
        refuse(ranks)
    except UsageError:
        return False
    return True


def tower_split(scenario: Scenario, architecture: Architecture, tp: int) -> tuple[bool, int]:
    """(whether a tower is made, how many of ``tp`` ranks share it)."""
    engine, tower = scenario.engine, architecture.tower
    if tower is None or engine.language_model_only:
        return False, tp
    if engine.pipeline_parallel_size > 1 and not tower.staged:
        raise UsageError(
            f"engine.pipeline_parallel_size: what the stages have of {architecture.name}'s encoder is not modelled"
        )
    limits = {str(kind): count for kind, count in (engine.limit_mm_per_prompt or {}).items()}
    return tower.is_held(limits), tower.ranks(tp, engine.mm_encoder_tp_mode)


def check_context_split(architecture: Architecture, tp: int, dcp: int) -> None:
    """Raises UsageError, in vLLM's words, where ``dcp`` of ``tp`` ranks can't share a request's tokens."""
    if dcp == 1:
        return
    if tp % dcp:
        raise UsageError(f"tp_size={tp} must be divisible by dcp_size={dcp}.")
    if any(k.window is not None for k in architecture.kv_kinds):
        raise UsageError("DCP not support sliding window.")
    kv_heads = architecture.kv_heads
    if architecture.mla is not None:
        return
    if tp <= kv_heads:
        raise UsageError(
            f"Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` ({tp}) to be greater than the "
            f"model's total number of KV heads ({kv_heads}). Increase `--tensor-parallel-size` or set "
            "`--decode-context-parallel-size 1`."
        )
    if dcp > tp // kv_heads:
        raise UsageError(
            f"`--decode-context-parallel-size` ({dcp}) exceeds the maximum supported value ({tp // kv_heads}) for "
            f"`--tensor-parallel-size` ({tp}) and {kv_heads} model KV heads."
        )
    if architecture.heads // kv_heads % dcp:
        raise UsageError(
            f"The model's number of query heads per KV head ({architecture.heads // kv_heads}) must be divisible by "
            f"`--decode-context-parallel-size` ({dcp}) for GQA/MQA."
        )
