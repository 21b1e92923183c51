"""How long a step takes on a GPU: its bandwidth and its peak, and the shares of them that vLLM reaches.

Bytes and FLOPs are counted from the model. The shares are fitted on public runs: docs/latency.md says
which, and how far off the others are. The step is that of one rank; how the stages of a pipeline overlap is not
modelled, nor is what lies between the client and the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.architecture import FULL, MLA, Architecture
from harness.catalog import Gpu
from harness.predict.kv_cache import bytes_per_token
from harness.predict.settings import Settings, device_gpu
from harness.predict.weights import stored
from harness.scenario import Scenario
from harness.simulate.latency import PS
from harness.simulate.step_time import StepTime


@dataclass(frozen=True)
class Efficiency:
    """What is reached: shares of the bandwidth (reading weights, reading KV) and of the dense peak (linear layers,
    a prefill's attention), and what a step costs besides: seconds, and bytes/s between two ranks."""

    weights: float = 0.76
    kv: float = 0.45
    linear: float = 0.5
    attention: float = 0.45
    launch_s: float = 1.0e-3
    exchange_s: float = 12e-6  # for each all-reduce, of which a layer has two
    exchange_bytes_per_s: float = 150e9


SHARES = {"weights", "kv", "linear", "attention", "launch_s"}

# By compute capability. On H100s two sources are 0.35 and 0.66 of the peak: 0.48 lies between them.
PUBLISHED = {"8.0": Efficiency(linear=0.62, attention=0.55), "9.0": Efficiency(linear=0.48)}

# GPUs with public runs in harness/catalog/evidence/latency.csv, and how far off the model is on those.
COMPARED = {
    "h100-sxm-80gb": "on public runs decoding was up to 20 % too fast, prefill from 30 % too fast to 40 % too slow",
    "a100-sxm-80gb": "on one public run, that it was fitted on, it was 3 % off",
    "a100-sxm-40gb": "on one public run of decoding it was 5 % off, prefill was not compared",
    "l4-24gb": "on public runs of a 0.5B model decoding was up to 11 % off, prefill was not compared",
    "rtx-4090-24gb": "on public runs of a 7B model decoding was 15 % off, prefill 31 % too fast",
}


def published(gpu: Gpu) -> Efficiency:
    """The shares that public runs on such GPUs reached."""
    return PUBLISHED.get(gpu.compute_capability or "", Efficiency())


def compared(gpu: Gpu) -> str:
    """What the step times of ``gpu`` were compared with, and how far off they were (``bench evidence``)."""
    if gpu.name not in COMPARED:
        return "its latencies were compared with no run; on other GPUs decoding was up to 15 % off, prefill up to 80 %"
    return f"{COMPARED[gpu.name]}; time in the API server is not in it"


def step_time(
    architecture: Architecture, settings: Settings, gpu: Gpu, reached: Efficiency
) -> StepTime | str:  # fmt: skip
    """The roofline of a step, or the reason why there is none."""
    a, tp = architecture, settings.tensor_parallel_size
    eight_bits = settings.weight_format.name.startswith("fp8") and gpu.fp8_flops
    peak = gpu.fp8_flops if eight_bits else gpu.bf16_flops
    if settings.pipeline_parallel_size > 1:
        return "how the stages of a pipeline overlap is not modelled"
    if a.encoder_tokens:
        return "what the encoder's passes take is not modelled"
    if any(kind.kind not in (FULL, MLA) for kind in a.kv_kinds):
        return "what layers read that do not keep the whole context is not modelled"
    if settings.draft is not None:
        return "what a drafter's own passes take is not modelled"
    if gpu.bandwidth_bytes_per_s is None or peak is None:
        what = "bandwidth" if gpu.bandwidth_bytes_per_s is None else "bf16 FLOP/s"
        return f"no source gives the {what} of {gpu.name}"
    bandwidth = gpu.bandwidth_bytes_per_s
    dense, experts = _bytes_read(a, settings)
    exchanges = 2 * a.layers if tp > 1 else 0
    exchanged = 2 * (tp - 1) / tp * a.hidden * settings.dtype_bytes

    def ps(seconds: float) -> int:
        return round(seconds * PS)

    return StepTime(
        launch_ps=ps(reached.launch_s + exchanges * reached.exchange_s),
        dense_ps=ps(dense / (bandwidth * reached.weights)),
        experts_ps=ps(experts / (bandwidth * reached.weights)),
        idle_share=1 - a.mixture.used / a.mixture.count if a.mixture else 0.0,
        token_ps=ps(2 * _multiplied(a) / tp / (peak * reached.linear)),
        kv_ps=ps(bytes_per_token(a, settings) / (bandwidth * reached.kv)),
        pair_ps=ps(_flops_of_a_pair(a) / tp / ((gpu.bf16_flops or peak) * reached.attention)),
        exchange_ps=ps(exchanges * exchanged / reached.exchange_bytes_per_s),
    )


def clock(
    scenario: Scenario, architecture: Architecture, settings: Settings, reached: Efficiency | None = None
) -> StepTime | str:
    """How long the scenario's steps take, or the reason why that is not known.

    ``reached``: in place of the scenario's ``gpu.efficiency``, which counts before its calibration.
    """
    gpu = device_gpu(scenario)
    if gpu is None or scenario.gpu is None:
        return "how long a step takes on this computer is measured, not predicted"
    if reached is None:
        measured = scenario.calibration.step_times if scenario.calibration else None
        reached = published(gpu)
        for given in (measured, scenario.gpu.efficiency):
            reached = replace(reached, **(given.model_dump(include=SHARES, exclude_none=True) if given else {}))
    return step_time(architecture, settings, gpu, reached)


def _bytes_read(a: Architecture, settings: Settings) -> tuple[int, int]:
    """Bytes of the weights that one rank reads in a step: (all but the routed experts, all of these)."""
    read = {"dense": 0, "experts": 0}
    for part in a.components:
        if not part.held or part.place in ("tower", "projector") or (part.kind == "embedding" and not a.tied):
            continue  # of an embedding a row for each token; tied, it is the lm_head
        in_layer = part.place == "layer"
        for kind, copies in settings.quantization.of(part, range(a.layers) if in_layer else ()):
            size = sum(n for _, n in stored(part, a, kind, settings.dtype_bytes, settings.tensor_parallel_size))
            read["experts" if part.kind == "experts" else "dense"] += size * (copies if in_layer else a.copies(part))
    return read["dense"], read["experts"]


def _multiplied(a: Architecture) -> int:
    """Parameters that each token is multiplied with: the lm_head only sees the last one of a prompt."""
    outside = sum(c.elements * a.copies(c) for c in a.components if c.counted and c.kind in ("embedding", "lm_head"))
    return a.active_parameters - outside


def _flops_of_a_pair(a: Architecture) -> int:
    """FLOPs of the attention of one query and one key, all heads and layers: a product and a sum each way."""
    dims = a.mla.nope + a.mla.rope + a.mla.value if a.mla else 2 * a.head_dim
    return 2 * dims * a.heads * a.layers
