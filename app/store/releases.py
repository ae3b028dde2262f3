"""The part of ``tx.ledger`` about versions and the aliases that name them.

Knows: numbers, ancestry, and who moved an alias when. Must never know: why an alias moves.

Laws:
    * Versions are never changed or deleted; an alias is the only thing that moves.
    * A move compares the revision that its caller saw, and is written down with its actor and reason.
    * ``latest`` is computed: the newest version whose guardrails passed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.domain import CHAMPION, LATEST, Alias, AliasMove, Model, Page, Version, VersionSummary
from app.errors import AliasMoved, InvalidName, UnknownAlias, UnknownVersion, VersionSwept
from app.store.registry import NAME, Registry
from app.store.rows import SUMMARISED, summary_of, version_of
from app.store.tables import HOLDS, LARGEST, PUBLISHED, alias_moves, aliases, versions

_NUMBER = re.compile(r"[0-9]{1,10}")
_STEPS = 100

_SHOWN = tuple(column for column in versions.c if column.name != "manifest")
_IN_SHORT = tuple(versions.c[name] for name in SUMMARISED)


class Releases(Registry):
    """Versions and aliases, as one transaction sees them."""

    # -- versions ------------------------------------------------------------------------------------------------------

    def version(self, name: str, ref: str | int) -> Version:
        """A version by number or alias.

        Args:
            name: of the model.
            ref: a number, ``champion``, ``latest``, or another alias.

        Raises:
            UnknownModel, UnknownVersion: there is no such model or version.
        """
        model = self.model(name)
        if isinstance(ref, int) or _NUMBER.fullmatch(ref):
            version = self._version(model, int(ref))
        else:
            version = self._named(model, ref)
        if version is None:
            raise _no_version(name, ref)
        return version

    def versions(self, name: str, after: int | None, limit: int) -> Page[Version]:
        """Versions, newest first.

        Args:
            name: of the model.
            after: go on below this number.
            limit: at most this many.
        """
        wanted = self._of(self.model(name)).order_by(versions.c.number.desc())
        if after is not None:
            wanted = wanted.where(versions.c.number < min(after, LARGEST))
        rows = self._connection.execute(wanted.limit(limit + 1)).all()
        items = tuple(version_of(row, name) for row in rows[:limit])
        return Page(items, str(items[-1].number) if len(rows) > limit else None)

    def summary(self, model: Model, number: int) -> VersionSummary:
        """A version in short.

        Raises:
            UnknownVersion: there is no such version.
        """
        wanted = sa.select(*_IN_SHORT).where(versions.c.model_id == model.id, versions.c.number == number)
        row = self._connection.execute(wanted).one_or_none()
        if row is None:
            raise _no_version(model.name, number)
        return summary_of(row, model.name)

    def manifest(self, name: str, number: int) -> Mapping[str, Any]:
        """The manifest that stands in a version's checkpoint. No list brings it along: it can be long.

        Raises:
            UnknownModel, UnknownVersion: there is no such model or version.
        """
        version = self.summary(self.model(name), number)
        wanted = sa.select(versions.c.manifest).where(
            versions.c.model_id == self.model(name).id, versions.c.number == version.number
        )
        found: Mapping[str, Any] = self._connection.execute(wanted).scalar_one()
        return found

    def time_line(self, name: str, after: int | None, limit: int) -> Page[VersionSummary]:
        """Versions, oldest first.

        Args:
            name: of the model.
            after: go on above this number.
            limit: at most this many.
        """
        wanted = sa.select(*_IN_SHORT).where(versions.c.model_id == self.model(name).id)
        if after is not None:
            wanted = wanted.where(versions.c.number > min(after, LARGEST))
        rows = self._connection.execute(wanted.order_by(versions.c.number).limit(limit + 1)).all()
        items = tuple(summary_of(row, name) for row in rows[:limit])
        return Page(items, str(items[-1].number) if len(rows) > limit else None)

    def ancestry(self, name: str, number: int, limit: int) -> Page[Version]:
        """A version, its parent, and so on; go on from the version that is named as the next one.

        Args:
            name: of the model.
            number: where to begin.
            limit: at most this many.

        Raises:
            UnknownModel, UnknownVersion: there is no such model or version.
        """
        model = self.model(name)
        line = self._line(model, self.version(name, number).number, limit)
        wanted = sa.select(*_SHOWN).join(line, versions.c.number == line.c.number)
        wanted = wanted.where(versions.c.model_id == model.id).order_by(line.c.step)
        items = tuple(version_of(row, name) for row in self._connection.execute(wanted))
        last = items[-1].parent
        return Page(items, None if last is None else str(last))

    def ancestors(self, model: Model, number: int) -> Iterator[VersionSummary]:
        """A version, its parent, and so on up to the first, in short; read as they are asked for."""
        start: int | None = number
        while start is not None:
            line = self._line(model, start, _STEPS)
            wanted = sa.select(*_IN_SHORT).join(line, versions.c.number == line.c.number)
            wanted = wanted.where(versions.c.model_id == model.id).order_by(line.c.step)
            found = [summary_of(row, model.name) for row in self._connection.execute(wanted)]
            yield from found
            start = found[-1].parent if found else None

    def held_since(self, model: Model, champion: int | None) -> Version | None:
        """The newest version that was withheld with pruning to be held, and left this one as the champion.

        Args:
            model: whose version it is.
            champion: number of a version; None: the model had none.
        """
        wanted = self._of(model).where(
            HOLDS,
            versions.c.held_on.is_(None) if champion is None else versions.c.held_on == champion,
            versions.c.number > (-1 if champion is None else champion),
        )
        row = self._connection.execute(wanted.order_by(versions.c.number.desc()).limit(1)).one_or_none()
        return None if row is None else version_of(row, model.name)

    # -- aliases -------------------------------------------------------------------------------------------------------

    def alias(self, name: str, alias: str) -> Alias:
        """Where an alias points.

        Raises:
            UnknownModel, UnknownAlias: there is no such model or alias.
        """
        found = self._alias(self.model(name), alias)
        if found is None:
            raise _unknown(name, alias)
        return found

    def alias_history(self, name: str, alias: str, after: int | None, limit: int) -> Page[AliasMove]:
        """Every move of an alias, newest first.

        Args:
            name: of the model.
            alias: ``champion``, or another one.
            after: go on below this revision.
            limit: at most this many.

        Raises:
            UnknownModel, UnknownAlias: there is no such model or alias.
        """
        self.alias(name, alias)
        wanted = self._moves(self.model(name), alias).order_by(alias_moves.c.revision.desc()).limit(limit + 1)
        if after is not None:
            wanted = wanted.where(alias_moves.c.revision < min(after, LARGEST))
        items = tuple(_move_of(row, name) for row in self._connection.execute(wanted))
        return Page(items[:limit], str(items[limit - 1].revision) if len(items) > limit else None)

    def alias_at(self, name: str, alias: str, at: datetime) -> AliasMove:
        """The move that was in force at a time.

        Raises:
            UnknownModel, UnknownAlias: there is no such model, or the alias did not exist then.
        """
        self.alias(name, alias)
        # The times of moves never go back, so the newest one by time is the newest one by revision, and has an index.
        newest = alias_moves.c.moved_at.desc(), alias_moves.c.revision.desc()
        wanted = self._moves(self.model(name), alias).where(alias_moves.c.moved_at <= at)
        row = self._connection.execute(wanted.order_by(*newest).limit(1)).one_or_none()
        if row is None:
            raise UnknownAlias(f"model {name!r} had no alias {alias!r} at {at.isoformat()}")
        return _move_of(row, name)

    def move_alias(
        self,
        model: Model,
        alias: str,
        version: int,
        *,
        expected_revision: int | None,
        reason: str,
    ) -> Alias:
        """Point an alias at a version, and write the move down. A move of the champion invalidates cycles that run.

        Args:
            model: whose alias it is.
            alias: ``champion``, or another name; not ``latest``, and not a number.
            version: number of an existing version.
            expected_revision: the alias's revision that the caller saw, 0 for an alias that did not exist; None does
                not compare.
            reason: why, in words.

        Raises:
            InvalidName, UnknownVersion, VersionSwept: nothing was changed.
            AliasMoved: the alias's revision is another one by now.
        """
        if alias == LATEST or alias.isdigit() or not NAME.fullmatch(alias):
            raise InvalidName(f"{alias!r} cannot be an alias: it is computed, a number, or not a name")
        self._locked(model)
        if expected_revision is not None:
            self.expect_revision(model, alias, expected_revision)
        before = self._alias(model, alias)
        if (found := self._version(model, version)) is None:
            raise UnknownVersion(f"model {model.name!r} has no version {version}")
        expect_bytes(found)
        moved_at = max(self._now, before.moved_at) if before else self._now  # a clock may be put back, history not
        moved = Alias(model.name, alias, version, before.revision + 1 if before else 1, moved_at)
        self._write_move(model, moved, before, reason)
        if alias == CHAMPION:  # the only one that cycles start from
            self.bump_generation(model)
        return moved

    def expect_revision(self, model: Model, alias: str, revision: int) -> None:
        """Compare an alias's revision, 0 for one that does not exist, with the one that a caller saw.

        Raises:
            AliasMoved: it is another one by now.
        """
        before = self._alias(model, alias)
        present = before.revision if before else 0
        if present != revision:
            raise AliasMoved(
                f"alias {alias!r} of {model.name!r} is at revision {present}, not {revision}: "
                "read it again, and decide anew"
            )

    # -- inside --------------------------------------------------------------------------------------------------------

    def _write_move(self, model: Model, moved: Alias, before: Alias | None, reason: str) -> None:
        values = {"version": moved.version, "revision": moved.revision, "moved_at": moved.moved_at}
        if before is None:
            self._connection.execute(sa.insert(aliases).values(model_id=model.id, name=moved.name, **values))
        else:
            here = sa.update(aliases).where(aliases.c.model_id == model.id, aliases.c.name == moved.name)
            self._connection.execute(here.values(**values))
        self._connection.execute(
            sa.insert(alias_moves).values(
                model_id=model.id,
                alias=moved.name,
                previous=before.version if before else None,
                actor=self._actor.name,
                reason=reason,
                **values,
            )
        )

    def _alias(self, model: Model, alias: str) -> Alias | None:
        if not NAME.fullmatch(alias):
            return None
        wanted = sa.select(aliases).where(aliases.c.model_id == model.id, aliases.c.name == alias)
        row = self._connection.execute(wanted).one_or_none()
        return None if row is None else Alias(model.name, row.name, row.version, row.revision, row.moved_at)

    def _moves(self, model: Model, alias: str) -> sa.Select[Any]:
        return sa.select(alias_moves).where(alias_moves.c.model_id == model.id, alias_moves.c.alias == alias)

    def _named(self, model: Model, ref: str) -> Version | None:
        if ref != LATEST:
            alias = self._alias(model, ref)
            return self._version(model, alias.version) if alias else None
        published = self._of(model).where(PUBLISHED)
        row = self._connection.execute(published.order_by(versions.c.number.desc()).limit(1)).one_or_none()
        return None if row is None else version_of(row, model.name)

    def _champion(self, model: Model) -> Version | None:
        return self._named(model, CHAMPION)

    def _version(self, model: Model, number: int) -> Version | None:
        if not 0 <= number <= LARGEST:
            return None
        row = self._connection.execute(self._of(model).where(versions.c.number == number)).one_or_none()
        return None if row is None else version_of(row, model.name)

    def _of(self, model: Model) -> sa.Select[Any]:
        return sa.select(*_SHOWN).where(versions.c.model_id == model.id)

    def _line(self, model: Model, number: int, steps: int) -> sa.CTE:
        """Numbers of a version and its ancestors, ``steps`` at most, each with its place in the line."""
        one = sa.select(versions.c.number, versions.c.parent, sa.literal(1).label("step"))
        line = one.where(versions.c.model_id == model.id, versions.c.number == number).cte("line", recursive=True)
        parent = versions.alias("parent")
        further = sa.select(parent.c.number, parent.c.parent, line.c.step + 1).where(
            parent.c.model_id == model.id, parent.c.number == line.c.parent, line.c.step < steps
        )
        return line.union_all(further)


def expect_bytes(version: VersionSummary) -> None:
    """Make sure that retention has not given up a version's bytes.

    Raises:
        VersionSwept: it has, with the reason.
    """
    if version.swept_at is not None:
        raise VersionSwept(
            f"the bytes of version {version.number} of {version.model!r} were removed on "
            f"{version.swept_at:%Y-%m-%d} ({version.swept_reason}): choose a version that has them"
        )


def _move_of(row: sa.Row[Any], model: str) -> AliasMove:
    return AliasMove(model, row.alias, row.revision, row.previous, row.version, row.actor, row.reason, row.moved_at)


def _no_version(name: str, ref: str | int) -> UnknownVersion:
    return UnknownVersion(f"model {name!r} has no version {ref}: list its versions to see those there are")


def _unknown(name: str, alias: str) -> UnknownAlias:
    return UnknownAlias(f"model {name!r} has no alias {alias!r}")
