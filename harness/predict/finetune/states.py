"""What stays on the device between steps, and the gradients: bytes for each parameter, by method and optimizer."""

from __future__ import annotations

from collections.abc import Sequence

from harness.architecture import Architecture
from harness.predict.finetune.parameters import Parameter, adapters, parameters
from harness.scenario import Training

FLOAT = 4
# bitsandbytes 0.50: Linear4bit (bitsandbytes/nn/modules.py) and quantize_4bit (bitsandbytes/functional.py).
NF4_BLOCK, NF4_CODE = 64, 16 * FLOAT  # weights that share one scale; the sixteen values, kept with each weight
NESTED_BLOCK, NESTED_CODE = 256, 256 * FLOAT  # scales that share one scale, and their 256 values
# bitsandbytes 0.50: Optimizer2State.init_state (bitsandbytes/optim/optimizer.py).
BLOCK_8BIT, SMALLEST_8BIT, SMALLEST_PAGED = 256, 4096, 100_000
QMAPS = 2 * 256 * FLOAT  # the values of both 8-bit state types, once


def compute_bytes(t: Training) -> int:
    """Bytes of the numbers that products are made of."""
    return 4 if t.precision == "fp32" else 2


def trained_bytes(t: Training) -> int:
    """Bytes of a parameter that trains: under autocast it is the float32 one."""
    return 2 if t.precision == "bf16" else 4


def unquantized_bytes(t: Training) -> int:
    """Bytes of the parameters of a frozen base that are not in 4 bits."""
    if t.method == "qlora" and t.prepare_model_for_kbit_training:
        return FLOAT
    return compute_bytes(t)


def trainable(architecture: Architecture, t: Training) -> tuple[Parameter, ...]:
    """What the optimizer updates."""
    return tuple(parameters(architecture) if t.method == "full" else adapters(architecture, t.lora))


def size(tensors: Sequence[Parameter], each: int) -> int:
    """Bytes of all ``tensors`` with ``each`` bytes a number."""
    return sum(p.elements * p.count for p in tensors) * each


def base_bytes(architecture: Architecture, t: Training) -> int:
    """Bytes of the model itself: what trains in method full, the frozen base otherwise."""
    tensors = tuple(parameters(architecture))
    if t.method == "full":
        return size(tensors, trained_bytes(t))
    if t.method == "lora":
        return size(tensors, compute_bytes(t))
    linear = [p for p in tensors if p.module]
    rest = [p for p in tensors if not p.module]
    return sum(nf4_bytes(p.elements, t.double_quant) * p.count for p in linear) + size(rest, unquantized_bytes(t))


def nf4_bytes(elements: int, double_quant: bool) -> int:
    """Bytes of one weight in 4 bits: half a byte a number, a float32 scale for 64 of them, which double quantization
    makes 8 bits with a float32 scale for 256 of those (Dettmers et al. 2023, arXiv 2305.14314)."""
    scales = -(-elements // NF4_BLOCK)
    packed = -(-elements // 2) + NF4_CODE
    if not double_quant:
        return packed + scales * FLOAT
    return packed + scales + -(-scales // NESTED_BLOCK) * FLOAT + NESTED_CODE + FLOAT  # the last: their mean


def optimizer_bytes(tensors: Sequence[Parameter], t: Training) -> int:
    """Bytes of the optimizer's states for ``tensors``, paged ones included."""
    return sum(_states(p, t) * p.count for p in tensors) + (QMAPS if t.optimizer.endswith("8bit") else 0)


def paged_bytes(tensors: Sequence[Parameter], t: Training) -> int:
    """Bytes of the states that lie in unified memory, which the driver moves to the host where the device is full."""
    if not t.optimizer.startswith("paged"):
        return 0
    return sum(_moments(p, t) * p.count for p in tensors if p.elements >= SMALLEST_PAGED)


def _states(p: Parameter, t: Training) -> int:
    if t.optimizer == "sgd":
        return 0
    if t.optimizer == "sgd-momentum":
        return p.elements * trained_bytes(t)
    if t.optimizer == "adafactor":
        # transformers' Adafactor: a mean for each row and each column of a matrix, and one scale, in float32 (Shazeer
        # and Stern 2018, arXiv 1804.04235).
        return FLOAT * (sum(p.shape) if len(p.shape) == 2 else p.elements) + FLOAT
    if t.optimizer == "adamw":
        return 2 * p.elements * trained_bytes(t) + FLOAT  # fused: the count of steps is a tensor too
    scales = 2 * FLOAT * -(-p.elements // BLOCK_8BIT) if _in_8_bits(p, t) else 0
    return _moments(p, t) + scales


def _moments(p: Parameter, t: Training) -> int:
    """Both of Adam's moments in bitsandbytes: a byte each, or float32."""
    return 2 * p.elements * (1 if _in_8_bits(p, t) else FLOAT)


def _in_8_bits(p: Parameter, t: Training) -> bool:
    """Small tensors are left in float32, and embeddings, by transformers' Trainer (trainer.py, create_optimizer)."""
    return t.optimizer.endswith("8bit") and p.elements >= SMALLEST_8BIT and p.kind != "embedding"
