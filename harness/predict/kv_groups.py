"""Layers in groups that share a block table, all of them with blocks of one size from one pool.

Layers that always need equally many tokens are one group, whatever their pages. Where a model mixes kinds, pages are
made equal first: a smaller one holds more tokens where that comes out even, else it is padded; then each kind is cut
into groups of equally many layers.
Source: ``get_kv_cache_groups``, ``unify_kv_cache_spec_page_size``, ``_get_kv_cache_groups_uniform_page_size`` of
vllm/v1/core/kv_cache_utils.py and the ``max_memory_usage_bytes`` of vllm/v1/kv_cache_interface.py, 0.32, with a layout
that keeps layers apart (LBNHC, LBHNC).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from harness.architecture import CHUNKED, CROSS, INDEXER, MLA, STATE, Architecture, KvLayer
from harness.catalog.engines import Packing
from harness.errors import UsageError
from harness.predict.kv_packed import Pages, packed, raised
from harness.predict.settings import Settings

UNEQUAL_PAGES = (
    "page size is not divisible by the maximum page size and cannot be padded. Padding is only supported for non-MLA "
    "attention layers."
)


@dataclass(frozen=True)
class Group:
    """Layers (numbers) that share a block table.

    A block holds ``block_size`` tokens; ``pages``: its bytes in each of the layers, padded where that is needed.
    ``window``: of a sliding or chunked group. ``held``: the blocks of a request where its length does not decide them
    (a state: the one in use, with prefix caching also the last kept ones; an encoder's rows). ``ranks``: those
    that share a request's tokens (decode context parallel).
    """

    kind: str
    window: int | None
    block_size: int
    layers: tuple[int, ...]
    pages: tuple[int, ...]
    held: int | None = None
    ranks: int = 1

    @property
    def page_bytes(self) -> int:
        """Bytes of a block in the layer that needs most."""
        return max(self.pages)

    def pages_on(self, held: range) -> tuple[int, ...]:
        """Bytes of a block in each of the layers that are in ``held``."""
        return self.pages[bisect_left(self.layers, held.start) : bisect_left(self.layers, held.stop)]

    def bytes_on(self, held: range) -> int:
        """Bytes of a block in those of the layers that are in ``held``."""
        return sum(self.pages_on(held))

    def blocks_for(self, tokens: int, in_flight: int) -> int:
        """Blocks that a request of ``tokens`` may hold at once in this group."""
        if self.held is not None:
            return self.held
        if self.window is None:
            return _ceil(_ceil(tokens, self.ranks), self.block_size)
        if self.kind == CHUNKED:
            return _ceil(min(self.window + in_flight, tokens), self.block_size)
        # A window may begin in the middle of a block: one more.
        return _ceil(min(self.window - 1 + in_flight, tokens), self.block_size) + 1


@dataclass(frozen=True)
class _Spec:
    """A cache as one rank has it; equal specs may share a group."""

    kind: str
    window: int | None
    heads: int
    row: int
    block_size: int
    page: int
    held: int | None = None

    @property
    def type(self) -> tuple[str, int | None]:
        """Equal for those that always need equally many tokens (``is_uniform_with_collection``)."""
        if self.kind == STATE:
            return STATE, self.page
        if self.kind == CROSS:
            return CROSS, None
        return ("rows" if self.window is None else self.kind), self.window


def with_draft(architecture: Architecture, settings: Settings) -> Architecture:
    """The model with the layers of its draft behind its own, as the planner of the pool sees them."""
    if settings.draft is None:
        return architecture
    more = settings.draft.architecture
    layers = (*architecture.kv_layers, *more.kv_layers)
    return replace(architecture, layers=architecture.layers + more.layers, kv_layers=layers)


def groups(architecture: Architecture, settings: Settings) -> tuple[Group, ...]:
    """The groups of the whole model, in the order of their first layers; those of a draft model are among them."""
    members: dict[_Spec, list[int]] = {}
    kinds = with_draft(architecture, settings).kv_kinds
    for layer, where in kinds.items():
        members.setdefault(_spec(layer, settings), []).extend(where)
    if any(layer.align for layer in kinds):
        return _packed(members, settings, packing(architecture, settings))
    if len({(s.type, s.block_size) for s in members}) == 1:
        pages = sorted((number, s.page) for s, numbers in members.items() for number in numbers)
        return (_group(next(iter(members)), pages, settings),)
    members = _equal_pages(members)
    size = _group_size([len(numbers) for numbers in members.values()])
    found = []
    for spec, numbers in members.items():
        count = _ceil(len(numbers), size)
        pages = [(number, spec.page) for number in sorted(numbers)]
        found += [_group(spec, pages[i::count], settings) for i in range(count)]
    return tuple(found)


def packing(architecture: Architecture, settings: Settings) -> Packing:
    """How pages of several sizes lie in a block; where there are none, as in the newest release."""
    rows = architecture.compressed
    return settings.defaults.page_packing if rows is not None and any(rows.ratios) else "groups"


def _packed(members: dict[_Spec, list[int]], settings: Settings, how: Packing) -> tuple[Group, ...]:
    buckets: dict[tuple[tuple[str, int | None], int], tuple[_Spec, Pages]] = {}
    for spec, numbers in members.items():
        _, pages = buckets.setdefault((spec.type, spec.block_size), (spec, {}))
        pages.setdefault(spec.page, []).extend(numbers)
    specs, all_pages = [spec for spec, _ in buckets.values()], [pages for _, pages in buckets.values()]
    rows = None
    if how != "groups":
        rows = next(pages for spec, pages in buckets.values() if spec.window is None)
    if rows is not None and how in ("tuples", "slots"):
        all_pages = [raised(pages, rows) for pages in all_pages]
    alike = zip(specs, packed(all_pages, rows), strict=True)
    return tuple(_group(spec, pages, settings) for spec, cut in alike for pages in cut)


def _group(spec: _Spec, pages: list[tuple[int, int]], settings: Settings) -> Group:
    numbers, sizes = zip(*pages, strict=True)
    ranks = settings.decode_context_parallel_size
    return Group(spec.kind, spec.window, spec.block_size, numbers, sizes, spec.held, ranks)


def _spec(layer: KvLayer, settings: Settings) -> _Spec:
    tp, block_size = settings.tensor_parallel_size, settings.block_size
    if layer.state is not None:
        proposed = settings.num_speculative_tokens  # each has a state of its own until it is checked
        page = layer.state.bytes_on_rank(tp, settings.dtype_bytes, settings.state_dtype_bytes, proposed)
        if not settings.enable_prefix_caching:  # one block covers a request whole
            return _Spec(layer.kind, None, 0, 0, settings.max_model_len, page, 1 + proposed)
        left = int(layer.state.kernel in settings.state_checkpoints)
        return _Spec(layer.kind, None, 0, 0, block_size, page, 2 + left + proposed)
    block_size = layer.block_size or block_size
    page = layer.page_bytes(block_size, tp, settings.kv_dtype_bytes)
    # Charged for as much as all encoders of a step may take, whatever one request has.
    held = _ceil(settings.max_num_batched_tokens, block_size) if layer.kind == CROSS else None
    return _Spec(layer.kind, layer.window, layer.heads_on_rank(tp), layer.row, block_size, page, held)


def _equal_pages(members: dict[_Spec, list[int]]) -> dict[_Spec, list[int]]:
    """Every page as large as the largest: by more tokens in a block where that comes out even, else by padding."""
    page = max(s.page for s in members)
    equal: dict[_Spec, list[int]] = {}
    for spec, numbers in members.items():
        tokens = spec.block_size
        if spec.kind != STATE:
            if page % spec.page == 0:
                tokens *= page // spec.page
            elif spec.kind in (MLA, INDEXER):
                raise UsageError(UNEQUAL_PAGES)
        equal.setdefault(replace(spec, block_size=tokens, page=page), []).extend(numbers)
    return equal


def _group_size(counts: list[int]) -> int:
    """Layers in a group: as many as the rarest kind has, unless all have nearly as many."""
    return max(counts) if max(counts) < 1.5 * min(counts) else min(counts)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
