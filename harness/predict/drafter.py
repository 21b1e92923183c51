"""Who proposes tokens: a model of its own, the model's own MTP layers, or an EAGLE drafter.

Source: ``SpeculativeConfig`` (vllm/config/speculative.py), 0.32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness import catalog
from harness.architecture import Architecture, from_config, mtp
from harness.architecture.eagle import auxiliary, eagle
from harness.architecture.reader import Reader
from harness.errors import UsageError
from harness.predict.quantization import Quantization, own_quantization, resolve
from harness.scenario import Scenario

_STRETCHED_SINCE = (0, 27)  # an EAGLE drafter's positions, to max_model_len: the 0.26.0 and 0.27.0 wheels


@dataclass(frozen=True)
class Draft:
    """The model that proposes tokens: on the ranks of the other, in its dtype, with layers in the same pool.

    ``takes``: hidden states of the model that it is fed with, MTP layers and EAGLE the last one, EAGLE3 those of
    several layers; 0: it is a model of its own. ``whose``: what its bytes are called.
    """

    architecture: Architecture
    quantization: Quantization
    takes: int = 0
    whose: str = "the draft model's"


def draft(scenario: Scenario, target: Architecture, tp: int, max_model_len: int) -> Draft | None:
    """What is loaded beside ``target``. Raises UsageError where vLLM would refuse it, or it is not known."""
    asked, config, version = scenario.engine.speculative_config, scenario.config(), scenario.engine.vllm
    if asked is None or not asked.drafts:
        return None
    if asked.model is None:
        layers = mtp(config)
        _check_steps(asked.num_speculative_tokens, sum(bool(caches) for caches in layers.kv_layers))
        return Draft(layers, resolve(scenario.weights, config, layers, scenario.model_folder), 1, "the MTP layers'")
    if asked.takes_states:
        found = _eagle(_config(asked.model, catalog.drafter_config), asked.proposer, target, max_model_len, version)
    else:
        found = _model(_config(asked.model, catalog.model_config), target)
    found.architecture.check_split(tp)
    return found


def _config(model: str | dict[str, Any], named: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return named(model) if isinstance(model, str) else model


def _model(config: dict[str, Any], target: Architecture) -> Draft:
    """Source: ``verify_equal_vocab_size_if_draft_model``."""
    own = from_config(config)
    if own.vocab != target.vocab:
        raise UsageError(
            f"engine.speculative_config: Target and draft model should have the same vocabulary size. Target model "
            f"vocab_size={target.vocab}. Draft model vocab_size={own.vocab}."
        )
    return Draft(own, own_quantization(config, own))


def _eagle(config: dict[str, Any], method: str, target: Architecture, max_model_len: int, version: str) -> Draft:
    """Source: ``_maybe_override_draft_max_position_embeddings``."""
    positions = max_model_len if catalog.version_key(version) >= _STRETCHED_SINCE else 0
    own = eagle(config, method, target, positions)
    takes = auxiliary(Reader(config, {})) if method == "eagle3" else 1
    return Draft(own, own_quantization(config, own), takes, "the EAGLE drafter's")


def _check_steps(tokens: int, layers: int) -> None:
    """Layers are used in turn: the tokens must come out even (``SpeculativeConfig.__post_init__``)."""
    if tokens > layers and tokens % layers:
        raise UsageError(
            f"engine.speculative_config: num_speculative_tokens:{tokens} must be divisible by n_predict={layers}"
        )
