"""What the profile run never saw: the allocator's slack, the sampler's warm-up (STARTS), logprobs (HOLDS).

Bytes on one rank, beside what the budget holds; all but the slack on the last stage alone.
"""

from __future__ import annotations

from harness.architecture import Architecture
from harness.predict.activations import experts_workspace, hidden_states, profiled_rows, sampler_state
from harness.predict.compressed_profile import index_buffers
from harness.predict.estimate import Estimate
from harness.predict.settings import Settings
from harness.units import GIB

# GiB reserved by PyTorch and unallocated when vLLM ran out of memory with its graphs captured: median, 5th and 95th
# percentile of 16 public errors (harness/catalog/evidence/out_of_memory.csv; half of them predicted by the other half:
# 0.54 off in the mean, 14 of 16 within). Those beside experts in mxfp4, whose kernels keep no workspace: the median,
# the least and the most of three.
_SLACK, _SLACK_MXFP4 = (0.31, 0.04, 2.27), (1.62, 0.32, 1.78)
# Bytes a logit that a batch with top-k, top-p and logprobs takes beside the logits: their float32 copy, FlashInfer's
# masked logits and probabilities (vllm/v1/worker/gpu/sample/sampler.py, 0.25 to 0.33).
_V2_SAMPLING = 12
_KDA_WIDTH = 128  # of a head, as FlashKDA wants it
_V2_CHUNK = 1024  # rows: PromptLogprobsWorker, vllm/v1/worker/gpu/sample/prompt_logprob.py, 0.15 to 0.33


def slack(settings: Settings) -> Estimate:
    """Bytes that PyTorch holds between its tensors and can't give to a step that wants them; nothing in V0's start.

    The profile counts what is allocated (``torch_peak``, vllm/utils/mem_utils.py, 0.19), so neither weights nor the
    activation peak have it; what lies beside the weights alone is 1 to 23 MiB (four errors of loading), which 0.27 and
    later count as consumed.
    """
    beside_mxfp4 = settings.weight_format.only == "experts"
    likely, low, high = (round(x * GIB) for x in (_SLACK_MXFP4 if beside_mxfp4 else _SLACK))
    runs = "3 public out-of-memory errors beside mxfp4 experts" if beside_mxfp4 else "16 public out-of-memory errors"
    return Estimate(likely, low, high, f"reserved and unallocated in {runs}")


def warm_up(architecture: Architecture, settings: Settings) -> int:
    """Bytes that the sampler's warm-up takes beside what the profile saw.

    Model Runner V1 runs the very sampler that it has profiled (``compile_or_warm_up_model``,
    vllm/v1/worker/gpu_worker.py, 0.19 and 0.32): nothing but slack comes on top. V0 has no such warm-up.

    Model Runner V2 to 0.32: a prefill of two tokens for each of min(S, T / 2) requests, with top-k, top-p and logprobs,
    which the profile left out. From 0.33 on the profile has them.
    Source: ``warmup_kernels``, vllm/v1/worker/gpu/warmup.py, 0.25 to 0.33.
    """
    if settings.model_runner != "v2" or settings.defaults.v2_sampler_profiled:
        return 0
    rows = min(profiled_rows(settings), settings.max_num_batched_tokens // 2)
    return rows * architecture.vocab * _V2_SAMPLING


def uncounted_state(architecture: Architecture, settings: Settings) -> int:
    """Bytes of Model Runner V2's sampling state where the profile does not count it (before 0.27), and of what a
    backend makes with the pool."""
    rows = index_buffers(architecture.compressed, settings) if architecture.compressed else 0
    rows += _flash_kda(architecture, settings)
    return rows + (0 if settings.defaults.v2_state_counted else sampler_state(architecture, settings))


def _flash_kda(architecture: Architecture, settings: Settings) -> int:
    """Bytes by which FlashKDA's buffers outgrow the experts' workspace, in whose place they are: S states twice, and T
    tokens' outputs. The profile has no metadata and so no such prefill; the first one, in the warm-up, asks for them.

    Source: ``_flashkda_buffer_specs``, vllm/models/kimi_k3/nvidia/kda.py, ``get_simultaneous``, v1/worker/workspace.py,
    0.32. The kernel's own scratch, of compiled code, is not known.
    """
    states = [k.state for k in architecture.kv_kinds if k.state and k.state.kernel == "kda"]
    if not states or "kda" not in settings.defaults.state_checkpoints:
        return 0
    one = max(s.recurrent for s in states) // settings.tensor_parallel_size
    outputs = settings.max_num_batched_tokens * (one // _KDA_WIDTH) * settings.dtype_bytes
    asked = outputs + 2 * settings.max_num_seqs * one * settings.state_dtype_bytes
    return max(0, asked - experts_workspace(architecture, settings))


def prompt_logprobs(architecture: Architecture, settings: Settings, prompt_tokens: int) -> Estimate:
    """Bytes that the log probabilities of a prompt of ``prompt_tokens`` take in the step that reads most of it.

    Model Runner V1 makes them for all tokens of a request that are in the step at once, n = min(T, prompt): the logits
    (d) and their log softmax in float32 (4), for which bf16 is converted first (4 more). By hand, 8,192 tokens of a
    vocabulary of 152,064 in fp16: 8,192 x 152,064 x 6 B = 6.96 GiB. Source: ``_get_prompt_logprobs_dict``,
    vllm/v1/worker/gpu_model_runner.py, ``compute_logprobs``, vllm/v1/sample/sampler.py, 0.19, and ``log_softmax`` of
    PyTorch's aten/src/ATen/native/SoftMax.cpp.

    Model Runner V2 makes them in pieces of 1,024 tokens and keeps no log softmax: n x V x d.

    The hidden states of the step lie beside it: T x H x d. The log probabilities of drawn tokens take less than what
    the profile's sampler took (d + 8 bytes a logit, of V2 d), so they have no term.
    """
    tokens, d = min(settings.max_num_batched_tokens, prompt_tokens), settings.dtype_bytes
    beside = hidden_states(architecture, settings)
    if settings.model_runner == "v2":
        rows = min(tokens, _V2_CHUNK)
        return Estimate.exact(beside + rows * architecture.vocab * d, f"{rows:,} rows of logits at a time")
    row = architecture.vocab * tokens
    low, likely = d + 4, d + (4 if settings.dtype == "float16" else 8)
    if settings.dtype == "float32":
        low = likely = 8
    words = f"{tokens:,} rows of logits x {likely} bytes"
    return Estimate(beside + row * likely, beside + row * low, beside + row * (likely + 1), words)


def proposals(architecture: Architecture, settings: Settings, requests: int) -> Estimate:
    """Bytes of the logits with which ``requests`` requests' proposed tokens are checked in one step, and of T states.

    Each has num_speculative_tokens + 1 rows, where the profile checks one proposal a request: the logits (d), their
    float32 copy (4), the copy that is worked on (4, where log probabilities are of raw logits, the default), and where
    any request is sampled, its probabilities (4). Source: ``RejectionSampler`` and ``rejection_sample``,
    vllm/v1/sample/rejection_sampler.py, 0.19.
    """
    rows = min(settings.max_num_seqs, requests) * (settings.num_speculative_tokens + 1)
    rows = min(rows, settings.max_num_batched_tokens)
    size, d = rows * architecture.vocab, settings.dtype_bytes
    beside = hidden_states(architecture, settings)
    words = f"{rows:,} rows of logits x {d + 8} bytes"
    return Estimate(beside + size * (d + 8), beside + size * (d + 4), beside + size * (d + 12), words)
