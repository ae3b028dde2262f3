"""The part of ``tx.ledger`` about versions whose bytes retention removes.

Knows: what names a version, and what open cycles need of it. Must never know: which versions a policy keeps, or where
bytes lie.

Laws:
    * A version that was swept keeps its row, and is never named by an alias.
    * ``references`` does not count a swept version, so the orphan sweep takes its bytes; what another row names stays.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from app.domain import CHAMPION, LATEST, OPEN_CYCLES, Model, Version
from app.store.releases import Releases
from app.store.tables import aliases, cycles, versions


class Sweeping(Releases):
    """Versions that may lose their bytes, as one transaction sees them."""

    def unswept(self, model: Model) -> list[tuple[int, datetime]]:
        """Numbers and times of the versions whose bytes are there, oldest first."""
        wanted = sa.select(versions.c.number, versions.c.created_at).where(
            versions.c.model_id == model.id, versions.c.swept_at.is_(None)
        )
        rows = self._connection.execute(wanted.order_by(versions.c.number))
        return [(row.number, row.created_at) for row in rows]

    def named(self, model: Model) -> set[int]:
        """Versions that any alias points to, and the one that ``latest`` is computed to."""
        pointed = sa.select(aliases.c.version).where(aliases.c.model_id == model.id)
        found, latest = set(self._connection.execute(pointed).scalars()), self._named(model, LATEST)
        return found if latest is None else found | {latest.number}

    def needed(self, model: Model) -> set[int]:
        """Versions that a cycle reads which waits or runs, or comes next: parents, and what holds pruning."""
        wanted = sa.select(cycles.c.parent).where(
            cycles.c.model_id == model.id,
            cycles.c.state.in_([state.value for state in OPEN_CYCLES]),
            cycles.c.parent.is_not(None),
        )
        champion = self._named(model, CHAMPION)
        held = self.held_since(model, None if champion is None else champion.number)
        parents = set(self._connection.execute(wanted).scalars())
        return parents if held is None else parents | {held.number}

    def sweep_version(self, model: Model, number: int, reason: str) -> Version:
        """Note that the bytes of a version are given up; they are removed after this was committed.

        Raises:
            UnknownVersion: there is no such version.
        """
        self._locked(model)
        here = versions.c.model_id == model.id, versions.c.number == number
        marks = {"swept_at": self._now, "swept_reason": reason}
        self._connection.execute(sa.update(versions).where(*here, versions.c.swept_at.is_(None)).values(marks))
        return self.version(model.name, number)
