"""What may tell one model class from another: the columns of the tables of families."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Experts:
    """The mixture of a family. Each ``str`` names a config key; None: the family has no such thing."""

    count: str = "num_experts"
    used: str = "num_experts_per_tok"
    width: str = "moe_intermediate_size"
    shared_width: str | None = None  # width of all shared experts together
    shared_count: str | None = None  # or their number, each as wide as a routed one
    shared_gate: bool = False
    shared_step: int = 1  # a rank's share of the shared experts' width is whole steps of so many
    router_bias: bool = False
    router_float32: bool = False  # whatever the model's number type is
    expert_bias: bool = False
    correction_bias: bool = False  # one float32 for each expert, beside the router
    first_dense: str | None = None  # so many layers at the start are dense
    every: str | None = None  # one layer in so many has experts
    dense_layers: str | None = None  # a list of the layers that are dense
    offset: str | None = None  # with ``every``: which of so many
    flags: str | None = None  # a list of 0 (dense) and 1 (experts), one a layer; where it is a list
    listed: str | None = None  # a list of the layers that have experts
    optional: bool = False  # a model of the family may have none
    gated: bool = True  # whether an expert has a gate beside its up projection
    beside: bool = False  # experts and a dense MLP in the same layers
    switch: str | None = None  # the config key that switches experts on
    least: int = 0  # the width that ranks which divide an expert have at least
    latent: str | None = None  # width of what the experts take in and give out, where it is not the hidden size
    latent_norm: str | None = None  # the config key that switches a norm of what they give out on


@dataclass(frozen=True)
class Family:
    """One model class. A ``str`` where a bool may stand names the config key."""

    kv_heads: str = "num_key_value_heads"  # or "multi_query" (a flag: one or all), or "all": as many as heads
    layer_norms: int = 2
    norm_bias: bool = False
    norm_weight: bool = True
    gated: bool = True
    mlp_multiple: int = 0  # the width of an MLP where the config doesn't say, in hidden sizes; 0: it must
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    lm_head_bias: bool | str = False
    key_bias: bool = True  # False: qkv_bias is not of k; vLLM makes that one of zeros
    qk_norm: str | None = None  # "head": one weight for each element of a head; "all": for each of all heads
    qk_norm_flag: str | None = None  # the config key that switches qk_norm on
    sinks: bool | str = False  # one learned sink a head; of one kind of layers alone where it names that
    tied: bool = False
    whole_embedding: bool = False  # the same on each rank, not padded
    cross: str | None = None  # every layer attends to an encoder too: the config key of its positions
    rotary: float | None = 1.0  # default share of a head that is rotated; None: no rotary embedding
    rotary_local: bool = False  # a second rotary cache for the sliding layers
    rotary_float32: bool = False
    position_offset: int | None = None  # learned positions: this many rows more than positions
    pattern: int | None = None  # every so many layers one is full, the others slide
    window_extra: int = 0  # tokens that vLLM adds to the window
    scheme: str = "window"  # what tells the kinds of the layers: a function of layout.py
    flag_kinds: tuple[str, str] = ("state", "full")  # what 0 and 1 in the list of layer flags mean
    alone: bool = False  # a layer is attention, a state, an MLP or experts, and not two of them
    mixer: str | None = None  # the layers with a state: a function of mixers.py
    state_dtype: str | None = None  # key of the config that tells a state's number type
    state_dtype_default: str | None = None  # None: the model's
    gate: str | None = None  # of attention's output: "element" (the query doubled) or "head" (one weight a head)
    gate_flag: str | None = None  # the config key that switches the gate on
    value_dim: str | None = None  # key of the values' width, where it is not the keys'
    full_keys: tuple[tuple[str, str], ...] = ()  # what the full layers alone have: our name -> the config's key
    sliding_keys: tuple[tuple[str, str], ...] = ()  # and the sliding layers
    key_is_value: str | None = None  # key of the config: full layers have no v; their ``full_keys`` of heads hold then
    wide_when_shared: str | None = None  # key: layers that use another layer's keys have an MLP twice as wide
    extras: str | None = None  # parts that no other family has: a function of extras.py
    spelling: str | None = None  # its config says in a way of its own what others say alike: a function of spellings.py
    mla: bool = False
    compressed: bool = False  # attention over compressed rows beside a window
    indexer: str | None = None  # sparse attention: an indexer chooses what is looked at, a function of indexer.py
    experts: Experts | None = None
    keys: tuple[tuple[str, str], ...] = ()  # our name -> the family's own config key
    must_be: tuple[tuple[str, Any], ...] = ()  # config keys that have one supported value
    bias_defaults: tuple[tuple[str, bool], ...] = field(default=())  # what a bias key means where it is missing
