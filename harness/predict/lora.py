"""The slots that vLLM sets aside for LoRA adapters beside each linear layer: zeros, as large as the largest rank.

    A of a slice: max_loras x rank x inputs        of a row-split layer the rank's share of the inputs
    B of a slice: max_loras x outputs x rank       of a column-split layer the rank's share of the outputs

A packed layer has a slice for each of its parts (q, k, v; gate, up). Models that name embedding modules have slots
there too: the vocabulary is whole on every rank. Experts have slots one by one, and so has their router. By hand,
Llama-3.1-8B with one adapter of rank 16, one rank: a layer's
linear layers have 16 x (3 x 4,096 + 6,144 + 2 x 4,096 + 2 x 4,096 + 28,672 + 14,336 + 4,096) = 1,310,720 elements; 32
of them, and 16 x 2 x (128,256 + 4,096) for embedding and lm_head: 46,178,304, 88 MiB in bf16. They are made when the
model is loaded, so vLLM logs them with the weights.
Source: ``create_lora_weights`` of vllm/lora/layers (base_linear.py, column_parallel_linear.py, logits_processor.py,
vocab_parallel_embedding.py, fused_moe.py) and ``LoRAModelManager._create_lora_modules``, 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.architecture import Architecture, Component
from harness.architecture.component import heads_on_rank
from harness.predict.settings import LORA_CLASSES, Settings


def slots(component: Component, architecture: Architecture, settings: Settings) -> Iterator[tuple[str, int]]:
    """(name, bytes) of the stacked A and B of every slice of ``component`` on one rank."""
    if settings.max_loras == 0:
        return
    one = settings.max_loras * settings.max_lora_rank * settings.dtype_bytes
    if component.kind in ("embedding", "lm_head"):
        if component.name in ("embed_tokens", "lm_head.weight") and LORA_CLASSES[architecture.name]:
            vocab, hidden = component.shape
            yield f"LoRA of {component.name}", one * vocab
            yield f"LoRA of {component.name}", one * hidden
            if architecture.tied:  # the logits have slots of their own
                yield "LoRA of lm_head.weight", one * vocab
                yield "LoRA of lm_head.weight", one * hidden
        return
    if component.kind == "experts":
        count, outputs, inputs = component.on_rank(*settings.expert_split)
        slices = 2 if component.name == "experts.w13" and architecture.gated else 1
        for _ in range(slices):
            yield f"LoRA of {component.name}", one * count * inputs
            yield f"LoRA of {component.name}", one * count * (outputs // slices)
        return
    if not (component.quantizable or component.kind == "router") or len(component.shape) != 2:
        return
    tp = settings.tensor_parallel_size
    outputs, inputs = component.on_rank(tp)
    for size in _outputs(component, tp, outputs):
        yield f"LoRA of {component.name}", one * inputs
        yield f"LoRA of {component.name}", one * size


def _outputs(component: Component, tp: int, outputs: int) -> list[int]:
    """Outputs of each slice on one rank."""
    if component.units:
        return [heads_on_rank(heads, tp) * width for heads, width in component.units]
    slices = 2 if component.name == "gate_up_proj.weight" else 1
    return [outputs // slices] * slices
