"""Bytes in and out of text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.units import GB, GIB, KIB, MIB, gib, human, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0),
        (100_000_000, 100_000_000),
        ("100000000", 100_000_000),
        ("9007199254740993", 2**53 + 1),  # exact where a float is not
        ("80 GiB", 80 * GIB),
        ("80gib", 80 * GIB),
        ("24GB", 24 * GB),
        ("1.5 MiB", 3 * MIB // 2),
        ("0.5KB", 500),
        ("2 TiB", 2 * 2**40),
        ("2 TB", 2 * 10**12),
        (" 7 B ", 7),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (True, "a size like '80 GiB' or a whole number of bytes"),
        (1.5, "a size like '80 GiB' or a whole number of bytes"),
        (None, "a size like '80 GiB' or a whole number of bytes"),
        ("", "a size like '80 GiB' or a whole number of bytes"),
        ("GiB", "a size like '80 GiB' or a whole number of bytes"),
        ("-5 GiB", "a size like '80 GiB' or a whole number of bytes"),
        ("1e3", "a size like '80 GiB' or a whole number of bytes"),
        ("5 G", "a size in B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"),
        ("1" * 50, "a size like '80 GiB' or a whole number of bytes"),
        (-1, "a size of zero bytes or more"),
    ],
)
def test_no_sizes(text: Any, expected: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_bytes(text)
    assert str(raised.value) == expected


@given(st.text(max_size=45) | st.integers() | st.from_regex(r"[0-9]{1,3}(\.[0-9]+)? ?[KMGT]?i?B?", fullmatch=True))
def test_a_size_or_a_value_error(text: str | int) -> None:
    try:
        assert parse_bytes(text) >= 0
    except ValueError as error:
        assert str(error).startswith("a size")


@given(st.integers(0, 2**60))
def test_what_is_told_in_bytes_is_read_back(size: int) -> None:
    assert parse_bytes(str(size)) == parse_bytes(f"{size} B") == size


@pytest.mark.parametrize(
    ("size", "in_gib", "in_words"),
    [
        (0, "0.00", "0 B"),
        (640, "0.00", "640 B"),
        (32 * KIB, "0.00", "32.0 KiB"),
        (MIB, "0.00", "1.0 MiB"),
        (GIB, "1.00", "1.00 GiB"),
        (GB, "0.93", "953.7 MiB"),
        (round(14.99 * GIB), "14.99", "14.99 GiB"),
        (-3 * GIB, "-3.00", "-3.00 GiB"),
        (None, "–", "–"),
    ],
)
def test_words(size: int | None, in_gib: str, in_words: str) -> None:
    assert (gib(size), human(size)) == (in_gib, in_words)


def test_gib_with_digits() -> None:
    assert gib(GIB // 8, digits=3) == "0.125"
