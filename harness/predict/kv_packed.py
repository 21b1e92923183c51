"""Pages of several sizes side by side in one block: how layers are grouped where no page is padded to another's.

What always needs equally many tokens in blocks of one size is a bucket. A bucket whose pages of each size are equally
many is a pattern that repeats, one layer of each size; such buckets are cut into groups of about equally many repeats,
no fewer than the longest pattern of several sizes has. All others stay whole. A block is as large as the largest group.
Source: ``_get_packed_kv_cache_groups`` and ``_approximate_gcd`` of vllm/v1/core/kv_cache_utils.py, 0.32, with a layout
that keeps the layers of a block together (BLHNC): DeepSeek V4's indexer takes no other.
"""

from __future__ import annotations

from collections.abc import Sequence

Pages = dict[int, list[int]]  # bytes of a page -> the layers (numbers) that have such a one


def packed(buckets: Sequence[Pages]) -> list[list[list[tuple[int, int]]]]:
    """The groups of each bucket, each as (layer, bytes of its page)."""
    patterns = [pages for pages in buckets if len({len(layers) for layers in pages.values()}) == 1]
    longest = max((_repeats(pages) for pages in patterns if len(pages) > 1), default=0)
    size = _common([_repeats(pages) for pages in patterns], longest) if longest else 0
    return [_cut(pages, -(-_repeats(pages) // size) if size and pages in patterns else 1) for pages in buckets]


def _repeats(pages: Pages) -> int:
    return max(len(layers) for layers in pages.values())


def _common(counts: list[int], least: int) -> int:
    """The number of repeats, ``least`` or more, whose multiples exceed ``counts`` by least; the larger of equals."""
    return min(range(least, max(counts) + 1), key=lambda n: (sum(-count % n for count in counts), -n))


def _cut(pages: Pages, groups: int) -> list[list[tuple[int, int]]]:
    """Every so-many-th repeat of the pattern is of the same group."""
    if groups == 1:
        return [sorted((layer, page) for page, layers in pages.items() for layer in layers)]
    repeats = list(zip(*([(layer, page) for layer in sorted(layers)] for page, layers in pages.items()), strict=True))
    return [sorted(member for repeat in repeats[i::groups] for member in repeat) for i in range(groups)]
