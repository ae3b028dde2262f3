"""What replay policies choose from, without a network: labels in megabatches, and features and losses by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app.learning.recipe import Replay
from app.learning.replay import POLICIES, Buffer, Candidates

Stream = Mapping[int, Sequence[int]]
"""Labels of megabatches, by number."""


def candidates_of(
    stream: Stream,
    among: Buffer | None = None,
    *,
    features: np.ndarray | None = None,
    losses: np.ndarray | None = None,
    row_bytes: int = 4,
    seed: int = 0,
) -> Candidates:
    """The rows ``among`` of a stream; all when not given. ``features`` and ``losses``: of these, in order."""
    if among is None:
        among = {number: np.ones(len(labels), bool) for number, labels in stream.items()}
    rows = {number: np.flatnonzero(among[number]) for number in sorted(among)}
    numbers = np.repeat(np.array(list(rows), np.int64), [len(part) for part in rows.values()])
    row = np.concatenate([np.empty(0, np.int64), *rows.values()])
    labels = np.array([stream[n][r] for n, r in zip(numbers, row, strict=True)], np.int64)
    wide = np.zeros((len(row), 1), np.float32) if features is None else features.astype(np.float32)
    lost = np.zeros(len(row), np.float32) if losses is None else losses.astype(np.float32)
    ids = (numbers * 1000 + row).astype(np.uint64)
    return Candidates(numbers, row, labels, ids, row_bytes, seed, 1, lambda at: wide[at], lambda: lost)


def choose(options: Replay, candidates: Candidates) -> np.ndarray:
    """Positions that the policy keeps; it keeps them again when asked again."""
    kept = POLICIES[options](options, candidates)
    assert kept.dtype == bool and kept.shape == (len(candidates),)
    np.testing.assert_array_equal(kept, POLICIES[options](options, candidates))
    return np.flatnonzero(kept)


def next_buffer(options: Replay, stream: Stream, before: Buffer, new: Sequence[int], seed: int = 0) -> Buffer:
    """The buffer after a cycle that trained on ``before`` and all of ``new``."""
    trained = {**before, **{number: np.ones(len(stream[number]), bool) for number in new}}
    given = candidates_of(stream, trained, seed=seed)
    kept = choose(options, given)
    buffer = {number: np.zeros(len(stream[number]), bool) for number in trained}
    for number, row in zip(given.megabatch[kept], given.row[kept], strict=True):
        buffer[int(number)][row] = True
    return buffer


def members(buffer: Buffer) -> set[tuple[int, int]]:
    """(megabatch, row) of what is in a buffer."""
    return {(number, int(row)) for number, rows in buffer.items() for row in np.flatnonzero(rows)}
