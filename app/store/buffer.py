"""``tx.buffer``: megabatches and the replay buffer, and the evaluation set beside them.

Knows: what was uploaded, in what order, and what may be trained on. Must never know: the arrays (blobs hold them), or
why a policy keeps an example.

Laws:
    * Megabatches are numbered 1, 2, ... per model, in order of arrival, without gaps.
    * The same decoded arrays are one megabatch, however often they are sent.
    * A quarantined or erased megabatch is never eligible. Prequential accuracy is taken once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from app.domain import Digest, Megabatch, MegabatchDraft, MegabatchStatus, Model, Page, Prequential
from app.errors import MegabatchErased, MegabatchQuarantined, UnknownMegabatch
from app.store.erasures import Erasures
from app.store.numbers import Numbers
from app.store.rows import megabatch_of
from app.store.tables import LARGEST, QUARANTINED, megabatches, models

T = TypeVar("T")

_CHUNK = 500
_GAPS = 100


class Buffer(Erasures):
    """The megabatches and the evaluation sets, as one transaction sees them."""

    # -- writing -------------------------------------------------------------------------------------------------------

    def add_megabatch(self, model: Model, draft: MegabatchDraft) -> tuple[Megabatch, bool]:
        """Number a decoded megabatch; the same arrays again give the first one.

        Returns:
            The megabatch, and whether it is new.

        Raises:
            MegabatchQuarantined, MegabatchErased: the same arrays were quarantined, or values of them erased.
        """
        self._lock(model)
        if (first := self.same(model, draft.digest)) is not None:
            return first, False
        number = self.last_number(model) + 1
        self._connection.execute(
            sa.insert(megabatches).values(
                model_id=model.id,
                number=number,
                status=MegabatchStatus.ACCEPTED.value,
                digest=draft.digest,
                x=draft.x,
                y=draft.y,
                ids=draft.ids,
                examples=draft.examples,
                bytes=draft.bytes,
                histogram=list(draft.histogram),
                received_at=self._now,
                evaluation_overlap=draft.evaluation_overlap,
            )
        )
        return self.megabatch(model.name, number), True

    def record_prequential(self, model: Model, number: int, prequential: Prequential) -> None:
        """Record what production saw of a megabatch before training on it. The first record stays.

        Raises:
            UnknownMegabatch: there is no such megabatch.
        """
        self._lock(model)
        if self.megabatch(model.name, number).prequential is not None:
            return
        document = {
            "version": prequential.version,
            "accuracy": prequential.accuracy,
            "loss": prequential.loss,
            "examples": prequential.examples,
            "drift": prequential.drift,
        }
        self._connection.execute(
            sa.update(megabatches).where(*_is(model, number)).values(prequential=document),
        )

    def quarantine(self, model: Model, numbers: Collection[int]) -> list[Megabatch]:
        """Take megabatches out of all further training, and invalidate cycles that run.

        Returns:
            Those that were not in quarantine before, by number.

        Raises:
            UnknownMegabatch: one of them is not there; nothing was changed.
        """
        self._lock(model)
        accepted = [m for m in self.training_set(model, numbers) if m.status is MegabatchStatus.ACCEPTED]
        if not accepted:
            return []
        for chunk in _chunks([megabatch.number for megabatch in accepted]):
            self._connection.execute(
                sa.update(megabatches)
                .where(megabatches.c.model_id == model.id, megabatches.c.number.in_(chunk))
                .values(status=MegabatchStatus.QUARANTINED.value)
            )
        self._connection.execute(
            sa.update(models).where(models.c.id == model.id).values(generation=models.c.generation + 1)
        )
        return self.training_set(model, [megabatch.number for megabatch in accepted])

    def pin(self, model: Model, number: int, *, pinned: bool) -> tuple[Megabatch, bool]:
        """Replay a megabatch in every cycle from now on, or no longer.

        Cycles that run go on with what they pinned when they were claimed.

        Returns:
            The megabatch as it is now, and whether that is new.

        Raises:
            UnknownMegabatch: there is no such megabatch.
            MegabatchErased: nothing is there that could be replayed.
        """
        self._lock(model)
        present = self.megabatch(model.name, number)
        if pinned:
            expect_values(present)
        if present.pinned is pinned:
            return present, False
        self._connection.execute(sa.update(megabatches).where(*_is(model, number)).values(pinned=pinned))
        return self.megabatch(model.name, number), True

    # -- reading -------------------------------------------------------------------------------------------------------

    def megabatch(self, model_name: str, number: int) -> Megabatch:
        """One megabatch.

        Raises:
            UnknownMegabatch: there is no such model or megabatch.
        """
        row = None
        if 0 < number <= LARGEST:
            wanted = _all().where(models.c.name == model_name, megabatches.c.number == number)
            row = self._connection.execute(wanted).one_or_none()
        if row is None:
            raise UnknownMegabatch(f"model {model_name!r} has no megabatch {number}")
        return megabatch_of(row)

    def megabatches(self, model_name: str, after: int | None, limit: int) -> Page[Megabatch]:
        """Megabatches in order of arrival.

        Args:
            after: go on after this number.
            limit: at most this many.
        """
        model_id = sa.select(models.c.id).where(models.c.name == model_name).scalar_subquery()
        wanted = _all().where(megabatches.c.model_id == model_id).order_by(megabatches.c.number).limit(limit + 1)
        if after is not None:
            wanted = wanted.where(megabatches.c.number > min(after, LARGEST))
        rows = self._connection.execute(wanted).all()
        items = tuple(map(megabatch_of, rows[:limit]))
        return Page(items, str(items[-1].number) if len(rows) > limit else None)

    def eligible(self, model: Model, *, seen: Collection[int], through: int | None = None) -> list[Megabatch]:
        """Accepted megabatches that a lineage has not seen, by number.

        Args:
            seen: numbers that the lineage has trained on.
            through: the last number that may be used; None for all.
        """
        found: list[int] = []
        for gaps in _chunks(list(Numbers(seen).gaps()), _GAPS):
            parts = (self._accepted(model, through).where(_between(*gap)) for gap in gaps)
            found += self._connection.execute(sa.select(sa.union_all(*parts).subquery().c.number)).scalars()
        return self.training_set(model, found)

    def accepted(self, model: Model, *, since: int = 1, through: int | None = None) -> list[int]:
        """Numbers of the accepted megabatches, in order.

        Args:
            since, through: the first and the last number that is looked at; None for all.
        """
        wanted = self._accepted(model, through).where(megabatches.c.number >= since)
        return list(self._connection.execute(wanted.order_by(megabatches.c.number)).scalars())

    def quarantined(self, model: Model) -> list[int]:
        """Numbers of the megabatches in quarantine, in order."""
        wanted = sa.select(megabatches.c.number).where(megabatches.c.model_id == model.id, QUARANTINED)
        return list(self._connection.execute(wanted.order_by(megabatches.c.number)).scalars())

    def erased(self, model: Model) -> list[int]:
        """Numbers of the megabatches of which values were erased, whole or single examples, in order."""
        wanted = sa.select(megabatches.c.number).where(
            megabatches.c.model_id == model.id, megabatches.c.erased_at.is_not(None)
        )
        return list(self._connection.execute(wanted.order_by(megabatches.c.number)).scalars())

    def same(self, model: Model, digest: Digest) -> Megabatch | None:
        """The megabatch that arrays of this digest are already, if they are one.

        Raises:
            MegabatchQuarantined, MegabatchErased: it is, and these arrays are not wanted again.
        """
        first = self._select(model, megabatches.c.digest == digest)
        return _welcome(first[0]) if first else None

    def training_set(self, model: Model, numbers: Collection[int]) -> list[Megabatch]:
        """The named megabatches by number, quarantined ones too: look at their status.

        Raises:
            UnknownMegabatch: one of them is not there.
        """
        wanted = sorted(set(numbers))
        if wanted and not 0 < wanted[0] <= wanted[-1] <= LARGEST:
            raise UnknownMegabatch(
                f"model {model.name!r} has no megabatch {wanted[0] if wanted[0] < 1 else wanted[-1]}"
            )
        found = [m for chunk in _chunks(wanted) for m in self._select(model, megabatches.c.number.in_(chunk))]
        missing = sorted(set(wanted) - {megabatch.number for megabatch in found})
        if missing:
            raise UnknownMegabatch(f"model {model.name!r} has no megabatch {', '.join(map(str, missing))}")
        return found

    def last_number(self, model: Model) -> int:
        """The number of the newest megabatch; 0 when there is none."""
        newest = sa.select(sa.func.max(megabatches.c.number)).where(megabatches.c.model_id == model.id)
        return self._connection.execute(newest).scalar_one() or 0

    # -- inside --------------------------------------------------------------------------------------------------------

    def _accepted(self, model: Model, through: int | None) -> sa.Select[Any]:
        wanted = sa.select(megabatches.c.number).where(
            megabatches.c.model_id == model.id, megabatches.c.status == MegabatchStatus.ACCEPTED.value
        )
        if through is not None:
            wanted = wanted.where(megabatches.c.number <= min(through, LARGEST))
        return wanted

    def _select(self, model: Model, condition: sa.ColumnElement[bool]) -> list[Megabatch]:
        wanted = _all().where(megabatches.c.model_id == model.id, condition).order_by(megabatches.c.number)
        return [megabatch_of(row) for row in self._connection.execute(wanted)]


def expect_values(megabatch: Megabatch) -> None:
    """Make sure that a megabatch is no tombstone.

    Raises:
        MegabatchErased: it is.
    """
    if megabatch.status is MegabatchStatus.ERASED:
        raise MegabatchErased(
            f"megabatch {megabatch.number} of {megabatch.model!r} was erased for good: nothing of it is there any more"
        )


def _welcome(first: Megabatch) -> Megabatch:
    same = f"the same arrays are megabatch {first.number} of {first.model!r}, "
    if first.status is MegabatchStatus.QUARANTINED:
        raise MegabatchQuarantined(
            f"{same}which is quarantined: they will not be trained on; correct the data, then upload it again"
        )
    if first.status is MegabatchStatus.ERASED:
        raise MegabatchErased(f"{same}whose values were erased for good: nothing was kept; upload other data")
    if first.erasures:
        raise MegabatchErased(
            f"{same}of which single examples were erased for good: nothing was kept; what is left is there already"
        )
    return first


def _all() -> sa.Select[Any]:
    return sa.select(megabatches, models.c.name.label("model")).join(models, models.c.id == megabatches.c.model_id)


def _is(model: Model, number: int) -> tuple[sa.ColumnElement[bool], ...]:
    return megabatches.c.model_id == model.id, megabatches.c.number == number


def _between(first: int, last: int | None) -> sa.ColumnElement[bool]:
    since = megabatches.c.number >= first
    return since if last is None else sa.and_(since, megabatches.c.number <= last)


def _chunks(items: Sequence[T], size: int = _CHUNK) -> Iterator[Sequence[T]]:
    """Slices that fit into the parameters of one statement on every database."""
    return (items[start : start + size] for start in range(0, len(items), size))
