"""Whisper and audio towers: parts against transformers' and vLLM's own classes, the pool against vLLM's planner."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
from test_vllm_planner import ours, resolved
from vllm_oracle import Vllm, as_one_of, build, layer_specs, vllm_on_meta

from harness import catalog
from harness.architecture import CROSS, FULL, from_config, multimodal
from harness.errors import UsageError
from harness.predict import kv_cache, predict, settings
from harness.predict.encoder import encoder
from harness.scenario import parse_scenario
from harness.units import GIB
from tools.catalogue import meta_parameters

WHISPER = {
    "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "d_model": 64, "encoder_layers": 3,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 160, "decoder_layers": 2, "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96, "num_mel_bins": 8, "vocab_size": 1001, "max_source_positions": 1500,
    "max_target_positions": 448, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_encoder_decoder": True,
    "torch_dtype": "float16",
}  # fmt: skip
LARGE = {
    **WHISPER, "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
    "decoder_layers": 32, "decoder_attention_heads": 20, "decoder_ffn_dim": 5120, "num_mel_bins": 128,
    "vocab_size": 51866,
}  # fmt: skip


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """vLLM's own planner and model classes."""
    with vllm_on_meta(tmp_path_factory.mktemp("model"), catalog.model_config("llama-3.2-1b")) as found:
        yield found


@pytest.mark.parametrize("config", [WHISPER, LARGE], ids=["small", "large-v3"])
def test_whisper_counts_as_in_transformers(config: dict[str, Any]):
    pytest.importorskip("transformers")
    assert from_config(config).parameters == meta_parameters(config)


def test_large_v3_has_the_published_count():
    """https://huggingface.co/openai/whisper-large-v3: 1.54B parameters."""
    assert from_config(LARGE).parameters == 1_543_490_560


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_rank_holds_what_vllms_whisper_makes(vllm: Vllm, tp: int):
    a = from_config(WHISPER)
    a.check_split(tp, tower_ranks=tp)
    with as_one_of(tp):
        model, _ = build(vllm, WHISPER, max_model_len=448)
    held = sum(prod(c.on_rank(tp)) * a.copies(c) for c in a.components)
    assert held == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


@pytest.mark.parametrize(("kv_dtype", "tp", "more"), [
    ("auto", 1, ""), ("fp8", 1, ""), ("auto", 2, ""), ("auto", 1, "max_num_batched_tokens: 1600"),
])  # fmt: skip
def test_both_caches_plan_as_in_vllm(vllm: Vllm, kv_dtype: str, tp: int, more: str):
    """Pools of nothing, too small by a block, just large enough, ample; blocks of the encoder as vLLM says."""
    architecture, chosen = resolved(LARGE, 16, kv_dtype, tp, 448, more=more)
    _, built = build(vllm, LARGE, kv_cache_dtype=kv_dtype, max_model_len=448)
    own = layer_specs(built, 16, tp)
    assert len(own) == sum(len(caches) for caches in architecture.kv_layers) == 64
    tokens, answers = chosen.max_num_batched_tokens, []
    assert kv_cache.request_blocks(architecture, chosen, 448) == 28 + -(-tokens // 16)
    block = kv_cache.bytes_per_block(architecture, chosen)
    needed = kv_cache.request_blocks(architecture, chosen, 448)
    for available in (1, block, block * needed, block * (needed + 1), block * needed * 10 + 12345):
        expected = vllm.plan([own], [available], 448, prefix_caching=False, encoder_tokens=tokens)
        assert ours(architecture, chosen, available) == expected, available
        answers.append(type(expected))
    assert {str, tuple} == set(answers)


def test_vllms_defaults_for_an_encoder_decoder(vllm: Vllm):
    own = vllm.configured(WHISPER, max_model_len=None)
    _, chosen = resolved(WHISPER, 16, "auto", 1, 448)
    assert own.model_config.max_model_len == from_config(WHISPER).default_model_len == 448
    assert own.scheduler_config.enable_chunked_prefill is chosen.enable_chunked_prefill is False
    assert own.cache_config.enable_prefix_caching is chosen.enable_prefix_caching is False
    assert own.scheduler_config.max_num_encoder_input_tokens == own.scheduler_config.max_num_batched_tokens


def test_a_token_writes_only_the_decoders_own_row():
    a = from_config(LARGE)
    assert {kind.kind: len(layers) for kind, layers in a.kv_kinds.items()} == {FULL: 32, CROSS: 32}
    _, chosen = resolved(LARGE, 16, "auto", 1, 448)
    assert kv_cache.bytes_per_token(a, chosen) == 2 * 1280 * 2 * 32
    assert (chosen.max_num_batched_tokens, a.encoder_tokens, a.tower.senses) == (8192, 1500, ("audio",))


def test_the_profiled_clips_are_as_many_as_the_budget_holds():
    found = predict(parse_scenario(f"name: a\nmodel: {LARGE}\ngpu: {{name: h100}}\nengine: {{vllm: '0.32'}}"))
    (peak,) = [e for e in found.ledger.entries if e.term == "activation_peak"]
    layers, embeddings = (3 * 1280 + 2 * 5120) * 8192 * 2, 5 * 1500 * 1280 * 2
    assert peak.source.startswith("layers: 3THd + MLP; 5 x audio of 1,500 tokens")
    assert peak.bytes == layers + embeddings + 52 * 2**20


def test_a_request_holds_its_encoders_blocks_from_admission_on():
    """30 requests that never end: 94 blocks of the encoder's and one of their own each, five begin in a step."""
    found = predict(parse_scenario(f"""
name: a
model: {LARGE}
gpu: {{name: h100}}
engine: {{vllm: '0.32', num_gpu_blocks_override: {1 + 30 * (94 + 28)}}}
load: {{shape: closed, users: 30, requests: 30, prompt_tokens: 4, output_tokens: 444}}
"""))
    assert found.rung("HOLDS").holds
    assert (found.load.peak_waiting, found.load.steps) == (25, 5 + 444)
    assert found.load.peak_blocks_used == 30 * 94 + 28 * 30


@pytest.mark.parametrize(("engine", "said"), [
    ({"vllm": "'0.13.0'"}, "cross-attention is modelled from vLLM 0.14 on, not for 0.13.0"),
    ({"pipeline_parallel_size": 2}, "Pipeline parallelism is not supported for this model."),
    ({"enable_prefix_caching": "true"}, "CrossAttentionManager does not support caching"),
    ({"speculative_config": "{method: ngram, num_speculative_tokens: 2}"}, "beside cross-attention are not modelled"),
    ({"language_model_only": "true"}, "engine.language_model_only: without audio WhisperForConditionalGeneration has"),
    ({"limit_mm_per_prompt": "{audio: 0}"}, "engine.limit_mm_per_prompt: without audio"),
    ({"max_num_batched_tokens": 1024}, "max_tokens_per_mm_item (1500) is larger than max_num_batched_tokens (1024)"),
    ({"max_model_len": 449}, "max_target_positions=448"),
])  # fmt: skip
def test_what_is_refused_says_so_in_one_line(engine: dict[str, Any], said: str):
    more = "".join(f"  {k}: {v}\n" for k, v in {"vllm": "'0.32'", **engine}.items())
    count = engine.get("pipeline_parallel_size", 1)
    run = parse_scenario(f"name: a\nmodel: {LARGE}\ngpu: {{name: h100, count: {count}}}\nengine:\n{more}")
    with pytest.raises(UsageError) as caught:
        settings(run)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_quantized_encoders_are_refused():
    run = parse_scenario(f"name: a\nmodel: {LARGE}\nweights: {{format: fp8}}\ngpu: {{name: h100}}")
    with pytest.raises(UsageError, match=r"weights.format: which of the encoder's layers \S+ has in fp8"):
        settings(run)


@pytest.mark.parametrize(("key", "value"), [*itertools.product(
    ("d_model", "encoder_layers", "encoder_ffn_dim", "num_mel_bins", "max_source_positions", "decoder_layers"),
    (None, 0, "many"),
)])  # fmt: skip
def test_a_bad_config_is_one_line_that_names_the_key(key: str, value: Any):
    with pytest.raises(UsageError, match=rf"config: {key}: (missing|expected)") as caught:
        from_config({**WHISPER, key: value})
    assert "\n" not in str(caught.value)


# -- towers beside a decoder ------------------------------------------------------------------------

TEXT = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
}  # fmt: skip
ENCODER = {
    "d_model": 48, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 192, "num_mel_bins": 8,
    "max_source_positions": 1500,
}  # fmt: skip
QWEN2_AUDIO = {
    "architectures": ["Qwen2AudioForConditionalGeneration"], "model_type": "qwen2_audio", "torch_dtype": "bfloat16",
    "text_config": {**TEXT, "model_type": "qwen2"}, "audio_config": {**ENCODER, "model_type": "qwen2_audio_encoder"},
}  # fmt: skip
VOXTRAL = {
    "architectures": ["VoxtralForConditionalGeneration"], "model_type": "voxtral", "torch_dtype": "bfloat16",
    "text_config": {**TEXT, "model_type": "llama", "head_dim": 16},
    "audio_config": {
        "model_type": "voxtral_encoder", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 192, "num_mel_bins": 8, "max_source_positions": 1500,
    },
}  # fmt: skip


ASR_ENCODER = {
    "d_model": 48, "encoder_layers": 3, "encoder_attention_heads": 3, "encoder_ffn_dim": 100, "output_dim": 64,
    "downsample_hidden_size": 6, "n_window": 50, "num_mel_bins": 8,
}  # fmt: skip
QWEN3_ASR = {
    "architectures": ["Qwen3ASRForConditionalGeneration"], "model_type": "qwen3_asr", "torch_dtype": "bfloat16",
    "text_config": {**TEXT, "model_type": "qwen3", "head_dim": 16},
    "audio_config": {**ASR_ENCODER, "model_type": "qwen3_asr_encoder"}, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("config", [QWEN2_AUDIO, VOXTRAL, QWEN3_ASR], ids=["qwen2-audio", "voxtral", "qwen3-asr"])
def test_audio_models_count_as_in_transformers(config: dict[str, Any]):
    pytest.importorskip("transformers")
    a = from_config(config)
    assert a.parameters == meta_parameters(config)
    assert a.tower.senses == ("audio",) and a.active_parameters < a.parameters


@pytest.mark.parametrize("tp", [1, 2])
def test_a_rank_holds_what_vllms_qwen2_audio_makes(vllm: Vllm, tp: int):
    a = from_config(QWEN2_AUDIO)
    with as_one_of(tp):
        model, _ = build(vllm, QWEN2_AUDIO, max_model_len=512)
    held = sum(prod(c.on_rank(1 if c.place == "tower" else tp)) * a.copies(c) for c in a.components)
    assert held == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_a_rank_holds_what_vllms_encoder_of_qwen3_asr_makes(vllm: Vllm, tp: int):
    """Its heads split over as many ranks as divide them, else each rank has it whole."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.models.qwen3_omni_moe_thinker import Qwen3OmniMoeAudioEncoder
    from vllm.transformers_utils.configs.qwen3_asr import Qwen3ASRAudioEncoderConfig

    own = vllm.configured(catalog.model_config("llama-3.2-1b"))
    config = {**QWEN3_ASR["audio_config"], "encoder_ffn_dim": 102}
    with as_one_of(tp), set_current_vllm_config(own), torch.device("meta"):
        made = Qwen3OmniMoeAudioEncoder(Qwen3ASRAudioEncoderConfig(**{**config, "model_type": "x"}))
    theirs = [*made.parameters(), *made.buffers()]
    tower, parts = multimodal.tower({**QWEN3_ASR, "audio_config": config}, 64)
    ranks = tower.ranks(tp, "weights")
    assert ranks == (3 if tp == 3 else 1)
    assert sum(prod(c.on_rank(ranks)) * c.times for c in parts) == sum(t.numel() for t in theirs)
    assert {c.shape for c in parts if c.dtype == "float32"} == {tuple(b.shape) for b in made.buffers()}


def test_a_thinker_config_is_opened():
    inner = {k: QWEN3_ASR[k] for k in ("text_config", "audio_config", "tie_word_embeddings")}
    nested = {"architectures": QWEN3_ASR["architectures"], "torch_dtype": "bfloat16", "thinker_config": inner}
    assert from_config(nested) == from_config(QWEN3_ASR)


def test_the_convolutions_of_qwen3_asr_decide_its_pass():
    """https://github.com/QwenLM/Qwen3-ASR/issues/54: 21 items at a budget of 8,192, and 28.0 GiB left for KV."""
    audio_config = {
        "d_model": 1024, "encoder_layers": 24, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "n_window": 50,
        "output_dim": 2048, "downsample_hidden_size": 480, "num_mel_bins": 128,
    }  # fmt: skip
    config = {**QWEN3_ASR, "tie_word_embeddings": True, "audio_config": audio_config, "text_config": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "max_position_embeddings": 65_536,
    }}  # fmt: skip
    engine = "{vllm: '0.14.0', entrypoint: llm, gpu_memory_utilization: 0.8}"
    found = predict(parse_scenario(f"name: a\nmodel: {json.dumps(config)}\ngpu: {{name: l40s}}\nengine: {engine}"))
    (peak,) = [e for e in found.ledger.entries if e.term == "activation_peak"]
    assert peak.source.startswith("tower: 21 x audio of 390 tokens")
    assert peak.bytes == 2 * 2 * 500 * 480 * 64 * 50 + 21 * 2 * (390 * 2048 + 3000 * 128) + 52 * 2**20
    (pool,) = [e for e in found.ledger.entries if e.term == "kv_available"]
    assert pool.low < 28.0 * GIB < pool.high and pool.bytes == pytest.approx(28.0 * GIB, rel=0.03)


@pytest.mark.parametrize("tp", [1, 2])
def test_a_rank_holds_what_vllms_voxtral_makes(vllm: Vllm, tp: int):
    """Its encoder and adapter alone: the class asks a tokenizer for the rest."""
    import torch
    from transformers import WhisperConfig
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.models.voxtral import AudioLanguageAdapter, VoxtralEncoderModel

    own = vllm.configured(WHISPER, max_model_len=448)
    whisper = WhisperConfig(**ENCODER, window_size=400, sampling_rate=16_000)
    with as_one_of(tp), set_current_vllm_config(own), torch.device("meta"):
        made = [VoxtralEncoderModel(own.with_hf_config(whisper)), AudioLanguageAdapter(4 * 48, 64)]
    theirs = [(tuple(t.shape), t.dtype == torch.float32) for m in made for t in (*m.parameters(), *m.buffers())]
    _, parts = multimodal.tower(VOXTRAL, 64)
    assert sum(prod(c.on_rank(tp)) * c.times for c in parts) == sum(prod(shape) for shape, _ in theirs)
    wide = {c.shape for c in parts if c.dtype == "float32"}
    assert wide == {(1500, 48), (201, 8)} <= {shape for shape, _ in theirs}


def test_how_much_audio_is_profiled():
    """Qwen2-Audio: clips of 750 tokens; Voxtral: as long a recording as max_model_len, 12.5 tokens a second."""
    for config, length, tokens, patches, words in (
        (QWEN2_AUDIO, 512, 750, 1500, "10 x audio of 750 tokens"),
        (VOXTRAL, 512, 512, 2048, "16 x audio of 512 tokens"),
    ):
        run = parse_scenario(f"name: a\nmodel: {config}\ngpu: {{name: h100}}\nengine: {{vllm: '0.32'}}")
        a = from_config(run.config())
        ((_, item),) = a.tower.items
        item = item.largest(length)
        assert (item.tokens, item.patches) == (tokens, patches)
        seen = encoder(a, settings(run, a), 0)
        assert seen is not None and seen.words == words


def test_vllm_counts_as_many_tokens_of_a_clip():
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    from vllm.model_executor.models import qwen3_asr
    from vllm.model_executor.models.qwen2_audio import _get_feat_extract_output_lengths

    _, tokens = _get_feat_extract_output_lengths(torch.tensor([3000]))
    ((_, item),) = from_config(QWEN2_AUDIO).tower.items
    assert item.tokens == int(tokens)
    ((_, item),) = from_config(QWEN3_ASR).tower.items
    assert item.tokens == item.patches == int(qwen3_asr._get_feat_extract_output_lengths(torch.tensor(3000)))


def test_stages_of_an_encoder_that_are_not_known_are_refused():
    run = parse_scenario(
        f"name: a\nmodel: {VOXTRAL}\ngpu: {{name: h100, count: 2}}\nengine: {{pipeline_parallel_size: 2}}"
    )
    with pytest.raises(UsageError, match="what the stages have of VoxtralForConditionalGeneration's encoder is not"):
        settings(run)
    with pytest.raises(UsageError, match=r"audio_config\.intermediate_size: expected 4 x hidden_size, got 200"):
        from_config({**VOXTRAL, "audio_config": {**VOXTRAL["audio_config"], "intermediate_size": 200}})
