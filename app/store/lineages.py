"""The part of ``tx.ledger`` about where a lineage begins, and what an erasure must know of versions.

Knows: which version the next cycle starts from, which versions may have taken a megabatch in, and the snapshots of
cycles that are open. Must never know: what a version holds (its blobs say that), or why a lineage begins anew.

Laws:
    * The next cycle starts from the champion, unless the model was told to begin anew since the champion was last
      moved: then it starts from nothing, and so does every cycle until the champion moves.
"""

from __future__ import annotations

import sqlalchemy as sa

from app.domain import CHAMPION, Digest, Model, Version, VersionSummary
from app.store.rows import SUMMARISED, summary_of
from app.store.sweeping import Sweeping
from app.store.tables import LARGEST, QUEUED, RUNNING, aliases, cycles, leases, models, versions


class Lineages(Sweeping):
    """Where lineages begin, as one transaction sees it."""

    def ground(self, model: Model) -> Version | None:
        """The version that the next cycle starts from; None: it starts afresh."""
        champion = self._alias(model, CHAMPION)
        told = sa.select(models.c.anew_at).where(models.c.id == model.id)
        if champion is None or self._connection.execute(told).scalar_one() == champion.revision:
            return None
        return self._version(model, champion.version)

    def begin_anew(self, model: Model) -> None:
        """Let nothing start from the present champion any more. It stays the champion until another one is."""
        champion = self._alias(model, CHAMPION)
        self._change(model, anew_at=None if champion is None else champion.revision)

    def pointed(self, model: Model) -> dict[str, int]:
        """Every alias, and the number of the version that it names."""
        wanted = sa.select(aliases.c.name, aliases.c.version).where(aliases.c.model_id == model.id)
        return {row.name: row.version for row in self._connection.execute(wanted.order_by(aliases.c.name))}

    def made_of(self, model: Model, megabatch: int) -> list[VersionSummary]:
        """Versions whose cycles were allowed this megabatch, and all their heirs, oldest first; others may be among
        them.

        Args:
            model: whose they are.
            megabatch: its number.
        """
        columns = [versions.c[name] for name in SUMMARISED]
        allowed = sa.select(sa.func.min(versions.c.number)).join(
            cycles, sa.and_(cycles.c.model_id == versions.c.model_id, cycles.c.number == versions.c.cycle)
        )
        first = allowed.where(versions.c.model_id == model.id, cycles.c.through >= megabatch).scalar_subquery()
        wanted = sa.select(*columns).where(versions.c.model_id == model.id, versions.c.number >= first)
        rows = self._connection.execute(wanted.where(versions.c.number <= LARGEST).order_by(versions.c.number))
        return [summary_of(row, model.name) for row in rows]

    def snapshots(self, model: Model) -> list[Digest]:
        """Snapshots of the cycles that wait or run. No worker can leave another one until this transaction ends."""
        found: list[Digest] = []
        for state in (RUNNING, QUEUED):
            these = sa.select(cycles.c.id).where(cycles.c.model_id == model.id, state)
            held = sa.select(leases.c.snapshot).where(leases.c.cycle_id.in_(these)).with_for_update()
            found += [digest for digest in self._connection.execute(held).scalars() if digest is not None]
        return found
