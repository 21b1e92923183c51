"""Towers of audio, part by part, as vLLM makes them, and how much of it they take at once.

Sources: the module of each class in vllm/model_executor/models, 0.32; clips and rates are those of the published
processors. tests/test_audio.py holds the counts against transformers' own models and vLLM's classes.
"""

from __future__ import annotations

from dataclasses import replace

from harness.architecture import towers
from harness.architecture.images import Item
from harness.architecture.reader import Reader, show
from harness.errors import UsageError


def _ears(name: str, read: Reader, dtype: str | None = None) -> towers.Parts:
    """What an encoder of Whisper's kind has around its layers: two convolutions over mel bands, the second of stride 2,
    learned positions (of ``dtype``), a norm at the end."""
    width, bands = read.count("d_model"), read.count("num_mel_bins")
    for conv, inputs in (("conv1", bands), ("conv2", width)):
        yield towers.part(f"{name}.{conv}.weight", (width, inputs, 3))
        yield towers.part(f"{name}.{conv}.bias", (width,))
    yield towers.part(f"{name}.embed_positions.weight", (read.count("max_source_positions"), width), dtype=dtype)
    yield from towers.norm(f"{name}.layer_norm", width)


def _blocks(name: str, read: Reader) -> towers.Parts:
    """Its layers, as vLLM splits them; k has no bias."""
    depth, width, inner = read.count("encoder_layers"), read.count("d_model"), read.count("encoder_ffn_dim")
    yield from towers.blocks(f"{name}.layers", depth, width, inner, key_bias=False)


def whisper(read: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """The encoder whose output the decoder attends to."""
    yield from _ears("encoder", read)
    yield from _blocks("encoder", read)


def whisper_clip(read: Reader, outer: Reader) -> dict[str, Item]:
    """A clip, padded to its full length whatever it holds: two frames of mel bands for each position."""
    positions = read.count("max_source_positions")
    return {"audio": Item(positions, positions, 2 * positions * read.count("num_mel_bins"), positions)}


def qwen2_audio(read: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Qwen2-Audio: transformers' own encoder, whole on each rank, and one matrix."""
    name, width, inner = "audio_tower", read.count("d_model"), read.count("encoder_ffn_dim")
    yield from _ears(name, read)
    for part, out, source in (
        ("self_attn.q_proj", width, width), ("self_attn.k_proj", width, width), ("self_attn.v_proj", width, width),
        ("self_attn.out_proj", width, width), ("fc1", inner, width), ("fc2", width, inner),
    ):  # fmt: skip
        bias = not part.endswith("k_proj")
        yield from towers.linear(f"{name}.layers.{part}", out, source, "replicated", bias, read.count("encoder_layers"))
    for norm in ("self_attn_layer_norm", "final_layer_norm"):
        yield from towers.norm(f"{name}.layers.{norm}", width, times=read.count("encoder_layers"))
    yield from towers.linear("multi_modal_projector.linear", hidden, width, "replicated")


def qwen2_audio_clip(read: Reader, outer: Reader) -> dict[str, Item]:
    """A clip of 30 s, its positions pooled by two: 25 tokens a second."""
    (clip,) = whisper_clip(read, outer).values()
    tokens = (clip.patches - 2) // 2 + 1
    return {"audio": replace(clip, tokens=tokens, rows=tokens)}


# mistral_common: 16,000 samples a second, 12.5 tokens; frames of 10 ms, two of them a position of the encoder.
_VOXTRAL_SAMPLES, _VOXTRAL_POSITIONS = 1280, 4
_MEL_ROWS = 201  # of the filter bank: 1 + window_size // 2


def voxtral(read: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Voxtral: Whisper's encoder with float32 positions, then four positions side by side through two matrices."""
    named = _as_whisper(read)
    yield from _ears("whisper_encoder", named, dtype="float32")
    yield from _blocks("whisper_encoder", named)
    bands = (_MEL_ROWS, named.count("num_mel_bins"))
    yield towers.part("whisper_encoder.mel_filters", bands, dtype="float32", counted=False)
    stacked = read.count("intermediate_size")
    if stacked != _VOXTRAL_POSITIONS * read.count("hidden_size"):
        raise UsageError(f"config: {read.within}intermediate_size: expected 4 x hidden_size, got {show(stacked)}")
    yield from towers.linear("audio_language_adapter.w_in", hidden, stacked, "replicated", bias=False)
    yield from towers.linear("audio_language_adapter.w_out", hidden, hidden, "replicated", bias=False)


def voxtral_clip(read: Reader, outer: Reader) -> dict[str, Item]:
    """As long a recording as fits max_model_len."""
    return {"audio": Item(1, 1, _VOXTRAL_SAMPLES, _VOXTRAL_POSITIONS, steps=10**9)}


_CLIP = 3000  # frames of 10 ms in the longest clip that is profiled


def qwen3_asr(read: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """Qwen3-ASR: three convolutions over chunks of the spectrogram, then blocks and two matrices that are not split."""
    name, width, out = "audio_tower", read.count("d_model"), read.count("output_dim")
    channels, bands = read.count("downsample_hidden_size"), read.count("num_mel_bins")
    for conv, inputs in (("conv2d1", 1), ("conv2d2", channels), ("conv2d3", channels)):
        yield towers.part(f"{name}.{conv}.weight", (channels, inputs, 3, 3))
        yield towers.part(f"{name}.{conv}.bias", (channels,))
    yield from towers.linear(f"{name}.conv_out", width, channels * _thrice_halved(bands), "replicated", bias=False)
    positions = (read.count("max_source_positions", default=1500), width)
    yield towers.part(f"{name}.positional_embedding", positions, dtype="float32", counted=False)
    yield from towers.blocks(f"{name}.layers", read.count("encoder_layers"), width, read.count("encoder_ffn_dim"))
    yield from towers.norm(f"{name}.ln_post", width)
    yield from towers.linear(f"{name}.proj1", width, width, "replicated")
    yield from towers.linear(f"{name}.proj2", out, width, "replicated")


def qwen3_asr_clip(read: Reader, outer: Reader) -> dict[str, Item]:
    """A clip of 30 s: 13 tokens for each second, and as many rows of each chunk as it has left."""
    chunk, bands = 2 * read.count("n_window"), read.count("num_mel_bins")
    chunks, tokens = -(-_CLIP // chunk), _CLIP // 100 * 13
    one = read.count("downsample_hidden_size") * -(-bands // 2) * -(-chunk // 2)
    front = (chunks * one, read.count("conv_chunksize", default=500) * one)
    return {"audio": Item(tokens, tokens, _CLIP * bands, chunks * _thrice_halved(chunk), front=front)}


def _thrice_halved(length: int) -> int:
    for _ in range(3):
        length = -(-length // 2)
    return length


def _as_whisper(read: Reader) -> Reader:
    names = {
        "d_model": "hidden_size", "encoder_layers": "num_hidden_layers", "encoder_ffn_dim": "intermediate_size",
    }  # fmt: skip
    return Reader(read.config, names, read.within)
