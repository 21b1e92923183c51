"""One tensor of a model, and what one of several ranks has of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

VOCAB_PADDING = 64  # DEFAULT_VOCAB_PADDING_SIZE, vllm/model_executor/layers/vocab_parallel_embedding.py


@dataclass(frozen=True)
class Component:
    """One tensor of the model, unsplit. ``shape`` counts elements.

    ``split``: how tensor parallelism divides it: "column" (outputs), "row" (inputs), "heads" (outputs, which are
    ``units`` of (heads, elements of one); a head is copied where ranks outnumber heads), "vocab" (rows, padded),
    "replicated"; of experts, whose first dimension is their number, "expert_column" and "expert_row".
    ``place``: "layer", "first", "last" or "every" (pipeline stage), "tower" or "projector" (see vision.py, where
    it is in ``times`` equal blocks). ``layers``: which layers have it; None: all of them. ``kind``: what it is, for
    reading. ``least``: the width of a gated expert that ranks which divide it have at least. ``step``: a rank's share
    of a column, row or heads split is rounded up to whole steps of so many. ``dtype``: None for the model's.
    ``root``: what a checkpoint puts before its layer's number, where that is no decoder's.
    ``counted``: whether transformers counts it as a parameter; ``held``: whether vLLM makes it.
    """

    name: str
    shape: tuple[int, ...]
    split: str
    place: str = "layer"
    quantizable: bool = False
    kind: str = "norm"
    layers: tuple[int, ...] | None = None
    dtype: str | None = None
    counted: bool = True
    held: bool = True
    times: int = 1
    units: tuple[tuple[int, int], ...] = ()
    least: int = 0
    step: int = 1
    root: str | None = None

    @property
    def elements(self) -> int:
        """Elements of the unsplit tensor."""
        return prod(self.shape)

    def on_rank(self, tp: int, ep: int = 1) -> tuple[int, ...]:
        """The shape on one of ``tp`` ranks, the vocabulary padded as vLLM pads it.

        ``ep``: ranks that divide the number of experts; the first ones have one more where it does not go evenly.
        """
        first, *rest = self.shape
        if self.kind == "experts":
            first = -(-first // ep)
        if self.split == "column":
            return (self._stepped(first // tp), *rest)
        if self.split == "row":
            return (first, self._stepped(rest[0] // tp))
        if self.split == "expert_column":
            return (first, max(rest[0] // tp, 2 * self.least if tp > 1 else 0), *rest[1:])
        if self.split == "expert_row":
            return (first, rest[0], max(rest[1] // tp, self.least if tp > 1 else 0))
        if self.split == "vocab":
            return (padded_vocab(first) // tp, *rest)
        if self.split == "heads":
            return (self._stepped(sum(heads_on_rank(count, tp) * width for count, width in self.units)), *rest)
        return (first, *rest)

    def _stepped(self, width: int) -> int:
        return -(-width // self.step) * self.step


def heads_on_rank(heads: int, tp: int) -> int:
    """Heads, or groups, of one of ``tp`` ranks: one at least, copied where ranks don't divide them."""
    return heads // tp if heads % tp == 0 else 1


def padded_vocab(vocab: int) -> int:
    """Rows of the embedding as vLLM pads it (``pad_vocab_size``, vocab_parallel_embedding.py, 0.32)."""
    return -(-vocab // VOCAB_PADDING) * VOCAB_PADDING
