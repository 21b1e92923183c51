"""The activation peak of vLLM's profile run: the larger of the layers' path and the sampler's path.

With T = max_num_batched_tokens, S = min(max_num_seqs, T), H hidden, I intermediate, V vocabulary, d bytes of
the dtype, tp ranks:

    layers  = 3*T*H*d + 3*T*(I/tp)*d + e + c        (2*T*(I/tp)*d where the MLP has no gate)
    sampler = T*H*d + S*V*b + M*V*4 + e + c
    e       = T*k*(max(2*Ie/tp, He) + He)*d         (0 without experts; k of them a token, each Ie wide)

- The layers' path holds hidden states, residual and normed input, and the MLP's gate, up and product. Where later
  layers choose among the outputs of blocks of layers (Kimi K3, vllm/models/kimi_k3/nvidia/model.py, 0.32), those lie
  there too, T*H*d each.
- He: what an expert takes in, H but for latent experts.
- b, Model Runner V1: the logits (d), their float32 copy, the probabilities and the exponential noise (4
  each), so 12 + d (vllm/v1/sample, 0.19: sampler.py, ops/topk_topp_sampler.py). M = min(S, multiprocessors)
  rows are the buffer of the Triton top-k kernel (ops/topk_topp_triton.py). FlashInfer, the default from 0.21 on,
  holds as much (the masked logits and their probabilities), and the profile runs the Triton path too. Before 0.17
  PyTorch's sort took its place: b = 36 + d, M = 0, within 0.02 GiB of Qwen3-14B
  (https://github.com/llm-d-incubation/llm-d-planner/pull/205), Llama-3.1-8B and Qwen3-0.6B on an H100
  (https://github.com/llm-d/llm-d-benchmark/blob/main/config_explorer/empirical-vllm-memory-results.md); one
  report of that time is far below it (OPT-2.7B: https://github.com/vllm-project/vllm/issues/29070), as it
  would be with another sampler, so the low end is 12 + d.
- b, V0: sorts too, 36 + d (vllm/model_executor/layers/sampler.py, 0.7.3), on the rank that samples, rank 0.
- b, Model Runner V2, to 0.32: its profile skips top-k, top-p and logprobs, and samples from the logits in place
  (``_dummy_sampler_run``, vllm/v1/worker/gpu/model_runner.py, 0.22 to 0.32): b = d, M = 0. From 0.33 on a second
  pass asks for all of it: the logits, their float32 copy, FlashInfer's masked logits and probabilities, 12 + d; on a
  GPU that FlashInfer does not support (below 8.0) the Triton kernel masks in place, 4 + d and its buffer. The low end
  is 4 + d.
- e, the two workspaces of the fused experts: from 0.13 on made once and kept, so they lie under the sampler's path too
  (``FusedMoEModularKernel``, vllm/model_executor/layers/fused_moe/modular_kernel.py, 0.19); before, they are of a layer
  and freed with it: T*k*(max(2*Ie/tp, H) + Ie/tp)*d, of V0 T*k*(3*Ie/tp + H)*d (fused_moe.py, 0.8.5, 0.7.3). mxfp4
  experts run in Triton kernels whose buffers are freed before the sampler: 0, chosen for what h100-019-51 and -52
  print. Leaves 0.02 GiB or less on h100-019-02, -51, -52, -53 and -66.
- With proposed tokens Model Runner V1 also checks one for each of S requests: two rows of logits each, a copy of
  one, the other in float32 twice, its probabilities and the noise twice, 3*d + 20 in place of 12 + d
  (``_dummy_sampler_run``, vllm/v1/worker/gpu_model_runner.py, and ``RejectionSampler``, 0.19). A draft model's pass
  follows with the hidden states held: T*H*d + its own layers' path, at MTP layers 6*T*H*d at least: the embeddings,
  both inputs normed, joined (2) and projected. No run with one is public.
- c is what is left: fitted on the first two rows of :data:`FITTED_ON`, checked on all others.
- A vision tower adds what encoder.py says: what is kept of its pass lies under both paths, and the pass is a third one.
- A stage of a pipeline also holds the hidden states and the residual that it is handed or hands on, 2*T*H*d,
  and the first one the embedding's output, T*H*d. Settled on h100-019-33 and -34, where it leaves 0.02 GiB.

The vocabulary is not divided by tp: the logits are gathered before sampling.
"""

from __future__ import annotations

from dataclasses import replace

from harness.architecture import Architecture, padded_vocab
from harness.architecture.compressed import Compressed
from harness.catalog import Gpu, version_key
from harness.ledger import Term
from harness.predict.compressed_profile import READ_SINCE, profiled
from harness.predict.encoder import encoder
from harness.predict.estimate import Estimate
from harness.predict.refitted import refitted
from harness.predict.settings import Settings
from harness.units import MIB

# Mean of what the sampler's path leaves open on Llama-3.1-8B (h100-019-31) and Qwen2.5-7B (h100-019-62):
# 0.052 and 0.050 GiB. Where the layers' path decides (CodeLlama-7B, h100-019-01) it leaves 0.08.
CONSTANT = 52 * MIB
FITTED_ON = (
    "h100-019-31", "h100-019-62",  # c
    "h100-019-01",  # three hidden states in the layers' path, not two
    "h100-019-33", "h100-019-34",  # the share of a pipeline's stages
    "sweep-015", "sweep-016",  # 36 bytes a logit before 0.17
    "h100-019-51", "h100-019-52", "h100-019-53",  # no workspace of mxfp4 experts under the sampler's path
    "llmdbench-l31-8b", "llmdbench-qwen3-0p6b",  # the same 36 bytes
    "v10511-l3-8b-tp1", "v10517-l31-8b-3090-20k", "v10517-l31-8b-3090-29k", "v11251-v100-tp2-090",  # c of V0
)  # fmt: skip
BELOW, ABOVE = 40 * MIB, 60 * MIB  # residuals on the started dense runs, rounded up
# The kernel's buffer where the GPU's multiprocessors are not in the catalogue: H100's count, as far as
# the smallest (40, T4) and the largest known (192) would move it.
_MULTIPROCESSORS, _FEWEST, _MOST = 132, 40, 192
_FLASHINFER_SINCE = 8.0  # supports_compute_capability, vllm/v1/attention/backends/flashinfer.py, 0.33
# V0 leaves less: 0.01, 0.00, 0.03 and 0.04 GiB on the four reports of V0 in FITTED_ON. It does not compile the model.
_CONSTANT_V0 = 20 * MIB
# No run of Model Runner V2 with its terms is public: its law is read in the source, its interval is wide.
_V2_BELOW, _V2_ABOVE = 0.15, 0.35


def activation_peak(architecture: Architecture, settings: Settings, gpu: Gpu, stage: int = 0) -> Estimate:
    """Bytes that the profile run's peak lies above what stays, on one rank of ``stage``."""
    last = stage == settings.pipeline_parallel_size - 1
    if architecture.compressed is not None:
        return _compressed_peak(architecture, architecture.compressed, settings, gpu, stage)
    layers = max(_layers_path(architecture, settings, stage), _drafting(architecture, settings))
    low_sampler, sampler, high_sampler = _sampler_path(architecture, settings, gpu) if last else (0, 0, 0)
    c = _constant(settings)
    base = _handed(architecture, settings, stage) + experts_workspace(architecture, settings)
    peak, which = max((layers, "layers: 3THd + MLP"), (sampler, "sampler: THd + logits"))
    low, high = max(layers, low_sampler), max(layers, high_sampler)
    seen = encoder(architecture, settings, stage)
    if seen is not None:
        peak, low, high = (getattr(seen.kept, end) + n for end, n in (("bytes", peak), ("low", low), ("high", high)))
        which = f"{which}; {seen.words}"
        if seen.tower.bytes > peak:
            which = f"tower: {seen.words}"
        peak, low, high = (max(getattr(seen.tower, e), n) for e, n in (("bytes", peak), ("low", low), ("high", high)))
    low, high = low + base + c.low, high + base + c.high
    if settings.data_parallel_size > 1 and architecture.mixture is not None:
        # No run is public: the gathered tokens may be those of one engine, or lie there twice.
        others = settings.data_parallel_size - 1
        low -= experts_workspace(architecture, settings) * others // settings.data_parallel_size
        high += 2 * others * hidden_states(architecture, settings)
    if settings.model_runner == "v2":
        low, high = round(low - _V2_BELOW * peak), round(high + _V2_ABOVE * peak)
    return Estimate(
        max(peak + base + c.bytes, 0), max(low, 0), max(high, 0),
        f"{which} path of the profile run, Model Runner {settings.model_runner.upper()} "
        f"(T={settings.max_num_batched_tokens}, S={settings.max_num_seqs}){c.source}",
    )  # fmt: skip


def _compressed_peak(
    architecture: Architecture, rows: Compressed, settings: Settings, gpu: Gpu, stage: int
) -> Estimate:
    """DeepSeek V4's: see compressed_profile.py."""
    kept, layer = profiled(architecture, rows, settings, gpu)
    last = stage == settings.pipeline_parallel_size - 1
    sampler = _sampler_path(architecture, settings, gpu) if last else (0, 0, 0)
    handed, c = rows.streams * _handed(architecture, settings, stage), _constant(settings)
    low, likely, high = (
        max(getattr(layer, end), logits) + getattr(kept, end) + handed + getattr(c, end)
        for end, logits in zip(("low", "bytes", "high"), sampler, strict=True)
    )
    unread = version_key(settings.vllm) < version_key(READ_SINCE)
    room = round(_V2_ABOVE * likely) * (bool(settings.draft) + unread)  # nor is a drafter's own pass read
    return Estimate(
        likely, round(low * (1 - _V2_BELOW)), high + room,
        f"{layer.source}; {kept.source}; Model Runner {settings.model_runner.upper()} "
        f"(T={settings.max_num_batched_tokens}, S={settings.max_num_seqs}){c.source}",
    )  # fmt: skip


def hidden_states(architecture: Architecture, settings: Settings) -> int:
    """Bytes of T tokens' hidden states."""
    return settings.max_num_batched_tokens * architecture.hidden * settings.dtype_bytes


def _drafting(architecture: Architecture, settings: Settings) -> int:
    """Bytes of the drafter's own pass, which follows the other's while its hidden states are held."""
    if settings.draft is None:
        return 0
    takes, one = settings.draft.takes, hidden_states(architecture, settings)
    held, layers = max(takes, 1) * one, _layers_path(settings.draft.architecture, settings)
    # MTP layers begin with both inputs, each normed, then side by side, and what is made of them.
    return held + (max(layers, 5 * one) if takes else layers)


def _handed(architecture: Architecture, settings: Settings, stage: int) -> int:
    if settings.pipeline_parallel_size == 1:
        return 0
    start = architecture.stage(stage, settings.stages).start
    residual = max(1, _chosen_from(architecture, start))
    return (1 + residual if stage else 3) * hidden_states(architecture, settings)


def _chosen_from(architecture: Architecture, layer: int) -> int:
    """Outputs of blocks that ``layer`` may choose among."""
    return -(-layer // architecture.residual_block) if architecture.residual_block else 0


def _layers_path(architecture: Architecture, settings: Settings, stage: int = 0) -> int:
    tokens = settings.max_num_batched_tokens
    width = architecture.dense_width // settings.tensor_parallel_size
    mlp = (3 if architecture.gated else 2) * tokens * width * settings.dtype_bytes
    experts = 0 if settings.defaults.experts_workspace_kept else _experts_of_a_layer(architecture, settings)
    blocks = _chosen_from(architecture, architecture.stage(stage, settings.stages).stop)
    return (3 + blocks) * hidden_states(architecture, settings) + max(mlp, experts)


def _experts_of_a_layer(architecture: Architecture, settings: Settings) -> int:
    """Bytes of one layer's expert workspaces where they are freed with it (V0, V1 before 0.13)."""
    mixture = architecture.mixture
    if mixture is None or settings.weight_format.only == "experts":
        return 0
    one, taken = mixture.width // settings.expert_split[0], mixture.taken
    row = 3 * one + taken if settings.model_runner == "v0" else max(2 * one, taken) + one
    return settings.max_num_batched_tokens * mixture.used * row * settings.dtype_bytes


def experts_workspace(architecture: Architecture, settings: Settings) -> int:
    """Bytes that the fused experts keep for T tokens on one rank: e of the law above.

    With several engines the tokens of all of them are gathered before the experts (the default of 0.32,
    allgather_reducescatter): T x data_parallel_size.
    """
    mixture, kept = architecture.mixture, settings.defaults.experts_workspace_kept
    if mixture is None or settings.weight_format.only == "experts" or not kept:
        return 0
    width = max(2 * mixture.width // settings.expert_split[0], mixture.taken)
    rows = settings.max_num_batched_tokens * settings.data_parallel_size * mixture.used
    return rows * (width + mixture.taken) * settings.dtype_bytes


def _constant(settings: Settings) -> Estimate:
    """c of the law, its ends those of what the law leaves."""
    size = _CONSTANT_V0 if settings.model_runner == "v0" else CONSTANT
    published = Estimate(size, size - BELOW, size + ABOVE, "")
    found = refitted(settings, Term.ACTIVATION_PEAK, settings.model_runner, published)
    return found if found is published else replace(found, source=f", c {found.source}")


def _sampler_path(architecture: Architecture, settings: Settings, gpu: Gpu) -> tuple[int, int, int]:
    """(low, likely, high) bytes."""
    rows, vocab, d = profiled_rows(settings), architecture.vocab, settings.dtype_bytes
    hidden, defaults = hidden_states(architecture, settings), settings.defaults
    if settings.model_runner == "v2":
        logits = hidden + rows * padded_vocab(vocab) * d
        if not defaults.v2_sampler_profiled:
            return logits, logits, logits
        low, flashinfer = logits + rows * vocab * 4, logits + rows * vocab * 12
        if gpu.compute_capability is None or float(gpu.compute_capability) >= _FLASHINFER_SINCE:
            return low, flashinfer, flashinfer
        return low, low + _top_k_buffer(gpu, rows, vocab)[1], flashinfer
    narrow = hidden + rows * vocab * (12 + d)
    if settings.model_runner == "v0" or defaults.sampler == "sort":
        sorting = hidden + rows * vocab * (36 + d)
        checking = rows * vocab * 2 * d if settings.num_speculative_tokens else 0
        return narrow, sorting + checking, sorting + checking
    low, likely, high = _top_k_buffer(gpu, rows, vocab)
    low, likely, high = narrow + low, narrow + likely, narrow + high
    if settings.num_speculative_tokens:
        one = rows * vocab
        return low, max(likely + 2 * d * one, hidden + (3 * d + 20) * one), max(high, hidden + (3 * d + 24) * one)
    return low, likely, high


def _top_k_buffer(gpu: Gpu, rows: int, vocab: int) -> tuple[int, int, int]:
    """(low, likely, high) bytes of the Triton kernel's rows, one for each multiprocessor at most."""
    known = gpu.multiprocessors
    counts = (known, known, known) if known else (_FEWEST, _MULTIPROCESSORS, _MOST)
    low, likely, high = (min(rows, n) * vocab * 4 for n in counts)
    return low, likely, high


def profiled_rows(settings: Settings) -> int:
    """Sequences of the profile run's batch."""
    return min(settings.max_num_seqs, settings.max_num_batched_tokens)


def sampler_state(architecture: Architecture, settings: Settings) -> int:
    """Bytes that Model Runner V2 keeps for sampling and block tables, for ``max_num_seqs`` requests.

    Counts and mask of the penalties (S x V int32, S x V/32 int32: more than half a GiB at 1,024 x 128,256),
    logit bias, stop and bad words, two block tables. Not weights, not the profile's transient peak: vLLM's
    log has it under "consumed memory (weights + non-torch)" from 0.27 on; before, no term of the profile held it.
    0 for V1, which keeps no such state there.
    Source: sample/penalties.py, logit_bias.py, bad_words.py, block_table.py of vllm/v1/worker/gpu, 0.32.
    """
    if settings.model_runner != "v2":
        return 0
    penalties = 4 * architecture.vocab + 4 * -(-architecture.vocab // 32)
    bias_and_words = 3 * 4 * 1024 + 4 * 128 + 4 * 1024 + 4 * 129
    block_tables = 2 * 4 * -(-settings.max_model_len // settings.block_size)
    return settings.max_num_seqs * (penalties + bias_and_words + block_tables)
