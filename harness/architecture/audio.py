"""Towers of audio, part by part, as vLLM makes them, and how much of it they take at once.

Sources: the module of each class in vllm/model_executor/models, 0.32; clips and rates are those of the published
processors. tests/test_audio.py holds the counts against transformers' own models and vLLM's classes.
"""

from __future__ import annotations

from harness.architecture import towers
from harness.architecture.images import Item
from harness.architecture.reader import Reader


def whisper_encoder(name: str, read: Reader, layer_norm: str = "layer_norm") -> towers.Parts:
    """Whisper's encoder: two convolutions over mel bands, the second of stride 2, then blocks whose k has no bias."""
    width, bands = read.count("d_model"), read.count("num_mel_bins")
    for conv, inputs in (("conv1", bands), ("conv2", width)):
        yield towers.part(f"{name}.{conv}.weight", (width, inputs, 3))
        yield towers.part(f"{name}.{conv}.bias", (width,))
    yield towers.part(f"{name}.embed_positions.weight", (read.count("max_source_positions"), width))
    depth, inner = read.count("encoder_layers"), read.count("encoder_ffn_dim")
    yield from towers.blocks(f"{name}.layers", depth, width, inner, key_bias=False)
    yield from towers.norm(f"{name}.{layer_norm}", width)


def whisper(read: Reader, hidden: int, outer: Reader) -> towers.Parts:
    """The encoder whose output the decoder attends to."""
    yield from whisper_encoder("encoder", read)


def whisper_clip(read: Reader, outer: Reader) -> dict[str, Item]:
    """A clip, padded to its full length whatever it holds: two frames of mel bands for each position."""
    positions = read.count("max_source_positions")
    return {"audio": Item(positions, positions, 2 * positions * read.count("num_mel_bins"), positions)}
