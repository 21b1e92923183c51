"""What checkpoints call the parts of a model: a list of modules that are left unquantized is matched with these names.

vLLM fuses q, k, v and gate, up into one layer and asks for each of them by its own name; classes differ in what they
call a block. A part that is not in the table is called what vLLM calls it.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.architecture.component import Component

# Before the number of a layer: of most classes the first; the names of multimodal ones come in three orders.
LAYER_ROOTS = (
    "model.layers.", "model.language_model.layers.", "language_model.model.layers.", "model.decoder.layers.",
    "transformer.h.", "gpt_neox.layers.", "backbone.layers.", "layers.",
)  # fmt: skip
_OUTSIDE = {
    "embed_tokens": ("model.embed_tokens", "model.language_model.embed_tokens", "language_model.model.embed_tokens"),
    "lm_head": ("lm_head", "language_model.lm_head", "head"),
}
# Fused first, where vLLM fuses; then as published. Blocks: self_attn (attn, mixer), mlp (block_sparse_moe, ffn).
_EXPERTS = ("mlp.experts", "block_sparse_moe.experts", "ffn.experts", "mixer.experts", "experts", "moe.experts")
_MODULES = {
    "qkv_proj": (
        "self_attn.qkv_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "attn.c_attn",
        "self_attention.query_key_value", "attention.query_key_value", "mixer.q_proj", "mixer.qkv_proj",
    ),
    "o_proj": ("self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attn.c_proj", "self_attention.dense",
               "attention.dense", "mixer.o_proj"),
    "q_proj": ("self_attn.q_proj",),
    "wqa_wkv": ("attn.fused_wqa_wkv", "attn.wq_a", "attn.wkv"),
    "wq_b": ("attn.wq_b",),
    "wo_a": ("attn.wo_a",),
    "wo_b": ("attn.wo_b",),
    "indexer.wq_b": ("indexer.wq_b", "attn.indexer.wq_b"),
    "kv_a_proj": ("self_attn.kv_a_proj_with_mqa",),
    "qkv_a_proj": ("self_attn.fused_qkv_a_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
    "q_b_proj": ("self_attn.q_b_proj",),
    "qkv_a_g_proj": ("self_attn.fused_qkv_a_g_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa",
                     "self_attn.g_proj"),
    "in_proj_qkvgfab": ("self_attn.in_proj_qkvgfab", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "f_b_proj": ("self_attn.f_b_proj",),
    "kv_b_proj": ("self_attn.kv_b_proj",),
    "gate_up_proj": ("mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj", "feed_forward.gate_proj"),
    "up_proj": ("mlp.up_proj", "mlp.fc1", "fc1", "mlp.c_fc", "mlp.dense_h_to_4h", "mixer.up_proj"),
    "down_proj": ("mlp.down_proj", "mlp.fc2", "fc2", "mlp.c_proj", "mlp.dense_4h_to_h", "mixer.down_proj",
                  "feed_forward.down_proj"),
    "shared_experts.gate_up_proj": ("mlp.shared_experts.gate_up_proj", "mlp.shared_experts.gate_proj",
                                    "mlp.shared_expert.gate_up_proj", "mlp.shared_expert.gate_proj",
                                    "ffn.shared_experts.w1", "moe.share_expert.gate_up_proj",
                                    "share_expert.gate_proj"),
    "shared_experts.down_proj": ("mlp.shared_experts.down_proj", "mlp.shared_expert.down_proj",
                                 "ffn.shared_experts.w2", "mixer.shared_experts.down_proj",
                                 "moe.share_expert.down_proj", "share_expert.down_proj"),
    "shared_experts.up_proj": ("mlp.shared_experts.up_proj", "mixer.shared_experts.up_proj"),
    "in_proj": ("mixer.in_proj", "mamba.in_proj", "conv.in_proj"),
    "out_proj": ("mixer.out_proj", "mamba.out_proj", "linear_attn.out_proj", "conv.out_proj", "self_attn.o_proj"),
    "in_proj_qkvz": ("linear_attn.in_proj_qkvz", "linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
    "in_proj_ba": ("linear_attn.in_proj_ba", "linear_attn.in_proj_b", "linear_attn.in_proj_a"),
    "fc1_latent_proj": ("mixer.fc1_latent_proj", "block_sparse_moe.routed_expert_down_proj"),
    "fc2_latent_proj": ("mixer.fc2_latent_proj", "block_sparse_moe.routed_expert_up_proj"),
    "experts.w13": (*_EXPERTS, *(f"{e}.0.{w}" for e in _EXPERTS for w in ("gate_proj", "w1", "up_proj")),
                    "moe.gate_proj"),
    "experts.w2": (*_EXPERTS, *(f"{e}.0.{w}" for e in _EXPERTS for w in ("down_proj", "w2")), "moe.down_proj"),
}  # fmt: skip


def module_names(component: Component, patterns: Iterable[str] = ()) -> tuple[str, ...]:
    """The names that a checkpoint may have for ``component``, ``{}`` for a layer's number.

    ``patterns``: the names that they will be compared with; what none of them can begin with is left out.
    """
    base = component.name.partition(",")[0].removesuffix(".weight")
    if component.place != "layer":
        return _OUTSIDE.get(base, (base,))
    if component.root:
        return tuple(f"{component.root}{{}}.{name}" for name in _MODULES.get(base, (base,)))
    others = [p for p in LAYER_ROOTS[1:] if any(_begins(pattern, p) for pattern in patterns)]
    return tuple(f"{p}{{}}.{name}" for p in (LAYER_ROOTS[0], *others) for name in _MODULES.get(base, (base,)))


def _begins(pattern: str, prefix: str) -> bool:
    return pattern.startswith(prefix) or (prefix.count(".") > 1 and prefix in pattern)
