"""EAGLE drafters: a layer or two of a Llama, fed with the hidden states of the model that they propose for.

EAGLE joins a token's embedding and the model's last hidden state by a projection, and has no norm at the end and no
lm_head. EAGLE3 projects the hidden states of three of the model's layers, lays them beside the embedding, and has an
lm_head of its own, of fewer words. The embedding (EAGLE's lm_head too) is the model's: the copy that the class makes is
dropped where the checkpoint has none or an equal one.
Source: llama_eagle.py and llama_eagle3.py of vllm/model_executor/models, ``_maybe_share_embeddings`` and
``_maybe_share_lm_head`` of vllm/v1/spec_decode/llm_base_proposer.py, 0.32. tests/test_eagle.py asks vLLM's classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from harness.architecture.component import Component
from harness.architecture.model import Architecture, from_config
from harness.architecture.reader import Reader, show
from harness.errors import UsageError

AUXILIARY = 3  # layers whose hidden states EAGLE3 takes, where its config doesn't say
# Classes that hand out no hidden states of their layers (``SupportsEagle3``, vllm/model_executor/models, 0.32).
WITHOUT_EAGLE3 = (
    "CohereForCausalLM", "Cohere2ForCausalLM", "DeciLMForCausalLM", "Ernie4_5_MoeForCausalLM", "Exaone4ForCausalLM",
    "FalconForCausalLM",
    "FalconH1ForCausalLM", "GPT2LMHeadModel", "Gemma2ForCausalLM", "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration", "Gemma3nForCausalLM", "GemmaForCausalLM", "Glm4ForCausalLM",
    "Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM", "Glm4vForConditionalGeneration",
    "Glm4vMoeForConditionalGeneration", "GraniteMoeForCausalLM", "GraniteMoeHybridForCausalLM", "JambaForCausalLM",
    "Lfm2ForCausalLM", "LlavaNextForConditionalGeneration", "MixtralForCausalLM", "NemotronForCausalLM",
    "OPTForCausalLM", "OlmoeForCausalLM", "PhiMoEForCausalLM", "Qwen2AudioForConditionalGeneration",
    "Qwen2MoeForCausalLM", "Qwen2VLForConditionalGeneration", "StableLmForCausalLM", "Step3p5ForCausalLM",
    "Step3p7ForConditionalGeneration", "VoxtralForConditionalGeneration", "WhisperForConditionalGeneration",
)  # fmt: skip
_CLASSES = {
    "eagle": ("LlamaForCausalLM", "EagleLlamaForCausalLM"),
    "eagle3": ("LlamaForCausalLM", "LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM"),
}  # fmt: skip


def eagle(config: dict[str, Any], method: str, target: Architecture, positions: int) -> Architecture:
    """The drafter that ``config`` describes, of ``method`` "eagle" or "eagle3", for ``target``.

    ``positions``: rows that its rotary cache has at least. Raises UsageError for a class that is not known, and where
    the drafter is another model's.
    """
    if method == "eagle3" and target.name in WITHOUT_EAGLE3:
        raise UsageError(
            f"engine.speculative_config: {target.name}: Model does not support EAGLE3 interface but "
            "aux_hidden_state_outputs was requested"
        )
    names = config.get("architectures")
    if not isinstance(names, list) or not names or names[0] not in _CLASSES[method]:
        known = ", ".join(_CLASSES[method])
        raise UsageError(f"engine.speculative_config: a drafter of {show(names)} is not modelled (known: {known})")
    alone = from_config({**config, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False})
    read = Reader(config, {})
    taken = read.count("target_hidden_size", default=alone.hidden) if method == "eagle3" else alone.hidden
    for what, drafters, models in (
        ("words", alone.vocab, target.vocab), ("hidden states of", taken, target.hidden),
        ("embeddings of", alone.hidden, target.hidden),
    ):  # fmt: skip
        if drafters != models:
            raise UsageError(
                f"engine.speculative_config: the drafter takes {what} {drafters:,}, and {target.name} here has "
                f"{models:,}: it is another model's"
            )
    layers = tuple(range(alone.layers))
    decoder = [c for c in alone.components if c.place == "layer"]
    make = _eagle3 if method == "eagle3" else _eagle
    rotary = tuple((max(rows, positions), dims) for rows, dims in alone.rotary_shapes)
    return replace(
        alone, tied=False, components=tuple(make(decoder, read, alone, layers)),
        rotary_shapes=() if rotary == target.rotary_shapes else rotary,
    )  # fmt: skip


def _eagle(decoder: list[Component], _: Reader, alone: Architecture, layers: tuple[int, ...]) -> Iterator[Component]:
    """The first layer's input has been normed already."""
    for part in decoder:
        if not part.name.startswith("norm1."):
            yield part
        elif layers[1:]:
            yield replace(part, layers=layers[1:])
    yield Component(
        "fc.weight", (alone.hidden, 2 * alone.hidden), "replicated", "last", quantizable=True, kind="eagle"
    )


def _eagle3(
    decoder: list[Component], read: Reader, alone: Architecture, layers: tuple[int, ...]
) -> Iterator[Component]:
    """The first layer's queries, keys and values are made of an embedding and a hidden state side by side."""
    hidden = alone.hidden
    for part in decoder:
        if part.name != "qkv_proj.weight":
            yield part
            continue
        yield replace(part, shape=(part.shape[0], 2 * hidden), layers=layers[:1])
        if layers[1:]:
            yield replace(part, layers=layers[1:])
    yield Component("hidden_norm.weight", (hidden,), "replicated")
    yield Component("final_norm.weight", (hidden,), "replicated", "last")
    if _option(read, "use_aux_hidden_state", True):
        count = auxiliary(read)
        taken = count * read.count("target_hidden_size", default=hidden)
        if _option(read, "norm_before_fc", False):
            yield Component("input_norm.weight", (taken,), "replicated", "last")
        if read.flag("fc_norm", False):
            yield Component("fc_norm.weight", (taken,), "replicated", "last")
        yield Component("fc.weight", (hidden, taken), "replicated", "last", quantizable=True, kind="eagle")
    words = read.count("draft_vocab_size", default=alone.vocab)
    yield Component("lm_head.weight", (words, hidden), "vocab", "last", kind="lm_head")
    if words != alone.vocab:
        yield Component("draft_id_to_target_id", (words,), "replicated", "last", kind="eagle", dtype="int64")


def auxiliary(read: Reader) -> int:
    """How many layers of the model give EAGLE3 their hidden states."""
    ids = _eagle_config(read).config.get("eagle_aux_hidden_state_layer_ids")
    listed = len(ids) if isinstance(ids, list) and ids else AUXILIARY
    return read.count("num_aux_hidden_states", default=listed)


def _option(read: Reader, name: str, default: bool) -> bool:
    return _eagle_config(read).flag(name, read.flag(name, default))


def _eagle_config(read: Reader) -> Reader:
    return read.inner("eagle_config") if read.config.get("eagle_config") else Reader({}, {})
