"""Canonical JSON: RFC 8785's own examples, and nothing rounded."""

from __future__ import annotations

import hashlib
import json
import math
from enum import StrEnum
from typing import Any

import numpy as np
import pytest

from espalier.formats.canonical import canonical_json, exact, sha256_digest


def test_keys_are_ordered_by_utf16_units_as_in_rfc_8785() -> None:
    value = {"€": 1, "\r": 2, "\ufb33": 3, "1": 4, "😀": 5, "\x80": 6, "ö": 7}
    assert list(json.loads(canonical_json(value)).values()) == [2, 4, 6, 7, 1, 5, 3]


def test_strings_use_the_shortest_escapes() -> None:
    assert canonical_json("€$\x0f\nA'B\"\\/\x7f\b\t\f\r") == '"€$\\u000f\\nA\'B\\"\\\\/\x7f\\b\\t\\f\\r"'.encode()


def test_no_spaces_and_literals() -> None:
    assert canonical_json({"b": [True, None, False, -3], "a": {}}) == b'{"a":{},"b":[true,null,false,-3]}'


@pytest.mark.parametrize("number", [2**53 - 1, 1 - 2**53, 0])
def test_integers_that_every_reader_knows(number: int) -> None:
    assert canonical_json(number) == str(number).encode()


@pytest.mark.parametrize(
    "value",
    [0.5, 2**53, -(2**53), (1,), {1: 2}, b"x", {"a": [1.0]}, np.int64(3), np.float32(1), "\ud800", {"\ud800": 1}],
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)


def test_the_error_says_where() -> None:
    with pytest.raises(ValueError, match=r"\$\.metrics\[1\] is a float"):
        canonical_json({"metrics": [1, 0.5]})


class Colour(StrEnum):
    RED = "red"


def test_exact_keeps_every_value() -> None:
    tree = {
        "float": 0.1,
        "float32": np.float32(0.1),
        "whole": 1.0,
        "minus": -0.0,
        "wide": 2**64 - 1,
        "narrow": 2**53 - 1,
        "uint64": np.uint64(2**63),
        "flag": np.True_,
        "pair": (1, 2.5),
        "array": np.array([1.5, 2]),
        "colour": Colour.RED,
        "none": None,
    }
    assert exact(tree) == {
        "float": "0.1",
        "float32": "0.10000000149011612",
        "whole": "1.0",
        "minus": "-0.0",
        "wide": "18446744073709551615",
        "narrow": 2**53 - 1,
        "uint64": "9223372036854775808",
        "flag": True,
        "pair": [1, "2.5"],
        "array": ["1.5", "2.0"],
        "colour": "red",
        "none": None,
    }
    assert json.loads(canonical_json(exact(tree))) == exact(tree)
    assert type(exact(tree)["colour"]) is str


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), {1: 2}, {1, 2}, b"x", object()])
def test_what_cannot_be_recorded_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        exact({"a": [value]})


def test_digest_is_prefixed_hex() -> None:
    assert sha256_digest(b"abc") == "sha256:" + hashlib.sha256(b"abc").hexdigest()
