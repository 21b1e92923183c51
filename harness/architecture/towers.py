"""What towers of images and audio are made of, as vLLM makes it.

``place`` "tower": split like the layers of the decoder, or copied whole where ``mm_encoder_tp_mode`` is "data";
"projector": split either way. Every pipeline stage holds both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.architecture.component import Component

Parts = Iterator[Component]


def part(name: str, shape: tuple[int, ...], split: str = "replicated", times: int = 1, **more: Any) -> Component:
    return Component(name, shape, split, **{"place": "tower", "kind": "vision", "times": times, **more})


def linear(name: str, out: int, inner: int, split: str, bias: bool = True, times: int = 1, **more: Any) -> Parts:
    yield part(f"{name}.weight", (out, inner), split, times, quantizable=True, **more)
    if bias:
        # The bias of a row-split layer is added once, after the ranks are summed: each keeps it whole.
        yield part(f"{name}.bias", (out,), "replicated" if split == "row" else split, times, **more)


def norm(name: str, width: int, bias: bool = True, times: int = 1) -> Parts:
    yield part(f"{name}.weight", (width,), times=times)
    if bias:
        yield part(f"{name}.bias", (width,), times=times)


def blocks(
    name: str, depth: int, width: int, inner: int, *, bias: bool = True, gated: bool = False, norm_bias: bool = True,
    mlp_bias: bool | None = None, key_bias: bool = True,
) -> Parts:  # fmt: skip
    """``depth`` blocks of attention (``width``) and an MLP (``inner``), a norm before each.

    ``key_bias``: False where a checkpoint has none of k; vLLM makes it all the same.
    """
    mlp_bias = bias if mlp_bias is None else mlp_bias
    yield from linear(f"{name}.attn.qkv", 3 * width, width, "column", bias and key_bias, depth)
    if bias and not key_bias:
        yield part(f"{name}.attn.qkv.bias", (2 * width,), "column", depth)
        yield part(f"{name}.attn.qkv.bias, k", (width,), "column", depth, counted=False)
    yield from linear(f"{name}.attn.proj", width, width, "row", bias, depth)
    first, outputs = ("gate_up_proj", 2 * inner) if gated else ("fc1", inner)
    yield from linear(f"{name}.mlp.{first}", outputs, width, "column", mlp_bias, depth)
    yield from linear(f"{name}.mlp.{'down_proj' if gated else 'fc2'}", width, inner, "row", mlp_bias, depth)
    for which in ("norm1", "norm2"):
        yield from norm(f"{name}.{which}", width, norm_bias, depth)


def rotary(name: str, positions: int, dims: int) -> Parts:
    """The cos/sin cache that ``get_rope`` makes once for all blocks."""
    yield part(f"{name}.rotary cos_sin_cache", (positions, dims), kind="rotary", counted=False)
