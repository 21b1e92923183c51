"""What vLLM's log states of its own configuration, by the scenario's keys.

The arguments that somebody gave ("non-default args: {...}", before 0.9 "args: Namespace(...)"), what the engine made
of them ("Initializing a V1 LLM engine (v0.19.0) with config: ..."), and lines that state one figure. Everything here is
text of unknown origin: values are taken by pattern, nothing is evaluated, and the scenario's language judges them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_ENGINE = re.compile(r"Initializing an? (?:V1 )?LLM engine \(v(?P<version>[^)\s]{1,40})\) with config: (?P<keys>.+)")
_GIVEN = re.compile(r"(?:non-default args: \{|args: Namespace\()(?P<keys>.*)")
_BANNER = re.compile(r"(?:\bversion +|server version |\bvLLM v)(\d+\.\d+(?:\.\d+)?)\S*\s*$")
_RELEASE = re.compile(r"\d{1,4}\.\d{1,4}(?:\.\d{1,4})?")
_MODEL = re.compile(r"\bmodel {1,4}(\S+)\s*$")  # beside the logo
_GPU = re.compile(r"device_name=([\w.-]{3,60}?)(?:,\S*)?\.json")
_BLOCKS = re.compile(r"# (?:GPU|cuda) blocks: (\d{1,12}), # CPU blocks: \d", re.ASCII)

# A key of the engine's configuration -> the scenario's; what it made of an argument counts before the argument.
_MADE = {
    "model": "model", "dtype": "dtype", "max_seq_len": "max_model_len", "tensor_parallel_size": "tensor_parallel_size",
    "pipeline_parallel_size": "pipeline_parallel_size", "quantization": "quantization",
    "decode_context_parallel_size": "decode_context_parallel_size", "kv_cache_dtype": "kv_cache_dtype",
    "enforce_eager": "enforce_eager", "enable_prefix_caching": "enable_prefix_caching",
    "enable_chunked_prefill": "enable_chunked_prefill", "chunked_prefill_enabled": "enable_chunked_prefill",
    "trust_remote_code": "trust_remote_code",
}  # fmt: skip
# Arguments that the scenario has by the same name.
_ARGUMENTS = (
    "model", "dtype", "max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "quantization", "kv_cache_dtype", "gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "block_size",
    "enforce_eager", "enable_prefix_caching", "enable_chunked_prefill", "enable_expert_parallel",
    "num_gpu_blocks_override", "kv_cache_memory_bytes", "trust_remote_code", "enable_lora", "max_loras",
    "max_lora_rank", "decode_context_parallel_size", "mamba_ssm_cache_dtype", "skip_mm_profiling",
    "language_model_only", "mm_encoder_tp_mode", "max_cudagraph_capture_size",
)  # fmt: skip
# Arguments that change the memory and that only a person can put into the scenario.
_UNREAD = ("speculative_config", "speculative_model", "limit_mm_per_prompt", "hf_overrides", "cpu_offload_gb",
           "cudagraph_capture_sizes")
_FIGURES = {
    "gpu_memory_utilization": re.compile(
        r"(?:(?:Desired GPU memory utilization is|desired GPU memory utilization|x gpu_memory_utilization) \(|"
        r"Memory profiling results: .* gpu_memory_utilization=)(\d(?:\.\d+)?)(?=[,).]|$)", re.ASCII
    ),
    "max_num_batched_tokens": re.compile(
        r"(?:Chunked prefill is enabled with max_num_batched_tokens=|Defaulting max_num_batched_tokens to )(\d+)",
        re.ASCII,
    ),
    "max_num_seqs": re.compile(r"Defaulting max_num_seqs to (\d+)", re.ASCII),
    "max_model_len": re.compile(r"Using max model len (\d+)", re.ASCII),
}  # fmt: skip


@dataclass(frozen=True)
class Stated:
    """What a log states. ``engine``: values as text by the scenario's keys of ``engine``; ``gpu``: as a kernel's
    configuration names it; ``num_blocks``: V0's count; ``unread``: arguments that matter and are not read."""

    version: str | None = None
    model: str | None = None
    quantization: str | None = None
    gpu: str | None = None
    num_blocks: int | None = None
    engine: dict[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


def read(lines: Iterable[str]) -> Stated:
    """The configuration of the start that ``lines`` tell of; of several engines, the first one's."""
    version = banner = gpu = beside = None
    blocks: int | None = None
    given: dict[str, str] = {}
    made: dict[str, str] = {}
    figures: dict[str, str] = {}
    unread: dict[str, None] = {}
    for line in lines:
        if match := _ENGINE.search(line):
            version = version or match["version"]
            for key, value in _values(match["keys"], _MADE):
                made.setdefault(_MADE[key], value)
        elif match := _GIVEN.search(line):
            for key, value in _values(match["keys"], (*_ARGUMENTS, *_UNREAD)):
                if key in _UNREAD:
                    unread |= {key: None} if value not in ("0", "0.0", "{") else {}  # "{" of "{}"
                else:
                    given.setdefault(key, value)
        elif match := _BLOCKS.search(line):
            blocks = min(blocks or int(match[1]), int(match[1]))
        if banner is None and (match := _BANNER.search(line)):
            banner = match[1]
        if beside is None and "█" in line and (match := _MODEL.search(line)):
            beside = match[1]
        if gpu is None and (match := _GPU.search(line)):
            gpu = match[1].replace("_", " ")
        for key, pattern in _FIGURES.items():
            if key not in figures and (match := pattern.search(line)):
                figures[key] = match[1]
    engine = {**figures, **given, **made}
    if engine.get("enable_lora") != "True":  # a list of all arguments has them all the same
        engine = {key: value for key, value in engine.items() if not key.startswith("max_lora")}
    release = _RELEASE.match(version or banner or "")
    return Stated(
        version=release[0] if release else None,
        model=engine.pop("model", None) or beside,
        quantization=engine.pop("quantization", None),
        gpu=gpu,
        num_blocks=blocks,
        engine={key: value.removeprefix("torch.") for key, value in engine.items()},
        unread=tuple(unread),
    )


def _values(text: str, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(key, value as text) of those ``keys`` that stand in "a=1, b='x'" or in "'a': 1, 'b': 'x'"; None is no value."""
    for key in keys:
        match = re.search(rf"(?:^|[{{(,]\s*)'?{key}(?:=|': ?)(?:'([^']*)'|\"([^\"]*)\"|([^,\s)}}]+))", text)
        value = next((g for g in match.groups() if g is not None), "") if match else ""
        if value not in ("", "None"):
            yield key, value
