"""One spelling for every value: canonical JSON and digests.

Knows: RFC 8785 for the subset that audit entries, recipes and manifests are made of. Must never know: what the
values mean.

Laws:
    * Equal values have equal bytes, whatever the order of their keys: digests over them repeat.
    * ``json.loads(canonical_json(value)) == value``.
    * Nothing is rounded: floats and wide integers are refused here, and become strings in ``exact`` first.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

WIDE = 2**53
"""Integers from here on are not exact in every JSON reader (RFC 8785, appendix D)."""


def canonical_json(value: Any) -> bytes:
    """Serialise by RFC 8785: no spaces, keys in order of their UTF-16 code units, shortest escapes, UTF-8.

    Args:
        value: a tree of ``str``, ``bool``, ``None``, ``int`` under 2**53, ``list``, and ``dict`` with ``str`` keys.

    Raises:
        ValueError: on anything else, naming where it stands; pass it through ``exact`` first. Also on a lone surrogate.
    """
    return json.dumps(_ordered(value, "$"), ensure_ascii=False, separators=(",", ":")).encode()


def exact(value: Any) -> Any:
    """The same tree as JSON can hold it without loss.

    Floats become their ``repr`` (the shortest digits that give the same double back), integers with ``|n| >= 2**53``
    decimal strings, tuples and arrays lists, mappings dicts, numpy scalars what ``item()`` gives.

    Raises:
        ValueError: on NaN and infinity, on keys that are not strings, and on types that have no such form.
    """
    return _exact(value, "$")


def sha256_digest(data: bytes | bytearray | memoryview) -> str:
    """``sha256:`` and the 64 lower-case hexadecimal digits of the SHA-256 of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _ordered(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        if abs(value) >= WIDE:
            raise ValueError(f"{where} is an integer of 2**53 or more, which JSON readers round: use exact() first")
        return int(value)
    if isinstance(value, list):
        return [_ordered(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: _utf16(key, where))
        return {str(key): _ordered(value[key], f"{where}.{key}") for key in keys}
    raise ValueError(f"{where} is a {type(value).__name__}, which has no canonical form: pass it through exact()")


def _utf16(key: Any, where: str) -> bytes:
    if not isinstance(key, str):
        raise ValueError(f"{where} has the key {key!r}, which is not a string")
    return key.encode("utf-16-be")


def _exact(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return str(int(value)) if abs(value) >= WIDE else int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which is not a number that can be recorded")
        return repr(float(value))
    if isinstance(value, Mapping):
        for key in value:
            _utf16(key, where)
        return {str(key): _exact(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"{where} is a {type(value).__name__}, which JSON cannot hold")
