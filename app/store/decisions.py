"""``tx.decisions``: what clients decided with which version, as they reported it.

Knows: how decisions are written and found. Must never know: whether a decision was right.

Law: decisions are never changed or deleted, and a batch's numbers follow one another within its model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa

from app.domain import Actor, Decision, DecisionDraft, Model, Page
from app.errors import InvalidCursor
from app.store.tables import LARGEST, decisions

_SHOWN = tuple(
    decisions.c[name]
    for name in (
        *("version", "checkpoint", "example", "answer", "confidence", "made_at"),
        *("id", "actor", "received_at"),
    )
)


@dataclass(frozen=True, slots=True)
class Sought:
    """Which decisions: made with a version, about an example, at or after a time, and before one; None: all."""

    version: int | None = None
    example: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Decisions:
    """Decisions, as one transaction sees them."""

    def __init__(self, connection: sa.Connection, actor: Actor, now: datetime) -> None:
        self._connection = connection
        self._actor = actor
        self._now = now

    def record(self, model: Model, drafts: Sequence[DecisionDraft]) -> tuple[int, int]:
        """Write a batch down. The model must be locked.

        Returns:
            The numbers of the first and the last of them, in the order of the batch.
        """
        values = [
            {"model_id": model.id, **asdict(draft), "actor": self._actor.name, "received_at": self._now}
            for draft in drafts
        ]
        written = sa.insert(decisions).returning(decisions.c.id, sort_by_parameter_order=True)
        numbers = self._connection.execute(written, values).scalars().all()
        return numbers[0], numbers[-1]

    def between(self, model: Model, first: int, last: int) -> list[Decision]:
        """Decisions of a model by number, both included."""
        # By number: an index of the model, which SQLite would rather take, leads past all of its decisions.
        here = decisions.c.model_id + 0 == model.id, decisions.c.id.between(first, last)
        wanted = sa.select(*_SHOWN).where(*here).order_by(decisions.c.id)
        return [Decision(**row._mapping) for row in self._connection.execute(wanted)]

    def count(self) -> int:
        """How many there are, of all models."""
        return self._connection.execute(sa.select(sa.func.count()).select_from(decisions)).scalar_one()

    def decisions(self, model: Model, sought: Sought, after: int | None, limit: int) -> Page[Decision]:
        """Decisions, those made last first.

        Args:
            model: whose they are.
            sought: which of them.
            after: go on from this number.
            limit: at most this many.
        """
        wanted = sa.select(*_SHOWN).where(decisions.c.model_id == model.id, *_conditions(sought))
        if after is not None:
            last = self._connection.execute(
                sa.select(decisions.c.made_at).where(decisions.c.model_id == model.id, decisions.c.id == after)
            ).scalar_one_or_none()
            if last is None:
                raise InvalidCursor(
                    "the cursor was not made by this listing: leave it out to begin with the first page"
                )
            wanted = wanted.where(_before(last, after))
        ordered = wanted.order_by(decisions.c.made_at.desc(), decisions.c.id.desc())
        rows = self._connection.execute(ordered.limit(limit + 1)).all()
        items = tuple(Decision(**row._mapping) for row in rows[:limit])
        return Page(items, str(items[-1].id) if len(rows) > limit else None)


def _conditions(sought: Sought) -> Iterator[sa.ColumnElement[bool]]:
    if sought.version is not None:
        yield decisions.c.version == min(sought.version, LARGEST)
    if sought.example is not None:
        yield decisions.c.example == sought.example
    if sought.since is not None:
        yield decisions.c.made_at >= sought.since
    if sought.until is not None:
        yield decisions.c.made_at < sought.until


def _before(made_at: datetime, number: int) -> sa.ColumnElement[bool]:
    """What stands after a decision in the listing, in a form that an index serves on every database."""
    same = sa.and_(decisions.c.made_at == made_at, decisions.c.id < number)
    return sa.and_(decisions.c.made_at <= made_at, sa.or_(decisions.c.made_at < made_at, same))
