"""The profile run of attention over compressed rows (DeepSeek V4), and what is made for it after the profile.

With T = max_num_batched_tokens, L = max_model_len, H hidden, s streams of the residual, r the query's rank, p heads of
the kernel (64, or 128 where a rank has more), k experts a token, I their width on a rank, K index heads x 128, m rows
that the indexer chooses, d bytes of the dtype:

    kept    = max(gather, keys, experts)               one workspace for all of them, as large as the largest
    gather  = 4 * (L/4 + 128 + T) * 512 * d + T * (m + 128) * 4
    keys    = 132 * L * 8 * f / 4                      f = 5 to 262,144 tokens, 2 beyond
    experts = T * k * (max(I, H) + max(2I, H)) * d     Marlin's, the kernel of Hopper; others have none of this
    layer   = T * (2sHd + 2Hd + 2*p*512*d + 2(r + 512)d + 10,240 + K) + 512 MiB, + 2Tm * 4 on several ranks

- The caller holds the streams and the hidden state that a layer began with while that runs. The attention's output and
  its padded query lie beside what the compressors' matrices give in float32 (2 x 1,024 and 2 x 256), when the indexer
  takes room for its logits (``VLLM_SPARSE_INDEXER_MAX_LOGITS_MB``).
- No public run of 0.32 or later states its terms, so the interval is wide: at the low end no workspace of experts, and
  no room for logits; at the high end Marlin's on every GPU, and the streams a third time (``mhc_fused_post_pre``).

- Before 0.32 the same law with a wider interval: what those releases take otherwise is not read. A report of 0.22 (row
  v44376-dsv4flash-2xgh200) leaves a pool 2.1 GiB smaller than this law does.

Source: vllm/models/deepseek_v4 (attention.py, nvidia/model.py, nvidia/flashmla.py, sparse_mla.py), sparse_attn_indexer
(vllm/model_executor/layers/sparse_attn_indexer.py), ``get_max_prefill_buffer_size`` (vllm/v1/attention/backends/mla/
indexer.py), ``MarlinExperts.workspace_shapes``, vllm/v1/worker/workspace.py, 0.32.
"""

from __future__ import annotations

from harness.architecture import Architecture
from harness.architecture.compressed import DEEP, INDEXED, Compressed
from harness.catalog import Gpu
from harness.predict.estimate import Estimate
from harness.predict.settings import Settings
from harness.units import MIB

_HEAD, _WINDOW = 512, 128
_LOGITS = 512 * MIB
_SCORES = 4 * 2 * (2 * 512 + 2 * 128)  # bytes of a token: what the compressors' matrices give, at 1:4
_KEY = 132
_HOPPER = 9
READ_SINCE = "0.32"
_LONG = 256 * 1024  # tokens of max_model_len, from which the indexer's workspace has a smaller factor


def profiled(architecture: Architecture, rows: Compressed, settings: Settings, gpu: Gpu) -> tuple[Estimate, Estimate]:
    """(what is kept for all layers, what one layer takes beside it), bytes on one rank."""
    own, experts = max(_gather(rows, settings), _keys(rows, settings)), _experts(architecture, settings)
    hopper = gpu.compute_capability is None or int(float(gpu.compute_capability)) == _HOPPER
    largest = max(own, experts)
    kept = Estimate(largest if hopper else own, own, largest, "workspace of attention, indexer and experts")
    layer = _layer(architecture, rows, settings)
    streams = settings.max_num_batched_tokens * rows.streams * architecture.hidden * settings.dtype_bytes
    low = layer - _LOGITS if rows.has(INDEXED) else layer
    return kept, Estimate(layer, low, layer + streams, "layers: residual streams, attention, indexer's logits")


def _gather(rows: Compressed, settings: Settings) -> int:
    tokens = settings.max_num_batched_tokens
    ratio = min((r for r in rows.ratios if r), default=0)
    made = -(-settings.max_model_len // ratio) if ratio else 0
    chosen = rows.top_k if ratio else 0
    return 4 * (made + _WINDOW + tokens) * _HEAD * settings.dtype_bytes + tokens * 4 * _padded(chosen + _WINDOW)


def _keys(rows: Compressed, settings: Settings) -> int:
    factor = 5 if settings.max_model_len <= _LONG else 2
    return _KEY * (settings.max_model_len * 8 * factor // INDEXED) if rows.has(INDEXED) else 0


def _experts(architecture: Architecture, settings: Settings) -> int:
    mixture = architecture.mixture
    if mixture is None:
        return 0
    width, hidden = mixture.width // settings.expert_split[0], architecture.hidden
    taken = settings.max_num_batched_tokens * settings.data_parallel_size * mixture.used
    return taken * (max(width, hidden) + max(2 * width, hidden)) * settings.dtype_bytes


def _layer(architecture: Architecture, rows: Compressed, settings: Settings) -> int:
    tokens, d, hidden = settings.max_num_batched_tokens, settings.dtype_bytes, architecture.hidden
    heads = architecture.heads // settings.tensor_parallel_size
    kernel = 64 if heads <= 64 else 128
    a_token = d * (2 * rows.streams * hidden + 2 * hidden + 2 * kernel * _HEAD + 2 * (rows.query_rank + _HEAD))
    if not rows.has(INDEXED):
        return tokens * a_token
    exchanged = 2 * tokens * rows.top_k * 4 if settings.tensor_parallel_size > 1 else 0
    return tokens * (a_token + _SCORES + rows.index_width) + _LOGITS + exchanged


def index_buffers(rows: Compressed, settings: Settings) -> int:
    """Bytes of the row numbers that the layers of ratio 128 look up, for decoding and for prefill: made with the pool,
    after the profile, so outside the budget.

    Source: ``DeepseekV4SparseMLAMetadataBuilder``, vllm/models/deepseek_v4/sparse_mla.py, 0.32.
    """
    if not rows.has(DEEP):
        return 0
    return 2 * settings.max_num_batched_tokens * _padded(-(-settings.max_model_len // DEEP)) * 4


def _padded(rows: int) -> int:
    return -(-rows // 128) * 128
