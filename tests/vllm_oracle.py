"""vLLM's own planner and model classes (0.32, on a CPU, without weights), asked by the tests of the KV cache.

One engine configuration serves a module; nothing that vLLM patches in other libraries outlives it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from harness.architecture import CHUNKED, FULL, INDEXER, MLA, SLIDING, Architecture, KvLayer
from harness.predict import kv_cache
from harness.predict.admission import no_room
from harness.predict.settings import Settings

Specs = dict[str, Any]
# Published configs that bring their class along, as far as vLLM reads it: blocks as attributes; Step's text and tower
# as they are, with what vLLM's own class of the text would cut off behind the decoder's layers.
OWN_CONFIG = """
from types import SimpleNamespace
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config
class StepConfig(PreTrainedConfig):
    model_type = "step3p7"
    def __init__(self, text_config=None, vision_config=None, **others):
        from vllm.transformers_utils.configs.step3p5 import Step3p5Config
        self.text_config = Step3p5Config(**(text_config or {}))
        self.text_config.layer_types = (text_config or {}).get("layer_types")
        plain = {"hidden_act": "quick_gelu", "use_rope2d": True, "output_dim": None}
        self.vision_config = PreTrainedConfig(**plain | (vision_config or {}))
        super().__init__(**others)
class MimoConfig(Qwen2Config):
    model_type = "mimo"
class OwnConfig(LlamaConfig):
    model_type = "nemotron-nas"
    def __init__(self, block_configs=None, **others):
        super().__init__(**{k: v for k, v in others.items() if v is not None})
        self.blocks = block_configs
    @property
    def block_configs(self):
        return [
            SimpleNamespace(**{part: SimpleNamespace(**{"no_op": False, **what}) for part, what in block.items()})
            for block in self.blocks or []
        ]
"""


def ours(architecture: Architecture, chosen: Settings, available: int, stage: int = 0) -> Any:
    """Blocks, tokens and concurrency by harness.predict, or the words of the refusal."""
    block = kv_cache.bytes_per_block(architecture, chosen, stage)
    charged = kv_cache.charged_per_block(architecture, chosen, stage)
    needed = kv_cache.request_blocks(architecture, chosen, chosen.max_model_len) * charged
    refused = no_room(architecture, chosen, needed, available - block, charged)
    if refused:
        return refused
    pool = kv_cache.pool(architecture, chosen, available // block)
    return pool.num_blocks, pool.tokens, pool.max_concurrency


class Vllm:
    """An engine configuration on this computer, planned as on a GPU."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs

        self.folder = folder
        self.config = self.configured(config)
        self.in_flight = 8192
        register_all_kvcache_specs(self.config)

    def configured(self, config: dict[str, Any], **arguments: Any) -> Any:
        """vLLM's configuration of a model's config.json."""
        from vllm.engine.arg_utils import EngineArgs

        (self.folder / "config.json").write_text(json.dumps(config))
        if "auto_map" in config:
            (self.folder / "configuration_own.py").write_text(OWN_CONFIG)
            arguments["trust_remote_code"] = True
        # On a CPU the block must be a multiple of 32: that of the GPU is put in later.
        arguments = {"max_model_len": 1024, "block_size": 32, **arguments}
        return EngineArgs(
            model=str(self.folder), skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, **arguments
        ).create_engine_config()  # fmt: skip

    def plan(
        self, specs: list[Specs], available: list[int], max_model_len: int, *, override: int | None = None,
        in_flight: int = 8192, prefix_caching: bool = True, dcp: int = 1, encoder_tokens: int = 8192,
        layout: str = "LBNHC",
    ) -> Any:  # fmt: skip
        """(blocks, tokens, concurrency) for the specs and bytes of each worker, or the words of the refusal."""
        from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity, get_kv_cache_configs

        self.in_flight = in_flight
        cache, parallel = self.config.cache_config, self.config.parallel_config
        self.config.model_config.max_model_len = max_model_len
        cache.kv_cache_layout = layout
        cache.num_gpu_blocks_override = override
        cache.mamba_cache_mode = "align" if prefix_caching else "none"
        parallel.decode_context_parallel_size = dcp
        self.config.scheduler_config.max_num_encoder_input_tokens = encoder_tokens
        try:
            planned = get_kv_cache_configs(self.config, specs, available)
            return planned[0].num_blocks, *get_kv_cache_capacity(self.config, planned[0])
        except ValueError as error:
            return f"ValueError: {error}"
        except NotImplementedError as error:
            return str(error).partition(": ")[2]
        finally:
            parallel.decode_context_parallel_size = 1


@contextmanager
def vllm_on_meta(folder: Path, config: dict[str, Any]) -> Iterator[Vllm]:
    """vLLM ready to build models; skips the test where it is another vLLM than 0.32, or none."""
    pytest.importorskip("torch")
    pytest.importorskip("vllm")
    try:
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.distributed import parallel_state
        from vllm.model_executor.models.transformers.base import Base
        from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity  # noqa: F401
    except ImportError as error:
        pytest.skip(f"another vLLM than 0.32: {error}")
    with pytest.MonkeyPatch.context() as patched, without_torchvision():
        as_on_a_gpu(patched)
        vllm = Vllm(folder, config)
        # What a GPU's engine would have in flight, and not this computer's.
        patched.setattr(VllmConfig, "max_in_flight_tokens", property(lambda _: vllm.in_flight))
        # vLLM would wrap transformers' own classes, for good.
        patched.setattr(Base, "_decorate_for_torch_compile", lambda _: None)
        with set_current_vllm_config(vllm.config):
            started = not parallel_state.model_parallel_is_initialized()
            if started:
                parallel_state.init_distributed_environment(1, 0, f"file://{folder / 'store'}", 0, "gloo")
                parallel_state.initialize_model_parallel(1, 1)
        yield vllm
    if started:
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()


def as_on_a_gpu(patched: pytest.MonkeyPatch) -> None:
    """What a CPU would decide otherwise about a model that is only built."""
    import torch
    from vllm.model_executor.layers.fused_moe import config
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe
    from vllm.model_executor.models import registry
    from vllm.models.kimi_k3.nvidia import model as kimi
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.mla.flashmla_sparse import FlashMLASparseBackend as sparse

    class Gpu:
        def is_cuda_alike(self) -> bool:
            return True

        def __getattr__(self, name: str) -> Any:
            return getattr(current_platform, name)

    ask = type(current_platform).get_attn_backend_cls

    def attention(_: Any, *args: Any, **kwargs: Any) -> str:
        chosen = next(a for a in (*args, *kwargs.values()) if hasattr(a, "use_sparse"))
        if chosen.use_sparse:
            return "vllm.v1.attention.backends.mla.flashmla_sparse.FlashMLASparseBackend"
        return str(ask(*args, **kwargs))

    patched.setattr(type(current_platform), "get_attn_backend_cls", classmethod(attention))
    # What computes is not needed, only what describes its cache.
    patched.setattr(sparse, "get_impl_cls", staticmethod(lambda: lambda *_, **__: MagicMock(dcp_world_size=1)))
    patched.setattr(torch.cuda, "Stream", MagicMock)
    patched.setattr(torch.cuda, "Event", MagicMock)
    patched.setattr(kimi, "maybe_init_gemm_rs_ar", lambda *_, **__: None)  # a kernel's workspace
    patched.setattr(config, "current_platform", Gpu())  # experts without a gate
    # No kernel of a CPU has the activations of some experts: any kernel has their tensors.
    patched.setattr(cpu_moe.CPUUnquantizedExperts, "is_supported_config", staticmethod(lambda *_: (True, None)))
    patched.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # else states are made float32
    patched.setattr(registry, "_run_in_subprocess", lambda ask: ask())  # seconds for each class


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Modules that want torchvision for images import an empty one; none of them is left behind."""
    if importlib.util.find_spec("torchvision"):
        yield
        return
    before = set(sys.modules)
    for name in ("", ".transforms", ".transforms.v2", ".transforms.functional"):
        name = f"torchvision{name}"
        module = sys.modules[name] = MagicMock(spec=ModuleType)
        module.__name__, module.__path__, module.__spec__ = name, [], ModuleSpec(name, None)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    for name in ("", ".functional"):
        sys.modules[f"torchvision.transforms{name}"].InterpolationMode = MagicMock()
    sys.modules["torchvision.transforms.v2"].functional = MagicMock()
    try:
        yield
    finally:
        # Only what holds a piece of it: a module that registers operators can't be imported a second time.
        for name in set(sys.modules) - before:
            mocked = any(isinstance(value, MagicMock) for value in vars(sys.modules[name]).values())
            if name.startswith("torchvision") or mocked:
                parent, _, child = name.rpartition(".")
                vars(sys.modules.get(parent, sys)).pop(child, None)
                del sys.modules[name]


def build(vllm: Vllm, config: dict[str, Any], **arguments: Any) -> tuple[Any, Any]:
    """(vLLM's own model of ``config`` on the meta device, its configuration)."""
    own = vllm.configured(config, **arguments)
    return _initialized(own, own.model_config), own


def build_drafter(own: Any) -> Any:
    """vLLM's own drafter of a configuration, beside the model that was built of it."""
    return _initialized(own, own.speculative_config.draft_model_config)


def _initialized(own: Any, model_config: Any) -> Any:
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model

    with set_current_vllm_config(own), torch.device("meta"):
        torch.set_default_dtype(own.model_config.dtype)
        try:
            return initialize_model(vllm_config=own, model_config=model_config)
        finally:
            torch.set_default_dtype(torch.float32)


@contextmanager
def as_one_of(ranks: int) -> Iterator[None]:
    """Models that are built are those of the first of ``ranks`` tensor-parallel ranks."""
    from vllm.distributed import parallel_state

    group = parallel_state.get_tp_group()
    group.world_size = ranks
    try:
        yield
    finally:
        group.world_size = 1


def layer_specs(own: Any, block_size: int, tp: int = 1) -> Specs:
    """The KV spec of each layer of a built model as one of ``tp`` GPUs has it, with ``block_size`` asked for."""
    layers = own.compilation_config.static_forward_context
    kept = {
        n: m for n, m in layers.items()
        if hasattr(m, "get_kv_cache_spec") and not getattr(m, "kv_sharing_target_layer_name", None)
    }  # fmt: skip
    for layer in kept.values():  # what a Hopper or Blackwell takes where a CPU takes Triton's
        if getattr(layer, "gate_lower_bound", None) is not None and layer.head_dim == 128:
            layer.kda_prefill_backend = "flashkda"
    own.cache_config.block_size = block_size
    own.parallel_config.tensor_parallel_size = tp
    if own.model_config.is_hybrid:
        make_room_for_states(own)
    found = {n: m.get_kv_cache_spec(own) for n, m in kept.items()}
    return {n: on_rank(s, own, tp) for n, s in found.items() if s is not None}


def make_room_for_states(own: Any) -> None:
    """What vLLM does on a GPU once the model is made: blocks of attention no smaller than a state."""
    from vllm.platforms.interface import Platform
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Platform, "_find_non_ssm_backends", classmethod(lambda *_: [TritonAttentionBackend]))
        Platform._align_hybrid_block_size(own, TritonAttentionBackend)


def on_rank(spec: Any, own: Any, tp: int) -> Any:
    """A spec of one rank of one -> of one of ``tp``, in the GPU's blocks."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.v1.kv_cache_interface import MambaSpec, MLAAttentionSpec

    if isinstance(spec, MambaSpec):
        model, _ = ModelRegistry.resolve_model_cls(own.model_config.architecture, model_config=own.model_config)
        return replace(spec, shapes=tuple(model.get_mamba_state_shape_from_config(own)))
    heads = 1 if isinstance(spec, MLAAttentionSpec) else max(1, spec.num_kv_heads // tp)
    return replace(spec, block_size=own.cache_config.block_size, num_kv_heads=heads)


# -- our layers as vLLM's specs ---------------------------------------------------------------------


def as_specs(architecture: Architecture, chosen: Settings) -> list[Specs]:
    """Our own layers as specs of vLLM's, for each pipeline stage: what is asked is the planning alone."""
    stages = range(chosen.pipeline_parallel_size)
    return [
        {
            f"layer.{number}.{i}": as_spec(cache, chosen)
            for number in architecture.stage(stage, chosen.stages)
            for i, cache in enumerate(architecture.kv_layers[number])
        }
        for stage in stages
    ]


def as_spec(layer: KvLayer, chosen: Settings) -> Any:
    """One of our caches as vLLM's spec of it."""
    import torch
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        MambaSpec,
        MLAAttentionSpec,
        SlidingWindowSpec,
        SparseCacheRole,
    )

    tp, size, dtypes = chosen.tensor_parallel_size, chosen.block_size, {1: torch.uint8, 2: torch.float16}
    if layer.state is not None:
        proposed = chosen.num_speculative_tokens
        page = layer.state.bytes_on_rank(tp, chosen.dtype_bytes, chosen.state_dtype_bytes, proposed)
        tokens = size if chosen.enable_prefix_caching else chosen.max_model_len
        mode = "align" if chosen.enable_prefix_caching else "none"
        return MambaSpec(
            block_size=tokens, shapes=((page,),), dtypes=(torch.uint8,), mamba_cache_mode=mode,
            num_prefill_checkpoint_blocks=int(layer.state.kernel in chosen.state_checkpoints),
            num_speculative_blocks=proposed,
        )  # fmt: skip
    heads = layer.heads_on_rank(tp)
    if layer.kind == INDEXER:
        return MLAAttentionSpec(
            block_size=size, num_kv_heads=1, head_size=layer.row_bytes, dtype=torch.uint8,
            cache_role=SparseCacheRole.INDEXER,
        )  # fmt: skip
    dtype = {**dtypes, 4: torch.float32}[chosen.kv_dtype_bytes]
    if layer.kind == MLA:
        return MLAAttentionSpec(block_size=size, num_kv_heads=1, head_size=layer.row, dtype=dtype)
    common = {"block_size": size, "num_kv_heads": heads, "head_size": layer.row // 2, "dtype": dtype}
    if layer.kind == SLIDING:
        return SlidingWindowSpec(**common, sliding_window=layer.window)
    if layer.kind == CHUNKED:
        return ChunkedLocalAttentionSpec(**common, attention_chunk_size=layer.window)
    assert layer.kind == FULL
    return FullAttentionSpec(**common)
