"""What is neither weights, activations nor KV: the device's own share, CUDA, NCCL (graphs: graphs.py).

Every constant is the mean of public vLLM 0.19 runs on H100 SXM (harness/catalog/evidence/h100.csv),
its interval their spread. On another GPU the interval is wider; the likely figure is the same. A scenario's
calibration has constants of its own host.
"""

from __future__ import annotations

from harness.architecture import Architecture
from harness.catalog import Gpu
from harness.ledger import Term
from harness.predict.activations import sampler_state
from harness.predict.estimate import Estimate
from harness.predict.refitted import ranks, refitted
from harness.predict.settings import Settings
from harness.units import GIB

# NVML's total minus CUDA's, GiB, where both are public: T4 0.25, RTX 3090 0.42, RTX 4090 0.44, RTX 5090 0.44,
# H100 0.46, B200 0.71, A100 0.75 to 0.85. The median, the least and the most.
_HIDDEN_GIB, _HIDDEN_LEAST, _HIDDEN_MOST = 0.44, 0.23, 0.85
# CUDA totals are printed with two decimals.
_PRINTED = GIB // 200

# GiB: likely, low, high. One rank: 0.51 in 23 runs of 23. tp=2, 4: 1.51, 1.53 (1.99, 2.05 on other nodes);
# pp=2, 4: 1.43, 1.48. Elsewhere: a V0 report on an RTX 3090 has 0.35 (vllm-project/vllm issue 10517).
_INIT_ONE, _INIT_MANY = (0.51, 0.50, 0.52), (1.50, 1.40, 2.06)
_INIT_ONE_ELSEWHERE = (0.51, 0.20, 0.80)
_INIT_MANY_ELSEWHERE = (1.50, 0.40, 2.20)
_INIT_PCIE = (0.51, 0.20, 1.00)  # no report splits it; NCCL takes little there (see _INCREASE_PCIE)
# Non-torch increase by tp. 1: 23 runs of 0.19, 0.24 to 0.25 (by version: engines.json). 2: 2.06, 2.07, 2.10.
# 4: 2.13, 2.13, 2.21. A pipeline without tp: 0.07 twice. Beyond: no run is public.
_INCREASE_ONE_BELOW, _INCREASE_ONE_ABOVE = 0.02, 0.03
_INCREASE = {2: (2.08, 2.04, 2.12), 4: (2.16, 2.11, 2.23)}
# Beyond: DeepSeek-R1 on H20s, 16 and 8 ranks a stage, 2.30 and 2.53 (V0).
_INCREASE_BEYOND = (2.40, 2.10, 2.70)
# Cards without NVSwitch take far less, for any number of ranks: V100 0.39, L40S 0.30, RTX 4090 0.25 (2 ranks each), RTX
# 3090 0.20 (16), all of V0. Their mean.
_INCREASE_PCIE = (0.29, 0.10, 0.60)
# One rank of V0: 0.03, 0.09, 0.16, 0.35, 0.35 on five kinds of GPU.
_V0_ONE = (0.02, 0.40)
_INCREASE_PIPELINE = (0.07, 0.06, 0.10)


def cuda_total(gpu: Gpu) -> Estimate:
    """The device's total as CUDA sees it, bytes: what ``gpu_memory_utilization`` is a share of."""
    if gpu.cuda_total_bytes is not None:
        return Estimate.within(
            gpu.cuda_total_bytes, _PRINTED, _PRINTED, f"seen by CUDA: {gpu.cuda_total_source}"
        )
    return Estimate.within(
        gpu.memory_bytes - _HIDDEN_GIB * GIB,
        (_HIDDEN_MOST - _HIDDEN_GIB) * GIB,
        (_HIDDEN_GIB - _HIDDEN_LEAST) * GIB,
        f"NVML's total less {_HIDDEN_GIB} GiB: the median of seven GPUs whose CUDA total is public",
    )  # fmt: skip


def runtime_at_init(settings: Settings, gpu: Gpu) -> Estimate:
    """CUDA context and, for several ranks, NCCL: bytes taken before vLLM reads the free memory."""
    if settings.tensor_parallel_size * settings.pipeline_parallel_size * settings.data_parallel_size == 1:
        published = context(gpu)
    else:
        elsewhere = _INIT_MANY_ELSEWHERE if has_nvswitch(gpu) else _INIT_PCIE
        row = _INIT_MANY if is_h100(gpu) else elsewhere
        published = _gib(row, "CUDA context and NCCL, H100 runs of vLLM 0.19")
    return refitted(settings, Term.RUNTIME_AT_INIT, ranks(settings), published)


def context(gpu: Gpu) -> Estimate:
    """The CUDA context of one process alone on the device."""
    return _gib(_INIT_ONE if is_h100(gpu) else _INIT_ONE_ELSEWHERE, "CUDA context, H100 runs of vLLM 0.19")


def non_torch_increase(architecture: Architecture, settings: Settings, gpu: Gpu, stage: int = 0) -> Estimate:
    """Bytes that stay after the profile run beside the weights: NCCL, cuBLAS, modules, sampler state."""
    tp, pp = settings.tensor_parallel_size, settings.pipeline_parallel_size
    row, words = _increase(settings, gpu)
    base = _gib(row, f"{words} at tp={tp}, pp={pp}")
    base = refitted(settings, Term.NON_TORCH_INCREASE, ranks(settings), base)
    counted = settings.defaults.v2_state_counted and stage == pp - 1
    state = sampler_state(architecture, settings) if counted else 0
    if not state:
        return base
    source = (
        f"{base.source}, and the sampler's state of Model Runner V2 for {settings.max_num_seqs} sequences"
    )
    return Estimate(base.bytes + state, base.low + state, base.high + state, source)


def _increase(settings: Settings, gpu: Gpu) -> tuple[tuple[float, float, float], str]:
    """(likely, low, high) GiB without the sampler's state, and the runs behind them."""
    tp, pp = settings.tensor_parallel_size, settings.pipeline_parallel_size
    one = settings.defaults.non_torch_one_rank_gib
    if tp == 1 and settings.model_runner == "v0":
        return (one, *_V0_ONE), "reports of V0"
    if tp > 1 and not has_nvswitch(gpu):
        return _INCREASE_PCIE, "reports of cards without NVSwitch"
    row = _INCREASE.get(tp, _INCREASE_BEYOND)
    if tp == 1:
        row = (one, one - _INCREASE_ONE_BELOW, one + _INCREASE_ONE_ABOVE) if pp == 1 else _INCREASE_PIPELINE
    if not is_h100(gpu):
        row = (row[0], row[0] * 0.3, row[2] + 0.25)
    return row, "H100 runs"


def has_nvswitch(gpu: Gpu) -> bool:
    """Whether NCCL takes what it takes on an H100: on boards with NVSwitch (SXM of A100 and later, GH200).

    Two ranks of an A100 took 1.96 GiB (https://github.com/vllm-project/vllm/pull/10909), of a V100 0.39. A GPU that is
    known by its memory alone may be such a one.
    """
    return gpu.name == "gpu" or gpu.name.startswith("gh200") or ("sxm" in gpu.name and not gpu.name.startswith("v100"))


def is_h100(gpu: Gpu) -> bool:
    """Whether it is the GPU that the published constants are of."""
    return gpu.name == "h100-sxm-80gb"


def _gib(likely_low_high: tuple[float, float, float], source: str) -> Estimate:
    likely, low, high = (round(x * GIB) for x in likely_low_high)
    return Estimate(likely, low, high, source)
