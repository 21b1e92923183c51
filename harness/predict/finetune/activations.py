"""What the forward pass keeps for the backward pass: every tensor of one block, by what each operation saves.

Autograd keeps an operation's input or output only where its gradient needs it, and one tensor once, however many
operations read it. The rules below are those of PyTorch's derivatives for the modules of transformers 5; with
``torch.autograd.graph.saved_tensors_hooks`` tests/test_finetune.py counts the same bytes on real models of each class.
T tokens of the micro-batch, H hidden, q and kv the widths of queries and keys, I intermediate; c bytes of a product,
w bytes of the residual stream, o bytes of what gate and up give.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.architecture import Architecture
from harness.predict.finetune.parameters import NORMS_IN_FLOAT, fused, has_qk_norm, targets
from harness.predict.finetune.states import FLOAT, compute_bytes, trained_bytes, unquantized_bytes
from harness.scenario import Training

IDS = 8  # int64


@dataclass(frozen=True)
class Shape:
    """The counts and byte sizes that the law is written in."""

    T: int
    sequence: int
    rows: int
    H: int
    q: int
    kv: int
    heads: int
    I: int  # noqa: E741 (the law's own letter)
    V: int
    layers: int
    c: int
    w: int
    o: int
    full: bool
    mixed: bool
    eager: bool
    qk_norm: bool
    kv_heads: int
    fused: bool
    norm_float: bool
    head_dim: int
    rank: int
    adapted: frozenset[str]

    def trains(self, *modules: str) -> int:
        """How many of ``modules`` need their input for a gradient."""
        return len(modules) if self.full else sum(m in self.adapted for m in modules)


def shape(a: Architecture, t: Training) -> Shape:
    """The law's letters for one training step."""
    mixed, full = t.precision == "mixed", t.method == "full"
    w = trained_bytes(t) if full else unquantized_bytes(t) if t.method == "qlora" else compute_bytes(t)
    return Shape(
        T=t.micro_batch * t.sequence_length, sequence=t.sequence_length, rows=t.micro_batch, H=a.hidden,
        q=a.heads * a.head_dim, kv=a.kv_heads * a.head_dim, heads=a.heads, I=a.intermediate, V=a.vocab,
        layers=a.layers, c=compute_bytes(t), w=w,
        # A 4-bit layer gives its result in the type of its input; autocast in 16 bits.
        o=w if t.method == "qlora" else compute_bytes(t),
        full=full, mixed=mixed, eager=t.attn_implementation == "eager", qk_norm=has_qk_norm(a), kv_heads=a.kv_heads,
        fused=fused(a), norm_float=a.name in NORMS_IN_FLOAT, head_dim=a.head_dim, rank=t.lora.rank,
        adapted=frozenset() if full else frozenset(m.name for m in targets(a, t.lora)),
    )  # fmt: skip


def block(s: Shape, *, flowing: bool = True) -> Iterator[tuple[str, int]]:
    """(what, bytes) of all that one block keeps. ``flowing``: a gradient is asked of its input; without, the first
    block of a frozen model keeps nothing until its first adapter."""
    qkv, gate_up = (("qkv_proj",), ("gate_up_proj",)) if s.fused else (
        ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
    )  # fmt: skip
    if flowing:
        yield from _norm(s, "input norm", s.H, s.w)
    yield from _inputs(s, "q, k, v", s.H, qkv)
    yield from _attention(s, flowing, qkv)
    flowing = flowing or bool(s.trains(*qkv))
    yield from _inputs(s, "o_proj", s.q, ("o_proj",), kept=flowing and not s.eager and not _views(s))
    flowing = flowing or bool(s.trains("o_proj"))
    if flowing:
        yield from _norm(s, "MLP norm", s.H, s.w)
    yield from _inputs(s, "gate, up", s.H, gate_up)
    flowing = flowing or bool(s.trains(*gate_up))
    if flowing:
        yield "gate, up, activated gate", 3 * s.o * s.T * s.I
    yield from _inputs(s, "down_proj", s.I, ("down_proj",))


def _norm(s: Shape, name: str, width: int, of: int, rows: int = 1) -> Iterator[tuple[str, int]]:
    """RMSNorm in float32: its input, the inverse root, and, where the weight trains, what it multiplies (``of`` bytes
    a number; Gemma multiplies in float32)."""
    multiplied = (FLOAT if s.norm_float else of) * s.T * width if s.full else 0
    yield name, FLOAT * s.T * width + FLOAT * s.T * rows + multiplied


def _inputs(
    s: Shape, name: str, width: int, modules: tuple[str, ...], *, kept: bool = False
) -> Iterator[tuple[str, int]]:
    """The input of linear layers that train; one tensor for all, or a 16-bit copy for each that has to cast it.
    ``kept``: another operation keeps the tensor anyway."""
    count = s.trains(*modules)
    if not count:
        return
    casts = s.mixed and (not s.full or (s.w != s.c and name not in ("o_proj", "down_proj")))
    copies = count if casts else 0 if kept else 1
    yield f"input of {name}", copies * s.c * s.T * width
    if not s.full:
        yield f"adapters of {name}", count * s.c * s.T * s.rank


def _attention(s: Shape, flowing: bool, qkv: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    if not flowing and not s.trains(*qkv):
        return
    if s.qk_norm:
        yield from _norm(s, "q norm", s.q, s.o, s.heads)
        yield from _norm(s, "k norm", s.kv, s.o, s.kv_heads)
    if s.eager:
        # Keys and values are repeated for all heads; the scores of all pairs, in float32 and as they are multiplied.
        pairs = s.rows * s.heads * s.sequence**2
        yield "q, k, v", 3 * s.c * s.T * s.q
        yield "scores", pairs * (FLOAT + (s.c if s.c != FLOAT else 0))
        return
    yield "q, k, v", s.c * s.T * (s.q + s.kv + (s.q + 2 * s.kv if _views(s) else s.kv))
    yield "attention output", s.c * s.T * s.q + FLOAT * s.T * s.heads


def _views(s: Shape) -> bool:
    """Where q, k, v are one module, the values are a view that keeps the whole of its output, and the attention's own
    output is laid out anew for o_proj; not where they are cast on the way."""
    return s.fused and s.o == s.c


def ends(s: Shape) -> Iterator[tuple[str, int]]:
    """What is kept outside the blocks and the loss."""
    yield from _norm(s, "final norm", s.H, s.w)
    yield "rotary tables", 2 * s.sequence * s.head_dim * s.w
    if s.full:
        yield "input of lm_head, token ids", s.c * s.T * s.H + IDS * s.T


def block_input(s: Shape) -> int:
    """What gradient checkpointing keeps of a block."""
    return s.w * s.T * s.H
