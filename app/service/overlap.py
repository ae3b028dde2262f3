"""Overlap: how many examples of a megabatch are in an evaluation set, too.

Knows: example ids, and where their blobs lie. Must never know: HTTP, torch, or what is done about an overlap.

Law: memory stays bounded, however large the megabatch is; the evaluation set's ids (8 bytes each) are held.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from app.domain import Digest
from app.store.blobs import Blobs, disk_errors

_ROWS = 1 << 20


@disk_errors()
def overlap(blobs: Blobs, ids: Digest, evaluation: npt.NDArray[np.uint64]) -> int:
    """How many rows of a megabatch have an id of the evaluation set.

    Args:
        ids: the blob of the megabatch's example ids.
        evaluation: what ``ids_of`` gave for the evaluation set.

    Raises:
        MissingBlob, CorruptBlob: the ids are not what was accepted.
    """
    if not len(evaluation):
        return 0
    found, every = 0, np.load(blobs.verified(ids), mmap_mode="r", allow_pickle=False)
    for start in range(0, len(every), _ROWS):
        rows = np.asarray(every[start : start + _ROWS])
        at = np.minimum(np.searchsorted(evaluation, rows), len(evaluation) - 1)
        found += int(np.count_nonzero(evaluation[at] == rows))
    return found


@disk_errors()
def ids_of(blobs: Blobs, ids: Digest) -> npt.NDArray[np.uint64]:
    """The distinct example ids of an evaluation set, sorted: (n,) uint64."""
    found: npt.NDArray[np.uint64] = np.unique(np.load(blobs.verified(ids), allow_pickle=False))
    return found
