"""The batch sizes for which vLLM captures CUDA graphs.

Source: ``VllmConfig._set_cudagraph_sizes``, vllm/config/vllm.py, 0.32 (the same since 0.12 but for what engines.json
says of versions).
"""

from __future__ import annotations

from harness import catalog
from harness.catalog import EngineDefaults
from harness.errors import UsageError
from harness.scenario.engine import Engine

_ARGUMENTS_SINCE = "0.12"  # before, an argument of another name
_USUAL, _BLACKWELL = 512, 10  # the largest size that is captured by default; the compute capability of B200 and B300
# vllm/model_executor/models/config.py
_OWN_LARGEST = {"GptOssForCausalLM": 1024}


def capture_sizes(
    engine: Engine, defaults: EngineDefaults, name: str, capability: int | None, seqs: int, tokens: int, query: int
) -> tuple[int, ...]:
    """The sizes in tokens, in ascending order.

    ``name``: of the model's class; ``query``: tokens of one request in a decode. Raises UsageError as vLLM would.
    """
    given, largest = engine.cudagraph_capture_sizes, engine.max_cudagraph_capture_size
    if (given or largest) and catalog.version_key(engine.vllm) < catalog.version_key(_ARGUMENTS_SINCE):
        key = "cudagraph_capture_sizes" if given else "max_cudagraph_capture_size"
        raise UsageError(f"engine.{key}: vLLM has it from {_ARGUMENTS_SINCE} on, not {engine.vllm}")
    if given:
        sizes = sorted(n for n in set(given) if n <= tokens)
        if largest is not None and [largest] != sizes[-1:]:
            raise UsageError(
                f"engine.max_cudagraph_capture_size: customized max_cudagraph_capture_size(={largest}) should be "
                f"consistent with the max value of cudagraph_capture_sizes(={max(sizes, default=0)})"
            )
        return tuple(sizes)
    decodes: list[int] = []
    largest = largest or _OWN_LARGEST.get(name)
    if largest is None:
        ceiling = defaults.largest_capture_blackwell if capability == _BLACKWELL else _USUAL
        largest = min(2 * seqs * query, ceiling)
        if defaults.captures_uniform_decodes:
            decodes = _decodes(seqs, query, largest, ceiling)
    largest = min(largest, tokens)
    sizes = [*_steps(largest), *(n for n in decodes if n <= tokens)]
    if tokens <= largest:
        sizes.append(tokens)
    return tuple(sorted(set(sizes)))


def _steps(largest: int) -> list[int]:
    """1, 2, 4, every 8th below 256, every 16th from there."""
    few = [n for n in (1, 2, 4) if n <= largest]
    return [*few, *range(8, min(256, largest + 1), 8), *range(256, largest + 1, 16)]


def _decodes(seqs: int, query: int, largest: int, ceiling: int) -> list[int]:
    """Batches of nothing but decodes."""
    if query == 1:
        return [seqs] if seqs <= largest else []
    most = min(seqs, ceiling)
    return [n * query for n in (*_steps(most), most) if n * query <= largest]
