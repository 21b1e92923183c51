"""The model's parameters as transformers holds them, and what LoRA puts beside them.

vLLM fuses q, k, v and gate, up; transformers keeps them apart in most classes, and peft names its targets by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from harness.architecture import FAMILIES, Architecture, Component
from harness.errors import UsageError, nearest
from harness.scenario.training import ALL_LINEAR, Lora

# The classes whose kept activations were compared with PyTorch's own (tests/test_finetune.py). ``fused``: q, k, v are
# one module there, and so are gate and up.
FUSED = ("Phi3ForCausalLM",)
SUPPORTED = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GraniteForCausalLM",
    "SmolLM3ForCausalLM", "Phi3ForCausalLM", "GemmaForCausalLM",
)  # fmt: skip
NORMS_IN_FLOAT = ("GemmaForCausalLM",)


@dataclass(frozen=True)
class Parameter:
    """``count`` equal tensors; ``module`` is the linear layer that the tensor is the weight of, else empty."""

    name: str
    shape: tuple[int, ...]
    count: int
    kind: str
    module: str = ""

    @property
    def elements(self) -> int:
        """Numbers in one of them."""
        return prod(self.shape)


@dataclass(frozen=True)
class Module:
    """A linear layer of each block, ``outputs`` x ``inputs``."""

    name: str
    outputs: int
    inputs: int


def require_supported(architecture: Architecture) -> None:
    """Raises UsageError for a class whose training step is not modelled."""
    if architecture.name not in SUPPORTED:
        raise UsageError(
            f"kind: finetune: {architecture.name} is not supported yet: which activations it keeps has not been "
            f"measured (known: {', '.join(SUPPORTED)})"
        )


def parameters(architecture: Architecture) -> Iterator[Parameter]:
    """All parameters, tied ones once."""
    for component in architecture.components:
        if component.counted:
            for name, shape in _apart(architecture, component):
                module = name.removesuffix(".weight") if component.quantizable else ""
                kind = "linear" if component.quantizable else component.kind
                yield Parameter(name, shape, architecture.copies(component), kind, module)


def _apart(a: Architecture, component: Component) -> Iterator[tuple[str, tuple[int, ...]]]:
    name, _, tensor = component.name.rpartition(".")
    if a.name in FUSED or name not in ("qkv_proj", "gate_up_proj"):
        yield component.name, component.shape
        return
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    rows = {"q_proj": q, "k_proj": kv, "v_proj": kv}
    if name == "gate_up_proj":
        rows = {"gate_proj": a.intermediate, "up_proj": a.intermediate}
    for part, outputs in rows.items():
        yield f"{part}.{tensor}", (outputs, *component.shape[1:])


def modules(architecture: Architecture) -> tuple[Module, ...]:
    """The linear layers of one block, in the order in which the forward pass meets them."""
    return tuple(Module(p.module, *p.shape) for p in parameters(architecture) if p.module)


def targets(architecture: Architecture, lora: Lora) -> tuple[Module, ...]:
    """The linear layers that get an adapter. Raises UsageError for a name that the model has not."""
    known = {m.name: m for m in modules(architecture)}
    if lora.target_modules == ALL_LINEAR:
        return tuple(known.values())
    for name in lora.target_modules:
        if name not in known:
            raise UsageError(f"unknown module {name!r}{nearest(name, known)} (known: {', '.join(known)})")
    return tuple(m for m in known.values() if m.name in lora.target_modules)


def adapters(architecture: Architecture, lora: Lora) -> Iterator[Parameter]:
    """A (rank x inputs) and B (outputs x rank) of each target in each block (Hu et al. 2021, arXiv 2106.09685)."""
    for m in targets(architecture, lora):
        yield Parameter(f"{m.name}.lora_A", (lora.rank, m.inputs), architecture.layers, "lora_A", m.name)
        yield Parameter(f"{m.name}.lora_B", (m.outputs, lora.rank), architecture.layers, "lora_B", m.name)


def fused(architecture: Architecture) -> bool:
    """Whether gate and up are one module, and q, k, v."""
    return architecture.name in FUSED


def has_qk_norm(architecture: Architecture) -> bool:
    """Whether queries and keys are normed, head by head."""
    return FAMILIES[architecture.name].qk_norm is not None
