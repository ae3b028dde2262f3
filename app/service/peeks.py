"""Peeks: some examples of a megabatch, as they were accepted, for a person to look at.

Knows: ids, labels and values of a megabatch's rows. Must never know: HTTP, pictures, or what a network makes of them.

Laws:
    * Of values, only rows that are asked for are read, and a few for their range. That is why nothing is hashed here;
      whoever trains on a megabatch hashes all of it, and so does the scrub.
    * Nothing of what was erased is there. Rows are counted from 0 among those that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from app.domain import Digest, InputSpec, Megabatch
from app.errors import CorruptBlob
from app.store.array_files import Array, side_by_side
from app.store.blobs import Blobs, disk_errors
from app.store.buffer import expect_values
from app.store.database import Store

Rows = npt.NDArray[np.int64]
Range = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

_LABELS = 1 << 16
"""Labels that are looked through at once."""

_SPREAD = 64
_SPREAD_BYTES = 1 << 24
"""Examples that a range is taken from, and how many bytes of them: at least one, however large it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Peek:
    """Some rows of a megabatch.

    Attributes:
        rows: which: (k,).
        ids: of their examples: (k,) uint64.
        labels: (k,) int64.
        values: of all rows: (n, *shape) float32 or uint8, mapped: a row is read when it is looked at.
        further: whether there are more.
    """

    megabatch: Megabatch
    spec: InputSpec
    rows: Rows
    ids: npt.NDArray[np.uint64]
    labels: Rows
    values: Array
    further: bool


@disk_errors()
def look(store: Store, name: str, number: int, *, label: int | None, after: int | None, limit: int) -> Peek:
    """Examples of a megabatch, in the order in which they were sent.

    Args:
        name: of the model.
        number: of the megabatch.
        label: only those of this class; None for all.
        after: go on after this row; None: from the first on.
        limit: at most this many.

    Raises:
        UnknownModel, UnknownMegabatch: there is no such model or megabatch.
        MegabatchErased: nothing of it is there.
        MissingBlob, CorruptBlob: its arrays are gone, or are none.
    """
    with store.reading() as tx:
        spec = tx.ledger.model(name).input
        megabatch = tx.buffer.megabatch(name, number)
    expect_values(megabatch)
    x, y, ids = (_mapped(store.blobs, digest) for digest in (megabatch.x, megabatch.y, megabatch.ids))
    if not len(x) == len(y) == len(ids) == megabatch.examples:
        raise CorruptBlob(f"the arrays of megabatch {number} of {name!r} differ in length: restore them from a backup")
    found = _rows(y, label, 0 if after is None else after + 1, limit + 1)
    rows = found[:limit]
    return Peek(megabatch, spec, rows, ids[rows], y[rows], x, len(found) > limit)


def range_of(values: Array) -> Range:
    """The least and the greatest of each value among at most 64 examples, evenly spread: the same for every page.

    Args:
        values: (n, *shape), at least one row. What is not finite is left out.

    Returns:
        Two arrays of (*shape); both 0 where nothing was finite.
    """
    count = min(len(values), _SPREAD, max(1, _SPREAD_BYTES // max(1, values[0].nbytes)))
    some = values[np.linspace(0, len(values) - 1, count).astype(np.int64)].astype(np.float64)
    some[~np.isfinite(some)] = np.nan
    return np.nan_to_num(np.fmin.reduce(some)), np.nan_to_num(np.fmax.reduce(some))


def _mapped(blobs: Blobs, digest: Digest) -> Array:
    try:
        (found,) = side_by_side([partial(blobs.path, digest)])
    except ValueError as error:
        raise CorruptBlob(f"{digest}: {error}: restore it from a backup") from error
    return found


def _rows(labels: Array, label: int | None, first: int, wanted: int) -> Rows:
    """At most so many rows from the first on; of one class, labels are looked through until they are found."""
    if label is None:
        return np.arange(first, max(first, min(first + wanted, len(labels))), dtype=np.int64)
    found: list[int] = []
    for start in range(first, len(labels), _LABELS):
        found += (start + np.flatnonzero(labels[start : start + _LABELS] == label)[:wanted]).tolist()
        if len(found) >= wanted:
            break
    return np.array(found[:wanted], dtype=np.int64)
