"""The part of ``tx.buffer`` about evaluation sets: fixed labelled sets that are never trained on.

Knows: revisions of a model's evaluation set, and how many examples of each megabatch are in the newest one. Must never
know: the arrays (blobs hold them), or how overlap is counted.

Laws:
    * A revision is immutable, and stays: cycles pin one when they are claimed. The newest is in force.
    * While a model has an evaluation set, every megabatch says how many of its examples are in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa

from app.domain import EvaluationSet, MegabatchDraft, Model
from app.errors import UnknownEvaluationSet
from app.store.rows import evaluation_set_of
from app.store.tables import evaluation_sets, megabatches, models
from app.store.witness import SILENT


class EvaluationSets:
    """The evaluation sets, as one transaction sees them."""

    def __init__(self, connection: sa.Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now

    def set_evaluation(self, model: Model, draft: MegabatchDraft) -> tuple[EvaluationSet, bool]:
        """Put an evaluation set in force; the arrays that are in force already change nothing.

        Returns:
            The set, and whether it is a new revision.
        """
        self._lock(model)
        before = self.evaluation(model)
        if before is not None and before.digest == draft.digest:
            return before, False
        revision = before.revision + 1 if before else 1
        self._connection.execute(
            sa.insert(evaluation_sets).values(
                model_id=model.id,
                revision=revision,
                digest=draft.digest,
                x=draft.x,
                y=draft.y,
                ids=draft.ids,
                examples=draft.examples,
                bytes=draft.bytes,
                histogram=list(draft.histogram),
                set_at=self._now,
            )
        )
        return self.evaluation_set(model, revision), True

    def evaluation(self, model: Model) -> EvaluationSet | None:
        """The evaluation set in force; None when the model has none."""
        newest = _of(model).order_by(evaluation_sets.c.revision.desc()).limit(1)
        row = self._connection.execute(newest).one_or_none()
        return None if row is None else evaluation_set_of(row, model.name)

    def evaluation_set(self, model: Model, revision: int | None = None) -> EvaluationSet:
        """A revision of a model's evaluation set; None is the one in force.

        Raises:
            UnknownEvaluationSet: with the remedy.
        """
        found = self.evaluation(model)
        if found is not None and revision not in (None, found.revision):
            row = self._connection.execute(_of(model).where(evaluation_sets.c.revision == revision)).one_or_none()
            found = None if row is None else evaluation_set_of(row, model.name)
        if found is None:
            raise UnknownEvaluationSet(
                f"model {model.name!r} has no evaluation set{'' if revision is None else f' of revision {revision}'}: "
                f"send one to PUT /v1/models/{model.name}/evaluation-set"
            )
        return found

    def evaluation_sets(self, model: Model) -> list[EvaluationSet]:
        """Every revision of a model's evaluation set, by revision."""
        rows = self._connection.execute(_of(model).order_by(evaluation_sets.c.revision))
        return [evaluation_set_of(row, model.name) for row in rows]

    def set_overlaps(self, model: Model, overlaps: Mapping[int, int]) -> None:
        """Note of every megabatch of a model how many of its examples are in the evaluation set.

        Args:
            model: whose megabatches.
            overlaps: by number of the megabatch; those that are absent have none.
        """
        self._lock(model)
        every = sa.update(megabatches).where(megabatches.c.model_id == model.id).execution_options(**{SILENT: True})
        self._connection.execute(every.values(evaluation_overlap=0))
        found = [{"at": number, "found": overlap} for number, overlap in overlaps.items() if overlap]
        if found:
            one = every.where(megabatches.c.number == sa.bindparam("at"))
            self._connection.execute(one.values(evaluation_overlap=sa.bindparam("found")), found)

    def evaluation_overlap(self, model: Model) -> int:
        """Examples of all megabatches together that are in the evaluation set."""
        counted = sa.select(sa.func.sum(megabatches.c.evaluation_overlap)).where(megabatches.c.model_id == model.id)
        return int(self._connection.execute(counted).scalar_one() or 0)

    def _lock(self, model: Model) -> None:
        """One writer at a time numbers the megabatches and evaluation sets of a model."""
        self._connection.execute(sa.select(models.c.id).where(models.c.id == model.id).with_for_update())


def _of(model: Model) -> sa.Select[tuple[object, ...]]:
    return sa.select(evaluation_sets).where(evaluation_sets.c.model_id == model.id)
