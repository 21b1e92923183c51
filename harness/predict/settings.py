"""What vLLM will run with: every argument resolved, by the version's own defaults.

Sources: ``EngineArgs.get_batch_defaults`` and ``_set_default_max_num_seqs_and_batched_tokens_args``
(vllm/engine/arg_utils.py), ``_get_and_verify_max_len`` and ``_get_and_verify_dtype`` (vllm/config/model.py),
``VllmConfig.use_v2_model_runner`` (vllm/config/vllm.py), all of vLLM 0.32.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from harness import catalog
from harness.architecture import Architecture, from_config, stage_layers
from harness.catalog import EngineDefaults, Gpu, WeightFormat
from harness.errors import UsageError
from harness.predict import encoder_decoder
from harness.predict.capture_sizes import capture_sizes
from harness.predict.drafter import Draft, draft
from harness.predict.kv_format import (
    DTYPE_BYTES,
    aligned,
    check_block_size,
    checkpoint_kernels,
    element_bytes,
    preferred_block_size,
    state_bytes,
)
from harness.predict.quantization import Quantization, resolve
from harness.predict.ranks import check_ranks, tower_split
from harness.scenario import Calibration, Scenario
from harness.scenario.speculative import Speculative

LARGEST_BYTES = 2**60
# V0 cuts prompts by default where the model's length is above this (vllm/engine/arg_utils.py, 0.6.4 to 0.7.3).
_V0_LONG_CONTEXT = 32 * 1024


_COMPRESSED_SINCE = "0.22"  # 0.20 and 0.21 had its class elsewhere, without stages of a pipeline
_LORA_SINCE = "0.16"  # before, other classes had slots at their embeddings, and room for added words (to 0.11)
# Model classes whose slots are equal to vLLM's own (tests/test_lora.py), and whether their embeddings have some.
LORA_CLASSES = {
    "LlamaForCausalLM": True, "GraniteForCausalLM": True, "Qwen3ForCausalLM": True, "MistralForCausalLM": False,
    "Qwen2ForCausalLM": False, "GemmaForCausalLM": False, "Gemma2ForCausalLM": False, "MixtralForCausalLM": True,
    "Qwen3MoeForCausalLM": True, "OlmoeForCausalLM": False,
}  # fmt: skip
_LORA_EXPERTS_SINCE = "0.19"


@dataclass(frozen=True)
class Settings:
    """All that vLLM's memory depends on. Tokens, sequences, bytes."""

    vllm: str
    model_runner: str  # "v0", "v1" or "v2"
    dtype: str
    dtype_bytes: int
    quantization: Quantization
    config_source: str
    kv_cache_dtype: str
    kv_dtype_bytes: int | Fraction
    state_dtype_bytes: int  # of a recurrent state; its convolution's inputs are in the model's dtype
    state_checkpoints: tuple[str, ...]  # kernels whose prefill leaves a state in a block more
    max_model_len: int
    gpu_memory_utilization: float
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    enable_chunked_prefill: bool
    tensor_parallel_size: int
    pipeline_parallel_size: int
    stages: tuple[int, ...]  # layers of each pipeline stage
    data_parallel_size: int
    expert_parallel: bool
    num_speculative_tokens: int  # proposed at once for a request; 0: nobody does
    draft: Draft | None
    max_loras: int  # 0: no adapters
    max_lora_rank: int
    decode_context_parallel_size: int
    in_flight_tokens: int  # scheduled and not yet settled: a sliding window is charged for them
    enforce_eager: bool
    capture_sizes: tuple[int, ...]  # batches, in tokens, that graphs are captured of
    enable_prefix_caching: bool
    in_use: int  # bytes that other processes hold on each GPU
    kv_cache_memory_bytes: int | None
    num_gpu_blocks_override: int | None
    defaults: EngineDefaults
    sees: bool  # whether a tower of images or audio is made
    tower_ranks: int  # that share it
    mm_limits: tuple[tuple[str, int], ...]  # most items of each modality in a prompt, where that is said
    skip_mm_profiling: bool
    calibration: Calibration | None  # constants in place of the published ones

    @property
    def weight_format(self) -> WeightFormat:
        """That of most of the weights."""
        return self.quantization.main

    @property
    def graphs_in_budget(self) -> bool:
        """Whether vLLM takes its estimate of the CUDA graphs off the budget. V2's was 0 until it had one."""
        defaults = self.defaults
        return defaults.v2_graphs_in_budget if self.model_runner == "v2" else defaults.graphs_in_budget

    @property
    def divides_tokens(self) -> bool:
        """Whether the ranks of an engine divide its tokens before the experts, instead of each shared expert's width
        (``_use_sequence_parallel``, vllm/models/deepseek_v4/nvidia/model.py, 0.32)."""
        several = self.tensor_parallel_size > 1 and self.data_parallel_size > 1
        return self.expert_parallel and several and self.pipeline_parallel_size == 1

    @property
    def expert_split(self) -> tuple[int, int]:
        """(ranks that divide each expert, ranks that divide their number): all ranks of a stage do one or the other.

        Source: ``FusedMoEParallelConfig.make``, vllm/model_executor/layers/fused_moe/config.py, 0.32.
        """
        ranks = self.tensor_parallel_size * self.data_parallel_size
        return (1, ranks) if self.expert_parallel else (ranks, 1)


def settings(scenario: Scenario, architecture: Architecture | None = None) -> Settings:
    """The scenario's engine with every default filled in. Raises UsageError where vLLM would refuse.

    ``architecture``: that of the scenario's config, where it has been read already.
    """
    engine, gpu, config = scenario.engine, device_gpu(scenario), scenario.config()
    architecture = architecture or from_config(config)
    last = catalog.last_with_class(architecture.name)
    if last is not None and catalog.version_key(engine.vllm)[:2] > catalog.version_key(last):
        raise UsageError(
            f"Model architecture {architecture.name} was supported in vLLM until v{last}.0, and is not supported "
            "anymore. Please use an older version of vLLM if you want to use this model architecture."
        )
    if architecture.compressed is not None:
        _check_compressed(architecture, scenario)
    tp, pp = scenario.tensor_parallel_size, engine.pipeline_parallel_size
    sees, tower_ranks = tower_split(scenario, architecture, tp)
    dp, asked = engine.data_parallel_size, engine.speculative_config
    check_ranks(scenario, architecture)
    if engine.enable_expert_parallel and architecture.mixture is None:
        raise UsageError(
            "engine.enable_expert_parallel: Number of experts in the model must be greater than 0 when expert "
            "parallelism is enabled."
        )
    defaults = _defaults(scenario, gpu)
    if defaults.engine == "v0" and architecture.mla is not None:
        raise UsageError(
            f"engine.vllm: latent attention under vLLM {engine.vllm} is not modelled: 0.6 stored it as full heads, 0.7 "
            "kept absorbed copies of its matrices"
        )
    folder = scenario.model_folder
    quantization = resolve(scenario.weights, config, architecture, folder)
    quantization.check(engine.vllm)
    weights = quantization.main
    dtype = _dtype(scenario, architecture, weights, gpu)
    max_model_len = _max_model_len(engine.max_model_len, architecture)
    chunked = engine.enable_chunked_prefill and not architecture.encoder_tokens
    tokens, seqs = _batch(scenario, defaults, max_model_len, chunked)
    if architecture.encoder_tokens:
        encoder_decoder.check(scenario, architecture, quantization, tokens)
    kv_dtype = _kv_dtype(engine.kv_cache_dtype, quantization)
    capability = int(float(gpu.compute_capability)) if gpu and gpu.compute_capability else None
    kv_bytes = element_bytes(kv_dtype, architecture, dtype, capability)
    of_states = state_bytes(engine.mamba_ssm_cache_dtype, architecture, dtype)
    block_size = engine.block_size or (
        defaults.cpu_block_size if scenario.on_cpu
        else preferred_block_size(architecture, kv_dtype, capability, defaults.block_size)
    )  # fmt: skip
    check_block_size(architecture, block_size)
    prefix_caching = _prefix_caching(engine.enable_prefix_caching, architecture, defaults)
    checkpoints = checkpoint_kernels(defaults, capability) if prefix_caching else ()
    proposed = asked.num_speculative_tokens if asked else 0
    _check_states(architecture, proposed)
    runner = _model_runner(defaults, architecture, weights, scenario.on_cpu, engine.speculative_config)
    chosen = Settings(
        vllm=engine.vllm,
        model_runner=runner,
        dtype=dtype,
        dtype_bytes=DTYPE_BYTES[dtype],
        quantization=quantization,
        config_source=scenario.config_source(folder),
        kv_cache_dtype=kv_dtype,
        kv_dtype_bytes=kv_bytes,
        state_dtype_bytes=of_states,
        max_model_len=max_model_len,
        gpu_memory_utilization=engine.gpu_memory_utilization or defaults.gpu_memory_utilization,
        block_size=aligned(
            architecture, block_size, tp, kv_bytes, DTYPE_BYTES[dtype], of_states, checkpoints, proposed
        ),
        state_checkpoints=checkpoints,
        max_num_seqs=seqs,
        enable_chunked_prefill=chunked,
        max_num_batched_tokens=tokens,
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        stages=tuple(engine.pp_layer_partition or stage_layers(architecture.layers, pp)),
        data_parallel_size=dp,
        expert_parallel=engine.enable_expert_parallel,
        num_speculative_tokens=proposed,
        draft=draft(scenario, architecture, tp, max_model_len),
        max_loras=engine.max_loras if engine.enable_lora else 0,
        max_lora_rank=engine.max_lora_rank,
        decode_context_parallel_size=engine.decode_context_parallel_size,
        in_flight_tokens=tokens * _batches_in_flight(defaults, runner, pp),
        enforce_eager=engine.enforce_eager,
        capture_sizes=() if engine.enforce_eager or scenario.on_cpu else capture_sizes(
            engine, defaults, architecture.name, capability, seqs, tokens, proposed + 1
        ),
        enable_prefix_caching=prefix_caching,
        in_use=scenario.gpu.in_use if scenario.gpu else 0,
        kv_cache_memory_bytes=engine.kv_cache_memory_bytes or None,  # 0 counts as not given, as in vLLM
        num_gpu_blocks_override=engine.num_gpu_blocks_override,
        defaults=defaults,
        sees=sees,
        tower_ranks=tower_ranks,
        mm_limits=tuple((engine.limit_mm_per_prompt or {}).items()),
        skip_mm_profiling=engine.skip_mm_profiling,
        calibration=scenario.calibration,
    )
    if chosen.max_loras:
        check_lora(architecture, chosen)
    return chosen


def _prefix_caching(asked: bool | None, architecture: Architecture, defaults: EngineDefaults) -> bool:
    """``ModelConfig.is_prefix_caching_supported`` (vllm/config/model.py) for models that generate."""
    if asked is not None:
        return asked
    if architecture.encoder_tokens:
        return False
    keeps_states = any(kind.state for kind in architecture.kv_kinds)
    return defaults.engine == "v1" and (defaults.caches_state_prefixes or not keeps_states)


def _check_compressed(architecture: Architecture, scenario: Scenario) -> None:
    """Raises UsageError for an engine whose pages of compressed rows are not known."""
    version = scenario.engine.vllm
    if scenario.on_cpu:
        raise UsageError(f"device: cpu: what vLLM's CPU backend keeps for {architecture.name} is not modelled")
    if catalog.version_key(version) < catalog.version_key(_COMPRESSED_SINCE):
        raise UsageError(
            f"engine.vllm: {architecture.name} is modelled from vLLM {_COMPRESSED_SINCE} on, not for {version}"
        )


def _check_states(architecture: Architecture, proposed: int) -> None:
    if proposed and any(k.state and k.state.inputs is None for k in architecture.kv_kinds):
        raise UsageError(f"engine.speculative_config: the states of {architecture.name} beside it are not modelled")





def check_lora(architecture: Architecture, chosen: Settings) -> None:
    """Raises UsageError where the slots of adapters are not known."""
    since, where = (_LORA_SINCE, "") if architecture.mixture is None else (_LORA_EXPERTS_SINCE, " beside experts")
    if catalog.version_key(chosen.vllm) < catalog.version_key(since):
        raise UsageError(f"engine.enable_lora: modelled{where} from vLLM {since} on, not for {chosen.vllm}")
    if architecture.name not in LORA_CLASSES:
        raise UsageError(
            f"engine.enable_lora: the slots of {architecture.name} are not modelled (known: {', '.join(LORA_CLASSES)})"
        )
    if architecture.mixture is not None and (chosen.expert_parallel or chosen.weight_format.bits != 16):
        why = "experts divided by number" if chosen.expert_parallel else f"experts in {chosen.weight_format.name}"
        raise UsageError(f"engine.enable_lora: beside {why} it is not modelled (few kernels take adapters)")


def device_gpu(scenario: Scenario) -> Gpu | None:
    """The scenario's GPU: from the catalogue, or one known by its memory alone; None on a CPU."""
    for key, size in (
        ("gpu.memory", scenario.gpu.memory if scenario.gpu else None),
        ("engine.kv_cache_memory_bytes", scenario.engine.kv_cache_memory_bytes),
    ):
        if size is not None and size > LARGEST_BYTES:
            raise UsageError(f"{key}: more than {LARGEST_BYTES // 2**50} PiB is no size of a device")
    if scenario.gpu is None:
        return None
    if scenario.gpu.name is not None:
        card = catalog.gpu(scenario.gpu.name)
        return card if scenario.gpu.mig is None else catalog.mig_slice(card, scenario.gpu.mig)
    if scenario.gpu.memory is None:
        raise UsageError("gpu: a catalogue name or memory is needed")
    return Gpu(name="gpu", title="a GPU known by its memory", memory_bytes=scenario.gpu.memory)


def _defaults(scenario: Scenario, gpu: Gpu | None) -> EngineDefaults:
    engine = scenario.engine
    if gpu is None:
        return catalog.engine_defaults(engine.vllm)
    return catalog.engine_defaults(engine.vllm, gpu.memory_bytes, gpu.name, engine.entrypoint)


def _max_model_len(given: int | None, architecture: Architecture) -> int:
    chosen = given or architecture.default_model_len
    if chosen > architecture.max_model_len:
        raise UsageError(
            f"engine.max_model_len: User-specified max_model_len ({chosen}) is greater than the derived max_model_len "
            f"({architecture.max_len_key}={architecture.max_model_len} or model_max_length=None in model's "
            "config.json)."
        )
    return chosen


def _batch(scenario: Scenario, defaults: EngineDefaults, max_model_len: int, chunked: bool) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs)."""
    engine = scenario.engine
    default_seqs, default_tokens = defaults.max_num_seqs, defaults.max_num_batched_tokens
    if scenario.on_cpu:
        world = scenario.tensor_parallel_size * engine.pipeline_parallel_size
        default_seqs, default_tokens = (n * world for n in catalog.cpu_batch_defaults())
    seqs = engine.max_num_seqs or default_seqs
    if defaults.engine == "v0":
        default_tokens = _v0_tokens(scenario, defaults, max_model_len)
    else:
        if not chunked:  # a prompt is then read in one step
            default_tokens = max(max_model_len, default_tokens)
        default_tokens = min(seqs * max_model_len, default_tokens)
    tokens = engine.max_num_batched_tokens or default_tokens
    if engine.max_num_seqs is None:
        seqs = min(seqs, tokens)
    if tokens < seqs:
        raise UsageError(
            f"engine.max_num_batched_tokens: max_num_batched_tokens ({tokens}) must be greater than or equal to "
            f"max_num_seqs ({seqs})."
        )
    return tokens, seqs


def _v0_tokens(scenario: Scenario, defaults: EngineDefaults, max_model_len: int) -> int:
    """V0 runs a prompt whole, but for long models on one stage: ``SchedulerConfig``, vllm/config.py, 0.6.4 to 0.7.3."""
    cut = scenario.engine.enable_chunked_prefill
    if "enable_chunked_prefill" not in scenario.engine.model_fields_set:
        cut = max_model_len > _V0_LONG_CONTEXT
    return defaults.chunked_prefill_tokens if cut else max(max_model_len, 2048)


def _dtype(scenario: Scenario, architecture: Architecture, weights: WeightFormat, gpu: Gpu | None) -> str:
    """The model's dtype. A float32 config is run in 16 bits; bf16 needs compute capability 8.0."""
    has_bf16 = gpu is None or gpu.compute_capability is None or float(gpu.compute_capability) >= 8.0
    asked: str = scenario.engine.dtype
    if asked == "auto" and weights.dtype is not None:
        asked = weights.dtype if scenario.weights.format != "auto" else "auto"
    if asked == "bfloat16" and gpu is not None and not has_bf16:
        raise UsageError(
            "engine.dtype: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. "
            f"Your {gpu.title} GPU has compute capability {gpu.compute_capability}. You can use float16 "
            "instead by explicitly setting the `dtype` flag in CLI, for example: --dtype=half."
        )
    if asked != "auto":
        return asked
    if architecture.dtype == "float16":
        return "float16"
    return "bfloat16" if has_bf16 else "float16"


def _kv_dtype(asked: str, quantization: Quantization) -> str:
    """What the KV cache is in: as asked, else as the checkpoint asks, else "auto": the model's dtype.

    Source: ``resolve_kv_cache_dtype_string`` (vllm/utils/torch_utils.py) and ``Attention.__init__``, 0.32.
    """
    return quantization.kv_cache_dtype if asked == "auto" and quantization.kv_cache_dtype else asked


def _model_runner(
    defaults: EngineDefaults, architecture: Architecture, weights: WeightFormat, on_cpu: bool,
    proposing: Speculative | None = None,
) -> str:  # fmt: skip
    """``VllmConfig.use_v2_model_runner`` (vllm/config/vllm.py, 0.22 to 0.33), for text models on an NVIDIA GPU."""
    v2 = defaults.v2_runner
    if v2 is not None and proposing is not None and proposing.proposer not in defaults.v2_proposers:
        v2 = None
    if on_cpu or v2 is None or (weights.dtype is None and not v2.quantized):
        return defaults.engine if not on_cpu else "v1"
    listed = architecture.name in v2.architectures
    plain = architecture.mixture is None and not any(k.state for k in architecture.kv_kinds)
    return "v2" if listed or v2.experts or (v2.dense and plain) else "v1"


def _batches_in_flight(defaults: EngineDefaults, runner: str, pp: int) -> int:
    """``VllmConfig.max_concurrent_batches`` (vllm/config/vllm.py, 0.32) with asynchronous scheduling, the default."""
    if not defaults.counts_async_batches:
        return 1
    if runner == "v2":
        return pp + 1
    return 2 if pp == 1 else pp
