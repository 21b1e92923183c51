"""Models that wrap a decoder of text: which decoder, which tower, and the config of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from harness.architecture import audio, images, towers, vision
from harness.architecture.component import Component
from harness.architecture.images import Item
from harness.architecture.reader import Reader, show
from harness.errors import UsageError


@dataclass(frozen=True)
class Tower:
    """What a wrapper adds to its decoder beside the parts.

    ``heads``: of the tower, which ranks divide; None: each holds it whole. ``modalities``: those that go through it.
    ``data``: whether it knows ``mm_encoder_tp_mode: data``, and ``falls_back`` to that where heads don't divide.
    ``items``: the largest of each modality, where it is known; ``levels``: of deepstack, each as wide as the decoder.
    ``staged``: whether it is known what the stages of a pipeline have of it.
    """

    heads: int | None
    modalities: tuple[str, ...]
    data: bool
    falls_back: bool = False
    items: tuple[tuple[str, Item], ...] = ()
    levels: int = 0
    staged: bool = True

    @property
    def senses(self) -> tuple[str, ...]:
        """"vision", "audio" or both."""
        return tuple(dict.fromkeys("audio" if m == "audio" else "vision" for m in self.modalities))

    def ranks(self, tp: int, mode: str) -> int:
        """How many of ``tp`` ranks share one tower."""
        alone = self.heads is None or (self.data and mode == "data") or (self.falls_back and self.heads % tp)
        return 1 if alone else tp

    def is_held(self, limits: dict[str, int]) -> bool:
        """Whether the tower is made, with so many items of a modality in a prompt (999 where nothing is said)."""
        return any(limits.get(m, 999) for m in self.modalities)


@dataclass(frozen=True)
class Wrapper:
    """One class. ``text``: the decoder's class, or one for each ``text_config.model_type``.

    ``within``: the key of the tower's config; "": it is the config itself. ``defaults``: that of :data:`DEFAULTS` which
    it leaves out; None: as its ``model_type`` says.
    ``heads``: the key of the tower's heads; ``position_factor``: how much longer than the decoder's positions its
    rotary cache is (rotary_embedding/mrope.py: video has its own clock); the rest as in :class:`Tower`.
    """

    text: str | tuple[tuple[str, str], ...]
    tower: Callable[[Reader, int, Reader], towers.Parts]
    within: str = "vision_config"
    defaults: str | None = None
    heads: str | None = "num_attention_heads"
    modalities: tuple[str, ...] = ("image",)
    data: bool = False
    falls_back: bool = False
    position_factor: int = 1
    staged: bool = True
    items: Callable[[Reader, Reader], dict[str, Item]] | None = None


_MISTRAL = (("mistral", "MistralForCausalLM"), ("ministral3", "MistralForCausalLM"))
_LLAVA = (
    ("llama", "LlamaForCausalLM"), ("mistral", "MistralForCausalLM"), ("qwen2", "Qwen2ForCausalLM"),
    ("granite", "GraniteForCausalLM"),
)  # fmt: skip

_QWEN = Wrapper(
    "", vision.qwen3_vl, heads="num_heads", modalities=("image", "video"), data=True, items=images.qwen3
)  # fmt: skip

WRAPPERS: dict[str, Wrapper] = {
    "Qwen2VLForConditionalGeneration": replace(
        _QWEN, text="Qwen2ForCausalLM", tower=vision.qwen2_vl, defaults="qwen2_vl", position_factor=4,
        items=images.qwen2,
    ),
    "Qwen2_5_VLForConditionalGeneration": replace(
        _QWEN, text="Qwen2ForCausalLM", tower=vision.qwen2_5_vl, defaults="qwen2_5_vl", position_factor=4,
        items=images.qwen2,
    ),
    "Qwen3VLForConditionalGeneration": replace(_QWEN, text="Qwen3ForCausalLM"),
    "Qwen3VLMoeForConditionalGeneration": replace(_QWEN, text="Qwen3MoeForCausalLM"),
    "Qwen3_5ForConditionalGeneration": replace(_QWEN, text="Qwen3_5ForCausalLM"),
    "Qwen3_5MoeForConditionalGeneration": replace(_QWEN, text="Qwen3_5MoeForCausalLM"),
    "Glm4vForConditionalGeneration": replace(
        _QWEN, text="Glm4ForCausalLM", tower=vision.glm4v, defaults="glm4v_vision", position_factor=4, items=None
    ),
    "Glm4vMoeForConditionalGeneration": replace(
        _QWEN, text="Glm4MoeForCausalLM", tower=vision.glm4v, defaults="glm4v_moe_vision", position_factor=4, items=None
    ),
    "Gemma3ForConditionalGeneration": Wrapper("Gemma3ForCausalLM", vision.gemma3, items=images.gemma3),
    "Gemma4ForConditionalGeneration": Wrapper(
        "Gemma4ForCausalLM", vision.gemma4, heads=None, modalities=("image", "video"), items=images.gemma4
    ),
    "Llama4ForConditionalGeneration": Wrapper(
        "Llama4ForCausalLM", vision.llama4, defaults="llama4_vision_model", data=True, items=images.llama4
    ),
    "Mistral3ForConditionalGeneration": Wrapper(_MISTRAL, vision.mistral3, items=images.mistral3),
    "LlavaForConditionalGeneration": Wrapper(_LLAVA, vision.llava, items=images.llava),
    "LlavaNextForConditionalGeneration": Wrapper(_LLAVA, vision.llava_next, items=images.llava_next),
    "WhisperForConditionalGeneration": Wrapper(
        "WhisperDecoder", audio.whisper, "", heads="encoder_attention_heads", modalities=("audio",),
        items=audio.whisper_clip,
    ),
    "Qwen2AudioForConditionalGeneration": Wrapper(
        "Qwen2ForCausalLM", audio.qwen2_audio, "audio_config", "qwen2_audio_encoder", heads=None, modalities=("audio",),
        items=audio.qwen2_audio_clip,
    ),
    "Qwen3ASRForConditionalGeneration": Wrapper(
        "Qwen3ForCausalLM", audio.qwen3_asr, "audio_config", heads="encoder_attention_heads", modalities=("audio",),
        falls_back=True, items=audio.qwen3_asr_clip,
    ),
    "VoxtralForConditionalGeneration": Wrapper(
        (("llama", "LlamaForCausalLM"),), audio.voxtral, "audio_config", "voxtral_encoder", modalities=("audio",),
        staged=False, items=audio.voxtral_clip,
    ),
    "KimiK25ForConditionalGeneration": Wrapper(
        "DeepseekV3ForCausalLM", vision.kimi_k25, defaults="kimi_k25_vision", modalities=("vision_chunk",), data=True,
        falls_back=True, items=images.kimi_k25,
    ),
    "KimiK3ForConditionalGeneration": Wrapper(
        "KimiLinearForCausalLM", vision.kimi_k3, defaults="kimi_k3_vision", data=True, falls_back=True,
        items=images.kimi_k3,
    ),
    "MiniMaxM3SparseForConditionalGeneration": Wrapper(
        "MiniMaxM3SparseForCausalLM", vision.minimax_m3, defaults="minimax_m3_vl_vision", modalities=("image", "video"),
        data=True, items=images.minimax_m3,
    ),
    "Step3p7ForConditionalGeneration": Wrapper(
        "Step3p5ForCausalLM", vision.step3p7, defaults="perception_encoder", heads="heads", data=True,
        items=images.step3p7,
    ),
}  # fmt: skip

# Published configs may state only what differs from transformers' class: what it takes for the rest, by model_type
# (transformers 5.19; tests/test_vision.py compares).
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131_072,
    },
    "llama": {
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
    },
    "qwen2": {
        "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32_768,
    },
    "qwen2_audio_encoder": {
        "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "num_mel_bins": 128, "max_source_positions": 1500,
    },
    "voxtral_encoder": {
        "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "intermediate_size": 5120,
        "num_mel_bins": 128, "max_source_positions": 1500,
    },
    "qwen2_vl": {
        "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
    "qwen2_5_vl": {
        "depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 3584,
    },
    "glm4v_vision": {
        "depth": 24, "hidden_size": 1536, "num_heads": 12, "image_size": 336, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "out_hidden_size": 4096, "intermediate_size": 13_696,
    },
    "glm4v_moe_vision": {
        "depth": 24, "hidden_size": 1536, "num_heads": 12, "image_size": 336, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "out_hidden_size": 4096, "intermediate_size": 13_696,
    },
    "llama4_vision_model": {
        "hidden_size": 768, "intermediate_size": 5632, "num_hidden_layers": 34, "num_attention_heads": 16,
        "num_channels": 3, "vision_output_dim": 7680, "image_size": 448, "patch_size": 14, "projector_input_dim": 4096,
        "projector_output_dim": 4096,
    },
    "kimi_k25_vision": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "patch_size": 14, "pos_emb_height": 64, "pos_emb_width": 64, "merge_kernel_size": (2, 2),
    },
    "kimi_k3_vision": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 27, "num_attention_heads": 12,
        "patch_size": 14, "pos_emb_height": 64, "pos_emb_width": 64, "merge_kernel_size": (2, 2),
    },
    "minimax_m3_vl_vision": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "num_channels": 3, "patch_size": 14,
    },
    "perception_encoder": {
        "width": 1536, "layers": 47, "heads": 16, "num_channels": 3, "image_size": 728, "patch_size": 14,
        "mlp_ratio": 8960 / 1536, "use_ln_pre": True, "use_ln_post": False, "use_abs_posemb": True,
        "ls_init_value": 0.1, "use_cls_token": False,
    },
    "siglip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 16,
    },
    "clip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 32,
    },
    "pixtral": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_channels": 3, "image_size": 1024, "patch_size": 16,
    },
}  # fmt: skip

# What the text stack takes from the outer config where its own doesn't say.
_SHARED = ("dtype", "torch_dtype", "tie_word_embeddings", "quantization_config")
_OF_OTHERS = ("vision_config", "audio_config", "text_config")


def wrapper(config: dict[str, Any]) -> Wrapper | None:
    """The row of the config's class; None for a plain decoder."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return WRAPPERS.get(name) if isinstance(name, str) else None


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the decoder alone: of a wrapper, its ``text_config`` (or the keys beside ``vision_config``)."""
    row = wrapper(config)
    if row is None:
        return config
    config = _opened(config)
    inner = config.get("text_config")
    if inner is None:
        inner = {k: v for k, v in config.items() if k not in _OF_OTHERS}
    if not isinstance(inner, dict):
        raise UsageError(f"config: text_config: expected a mapping, got {show(inner)}")
    shared = {k: config[k] for k in _SHARED if k in config and inner.get(k) is None}
    own = {k: v for k, v in inner.items() if k not in _OF_OTHERS}
    return {**_defaults(inner.get("model_type")), **own, **shared, "architectures": [_text_class(row, inner)]}


def _opened(config: dict[str, Any]) -> dict[str, Any]:
    """What a ``thinker_config`` holds, beside the rest."""
    inner = config.get("thinker_config")
    return {**config, **inner, "architectures": config["architectures"]} if isinstance(inner, dict) else config


def _defaults(kind: object) -> dict[str, Any]:
    return DEFAULTS.get(kind, {}) if isinstance(kind, str) else {}


def _text_class(row: Wrapper, inner: dict[str, Any]) -> str:
    if isinstance(row.text, str):
        return row.text
    kinds = dict(row.text)
    kind = inner.get("model_type")
    if not isinstance(kind, str) or kind not in kinds:
        known = ", ".join(kinds)
        raise UsageError(f"config: text_config.model_type: {show(kind)} is not supported yet (known: {known})")
    return kinds[kind]


def tower(config: dict[str, Any], hidden: int) -> tuple[Tower, tuple[Component, ...]]:
    """What the wrapper of ``config`` adds to a decoder that is ``hidden`` wide, and its parts."""
    row = wrapper(config)
    assert row is not None
    config = _opened(config)
    if config.get("audio_config") is not None and row.within != "audio_config":
        raise UsageError(f"config: audio_config: the audio tower of {config['architectures'][0]} is not supported yet")
    inner = config.get(row.within) if row.within else config
    if not isinstance(inner, dict):
        raise UsageError(f"config: {row.within}: expected a mapping, got {show(inner)}")
    # Kimi's published names have prefixes which transformers' class has not.
    given = {k.removeprefix("vt_").removeprefix("init_"): v for k, v in inner.items()}
    whole = {**_defaults(row.defaults or inner.get("model_type")), **given}
    read = Reader(whole, {}, f"{row.within}." if row.within else "")
    heads = read.count(row.heads) if row.heads else None
    outer = Reader(config, {})
    items = tuple(row.items(read, outer).items()) if row.items else ()
    levels = len(vision.deepstack_levels(read))
    added = Tower(heads, row.modalities, row.data, row.falls_back, items, levels, row.staged)
    parts = row.tower(read, hidden, outer)
    sense = added.senses[0]
    return added, tuple(replace(p, kind=sense) if p.kind == "vision" else p for p in parts)
