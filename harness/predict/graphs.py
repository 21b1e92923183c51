"""What the captured CUDA graphs hold.

vLLM captures one graph of each size in pieces, between whose layers attention runs by itself, and one whole graph of
each size that a batch of decodes can have (``CudagraphDispatcher.initialize_cudagraph_keys``,
vllm/v1/cudagraph_dispatcher.py, 0.32). A graph keeps its kernels' parameters, so their bytes grow with the layers and
with the graphs; FlashAttention 3 keeps the parts of its whole graphs' outputs besides.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from harness.architecture import Architecture
from harness.catalog import Gpu
from harness.ledger import Term
from harness.predict.estimate import Estimate
from harness.predict.overhead import has_nvswitch, is_h100
from harness.predict.refitted import GRAPHS_RESERVED, ranks, refitted
from harness.predict.settings import Settings
from harness.units import GIB, MIB

# Bytes = base + each x layers x graphs, beside FlashAttention's parts: least squares on the 22 dense configurations of
# H100 runs that differ (8 to 80 layers, 102 graphs, tp 1 to 4): mean error 0.04 GiB, with a family's own rows left out
# 0.05 and at most 0.14. A line over the layers alone, whatever the attention: 0.10.
_BASE, _EACH = round(0.106 * GIB), round(0.175 * MIB)
_FITTED_GRAPHS = 102
# GiB of room below and above: what they took, and what vLLM had estimated (-0.31 to +0.30 of the same runs, once +0.9:
# h100-019-35).
_TAKEN, _ESTIMATED = (0.17, 0.13), (0.31, 0.30)
# Elsewhere, predicted and printed: 0.58 and 0.55, 0.40 and 0.35 (32 layers, 86 and 54 graphs), 0.52 and 0.21, of Model
# Runner V2 0.10 (24, 102; https://github.com/vllm-project/vllm/issues/50159), 0.19 and 0.04 (28, 18); estimated 1.62
# GiB in v39559-qwen35-gguf (86 graphs, its model is not told).
_LEAST, _ELSEWHERE_ABOVE = 0.2, 0.6
# Two ranks without NVSwitch: a log of Ada cards says 1.65 GiB where 0.73 are predicted.
_PCIE_ABOVE = 0.95
# With experts the number of captured sizes tells more than that of layers: GiB a size on h100-019-02, -66, -40, -51 and
# -52: 0.031, 0.028, 0.022, 0.022, 0.019. Their mean, residuals -0.46 to +0.34; five runs of four models, so a wide
# interval.
_EXPERTS, _EXPERTS_ROOM = 0.0243, 0.55
# Before 0.12 graphs took far less: 0.21 GiB of 16 layers (V0), 0.10 of 28 and 0.39 of 24 with experts (0.11), a GiB's
# 0.013, 0.004 and 0.016 a layer (rows v11349-l32-1b, llmdbench-qwen3-0p6b, llmdbench-gptoss20b). Why is not known, so
# the high end is that of the later law.
_OLD_LEAST = 0.3
# flash_attn_max_num_splits_for_cuda_graph, vllm/config/attention.py, 0.32; "[num_splits, num_heads, num_tokens,
# head_size]" in float32 (vllm/v1/attention/backends/flash_attn.py).
_SPLITS, _SPLIT_BYTES = 32, 4
_LARGEST_HEAD = 256
# Classes whose images attend both ways, and Gemma 4: vLLM leaves them to Triton's attention
# (MM_PREFIX_LM_MODELS, vllm/transformers_utils/model_arch_config_convertor.py).
_TRITON = ("Gemma3ForConditionalGeneration", "Gemma4", "PaliGemma")


@dataclass(frozen=True)
class Graphs:
    """How many graphs are captured: in pieces, and whole; tokens of the largest whole one."""

    pieces: int
    whole: int
    largest: int

    @property
    def count(self) -> int:
        """All of them."""
        return self.pieces + self.whole


def captured(architecture: Architecture, settings: Settings) -> Graphs:
    """The graphs of ``settings.capture_sizes``. Of an encoder and its decoder the decodes' alone are captured."""
    sizes, query = settings.capture_sizes, settings.num_speculative_tokens + 1
    first, end = bisect_left(sizes, query), bisect_right(sizes, settings.max_num_seqs * query)
    pieces = 0 if architecture.encoder_tokens else len(sizes)
    return Graphs(pieces, max(end - first, 0), sizes[end - 1] if first < end else 0)


def cuda_graphs(architecture: Architecture, settings: Settings, gpu: Gpu, stage: int = 0) -> Estimate:
    """Bytes of the captured CUDA graphs on one rank of ``stage``; nothing where eager is enforced."""
    if settings.enforce_eager:
        return Estimate.exact(0, "enforce_eager: no graphs")
    return _estimate(architecture, settings, gpu, stage, Term.CUDA_GRAPHS, _TAKEN)


def graphs_reserved(architecture: Architecture, settings: Settings, gpu: Gpu, stage: int = 0) -> Estimate:
    """Bytes that the budget holds for graphs, where it does: vLLM's own estimate, predicted as the graphs are."""
    if settings.enforce_eager or not settings.graphs_in_budget:
        return Estimate.exact(0, "no graphs in the budget")
    return _estimate(architecture, settings, gpu, stage, GRAPHS_RESERVED, _ESTIMATED)


def graph_units(architecture: Architecture, settings: Settings, stage: int = 0) -> tuple[str, int]:
    """(what graphs are alike in, how many units they grow with): a layer's graphs; captured sizes with experts."""
    if architecture.mixture is not None:
        return f"experts, {ranks(settings)}", len(settings.capture_sizes)
    tower = " beside a tower" if settings.sees else ""
    layers = len(architecture.stage(stage, settings.stages))
    if settings.defaults.graphs_gib_a_layer is not None:
        return f"layers{tower}, {ranks(settings)}", layers
    return f"graphs{tower}, {ranks(settings)}", layers * captured(architecture, settings).count


def graphs_a_unit(settings: Settings) -> int:
    """The published slope of the graphs, bytes for each of their units."""
    each = settings.defaults.graphs_gib_a_layer
    return _EACH if each is None else round(each * GIB)


def split_outputs(architecture: Architecture, settings: Settings, gpu: Gpu) -> int:
    """Bytes in which the whole graphs of FlashAttention 3 keep the parts of a batch's outputs."""
    attends = not all(kind.state for kind in architecture.kv_kinds)
    if (
        not (gpu.compute_capability or "").startswith("9.")
        or settings.defaults.graphs_gib_a_layer is not None
        or architecture.mixture is not None  # their law has all that graphs take
        or settings.dtype == "float32"
        or architecture.mla is not None
        or architecture.head_dim > _LARGEST_HEAD
        or architecture.name.startswith(_TRITON)
        or not attends
    ):
        return 0
    heads = architecture.heads // settings.tensor_parallel_size
    return _SPLITS * captured(architecture, settings).largest * heads * architecture.head_dim * _SPLIT_BYTES


def _estimate(
    architecture: Architecture, settings: Settings, gpu: Gpu, stage: int, term: str, room: tuple[float, float]
) -> Estimate:
    of, units = graph_units(architecture, settings, stage)
    splits = split_outputs(architecture, settings, gpu)
    published = _published(architecture, settings, gpu, stage, room)
    found = refitted(settings, term, of, published, units)
    if not splits:
        return found
    source = f"{found.source}, and {_SPLITS} parts of FlashAttention's outputs"
    return Estimate(found.bytes + splits, found.low + splits, found.high + splits, source)


def _published(
    architecture: Architecture, settings: Settings, gpu: Gpu, stage: int, room: tuple[float, float]
) -> Estimate:
    """What is refitted: all but FlashAttention's parts."""
    later = _later(architecture, settings, gpu, stage, room)
    each = settings.defaults.graphs_gib_a_layer
    if each is None:
        return later
    layers = len(architecture.stage(stage, settings.stages))
    likely = round(each * layers * GIB)
    words = f"{each} x {layers} layers GiB, before 0.12"
    return Estimate(likely, round(_OLD_LEAST * likely), max(likely, later.high), words)


def _later(architecture: Architecture, settings: Settings, gpu: Gpu, stage: int, room: tuple[float, float]) -> Estimate:
    if architecture.mixture is not None:
        sizes = len(settings.capture_sizes)
        around = _EXPERTS_ROOM * GIB
        return Estimate.within(
            _EXPERTS * sizes * GIB, around, around, f"{_EXPERTS} GiB x {sizes} captured sizes, with experts"
        )
    layers, graphs = len(architecture.stage(stage, settings.stages)), captured(architecture, settings)
    likely = _BASE + _EACH * layers * graphs.count
    below, above = room[0] * GIB, room[1] * GIB
    if not is_h100(gpu):
        above = (_ELSEWHERE_ABOVE if settings.tensor_parallel_size == 1 or has_nvswitch(gpu) else _PCIE_ABOVE) * GIB
    if not is_h100(gpu) or settings.model_runner != "v1" or graphs.count < _FITTED_GRAPHS:
        below = max(below, (1 - _LEAST) * likely)
    if architecture.encoder_tokens:  # no run is public
        below = likely
    words = f"0.106 GiB + 0.175 MiB x {layers} layers x {graphs.count} graphs"
    return Estimate.within(likely, below, above, words)
