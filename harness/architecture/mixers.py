"""State-space and linear-attention layers: their tensors, and what they keep of a request.

Source: vllm/model_executor/layers/mamba (mamba_mixer.py, mamba_mixer2.py, short_conv.py, gdn/, linear/), 0.32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from harness.architecture.component import Component
from harness.architecture.kv_layers import State
from harness.architecture.reader import Reader
from harness.errors import UsageError

Parts = tuple[list[Component], State]
KIND = "state"
# The convolution as the kernel that decodes wants it, and for which layers there is such a kernel
# (``resolve_kda_decode_backend``, vllm/models/kimi_k3/nvidia/kda.py, 0.32).
DECODED, _DECODED_DIM, _DECODED_KERNEL = "decode_conv1d_weight", 128, 4


def _linear(
    name: str, units: tuple[tuple[int, int], ...], inner: int, bias: bool = False, quantizable: bool = True
) -> Iterator[Component]:
    """A layer whose outputs are so many (heads or groups, elements of one), which ranks divide."""
    outputs = sum(count * width for count, width in units)
    yield Component(f"{name}.weight", (outputs, inner), "heads", quantizable=quantizable, kind=KIND, units=units)
    if bias:
        yield Component(f"{name}.bias", (outputs,), "heads", kind=KIND, units=units)


def _vector(name: str, units: tuple[tuple[int, int], ...], dtype: str | None = None) -> Component:
    return Component(name, (sum(c * w for c, w in units),), "heads", kind=KIND, units=units, dtype=dtype)


def _out(hidden: int, inner: int, bias: bool = False) -> Iterator[Component]:
    yield Component("out_proj.weight", (hidden, inner), "row", quantizable=True, kind=KIND)
    if bias:
        yield Component("out_proj.bias", (hidden,), "replicated", kind=KIND)


def mamba2(read: Reader, hidden: int) -> Parts:
    """Mamba 2 (``MambaMixer2``): heads with a scalar decay, B and C shared by the heads of a group."""
    heads, size = read.count("mamba_heads"), read.count("mamba_d_state")
    groups, kernel = read.count("mamba_n_groups", default=1), read.count("mamba_d_conv", default=4)
    width = _mamba_width(read, hidden)
    if width % heads:
        raise UsageError(f"config: {read.key('mamba_heads')}: {heads} heads can't share a width of {width}")
    inner, shared = (heads, width // heads), (groups, size)
    bias = read.flag(read.key("mamba_proj_bias"), False)
    conv = (inner, shared, shared)
    parts = [
        *_linear("in_proj", (inner, inner, shared, shared, (heads, 1)), hidden, bias),
        *_linear("conv1d", conv, kernel, read.flag(read.key("mamba_conv_bias"), True), quantizable=False),
        _vector("A", ((heads, 1),), "float32"), _vector("D", ((heads, 1),)), _vector("dt_bias", ((heads, 1),)),
        *_out(hidden, width, read.flag(read.key("mamba_out_bias"), bias)),
    ]  # fmt: skip
    if read.flag("mamba_rms_norm", True):
        parts.append(_vector("mixer_norm.weight", (inner,)))
    kept = kernel - 1
    return parts, State(kept * width, width * size, kept * 2 * size, groups, kernel="mamba2", inputs=kept)


def _mamba_width(read: Reader, hidden: int) -> int:
    if read.config.get("mamba_d_ssm") is not None:
        return read.count("mamba_d_ssm")
    if read.config.get(read.key("mamba_head_dim")) not in (None, "auto"):
        return read.count("mamba_heads") * read.count("mamba_head_dim")
    return read.count("mamba_expand", default=2) * hidden


def mamba1(read: Reader, hidden: int) -> Parts:
    """Mamba 1 with norms on dt, B and C, as Jamba has it (``MambaMixer``)."""
    width, size = read.count("mamba_expand", default=2) * hidden, read.count("mamba_d_state", default=16)
    kernel, given = read.count("mamba_d_conv", default=4), read.config.get("mamba_dt_rank", "auto")
    rank = -(-hidden // 16) if given == "auto" else read.count("mamba_dt_rank")
    bias = read.flag("mamba_proj_bias", False)
    inner = ((width, 1),)
    parts = [
        *_linear("in_proj", (*inner, *inner), hidden, bias),
        *_linear("conv1d", inner, kernel, read.flag("mamba_conv_bias", True), quantizable=False),
        Component("x_proj.weight", (rank + 2 * size, width), "row", quantizable=True, kind=KIND),
        *_linear("dt_proj", inner, rank, bias=True),
        Component("A", (width, size), "heads", kind=KIND, units=inner, dtype="float32"), _vector("D", inner),
        Component("dt_b_c_norm.weight", (rank + 2 * size,), "replicated"),
        *_out(hidden, width, bias),
    ]  # fmt: skip
    return parts, State((kernel - 1) * width, width * size)


def gated_delta_net(read: Reader, hidden: int) -> Parts:
    """Gated delta net, as Qwen3-Next and Qwen3.5 have it (gdn/qwen_gdn_linear_attn.py)."""
    k_heads, v_heads = read.count("linear_num_key_heads"), read.count("linear_num_value_heads")
    k_dim, v_dim = read.count("linear_key_head_dim"), read.count("linear_value_head_dim")
    kernel = read.count("linear_conv_kernel_dim", default=4)
    key, value, each = (k_heads * k_dim, 1), (v_heads, v_dim), (v_heads, 1)  # keys are divided within a head too
    parts = [
        *_linear("in_proj_qkvz", (key, key, value, value), hidden),
        *_linear("in_proj_ba", (each, each), hidden),
        *_linear("conv1d", (key, key, value), kernel, quantizable=False),
        _vector("A", (each,), "float32"), _vector("dt_bias", (each,)),
        Component("mixer_norm.weight", (v_dim,), "replicated"),
        *_out(hidden, v_heads * v_dim),
    ]  # fmt: skip
    channels = 2 * k_heads * k_dim + v_heads * v_dim
    state = State((kernel - 1) * channels, v_heads * v_dim * k_dim, inputs=kernel - 1)
    return parts, replace(state, kernel="delta_net" if k_dim == 128 else None)


def kimi_delta_attention(read: Reader, hidden: int) -> Parts:
    """Kimi delta attention (gdn/kimi_gdn_linear_attn.py): a gate of low rank; of full rank in K3, and all inputs fused.

    K3's (vllm/models/kimi_k3/nvidia/kda.py) is padded to whole rows of a kernel, and its kernel for single tokens, on a
    GPU, keeps the convolution a second time.
    """
    own = read.inner("linear_attn_config")
    heads, dim, kernel = own.count("num_heads"), own.count("head_dim"), own.count("short_conv_kernel_size", default=4)
    inner = (heads, dim)
    full = own.flag("use_full_rank_gate", False)
    if full:
        fused = ((inner,) * 4 + ((1, dim), (heads, 1)))
        shape = (sum(count * width for count, width in fused), hidden)
        inputs = [
            Component("in_proj_qkvgfab.weight", shape, "heads", quantizable=True, kind=KIND, units=fused, step=16)
        ]
    else:
        inputs = [
            *_linear("in_proj_qkv", (inner,) * 3, hidden),
            *_linear("b_proj", ((heads, 1),), hidden),
            Component("f_a_proj.weight", (dim, hidden), "replicated", quantizable=True, kind=KIND),
        ]
    parts = [
        *inputs,
        *_linear("f_b_proj", (inner,), dim),
        Component("conv1d.weight", (3 * heads * dim, kernel), "heads", kind=KIND, units=(inner,) * 3, dtype="float32"),
        _vector("A", ((heads, 1),), "float32"), _vector("dt_bias", (inner,), "float32"),
        Component("mixer_norm.weight", (dim,), "replicated"),
        *_out(hidden, heads * dim),
    ]  # fmt: skip
    if not full:
        parts.append(Component("g_a_proj.weight", (dim, hidden), "replicated", quantizable=True, kind=KIND))
        parts += _linear("g_b_proj", (inner,), dim)
    elif dim == _DECODED_DIM and kernel == _DECODED_KERNEL:
        copy = Component(
            DECODED, (3 * heads * dim, kernel), "heads", kind=KIND, units=(inner,) * 3, dtype="float32", counted=False
        )  # fmt: skip
        parts.append(copy)
    bounded = own.config.get("gate_lower_bound") is not None and dim == 128  # as FlashKDA wants it
    conv, recurrent = (kernel - 1) * 3 * heads * dim, heads * dim * dim
    return parts, State(conv, recurrent, recurrent_dtype="float32", kernel="kda" if bounded else None)


def lightning_attention(read: Reader, hidden: int) -> Parts:
    """Lightning attention of MiniMax M1 (linear/): no convolution, all heads have their own keys."""
    heads = read.count("num_attention_heads")
    dim = read.count("head_dim", default=hidden // heads)
    inner = (heads, dim)
    parts = [
        *_linear("qkv_proj", (inner,) * 3, hidden),
        *_linear("output_gate", (inner,), hidden),
        _vector("mixer_norm.weight", (inner,)),
        *_out(hidden, heads * dim),
    ]
    return parts, State(0, heads * dim * dim)


def short_conv(read: Reader, hidden: int) -> Parts:
    """The gated short convolution of LFM2 (short_conv.py)."""
    kernel, bias = read.count("conv_L_cache", default=3), read.flag("conv_bias", False)
    inner = ((hidden, 1),)
    parts = [
        *_linear("in_proj", inner * 3, hidden, bias),
        *_linear("conv1d", inner, kernel, bias, quantizable=False),
        *_out(hidden, hidden, bias),
    ]
    return parts, State((kernel - 1) * hidden, 0)


MIXERS: dict[str, Callable[[Reader, int], Parts]] = {
    "mamba1": mamba1, "mamba2": mamba2, "gated_delta_net": gated_delta_net, "kda": kimi_delta_attention,
    "lightning": lightning_attention, "short_conv": short_conv,
}  # fmt: skip
