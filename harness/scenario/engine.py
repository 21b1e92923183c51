"""``engine``: vLLM's arguments by vLLM's own names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness import catalog
from harness.errors import UsageError
from harness.scenario.fields import LARGEST_BYTES, Fault, Part, Size, Tokens
from harness.scenario.speculative import Speculative
from harness.scenario_text import show

if TYPE_CHECKING:
    from harness.scenario.scenario import Scenario


CaptureSize = Annotated[int, Field(ge=1, le=65_536)]
Modality = Literal["image", "video", "vision_chunk", "audio"]


class Engine(Part):
    """vLLM's arguments by vLLM's own names; what is not given takes that version's default."""

    vllm: Annotated[str, Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){1,2}$")] = Field(
        catalog.DEFAULT_VLLM, description="a version in quotes, such as '0.33' or '0.32.0'"
    )
    entrypoint: Literal["server", "llm"] = Field(
        "server", description="server: vllm serve; llm: the LLM class, whose default max_num_batched_tokens is larger"
    )
    max_model_len: Tokens | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "nvfp4"] = "auto"
    mamba_ssm_cache_dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="number type of recurrent states; auto: as the model's config says"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    block_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1, le=65_536)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    pipeline_parallel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    pp_layer_partition: Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1)] | None = Field(
        None, description="layers of each pipeline stage, such as [41, 39] (VLLM_PP_LAYER_PARTITION)"
    )
    distributed_executor_backend: Literal["mp", "ray"] | None = Field(
        None, description="how the workers of several GPUs are started; vLLM's own choice unless given"
    )
    decode_context_parallel_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="so many of the tensor-parallel ranks share the tokens of a request between them"
    )
    data_parallel_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="engines of the same model; with experts they share the experts and have attention of their own"
    )
    enable_expert_parallel: bool = Field(False, description="ranks divide the number of experts, not each expert")
    speculative_config: Speculative | None = Field(
        None, description="such as {model: llama-3.2-1b, num_speculative_tokens: 5} or {method: ngram, ...}"
    )
    enable_lora: bool = False
    max_loras: Annotated[int, Field(ge=1, le=4096)] = Field(1, description="slots for adapters; of enable_lora")
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(16, description="of enable_lora")
    enforce_eager: bool = False
    max_cudagraph_capture_size: CaptureSize | None = Field(
        None, description="the largest batch, in tokens, of which a CUDA graph is captured; from vLLM 0.12 on"
    )
    cudagraph_capture_sizes: Annotated[list[CaptureSize], Field(min_length=1, max_length=4096)] | None = Field(
        None, description="all of them, such as [1, 2, 4, 8]; from vLLM 0.12 on"
    )
    enable_prefix_caching: bool | None = Field(None, description="as the version has it by default for such a model")
    kv_cache_memory_bytes: Size | None = None
    num_gpu_blocks_override: Annotated[int, Field(ge=2, le=2**40)] | None = None
    trust_remote_code: bool = False
    arguments: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,79}$")], bool | int | float | str] = Field(
        {}, description="further arguments by vLLM's names, passed on as they are; the prediction does not know them"
    )
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        0, description="the most prompt tokens that one request may take in a step beside others; 0: no such limit"
    )
    scheduler_reserve_full_isl: bool = Field(
        True, description="a request is admitted only when its whole input fits the free blocks"
    )
    watermark: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="the share of the pool that an admission must leave free"
    )
    async_scheduling: bool = Field(
        False, description="simulate the scheduler one step ahead of the model, as a GPU's vLLM has it by default"
    )
    language_model_only: bool = Field(False, description="a multimodal model's text alone: no tower is made")
    limit_mm_per_prompt: dict[Modality, Annotated[int, Field(ge=0, le=999)]] | None = Field(
        None, description="the most items of each kind in a prompt; 0 of all kinds: no tower is made"
    )
    mm_encoder_tp_mode: Literal["weights", "data"] = Field(
        "weights", description="whether ranks split the vision tower's weights, or each holds them whole"
    )
    skip_mm_profiling: bool = Field(False, description="profile a multimodal model without its vision tower")
    scheduling_policy: Literal["fcfs", "priority"] = Field(
        "fcfs", description="first come, first served; or by load.priorities, who also decide who is preempted"
    )


# What bench says itself, what loads code that the scenario does not show, and what reaches out of the run: other
# addresses, other files, secrets on a command line.
_OURS = (
    "model", "served_model_name", "host", "port", "uds", "api_key", "tokenizer", "scheduler_cls", "worker_cls",
    "worker_extension_cls", "load_format", "skip_tokenizer_init", "middleware", "root_path", "config", "download_dir",
    "tool_parser_plugin", "reasoning_parser_plugin", "logits_processors", "io_processor_plugin", "hf_token",
    "kv_transfer_config", "ec_transfer_config", "allowed_local_media_path", "log_config_file", "headless",
    "model_class_overrides", "model_loader_extra_config", "kv_events_config", "weight_transfer_config", "lora_modules",
    "profiler_config", "additional_config", "otlp_traces_endpoint", "master_addr", "master_port", "grpc",
)  # fmt: skip
_WHOLE_NAMES = ("reasoning_parser",)  # an argument by itself, though one of those above begins like it
# Arguments that vLLM takes in compilation_config as well.
_OF_COMPILATION = ("cudagraph_capture_sizes", "max_cudagraph_capture_size")
# Names that a later vLLM may have for more of the same, also inside a value that is a JSON mapping.
_REACHES_OUT = re.compile(r"(?:^|_)(?:plugin|cls|path|dir|addr|address|port|token|key|ssl_\w+)$|_plugins?_|^debug_dump")


def _argument_faults(engine: Engine) -> Iterator[Fault]:
    for name, value in engine.arguments.items():
        at = ("engine", "arguments", name)
        # vLLM's parser takes the beginning of a name for the name.
        ours = name not in _WHOLE_NAMES and any(own.startswith(name) for own in _OURS)
        field = next((key for key in Engine.model_fields if key.startswith(name)), None)
        if field and (field == name or not ours):
            yield at, f"a key of the scenario itself: say engine.{field}"
        elif ours or _REACHES_OUT.search(name):
            yield at, "bench sets this itself, or it would load code that the scenario hides"
        elif isinstance(value, str) and value.startswith("-"):
            yield at, "a value that begins with '-' would be read as an argument"
        elif isinstance(value, str) and (own := next((k for k in _keys(value) if k in _OF_COMPILATION), None)):
            yield at, f"{own} in it is a key of the scenario itself: say engine.{own}"
        elif isinstance(value, str) and (hidden := next(filter(_REACHES_OUT.search, _keys(value)), None)):
            yield at, f"{show(hidden)} in it would load code that the scenario hides, or reach out of the run"


def _keys(value: str) -> Iterator[str]:
    """The keys of a value that is JSON, at any depth."""
    try:
        left = [json.loads(value)]
    except (ValueError, RecursionError):
        return
    while left:
        data = left.pop()
        if isinstance(data, dict):
            yield from (key.replace("-", "_") for key in data)
            left += data.values()
        elif isinstance(data, list):
            left += data


def engine_faults(s: Scenario) -> Iterator[Fault]:
    """Faults that lie between keys."""
    yield from _argument_faults(s.engine)
    tp, pp, dp, count = s.tensor_parallel_size, s.engine.pipeline_parallel_size, s.engine.data_parallel_size, s.count
    if tp * pp * dp != count:
        words = "tensor_parallel_size x pipeline_parallel_size" + (" x data_parallel_size" if dp > 1 else "")
        product = f"{tp} x {pp}" + (f" x {dp}" if dp > 1 else "")
        yield (
            ("engine", "tensor_parallel_size" if s.engine.tensor_parallel_size else "pipeline_parallel_size"),
            f"{words} is {product} = {tp * pp * dp}, but "
            + (f"gpu.count is {count}" if s.gpu else "device: cpu is one device"),
        )
    stages = s.engine.pp_layer_partition
    if stages is not None and len(stages) != pp:
        yield ("engine", "pp_layer_partition"), f"len(partitions)={len(stages)} does not match pp_size={pp}."
    if not s.engine.enable_lora:
        for key in ("max_loras", "max_lora_rank"):
            if key in s.engine.model_fields_set:
                yield ("engine", key), "without enable_lora: true there are no adapters"
    elif s.on_cpu:
        yield ("engine", "enable_lora"), "adapters are not modelled on this computer"
    block, multiple = s.engine.block_size, 32 if s.on_cpu else 16
    if block is not None and block % multiple:
        backend = "the CPU backend pages" if s.on_cpu else "GPU attention backends page"
        yield ("engine", "block_size"), f"{backend} in multiples of {multiple} tokens, got {block}"
    if s.engine.async_scheduling and s.on_cpu:
        yield ("engine", "async_scheduling"), "vLLM on this computer schedules synchronously"
    size = s.engine.kv_cache_memory_bytes
    if size is not None and size > LARGEST_BYTES:
        yield ("engine", "kv_cache_memory_bytes"), f"expected at most 1 PiB, got {size:,} bytes"
    try:
        catalog.engine_defaults(s.engine.vllm)
    except UsageError as error:
        yield ("engine", "vllm"), str(error)
