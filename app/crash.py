"""Named crash points: places where a test may kill this process as a power cut would.

Knows: one environment variable. Must never know: what the points are for. Without ``ESPALIER_CRASH_AT`` a point is a
comparison with None and nothing else; a deployment has nothing to configure.

Laws:
    * Every name that is passed to ``point`` stands in ``POINTS``, and every name there is passed somewhere (tested).
    * The process dies by SIGKILL: no handler, no ``finally``, no flush runs after a point that was hit.
"""

from __future__ import annotations

import os
import signal
from typing import Final

POINTS: Final = {
    "blob.written": "a blob's bytes are written to a temporary name, not synced",
    "blob.synced": "a blob's bytes are synced, under their temporary name",
    "blob.renamed": "a blob has its name, the folder is not synced",
    "blob.kept": "a blob is kept for good, no row names it yet",
    "transaction.begin": "a writing transaction is open, nothing is changed",
    "transaction.logged": "a transaction's changes and entries are written, not committed",
    "transaction.committed": "a transaction is committed, nobody has been told",
    "cycle.claimed": "a cycle is claimed",
    "cycle.learnt": "a cycle's result is in memory alone",
    "cycle.blobs": "a cycle's blobs are kept, its version is not published",
    "cycle.published": "a cycle's version is published, its snapshots are not forgotten",
    "cycle.snapshot": "a snapshot is kept, and the cycle's row names it",
    "upload.appended": "bytes of a resumable upload are synced, their row does not count them",
    "upload.counted": "bytes of a resumable upload are counted",
    "notary.signed": "a checkpoint of the log is signed, and nothing is stored",
    "notary.stored": "a signed checkpoint is in its table, not in its file",
    "notary.filed": "a signed checkpoint is in both, and nobody has seen it",
    "erasure.marked": "an erasure is committed, its bytes are still there",
    "sweep.removing": "the sweep is about to unlink a blob",
    "sweep.removed": "the sweep has unlinked a blob",
}
"""Every point: its name, and where the process stands there."""


def _wanted() -> tuple[str | None, int]:
    """The point to die at, and on which arrival (``name`` or ``name:3``)."""
    name, _, count = os.environ.get("ESPALIER_CRASH_AT", "").partition(":")
    return name or None, int(count or 1)


_AT, _LEFT = _wanted()


def point(name: str) -> None:
    """Die here when this is the arrival that was asked for."""
    global _LEFT  # noqa: PLW0603 - arrivals are counted over the life of the process
    if _AT is None or name != _AT:
        return
    _LEFT -= 1
    if _LEFT == 0:
        os.kill(os.getpid(), signal.SIGKILL)
