"""One training step as four moments, each with all that the device then holds.

between_steps: what stays. loss: the forward pass is over, the loss begins its way back; all activations and the logits
are there. backward: a block's backward pass at its widest (the MLP), of the last block or of the first, for on the way
activations go and gradients come, or its end at the embedding, whichever takes most. update: all gradients, no
activations. The peak of a step is the largest of the last three; it equals what PyTorch holds (tests/test_finetune.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.architecture import Architecture
from harness.ledger import Term
from harness.predict.estimate import Estimate
from harness.predict.finetune import activations, states
from harness.predict.finetune.activations import Shape
from harness.predict.finetune.parameters import Parameter
from harness.scenario import Training
from harness.units import gib

BETWEEN, LOSS, BACKWARD, UPDATE = MOMENTS = ("between_steps", "loss", "backward", "update")
# The part of the workspace that the comparisons with PyTorch leave open, either way.
WORKSPACE_ROOM = 0.25


@dataclass(frozen=True)
class Moment:
    """What the device holds at one moment of a step."""

    name: str
    terms: dict[Term, Estimate] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of all terms."""
        return sum(e.bytes for e in self.terms.values())


@dataclass(frozen=True)
class _Counts:
    a: Architecture
    t: Training
    s: Shape
    tensors: tuple[Parameter, ...]
    gradients: int  # of everything that trains

    @property
    def accumulates(self) -> bool:
        return self.t.gradient_accumulation_steps > 1


def moments(architecture: Architecture, training: Training) -> tuple[Moment, ...]:
    """The four moments of one step, in their order."""
    tensors = states.trainable(architecture, training)
    n = _Counts(
        architecture, training, activations.shape(architecture, training), tensors,
        states.size(tensors, states.trained_bytes(training)),
    )  # fmt: skip
    stays = _stays(n)
    found = {LOSS: _loss(n), BACKWARD: _backward(n), UPDATE: _update(n)}
    merged = [Moment(name, _together(stays, terms)) for name, terms in found.items()]
    return (Moment(BETWEEN, stays), *merged)


def _together(stays: dict[Term, Estimate], more: dict[Term, Estimate]) -> dict[Term, Estimate]:
    return {**stays, **{k: e for k, e in more.items() if e.bytes}}


def _stays(n: _Counts) -> dict[Term, Estimate]:
    """Weights, adapters and the optimizer's states: what is there whether a step runs or not."""
    t, base = n.t, states.base_bytes(n.a, n.t)
    terms = {}
    if t.method == "full":
        term = Term.MASTER_WEIGHTS if t.precision == "mixed" else Term.WEIGHTS
        terms[term] = Estimate.exact(base, f"{n.a.parameters:,} parameters x {states.trained_bytes(t)} B")
    elif t.method == "lora":
        each = states.compute_bytes(t)
        terms[Term.WEIGHTS] = Estimate.exact(base, f"{n.a.parameters:,} frozen parameters x {each} B")
    else:
        each = states.unquantized_bytes(t)
        terms[Term.WEIGHTS] = Estimate.exact(base, f"linear layers in nf4, the rest x {each} B, frozen")
    if t.method != "full":
        each = states.trained_bytes(t)
        terms[Term.ADAPTERS] = Estimate.exact(states.size(n.tensors, each), f"A and B of each target x {each} B")
    held, paged = states.optimizer_bytes(n.tensors, t), states.paged_bytes(n.tensors, t)
    if held:
        source = f"{t.optimizer}: {held / states.size(n.tensors, 1):.3g} B for each parameter that trains"
        if paged:
            source += f", {gib(paged)} GiB of it paged: on the host where the device is full"
        terms[Term.OPTIMIZER] = Estimate(held - paged, held - paged, held, source)
    return terms


# -- the moments ---------------------------------------------------------------------------------------


def _kept(n: _Counts) -> tuple[int, str]:
    """(bytes, words) of the blocks' activations when the forward pass is over."""
    s, layers = n.s, n.a.layers
    if n.t.gradient_checkpointing:
        each = activations.block_input(s)
        return layers * each, f"{layers} block inputs x {each:,} B"
    each, first = _block(n), _block(n, first=True)
    return (layers - 1) * each + first, f"{layers} blocks x {each:,} B"


def _block(n: _Counts, *, first: bool = False) -> int:
    """Bytes that one block keeps; the first of a frozen model less, unless checkpointing asks a gradient of it."""
    flowing = not first or n.t.method == "full" or n.t.gradient_checkpointing
    return sum(size for _, size in activations.block(n.s, flowing=flowing))


def _ends(n: _Counts) -> int:
    return sum(size for _, size in activations.ends(n.s))


def _loss(n: _Counts) -> dict[Term, Estimate]:
    """The larger of the loss's own forward pass, while autocast still has all 16-bit copies, and its backward's start.

    Logits: c, 4 and 4 bytes each (product, float32, log-softmax), then 4 + 4 + 4 (log-softmax and two gradients).
    Source: ``ForCausalLMLoss``, transformers/loss/loss_utils.py, and cross_entropy's derivatives in PyTorch 2.13.
    """
    s = n.s
    kept, words = _kept(n)
    forward = s.T * s.V * (8 if s.c == states.FLOAT else s.c + 8)
    logits = 12 * s.T * s.V
    every, saved = _copies(n), 0 if n.t.gradient_checkpointing else _copies(n)
    head = _head_copy(n)
    if forward + every > logits + saved:
        logits, per, copies = forward, forward // (s.T * s.V), every + head
    else:
        per, copies = 12, saved + head
    return {
        **_cast(n, copies),
        Term.ACTIVATIONS: Estimate.exact(kept + _ends(n), words),
        Term.LOGITS: Estimate.exact(logits, f"{s.T:,} tokens x {s.V:,} x {per} B"),
        **_gradients(n.gradients if n.accumulates else 0),
    }


def _backward(n: _Counts) -> dict[Term, Estimate]:
    kept, words = _kept(n)
    checkpointed = n.t.gradient_checkpointing
    # The block that runs backward is computed again; in float32 what was kept of it is a part of that.
    block = _block(n) - (activations.block_input(n.s) if n.s.w == states.FLOAT else 0) if checkpointed else 0
    tables = 2 * n.s.sequence * n.s.head_dim * n.s.w
    left = activations.block_input(n.s) + block if checkpointed else _block(n, first=True)
    each, out = states.trained_bytes(n.t), "embedding" if n.a.tied else "lm_head"
    head = states.size([p for p in n.tensors if p.kind == out], each)
    done = head + sum(p.elements for p in n.tensors if p.count > 1) * each * (n.a.layers - 1)
    inner, one = _block_copies(n)
    last = _passing(
        n, kept + block + tables, words + (" and one block in full" if checkpointed else ""),
        head, one if checkpointed else inner,
    )  # fmt: skip
    first = _passing(n, left + tables, "one block in full", done, one)
    return max(last, first, _embedding(n), key=lambda terms: sum(e.bytes for e in terms.values()))


def _embedding(n: _Counts) -> dict[Term, Estimate]:
    """The end of the backward pass where the embedding trains: tied, its own gradient and lm_head's make a third."""
    if n.t.method != "full":
        return {}
    work = 2 * states.trained_bytes(n.t) * n.s.V * n.s.H if n.a.tied else n.s.w * n.s.T * n.s.H
    return {**_gradients(n.gradients), Term.WORKSPACE: Estimate.exact(work, "the embedding's gradient on its way")}


def _passing(n: _Counts, held: int, words: str, gradients: int, copies: int) -> dict[Term, Estimate]:
    """The terms while one block's backward pass runs."""
    work = _workspace(n)
    terms = {Term.ACTIVATIONS: Estimate.exact(held, words), **_gradients(n.gradients if n.accumulates else gradients)}
    if n.t.method == "full" and copies:
        return {**terms, **_cast(n, copies), Term.WORKSPACE: work}
    return {**terms, Term.WORKSPACE: Estimate(work.bytes + copies, work.low + copies, work.high + copies, work.source)}


def _update(n: _Counts) -> dict[Term, Estimate]:
    return {**_gradients(n.gradients), **_update_workspace(n)}


def _update_workspace(n: _Counts) -> dict[Term, Estimate]:
    """Adafactor makes the squares, the factored root and the update of one matrix, in float32; the others none (fused,
    or in place)."""
    if n.t.optimizer != "adafactor":
        return {}
    largest = max(p.elements for p in n.tensors)
    copies = 2 if states.trained_bytes(n.t) == states.FLOAT else 4
    size = copies * states.FLOAT * largest
    return {Term.WORKSPACE: Estimate.exact(size, f"{copies} x the largest matrix in float32")}


# -- parts ---------------------------------------------------------------------------------------------


def _copies(n: _Counts) -> int:
    """Autocast's 16-bit copies of the float32 matrices that train."""
    if not n.s.mixed:
        return 0
    tied = n.a.tied and n.t.method == "full"  # the embedding is lm_head's matrix too
    multiplied = [
        p for p in n.tensors
        if p.module or p.kind in ("lm_head", "lora_A", "lora_B") or (tied and p.kind == "embedding")
    ]  # fmt: skip
    return states.size(multiplied, n.s.c)


def _block_copies(n: _Counts) -> tuple[int, int]:
    """The copies of all blocks and of one, when down_proj of the block that runs has been passed."""
    if not n.s.mixed:
        return 0, 0
    one = sum(p.elements for p in n.tensors if p.module) * n.s.c
    passed = n.s.c * n.s.H * n.s.I if n.s.full else 0
    return one * n.a.layers - passed, one - passed


def _head_copy(n: _Counts) -> int:
    """A frozen float32 lm_head is cast for its product, and the copy kept."""
    frozen = n.t.method == "qlora" and n.s.mixed and n.s.w == states.FLOAT
    return n.s.c * n.s.H * n.s.V if frozen else 0


def _cast(n: _Counts, size: int) -> dict[Term, Estimate]:
    term = Term.WEIGHTS if n.t.method == "full" else Term.WORKSPACE
    return {term: Estimate.exact(size, "autocast's 16-bit copies of float32 matrices")} if size else {}


def _gradients(size: int) -> dict[Term, Estimate]:
    return {Term.GRADIENTS: Estimate.exact(size, "of what trains, in its own type")}


def _workspace(n: _Counts) -> Estimate:
    """The gradients on their way through the MLP of one block, and what its products need."""
    s = n.s
    wide = s.T * s.I
    if s.full:
        size = 2 * s.o * wide + states.trained_bytes(n.t) * s.H * s.I
    elif s.mixed and s.trains("down_proj"):
        # The adapter's own share comes as float32 where it has to be cast to the others.
        size = (3 * s.o - s.c if s.o == states.FLOAT else states.FLOAT + 2 * s.o) * wide
    else:
        size = (2 if s.trains("down_proj") else 3) * s.o * wide
    size += s.w * s.T * s.H
    if n.t.method == "qlora":
        size += s.c * s.H * s.I
    what = "gradients of one block's MLP on their way" + (", one matrix back in 16 bits" * (n.t.method == "qlora"))
    return Estimate.within(size, size * WORKSPACE_ROOM, size * WORKSPACE_ROOM, what)
