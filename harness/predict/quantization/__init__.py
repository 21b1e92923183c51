"""Which number format each part of a model is stored in, layer by layer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from harness import catalog
from harness.architecture import Architecture, Component, model_dtype, text_config
from harness.architecture.checkpoint import module_names
from harness.architecture.folder import read_headers
from harness.catalog import WeightFormat
from harness.errors import UsageError
from harness.predict.quantization import gguf
from harness.predict.quantization.methods import of_config, read_scheme
from harness.predict.quantization.modules import Modules
from harness.predict.quantization.scheme import Scheme
from harness.predict.quantization.stored import formats_of
from harness.scenario.weights import Weights

__all__ = ["Quantization", "own_quantization", "resolve"]

_PLAIN = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
Formats = dict[str, tuple[WeightFormat | None, ...]]
_QUANTIZED_OUTSIDE = ("lm_head",)  # kinds of parts beside the linear layers that a scheme may quantize


@dataclass(frozen=True)
class Quantization:
    """The formats of a model's parts. ``main``: that of most of its bytes, for words and for kernels.

    ``formats``: part -> its format in every layer, or one for each layer of the model; None, and a part that isn't
    here: the model's own dtype. ``kv_cache_dtype``: what a checkpoint asks of the cache. ``source``: who says so.
    """

    main: WeightFormat
    formats: Formats = field(default_factory=dict)
    kv_cache_dtype: str | None = None
    source: str = ""

    @property
    def name(self) -> str:
        """All formats in words, the main one first."""
        return " + ".join(f.name for f in self.all_formats)

    @cached_property
    def all_formats(self) -> list[WeightFormat]:
        """The main one first."""
        return list(dict.fromkeys([self.main, *(f for row in self.formats.values() for f in row if f is not None)]))

    def check(self, vllm: str) -> None:
        """Raises UsageError, in the words of ``vllm``, where that version does not read one of the formats."""
        for found in self.all_formats:
            if found.refused_from and catalog.version_key(vllm) >= catalog.version_key(found.refused_from):
                raise UsageError(f"weights format {found.name}: {found.refusal}")

    @property
    def words(self) -> str:
        """The formats and who says so."""
        return f"{self.name}: {self.source}"

    def of(self, component: Component, layers: Sequence[int]) -> list[tuple[WeightFormat | None, int]]:
        """(format, how many of ``layers`` have it so) of ``component``; one outside the layers, its ``times``."""
        formats = self.formats.get(component.name, (None,))
        if component.place != "layer":
            return [(formats[0], component.times)]
        held = layers if component.layers is None else [i for i in component.layers if i in layers]
        if len(formats) == 1:
            return [(formats[0], len(held))]
        return list(Counter(formats[i] for i in held).items())


def resolve(
    weights: Weights, config: dict[str, Any], architecture: Architecture, folder: Path | None = None
) -> Quantization:
    """The scenario's format, else what the checkpoint in ``folder`` holds, else what the config says of itself.

    Raises UsageError.
    """
    found = catalog.weight_format(weights.format)
    if found.bits is None:
        return own_quantization(config, architecture, folder)
    if weights.group_size is not None and found.any_group:
        found = catalog.weight_format(f"{found.name.rsplit('-g', 1)[0]}-g{weights.group_size}")
    if found.dtype is not None:
        return Quantization(found, source="weights.format")
    if found.name.startswith("gguf-"):
        return _mixed(found, architecture)
    return _applied(Scheme("", found, only=found.only), architecture, found, "weights.format")


def own_quantization(
    config: dict[str, Any], architecture: Architecture, folder: Path | None = None
) -> Quantization:
    """What the safetensors files in ``folder`` hold, else what ``config`` states. Raises UsageError."""
    stated = config_quantization(config, architecture)
    tensors = read_headers(folder) if folder is not None else {}
    if not tensors:
        return stated
    formats = _agreed(formats_of(tensors, architecture), stated.formats)
    plain = catalog.weight_format(_PLAIN[model_dtype(text_config(config))])
    return Quantization(_main(formats, architecture, plain), formats, stated.kv_cache_dtype, "safetensors headers")


def _agreed(held: Formats, stated: Formats) -> Formats:
    """``held``, but where headers can't tell two formats apart: GPTQ's order of inputs is only in the config."""
    orders = {f for row in stated.values() for f in row if f is not None and f.input_bits}
    if not orders:
        return held
    by_plain = {f.name.replace("-act-", "-"): f for f in orders}
    return {part: tuple(by_plain.get(f.name, f) if f else None for f in row) for part, row in held.items()}


def config_quantization(config: dict[str, Any], architecture: Architecture) -> Quantization:
    """What ``config`` states by its ``quantization_config``, else its dtype. Raises UsageError."""
    stated = of_config(config)
    plain = catalog.weight_format(_PLAIN[model_dtype(text_config(config))])
    if stated is None:
        return Quantization(plain, source="its dtype")
    scheme = _scheme(json.dumps([stated, config.get("architectures"), config.get("expert_dtype")]))
    return _applied(scheme, architecture, plain, "its quantization_config")


@lru_cache(maxsize=64)
def _scheme(text: str) -> Scheme:
    """``text``: the quantization_config and what else it is read with, as JSON, so that it is read once."""
    stated, architectures, expert_dtype = json.loads(text)
    scheme = read_scheme(stated, {"architectures": architectures, "expert_dtype": expert_dtype})
    return replace(scheme, rules=tuple(r for r in scheme.rules if r[0] != Modules()))


@lru_cache(maxsize=64)
def _mixed(found: WeightFormat, architecture: Architecture) -> Quantization:
    mix = gguf.formats(found.name.removeprefix("gguf-"), architecture)
    return Quantization(found, mix, source="weights.format")


@lru_cache(maxsize=64)
def _applied(scheme: Scheme, architecture: Architecture, plain: WeightFormat, source: str) -> Quantization:
    formats: Formats = {}
    for component in architecture.components:
        # Towers keep their dtype: published configs leave them out, each in its own words.
        in_text = component.place not in ("tower", "projector")
        if in_text and (component.quantizable or component.kind in _QUANTIZED_OUTSIDE):
            row = _row(scheme, component, architecture)
            if any(row):
                formats[component.name] = row
    if scheme.only and not formats:
        name = scheme.default.name if scheme.default else scheme.method
        raise UsageError(
            f"weights format {name} (quantization_config): for {scheme.only}, and {architecture.name} has none"
        )
    main = _main(formats, architecture, plain)
    return Quantization(main, formats, scheme.kv_cache_dtype, source)


def _main(formats: Formats, architecture: Architecture, plain: WeightFormat) -> WeightFormat:
    """The format of most of the quantized parameters; ``plain`` where none are."""
    size: Counter[WeightFormat] = Counter()
    whole = Quantization(plain, formats)
    for component in architecture.components:
        if component.name in formats:
            for kind, count in whole.of(component, range(architecture.layers)):
                if kind is not None:
                    size[kind] += count * component.elements
    return size.most_common(1)[0][0] if size else plain


def _has_dense_beside(experts: Component, architecture: Architecture) -> bool:
    """Whether a layer with ``experts`` has a dense MLP too, as Gemma 4's have."""
    held = set(experts.layers or range(architecture.layers))
    return any(c.kind == "mlp" and held & set(c.layers or range(architecture.layers)) for c in architecture.components)


def _row(scheme: Scheme, component: Component, architecture: Architecture) -> tuple[WeightFormat | None, ...]:
    names, layers = module_names(component, scheme.patterns), architecture.layers
    if component.kind == "experts" and _has_dense_beside(component, architecture):  # whose name is then mlp
        names = tuple(n for n in names if ".mlp." not in n)
    if component.place != "layer" or not scheme.rules:
        return (scheme.format_of(names, component.kind),)
    held = range(layers) if component.layers is None else component.layers
    row: list[WeightFormat | None] = [None] * layers
    for i in held:
        row[i] = scheme.format_of(tuple(n.replace("{}", str(i)) for n in names), component.kind)
    return (row[held[0]],) if len({row[i] for i in held}) == 1 else tuple(row)
