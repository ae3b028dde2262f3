"""The replay buffer: what a cycle trains on, and what the buffer is made of.

Knows: numbers of megabatches, rows, labels. Must never know: how a policy chooses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from app.learning.recipe import Replay

Buffer = Mapping[int, npt.NDArray[np.bool_]]
"""Rows of megabatches that are replayed, by the megabatch's number: (n,) bool."""

AGES = 64
"""Ranges of megabatches that a composition tells apart at most."""


def pool(
    before: Buffer, pinned: Collection[int], new: Collection[int], sizes: Mapping[int, int]
) -> dict[int, npt.NDArray[np.bool_]]:
    """What a cycle trains on (validation aside): the parent's buffer, and the whole of pinned and new megabatches.

    Args:
        before: the parent's buffer.
        pinned: numbers of pinned megabatches.
        new: numbers of new ones.
        sizes: examples of every megabatch that is there; others are left out.
    """
    whole = {number: np.ones(sizes[number], dtype=np.bool_) for number in {*pinned, *new} if number in sizes}
    return {number: rows for number, rows in before.items() if rows.any() and number in sizes} | whole


def composition(
    options: Replay, kept: Buffer, labels: Mapping[int, npt.NDArray[np.int64]], classes: int, row_bytes: int
) -> dict[str, Any]:
    """What a buffer is made of, as plain JSON values.

    Args:
        options: the policy that chose it.
        kept: the buffer; pinned megabatches are no part of it.
        labels: of its megabatches, by number: (n,) int64.
        classes: how many there are.
        row_bytes: bytes of one row as stored.

    Returns:
        The policy and its caps, examples and bytes; ``by_class``, examples in label order; ``by_age``, examples of each
        megabatch, oldest first, or of at most ``AGES`` ranges of them of about equal length when there are more.
    """
    counts = {number: int(rows.sum()) for number, rows in sorted(kept.items())}
    by_class = np.zeros(classes, dtype=np.int64)
    for number in counts:
        by_class += np.bincount(labels[number][kept[number]], minlength=classes)
    examples = sum(counts.values())
    return {
        "policy": options.name,
        "cap_examples": getattr(options, "examples", None),
        "cap_bytes": getattr(options, "bytes", None),
        "examples": examples,
        "bytes": examples * row_bytes,
        "megabatches": len(counts),
        "by_class": by_class.tolist(),
        "by_age": _by_age(counts),
    }


def _by_age(counts: Mapping[int, int]) -> list[dict[str, int]]:
    ages = [age.tolist() for age in np.array_split(list(counts), min(AGES, len(counts)))] if counts else []
    return [{"first": age[0], "last": age[-1], "examples": sum(counts[number] for number in age)} for age in ages]
