"""What vLLM has otherwise for a decoder that attends to an encoder, and what of that is not modelled.

Source: ``SchedulerConfig.__post_init__`` (vllm/config/scheduler.py), ``is_chunked_prefill_supported`` and
``is_prefix_caching_supported`` (vllm/config/model.py) and ``compute_mm_encoder_budget``
(vllm/v1/core/encoder_cache_manager.py), 0.32.
"""

from __future__ import annotations

from harness import catalog
from harness.architecture import Architecture
from harness.errors import UsageError
from harness.predict.quantization import Quantization
from harness.scenario import Scenario

# Before 0.13 the planner charged a request for what its encoder gives; 0.13 also gave every request as many blocks as
# all encoders of a step may fill (v1/kv_cache_interface.py, v1/core/sched/scheduler.py of the 0.12.0 to 0.14.0 wheels).
SINCE = "0.14"


def check(scenario: Scenario, architecture: Architecture, quantization: Quantization, tokens: int) -> None:
    """Raises UsageError where vLLM refuses an encoder-decoder or its memory is not known.

    ``tokens``: max_num_batched_tokens.
    """
    engine, name = scenario.engine, architecture.name
    if catalog.version_key(engine.vllm) < catalog.version_key(SINCE):
        raise UsageError(f"engine.vllm: cross-attention is modelled from vLLM {SINCE} on, not for {engine.vllm}")
    if scenario.on_cpu:
        raise UsageError(f"device: cpu: {name} on this computer is not modelled")
    if engine.pipeline_parallel_size > 1:
        raise UsageError(
            "engine.pipeline_parallel_size: Pipeline parallelism is not supported for this model. Supported models "
            "implement the `SupportsPP` interface."
        )
    if engine.enable_prefix_caching:
        raise UsageError("engine.enable_prefix_caching: CrossAttentionManager does not support caching")
    if engine.speculative_config is not None:
        raise UsageError("engine.speculative_config: proposed tokens beside cross-attention are not modelled")
    if engine.language_model_only or (engine.limit_mm_per_prompt or {}).get("audio") == 0:
        key = "language_model_only" if engine.language_model_only else "limit_mm_per_prompt"
        raise UsageError(f"engine.{key}: without audio {name} has nothing to write down")
    if quantization.main.dtype is None:
        raise UsageError(
            f"weights.format: which of the encoder's layers {name} has in {quantization.main.name} is not modelled"
        )
    if architecture.encoder_tokens > tokens:
        raise UsageError(
            "engine.max_num_batched_tokens: Chunked MM input disabled but max_tokens_per_mm_item "
            f"({architecture.encoder_tokens}) is larger than max_num_batched_tokens ({tokens}). Please increase "
            "max_num_batched_tokens."
        )
