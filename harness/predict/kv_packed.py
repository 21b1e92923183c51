"""Pages of several sizes side by side in one block: how layers are grouped where no page is padded to another's.

What always needs equally many tokens in blocks of one size is a bucket. A bucket whose pages of each size are equally
many is a pattern that repeats, one layer of each size; such buckets are cut into groups of about equally many repeats,
no fewer than the longest pattern of several sizes has. All others stay whole. A block is as large as the largest group.
Source: ``_get_packed_kv_cache_groups`` and ``_approximate_gcd`` of vllm/v1/core/kv_cache_utils.py, 0.32, with a layout
that keeps the layers of a block together (BLHNC): DeepSeek V4's indexer takes no other.

Older releases, from 0.22 on: the bucket of all rows counts as a pattern too, of as many repeats as its commonest page
has. To 0.26 the pages of the others are raised to one of its sizes, and a block has a slot of each size for each
repeat ("tuples", 0.22), or for each page of that size that a group has at most ("slots"). From 0.27 on it is as
large as the largest group ("dense"), but to 0.28 a request is charged in tuples still.
Source: ``_get_kv_cache_groups_uniform_groups``, ``_get_kv_cache_config_deepseek_v4``, ``_bucket_layers_by_page_size``
and ``_get_packed_kv_cache_layout`` of the same file, wheels of 0.22.0 to 0.28.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

Pages = dict[int, list[int]]  # bytes of a page -> the layers (numbers) that have such a one


def packed(buckets: Sequence[Pages], rows: Pages | None = None) -> list[list[list[tuple[int, int]]]]:
    """The groups of each bucket, each as (layer, bytes of its page). ``rows``: that of all rows, before 0.29."""
    patterns = [pages for pages in buckets if len({len(layers) for layers in pages.values()}) == 1]
    longest = max((_repeats(pages) for pages in patterns if len(pages) > 1), default=0)
    counts = [_repeats(pages) for pages in patterns]
    if rows is not None:
        longest = _repeats(rows)
        counts = [_repeats(pages) for pages in buckets]
    size = _common(counts, longest) if longest else 0
    return [_cut(pages, -(-_repeats(pages) // size) if size and pages in patterns else 1) for pages in buckets]


def raised(pages: Pages, sizes: Iterable[int]) -> Pages:
    """``pages`` as large as the next of ``sizes``."""
    larger: Pages = {}
    for page, layers in pages.items():
        larger.setdefault(min(size for size in sizes if size >= page), []).extend(layers)
    return larger


def tuples_bytes(groups: Sequence[Sequence[int]], sizes: Iterable[int]) -> int:
    """Bytes of a block, or of what a request is charged for one, where it has a page of each of ``sizes`` as often as
    the groups (bytes of their pages) have one at most."""
    return sum(set(sizes)) * max(max(Counter(pages).values(), default=0) for pages in groups)


def slots_bytes(groups: Sequence[Sequence[int]]) -> int:
    """Bytes of a block where it has of each size as many pages as a group has at most."""
    most: Counter[int] = Counter()
    for pages in groups:
        most |= Counter(pages)
    return sum(page * count for page, count in most.items())


def _repeats(pages: Pages) -> int:
    return max(len(layers) for layers in pages.values())


def _common(counts: list[int], least: int) -> int:
    """The number of repeats, ``least`` or more, whose multiples exceed ``counts`` by least; the larger of equals."""
    return min(range(max(counts), least - 1, -1), key=lambda n: sum([-count % n for count in counts]))


def _cut(pages: Pages, groups: int) -> list[list[tuple[int, int]]]:
    """Every so-many-th repeat of the pattern is of the same group."""
    if groups == 1:
        return [sorted((layer, page) for page, layers in pages.items() for layer in layers)]
    repeats = list(zip(*([(layer, page) for layer in sorted(layers)] for page, layers in pages.items()), strict=True))
    return [sorted(member for repeat in repeats[i::groups] for member in repeat) for i in range(groups)]
