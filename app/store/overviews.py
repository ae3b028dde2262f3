"""``tx.overviews``: what a page shows of many models, or of many versions, at once.

Knows: how to read a page of rows in a fixed number of statements. Must never know: what is drawn from them.

Laws:
    * The number of statements does not depend on how many models or versions there are.
    * Nothing is changed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from app.domain import (
    CHAMPION,
    Alias,
    AuditEntry,
    Cycle,
    Layer,
    Megabatch,
    Model,
    Page,
    RecipeRevision,
    Verdict,
    VersionStatus,
    VersionSummary,
)
from app.store.rows import SUMMARISED, cycle_of, megabatch_of, model_of, recipe_of, summary_of, verdict_of
from app.store.tables import (
    LARGEST,
    QUEUED,
    RUNNING,
    aliases,
    audit_entries,
    cycles,
    leases,
    megabatches,
    models,
    recipes,
    versions,
)

_SHORT = tuple(versions.c[name] for name in SUMMARISED)


@dataclass(frozen=True, slots=True)
class Column:
    """A version as a time line draws it: in short, with its verdict and the last megabatch that its cycle might use."""

    version: VersionSummary
    verdict: Verdict
    through: int


@dataclass(frozen=True, slots=True)
class Kin:
    """A version's place in the family."""

    number: int
    parent: int | None
    status: VersionStatus


class Overviews:
    """Pages of rows, as one transaction sees them."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    # -- many models ---------------------------------------------------------------------------------------------------

    def models(self, after: str | None, limit: int, only: Collection[str] | None, containing: str) -> Page[Model]:
        """Models by name.

        Args:
            after: go on after this name.
            limit: at most this many.
            only: of these names; None: all.
            containing: whose name contains this.
        """
        wanted = self._named(sa.select(models), only, containing).order_by(models.c.name).limit(limit + 1)
        if after is not None:
            wanted = wanted.where(models.c.name > after)
        items = tuple(map(model_of, self._connection.execute(wanted)))
        return Page(items[:limit], items[limit - 1].name if len(items) > limit else None)

    def count(self, only: Collection[str] | None, containing: str) -> int:
        """How many models ``models`` would list."""
        counted = self._named(sa.select(sa.func.count()).select_from(models), only, containing)
        return int(self._connection.execute(counted).scalar_one())

    def recipes(self, shown: Sequence[Model]) -> dict[str, RecipeRevision]:
        """The recipe in force of each model."""
        named = {model.id: model.name for model in shown}
        wanted = (
            sa.select(recipes)
            .join(models, sa.and_(models.c.id == recipes.c.model_id, models.c.recipe_revision == recipes.c.revision))
            .where(models.c.id.in_(named))
        )
        return {named[row.model_id]: recipe_of(row, named[row.model_id]) for row in self._connection.execute(wanted)}

    def champions(self, shown: Sequence[Model]) -> dict[str, tuple[Alias, VersionSummary]]:
        """The champion of each model that has one."""
        named = {model.id: model.name for model in shown}
        wanted: sa.Select[Any] = (
            sa.select(*_SHORT, aliases.c.model_id, aliases.c.revision, aliases.c.moved_at)
            .join(aliases, sa.and_(aliases.c.model_id == versions.c.model_id, aliases.c.version == versions.c.number))
            .where(aliases.c.model_id.in_(named), aliases.c.name == CHAMPION)
        )
        found: dict[str, tuple[Alias, VersionSummary]] = {}
        for row in self._connection.execute(wanted):
            name = named[row.model_id]
            found[name] = Alias(name, CHAMPION, row.number, row.revision, row.moved_at), summary_of(row, name)
        return found

    def recent(self, shown: Sequence[Model], count: int) -> dict[str, list[VersionSummary]]:
        """The newest versions of each model, at most so many, oldest first."""
        named = {model.id: model.name for model in shown}
        newest = _newest(versions.c.number, versions.c.model_id)
        wanted: sa.Select[Any] = (
            sa.select(*_SHORT, versions.c.model_id)
            .join(models, models.c.id == versions.c.model_id)
            .where(models.c.id.in_(named), versions.c.number > newest - count)
            .order_by(versions.c.model_id, versions.c.number)
        )
        found: dict[str, list[VersionSummary]] = {}
        for row in self._connection.execute(wanted):
            found.setdefault(named[row.model_id], []).append(summary_of(row, named[row.model_id]))
        return found

    def queues(self, shown: Sequence[Model]) -> dict[str, tuple[int, Cycle | None]]:
        """How many cycles of each model wait, and the one that runs; of those where there is any."""
        named = {model.id: model.name for model in shown}
        counted = sa.select(cycles.c.model_id, sa.func.count().label("waiting")).where(
            QUEUED, cycles.c.model_id.in_(named)
        )
        waiting = {row.model_id: row.waiting for row in self._connection.execute(counted.group_by(cycles.c.model_id))}
        running = {row.model_id: cycle_of(row) for row in self._connection.execute(_cycles(RUNNING, named))}
        busy = waiting.keys() | running.keys()
        return {named[each]: (waiting.get(each, 0), running.get(each)) for each in busy}

    def last_cycles(self, shown: Sequence[Model]) -> dict[str, Cycle]:
        """The newest cycle of each model that has one."""
        named = {model.id: model.name for model in shown}
        newest = _newest(cycles.c.number, cycles.c.model_id)
        rows = self._connection.execute(_cycles(cycles.c.number == newest, named))
        return {named[row.model_id]: cycle_of(row) for row in rows}

    def arrived(self, shown: Sequence[Model]) -> dict[str, int]:
        """How many megabatches each model has taken in."""
        newest = _newest(megabatches.c.number, megabatches.c.model_id)
        wanted = sa.select(models.c.name, newest.label("newest")).where(models.c.id.in_([model.id for model in shown]))
        return {row.name: row.newest or 0 for row in self._connection.execute(wanted)}

    def last_entries(self, shown: Sequence[Model], kinds: Collection[str]) -> dict[str, AuditEntry]:
        """The newest audit entry of each model, among these kinds."""
        newest = (
            sa.select(sa.func.max(audit_entries.c.seq))
            .where(audit_entries.c.model == models.c.name, audit_entries.c.kind.in_(kinds))
            .correlate(models)
            .scalar_subquery()
        )
        seqs = sa.select(newest).where(models.c.id.in_([model.id for model in shown]))
        wanted = sa.select(audit_entries).where(audit_entries.c.seq.in_(seqs))
        found = [_entry(row) for row in self._connection.execute(wanted)]
        return {entry.model: entry for entry in found if entry.model is not None}

    # -- one model -----------------------------------------------------------------------------------------------------

    def columns(self, model: Model, *, before: int | None, limit: int) -> list[Column]:
        """The newest versions, oldest first.

        Args:
            model: whose they are.
            before: below this number; None: from the newest on.
            limit: at most this many.
        """
        wanted = (
            sa.select(*_SHORT, versions.c.verdict, cycles.c.through)
            .join(cycles, sa.and_(cycles.c.model_id == versions.c.model_id, cycles.c.number == versions.c.cycle))
            .where(versions.c.model_id == model.id)
            .order_by(versions.c.number.desc())
            .limit(limit)
        )
        if before is not None:
            wanted = wanted.where(versions.c.number < min(before, LARGEST))
        rows = self._connection.execute(wanted).all()
        return [Column(summary_of(row, model.name), verdict_of(row.verdict), row.through) for row in reversed(rows)]

    def layers(self, model: Model, numbers: Collection[int]) -> dict[int, tuple[Layer, ...]]:
        """The layers of these versions, by number."""
        wanted = sa.select(versions.c.number, versions.c.layers).where(
            versions.c.model_id == model.id, versions.c.number.in_(numbers)
        )
        return {
            row.number: tuple(Layer(y["name"], tuple(y["shape"]), y["kept"], y["total"]) for y in row.layers)
            for row in self._connection.execute(wanted)
        }

    def family(self, model: Model, first: int, last: int) -> list[Kin]:
        """Versions of a range of numbers, and which one each started from; newest first."""
        wanted = sa.select(versions.c.number, versions.c.parent, versions.c.status).where(
            versions.c.model_id == model.id, versions.c.number.between(first, min(last, LARGEST))
        )
        rows = self._connection.execute(wanted.order_by(versions.c.number.desc()))
        return [Kin(row.number, row.parent, VersionStatus(row.status)) for row in rows]

    def latest_entries(self, model: Model, kinds: Collection[str], limit: int) -> list[AuditEntry]:
        """The newest audit entries of a model, among these kinds, newest first."""
        wanted = sa.select(audit_entries).where(audit_entries.c.model == model.name, audit_entries.c.kind.in_(kinds))
        rows = self._connection.execute(wanted.order_by(audit_entries.c.seq.desc()).limit(limit))
        return [_entry(row) for row in rows]

    def newest_megabatches(self, model: Model, limit: int, before: int | None = None) -> list[Megabatch]:
        """The newest megabatches, newest first; with ``before`` those of lower numbers."""
        wanted = sa.select(megabatches, models.c.name.label("model")).join(
            models, models.c.id == megabatches.c.model_id
        )
        wanted = wanted.where(models.c.id == model.id).order_by(megabatches.c.number.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(megabatches.c.number < before)
        return [megabatch_of(row) for row in self._connection.execute(wanted)]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _named(self, wanted: sa.Select[Any], only: Collection[str] | None, containing: str) -> sa.Select[Any]:
        if only is not None:
            wanted = wanted.where(models.c.name.in_(only))
        return wanted.where(models.c.name.contains(containing, autoescape=True)) if containing else wanted


def _newest(number: sa.Column[int], of: sa.Column[int]) -> sa.ScalarSelect[int]:
    """The greatest number of one model: a look at the end of an index."""
    table = number.table.alias("newest")
    inner = sa.select(sa.func.max(table.c[number.name])).where(table.c[of.name] == models.c.id)
    return inner.correlate(models).scalar_subquery()


def _cycles(condition: sa.ColumnElement[bool], among: Collection[int]) -> sa.Select[Any]:
    return (
        sa.select(cycles, models.c.name.label("model"), leases.c.progress)
        .join(models, models.c.id == cycles.c.model_id)
        .outerjoin(leases, leases.c.cycle_id == cycles.c.id)
        .where(models.c.id.in_(among), condition)
    )


def _entry(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry(row.seq, row.time, row.kind, row.actor, row.model, json.loads(row.document), row.leaf)
