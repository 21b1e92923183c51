"""The layers that predict further tokens (MTP), which some checkpoints have behind their decoder.

vLLM makes them as a drafter of its own: a norm of the token's embedding and one of the decoder's output, a projection
of both together, and one of the decoder's own layers: with full attention, and experts where the model has any, unless
the config lists them otherwise. Embedding and lm_head are the decoder's: the copies that the class makes are dropped
once loaded, but for Step's heads (vllm/v1/spec_decode/step3p5.py). MiMo V2's first layer, the only one that is made,
is sliding and dense; ERNIE's is a layer of Llama's; one step of a Nemotron-H passes several, each attention or experts.
DeepSeek V4 projects the two apart, into the streams of its residual, and its layer has a window alone.
Source: deepseek_mtp.py, glm4_moe_mtp.py, glm4_moe_lite_mtp.py, qwen3_next_mtp.py, qwen3_5_mtp.py, step3p5_mtp.py,
mimo_mtp.py, mimo_v2_mtp.py, ernie_mtp.py, nemotron_h_mtp.py (vllm/model_executor/models) and nvidia/mtp.py of
vllm/models/deepseek_v32 and deepseek_v4; ``_maybe_share_lm_head`` (vllm/v1/spec_decode/llm_base_proposer.py), 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from harness.architecture.component import Component
from harness.architecture.compressed import stream_head
from harness.architecture.model import Architecture, from_config
from harness.architecture.multimodal import text_config
from harness.architecture.reader import Reader, show
from harness.architecture.spellings import numbers
from harness.errors import UsageError


@dataclass(frozen=True)
class Predictor:
    """How a family has its MTP layers. ``key``: the config's, which counts them; ``default``: where it is missing.

    ``each``: every layer has a projection and a last norm of its own, else the first one's input is joined once.
    ``root``: what a checkpoint puts before a layer's number; None: they are numbered on behind the decoder's.
    ``own_head``: every layer has an lm_head of its own. ``listed``: the config's lists that go on behind the decoder's
    layers and say what each one is; those that no list of layers with experts names have an MLP.
    ``streams``: the residual has several, and the key that counts them.
    ``only``: how many vLLM makes, whatever the config says; ``own``: what else it reads in the config's place.
    ``pattern``: the layers that one step passes are what this key says of each, ``kinds`` where it is missing.
    ``norms``: those beside the projection. ``fused``: name of the projection that is there once.
    """

    key: str = "num_nextn_predict_layers"
    default: int = 0
    each: bool = True
    root: str | None = None
    own_head: bool = False
    listed: tuple[str, ...] = ()
    streams: str | None = None
    only: int | None = None
    own: tuple[tuple[str, Any], ...] = ()
    pattern: str | None = None
    kinds: tuple[str, ...] = ()
    norms: tuple[str, ...] = ("enorm", "hnorm", "shared_head.norm")
    fused: str = "mtp.fc"


_BEHIND = Predictor()
_QWEN = Predictor(each=False, root="mtp.layers.", default=1)
_QWEN3_5 = replace(_QWEN, key="mtp_num_hidden_layers")
PREDICTORS = {
    "DeepseekV3ForCausalLM": _BEHIND, "DeepseekV32ForCausalLM": _BEHIND, "GlmMoeDsaForCausalLM": _BEHIND,
    "DeepseekV4ForCausalLM": replace(_BEHIND, root="mtp.", streams="hc_mult"),
    "Glm4MoeForCausalLM": replace(_BEHIND, default=1),  # as transformers reads a config that doesn't say
    "Step3p5ForCausalLM": Predictor(own_head=True, listed=("layer_types", "partial_rotary_factors")),
    "Glm4MoeLiteForCausalLM": _BEHIND,
    "MiMoForCausalLM": Predictor(root="model.mtp_layers."),
    "MiMoV2FlashForCausalLM": Predictor(
        root="model.mtp.layers.", only=1, own=(("hybrid_layer_pattern", [1]), ("moe_layer_freq", [0]))
    ),
    "Ernie4_5_MoeForCausalLM": Predictor(  # a layer of Llama's
        root="model.mtp_block.", own=(("architectures", ["LlamaForCausalLM"]),),
        norms=("mtp_emb_norm", "mtp_hidden_norm"),
    ),
    "NemotronHForCausalLM": Predictor(
        each=False, root="mtp.layers.", pattern="mtp_layers_block_type", kinds=("attention", "moe"),
        fused="mtp.layers.0.eh_proj",
    ),
    "Qwen3NextForCausalLM": _QWEN, "Qwen3_5ForCausalLM": _QWEN3_5, "Qwen3_5MoeForCausalLM": _QWEN3_5,
}  # fmt: skip


def mtp(config: dict[str, Any]) -> Architecture:
    """The MTP layers that ``config`` describes, as a drafter. Raises UsageError where there are none, or not known."""
    text = text_config(config)
    name = (text.get("architectures") or [None])[0]
    if name == "MiniMaxM3SparseForCausalLM":
        raise UsageError(
            "engine.speculative_config: MiniMax M3's published checkpoint has none of the MTP layers that its config "
            "counts (num_mtp_modules), and vLLM fails to load them"
        )
    found = PREDICTORS.get(name)
    if found is None:
        raise UsageError(
            f"engine.speculative_config: the MTP layers of {config['architectures'][0]} are not modelled "
            f"(known: {', '.join(PREDICTORS)})"
        )
    if name == config["architectures"][0] == "Step3p5ForCausalLM":
        raise UsageError(
            "engine.speculative_config: vLLM's own config of Step3p5ForCausalLM drops what layer_types says of MTP "
            "layers, and its class fails without (IndexError, 0.32)"
        )
    read = Reader(text, {})
    layers = found.only or read.number(found.key, found.default)
    if not layers:
        raise UsageError(f"engine.speculative_config: the model has no MTP layers ({found.key} of its config)")
    if found.pattern and layers > 1:
        raise UsageError("engine.speculative_config: Only one MTP layer is supported for NemotronH-MTP")
    before = 0 if found.root else read.count("num_hidden_layers")
    stated = config.get("quantization_config")
    plain = isinstance(stated, dict) and stated.get("quant_algo") == "NVFP4"
    described = {**text, **dict(found.own), **_listed(text, found, before, layers), **_passed(text, found)}
    alone = _alone(described, layers if found.pattern is None else len(described["layers_block_type"]), found)
    if found.streams is None:
        joined = _joined(alone, found, tuple(range(before, before + layers)), plain)
        return _behind(before, found, alone, joined)
    if isinstance(stated, dict) and stated.get("moe_quant_algo"):
        raise UsageError(
            f"engine.speculative_config: the MTP layers of {name} beside {stated['moe_quant_algo']} experts are not "
            "modelled: the checkpoint has them in their own format, vLLM makes them in that of the others"
        )
    return _of_streams(found, alone, read)


def _of_streams(found: Predictor, alone: Architecture, read: Reader) -> Architecture:
    """DeepSeek V4's. Its windows' rotary cache is the decoder's, where a layer of that has a window alone."""
    joined = _apart(alone.hidden, read.count(found.streams or ""), tuple(range(alone.layers)))
    whole = from_config(read.config)
    shared = whole.compressed is not None and 0 in whole.compressed.ratios
    return replace(_behind(0, found, alone, joined), rotary_shapes=() if shared else alone.rotary_shapes)


def _listed(text: dict[str, Any], found: Predictor, before: int, layers: int) -> dict[str, Any]:
    """What the config lists of each layer, behind the decoder's ``before``."""
    own: dict[str, Any] = {}
    for key in found.listed:
        value = text.get(key)
        if not isinstance(value, list) or len(value) < before + layers:
            raise UsageError(f"config: {key}: expected one more for each of {layers} MTP layers, got {show(value)}")
        own[key] = value[before : before + layers]
    if found.listed:
        own["moe_layers_enum"] = [i - before for i in numbers(text.get("moe_layers_enum"), before)]
    return own


def _passed(text: dict[str, Any], found: Predictor) -> dict[str, Any]:
    """Nemotron-H: what each of the layers is that a step passes, by names or letters."""
    if found.pattern is None:
        return {}
    letters = text.get("mtp_hybrid_override_pattern")
    given = text.get(found.pattern) or list(found.kinds)
    if isinstance(letters, str) and given == list(found.kinds):
        given = [dict(zip("*E", found.kinds, strict=True)).get(letter, letter) for letter in letters]
    if not isinstance(given, list) or not given or not set(map(str, given)) <= {*found.kinds, "full_attention"}:
        raise UsageError(f"config: {found.pattern}: expected attention or moe for each layer, got {show(given)}")
    return {"layers_block_type": ["attention" if kind == "full_attention" else kind for kind in given]}


def _alone(text: dict[str, Any], layers: int, found: Predictor) -> Architecture:
    """A decoder of nothing but ``layers`` of the kind that MTP layers are."""
    alike = {
        "num_hidden_layers": layers, "first_k_dense_replace": 0, "index_topk_freq": 1, "index_topk_pattern": None,
        "compress_ratios": [0] * layers, "num_hash_layers": 0,
    }  # fmt: skip
    types = {"layer_types": ["full_attention"] * layers} if "layer_types" in text and not found.listed else {}
    kinds = {"full_attention_interval": 1} if "full_attention_interval" in text else {}
    return from_config({**text, **{k: v for k, v in alike.items() if k in text}, **kinds, **types})


def _behind(before: int, found: Predictor, alone: Architecture, joined: Iterator[Component]) -> Architecture:
    """``alone`` without what it shares, its layers numbered from ``before`` on, and what is ``joined`` before them."""
    layers = tuple(range(before, before + alone.layers))
    decoder = [
        replace(c, layers=layers if c.layers is None else tuple(before + i for i in c.layers), root=found.root)
        for c in alone.components if c.place == "layer"
    ]  # fmt: skip
    return replace(
        alone, layers=before + alone.layers, tied=False, rotary_shapes=(),  # cos and sin are looked up, not made again
        components=(*decoder, *joined),
        kv_layers=((),) * before + alone.kv_layers,
    )  # fmt: skip


def _apart(hidden: int, streams: int, layers: tuple[int, ...]) -> Iterator[Component]:
    """A projection of the token's embedding and one of each stream, and what makes one state of the streams."""
    for name in ("e_proj", "h_proj"):
        yield Component(
            f"{name}.weight", (hidden, hidden), "replicated", quantizable=True, kind="mtp", layers=layers, root="mtp."
        )  # fmt: skip
    for name in ("enorm.weight", "hnorm.weight", "shared_head.norm.weight"):
        yield Component(name, (hidden,), "replicated", layers=layers)
    yield from stream_head(streams, hidden, "layer", layers)


def _joined(alone: Architecture, found: Predictor, layers: tuple[int, ...], plain: bool) -> Iterator[Component]:
    """What joins a token's embedding and the decoder's output. ModelOpt's NVFP4 checkpoints have a ``plain``
    projection without saying so, and vLLM knows (PR 38650)."""
    hidden = alone.hidden
    if found.own_head:
        yield Component("shared_head.head.weight", (alone.vocab, hidden), "vocab", kind="lm_head", layers=layers)
    if found.each:
        yield Component("eh_proj.weight", (hidden, 2 * hidden), "replicated", kind="mtp", layers=layers)
        for name in found.norms:
            yield Component(f"{name}.weight", (hidden,), "replicated", layers=layers)
        return
    yield Component(f"{found.fused}.weight", (hidden, 2 * hidden), "column", "last", quantizable=not plain, kind="mtp")
    for name in ("mtp.norm", "mtp.pre_fc_norm_hidden", "mtp.pre_fc_norm_embedding"):
        yield Component(f"{name}.weight", (hidden,), "replicated", "last")
