"""What the profile run never saw: the sampler's warm-up (STARTS), state that no term counts, logprobs (HOLDS).

Bytes on one rank of the last stage, beside what the budget holds.
"""

from __future__ import annotations

from harness.architecture import Architecture
from harness.predict.activations import profiled_rows, sampler_state
from harness.predict.settings import Settings
from harness.units import GIB

_FRAGMENTED = round(1.70 * GIB)
# Bytes a logit that a batch with top-k, top-p and logprobs takes beside the logits: their float32 copy, FlashInfer's
# masked logits and probabilities (vllm/v1/worker/gpu/sample/sampler.py, 0.25 to 0.33).
_V2_SAMPLING = 12


def warm_up(architecture: Architecture, settings: Settings) -> int:
    """Bytes that the sampler's warm-up takes beside what the profile saw.

    Model Runner V1: freed pieces of earlier steps are not always of use to it. Where the experts are in mxfp4, whose
    kernels keep no workspace, 1.78 and 1.62 GiB lay reserved and unallocated when gpt-oss-20b ran out of memory on
    H100s at 0.95 (h100-019-51 and -52): their mean. Elsewhere one float32 copy of the logits (S x V x 4 B), which
    no run that started contradicts. The upper margin leaves it out.
    Source: ``compile_or_warm_up_model``, vllm/v1/worker/gpu_worker.py, 0.19 and 0.32, and the logs of these two runs.

    Model Runner V2 to 0.32: a prefill of two tokens for each of min(S, T / 2) requests, with top-k, top-p and logprobs,
    which the profile left out. From 0.33 on the profile has them.
    Source: ``warmup_kernels``, vllm/v1/worker/gpu/warmup.py, 0.25 to 0.33.

    V0 has no such warm-up.
    """
    rows = profiled_rows(settings)
    if settings.model_runner == "v2":
        rows = min(rows, settings.max_num_batched_tokens // 2)
        return 0 if settings.defaults.v2_sampler_profiled else rows * architecture.vocab * _V2_SAMPLING
    if settings.model_runner == "v0":
        return 0
    if settings.weight_format.only == "experts":
        return _FRAGMENTED
    return rows * architecture.vocab * 4


def uncounted_state(architecture: Architecture, settings: Settings) -> int:
    """Bytes of Model Runner V2's sampling state where the profile does not count it (before 0.27)."""
    return 0 if settings.defaults.v2_state_counted else sampler_state(architecture, settings)
