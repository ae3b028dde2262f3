"""The part of ``tx.buffer`` about values that go for good, and about quarantine that ends.

Knows: what a row says once values that it named are gone. Must never know: which files hold them, or when those go.

Laws:
    * An erased megabatch keeps its number, digest, size and time: evidence that it was there. Its class histogram is
      zeroed, and nothing trains on it again.
    * Where single examples go, the row names the arrays that are left, and says which rows went, so that masks over the
      longer arrays can still be read.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from app.domain import Digest, Erasure, EvaluationSet, Megabatch, MegabatchStatus, Model
from app.store.evaluation_sets import EvaluationSets
from app.store.rows import erasure_document
from app.store.tables import evaluation_sets, megabatches

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of labelled arrays: digests of blobs that are durable already, and counts."""

    x: Digest
    y: Digest
    ids: Digest
    examples: int
    bytes: int
    histogram: tuple[int, ...]


class Erasures(EvaluationSets):
    """Erasures, as one transaction sees them. Whoever makes one raises the model's generation too."""

    def erase(self, model: Model, megabatch: Megabatch) -> None:
        """Make a megabatch a tombstone: its blobs are named by it no longer."""
        self._lock(model)
        self._set(
            model,
            megabatch.number,
            status=MegabatchStatus.ERASED.value,
            erased_at=self._now,
            pinned=False,
            histogram=[0] * len(megabatch.histogram),
            evaluation_overlap=None if megabatch.evaluation_overlap is None else 0,
        )

    def shorten(self, model: Model, megabatch: Megabatch, removed: Runs, left: Left, overlap: int | None) -> None:
        """Take single examples out of a megabatch.

        Args:
            removed: first and last of each run of rows that went.
            left: what is there now.
            overlap: how many of the examples that are left are in the evaluation set, if there is one.
        """
        self._lock(model)
        erasures = [*megabatch.erasures, Erasure(self._now, megabatch.examples, removed)]
        self._set(
            model,
            megabatch.number,
            x=left.x,
            y=left.y,
            ids=left.ids,
            examples=left.examples,
            bytes=left.bytes,
            histogram=list(left.histogram),
            evaluation_overlap=overlap,
            erased_at=self._now,
            erasures=[erasure_document(erasure) for erasure in erasures],
        )

    def shorten_evaluation(self, model: Model, found: EvaluationSet, left: Left) -> None:
        """Take examples out of a revision of the evaluation set. Its digest stays what it was."""
        self._lock(model)
        here = evaluation_sets.c.model_id == model.id, evaluation_sets.c.revision == found.revision
        values = {"x": left.x, "y": left.y, "ids": left.ids, "examples": left.examples, "bytes": left.bytes}
        self._connection.execute(
            sa.update(evaluation_sets).where(*here).values(histogram=list(left.histogram), **values)
        )

    def release(self, model: Model, numbers: Collection[int]) -> list[int]:
        """End the quarantine of megabatches. Returns the numbers of those that were in quarantine, in order."""
        self._lock(model)
        held = sa.select(megabatches.c.number).where(
            megabatches.c.model_id == model.id,
            megabatches.c.number.in_(sorted(numbers)),
            megabatches.c.status == MegabatchStatus.QUARANTINED.value,
        )
        found = sorted(self._connection.execute(held).scalars())
        for number in found:
            self._set(model, number, status=MegabatchStatus.ACCEPTED.value)
        return found

    def _set(self, model: Model, number: int, **values: object) -> None:
        here = megabatches.c.model_id == model.id, megabatches.c.number == number
        self._connection.execute(sa.update(megabatches).where(*here).values(**values))
