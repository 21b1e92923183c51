"""Parts that one family alone has, in addition to attention, MLP, experts and norms.

Source: gemma4.py and gemma3n.py of vllm/model_executor/models, nvidia/model.py of vllm/models/kimi_k3, 0.32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.architecture.component import Component
from harness.architecture.reader import Reader

KIND = "extras"


def _norms(hidden: int, *names: str) -> Iterator[Component]:
    for name in names:
        yield Component(f"{name}.weight", (hidden,), "replicated")


def _per_layer_inputs(read: Reader, hidden: int, layers: int) -> Iterator[Component]:
    """An embedding of its own for each layer, and what mixes it in."""
    width = read.number("hidden_size_per_layer_input", 0)
    if not width:
        return
    vocab = read.count("vocab_size_per_layer_input")
    yield Component("embed_tokens_per_layer", (vocab, layers * width), "vocab", "first", kind="embedding")
    yield Component(
        "per_layer_model_projection.weight", (layers * width, hidden), "column", "first", quantizable=True, kind=KIND
    )
    yield Component("per_layer_projection_norm.weight", (width,), "replicated", "first")
    yield Component("per_layer_input_gate.weight", (width, hidden), "replicated", quantizable=True, kind=KIND)
    yield Component("per_layer_projection.weight", (hidden, width), "replicated", quantizable=True, kind=KIND)
    yield from _norms(hidden, "post_per_layer_input_norm")


def gemma4(read: Reader, hidden: int, layers: int) -> Iterator[Component]:
    """Inputs of each layer, and the scales and norms of experts that lie beside the MLP."""
    yield from _per_layer_inputs(read, hidden, layers)
    if read.flag("enable_moe_block", False):
        yield Component("router.scale", (hidden,), "replicated", kind="router")
        yield Component("router.per_expert_scale", (read.count("num_experts"),), "replicated", kind="router")
        yield from _norms(
            hidden, "pre_feedforward_layernorm_2", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2"
        )


def gemma3n(read: Reader, hidden: int, layers: int) -> Iterator[Component]:
    """Inputs of each layer, low-rank residuals (laurel) and several streams of them (altup)."""
    yield from _per_layer_inputs(read, hidden, layers)
    rank, streams = read.count("laurel_rank"), read.count("altup_num_inputs")
    for name in ("altup_projections", "altup_unembed_projections"):
        for i in range(1, streams):
            yield Component(f"{name}.{i}.weight", (hidden, hidden), "column", "first", kind=KIND)
    yield Component("laurel.linear_left.weight", (rank, hidden), "column", kind=KIND)
    yield Component("laurel.linear_right.weight", (hidden, rank), "row", kind=KIND)
    for name, shape in (
        ("correction_coefs", (streams, streams)), ("prediction_coefs", (streams**2, streams)),
        ("modality_router", (streams, hidden)),
    ):  # fmt: skip
        yield Component(f"altup.{name}.weight", shape, "replicated", kind=KIND)
    yield from _norms(hidden, "post_laurel_norm", "altup.router_norm", "altup.correct_output_scale")


def attention_residuals(read: Reader, hidden: int, layers: int) -> Iterator[Component]:
    """What chooses among the outputs of earlier blocks of layers: before attention, before the MLP and at the end."""
    if not residual_block(read):
        return
    for name, place in (("self_attention_res", "layer"), ("mlp_res", "layer"), ("output_attn_res", "last")):
        yield Component(f"{name}_norm.weight", (hidden,), "replicated", place)
        yield Component(f"{name}_proj.weight", (1, hidden), "replicated", place, kind=KIND)


def residual_block(read: Reader) -> int:
    """Layers of a block whose output later ones may choose; 0: a plain sum of all layers."""
    return read.count("attn_res_block_size", default=0)


EXTRAS: dict[str, Callable[[Reader, int, int], Iterator[Component]]] = {
    "gemma3n": gemma3n, "gemma4": gemma4, "attention_residuals": attention_residuals,
}  # fmt: skip
