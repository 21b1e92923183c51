"""The caches that a layer may keep: rows of keys and values (its own tokens', a window of them, an encoder's), a latent
row, a recurrent state.

Source: ``get_kv_cache_spec`` of attention/attention.py, mla_attention.py, chunked_local_attention.py and
mamba/abstract.py (vllm/model_executor/layers), and what each model class hands to it, 0.32.
tests/test_vllm_planner.py asks vLLM's own classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

FULL, SLIDING, CHUNKED, CROSS = "full", "sliding", "chunked", "cross"
MLA, INDEXER, STATE = "mla", "indexer", "state"
COMPRESSED, COMPRESSOR = "compressed", "compressor"  # rows of several tokens, and what the next ones are made of


@dataclass(frozen=True)
class State:
    """What a state-space or linear-attention layer keeps of a request, however long that is. Elements, unsplit.

    ``conv``: the last inputs of the convolution, in the model's dtype; ``conv_group``: of each of ``groups`` more that
    are copied where ranks don't divide them. ``recurrent``: the state proper, in ``recurrent_dtype``, the config's own
    word for it; None: in the model's dtype. ``kernel``: what runs its prefill, where that may leave a state
    behind in a block more: "mamba2", "kda", "delta_net"; the engine's version tells whether it does. ``inputs``: how
    many the convolution keeps, one more for each proposed token; None: not known to be so.
    Source: ``MambaStateShapeCalculator`` of vllm/model_executor/layers/mamba/mamba_utils.py, 0.32.
    """

    conv: int
    recurrent: int
    conv_group: int = 0
    groups: int = 1
    recurrent_dtype: str | None = None
    kernel: str | None = None
    inputs: int | None = None

    def bytes_on_rank(self, tp: int, dtype_bytes: int, recurrent_bytes: int, proposed: int = 0) -> int:
        """Bytes on one of ``tp`` ranks; ``recurrent_bytes``: of an element of the recurrent state.

        ``proposed``: tokens that a drafter proposes at once (``num_spec`` in the source).
        """
        groups = self.groups if self.groups % tp == 0 else tp
        conv = (self.conv + self.conv_group * groups) // tp
        if proposed and self.inputs:
            conv = conv // self.inputs * (self.inputs + proposed)
        return conv * dtype_bytes + self.recurrent // tp * recurrent_bytes


@dataclass(frozen=True)
class KvLayer:
    """One cache of one layer. ``row``: elements of one token in one head, key and value together.

    ``window``: tokens, of a sliding layer; of a chunked one the chunk. MLA and the indexer of sparse attention have one
    row for all heads, whole on each rank. ``row_bytes``: the row's bytes where kv_cache_dtype does not decide them.
    ``state``: of a layer that keeps a state and no rows.
    ``tokens_per_row``: of compressed rows. ``block_size``: tokens, where the cache has blocks of its own size.
    ``align``: a page is whole steps of so many bytes, and pages of several sizes lie side by side in one block.
    """

    kind: str
    heads: int
    row: int
    window: int | None = None
    row_bytes: int | None = None
    state: State | None = None
    tokens_per_row: int = 1
    block_size: int | None = None
    align: int | None = None

    def heads_on_rank(self, tp: int) -> int:
        """KV heads on one of ``tp`` ranks: copied where ranks outnumber heads."""
        return 1 if self.kind in (MLA, INDEXER) else max(1, self.heads // tp)

    def row_bytes_on_rank(self, tp: int, dtype_bytes: int | Fraction) -> int:
        """Bytes of a row, of whosesoever tokens, on one of ``tp`` ranks; a state has none."""
        if self.state is not None:
            return 0
        row = self.row_bytes if self.row_bytes is not None else int(self.row * dtype_bytes)
        return self.heads_on_rank(tp) * row

    def bytes_per_token(self, tp: int, dtype_bytes: int | Fraction) -> int | Fraction:
        """Bytes that one token adds on one of ``tp`` ranks; none to a state, to what is an encoder's, or to what a
        compressor works on."""
        if self.kind in (CROSS, COMPRESSOR):
            return 0
        row = self.row_bytes_on_rank(tp, dtype_bytes)
        return row if self.tokens_per_row == 1 else Fraction(row, self.tokens_per_row)

    def page_bytes(self, block_size: int, tp: int, dtype_bytes: int | Fraction) -> int:
        """Bytes of a block of ``block_size`` tokens, as they are aligned."""
        page, step = block_size // self.tokens_per_row * self.row_bytes_on_rank(tp, dtype_bytes), self.align or 1
        return -(-page // step) * step
