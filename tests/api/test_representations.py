"""Ranges and conditions as values."""

from __future__ import annotations

import pytest

from app.api.dependencies import decode_number, encode_cursor
from app.api.representations import parse_range, structured_digest
from app.errors import InvalidCursor


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=0-", (0, 9)),
        ("bytes=5-100", (5, 9)),
        ("bytes=-3", (7, 9)),
        ("bytes=-100", (0, 9)),
        ("bytes=-0", (10, 10)),
        ("bytes=10-", (10, 9)),
        ("bytes=3-2", None),
        ("bytes=-", None),
        ("bytes=0-1,2-3", None),
        ("bytes=" + "9" * 19 + "-", None),
        ("", None),
    ],
)
def test_ranges_of_ten_bytes(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == expected


def test_a_digest_as_rfc_9530_writes_it() -> None:
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert structured_digest(empty) == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


@pytest.mark.parametrize("key", [0, 1, 2**31 - 1])
def test_cursors_go_round(key: int) -> None:
    assert decode_number("cycles", encode_cursor("cycles", key)) == key


@pytest.mark.parametrize("key", ["x", "-1", 2**31, "1.5", "١", ""])
def test_cursors_of_numbers_hold_numbers(key: object) -> None:
    with pytest.raises(InvalidCursor):
        decode_number("cycles", encode_cursor("cycles", key))
