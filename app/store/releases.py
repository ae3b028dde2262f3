"""The part of ``tx.ledger`` about versions and the aliases that name them.

Knows: numbers, ancestry, and who moved an alias when. Must never know: why an alias moves.

Laws:
    * Versions are never changed or deleted; an alias is the only thing that moves.
    * A move compares the revision that its caller saw, and is written down with its actor and reason.
    * ``latest`` is computed: the newest version whose guardrails passed.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.domain import CHAMPION, HOLDING, LATEST, Alias, AliasMove, Model, Page, Version, VersionStatus
from app.errors import AliasMoved, InvalidName, UnknownAlias, UnknownVersion
from app.store.registry import NAME, Registry
from app.store.rows import version_of
from app.store.tables import LARGEST, alias_moves, aliases, versions

_NUMBER = re.compile(r"[0-9]{1,10}")


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
            raise UnknownVersion(f"model {name!r} has no version {ref}: list its versions to see those there are")
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
        return self._page(name, wanted, limit)

    def time_line(self, name: str, after: int | None, limit: int) -> Page[Version]:
        """Versions, oldest first.

        Args:
            name: of the model.
            after: go on above this number.
            limit: at most this many.
        """
        wanted = self._of(self.model(name)).order_by(versions.c.number)
        if after is not None:
            wanted = wanted.where(versions.c.number > min(after, LARGEST))
        return self._page(name, wanted, limit)

    def ancestry(self, name: str, number: int) -> list[Version]:
        """A version, its parent, and so on up to the first.

        Raises:
            UnknownModel, UnknownVersion: there is no such model or version.
        """
        version = self.version(name, number)
        model = self.model(name)
        line = (
            sa.select(versions.c.number, versions.c.parent)
            .where(versions.c.model_id == model.id, versions.c.number == version.number)
            .cte("line", recursive=True)
        )
        parents = sa.select(versions.c.number, versions.c.parent).where(
            versions.c.model_id == model.id, versions.c.number == line.c.parent
        )
        line = line.union(parents)
        # A child is always numbered after its parent.
        wanted = self._of(model).where(versions.c.number.in_(sa.select(line.c.number)))
        rows = self._connection.execute(wanted.order_by(versions.c.number.desc()))
        return [version_of(row, name) for row in rows]

    def held_since(self, model: Model, champion: int | None) -> Version | None:
        """The newest version that was withheld with pruning to be held, and left this one as the champion.

        Args:
            model: whose version it is.
            champion: number of a version; None: the model had none.
        """
        verdict = versions.c.verdict
        left = sa.func.coalesce(verdict["restored"].as_integer(), versions.c.parent)
        wanted = self._of(model).where(
            versions.c.number > (-1 if champion is None else champion),
            versions.c.status == VersionStatus.WITHHELD.value,
            verdict["action"].as_string().in_(HOLDING),
            left.is_not_distinct_from(champion),
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
        wanted = self._moves(self.model(name), alias).limit(limit + 1)
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
        wanted = self._moves(self.model(name), alias).where(alias_moves.c.moved_at <= at).limit(1)
        row = self._connection.execute(wanted).one_or_none()
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
        """Point an alias at a version, write the move down, and invalidate cycles that run.

        Args:
            model: whose alias it is.
            alias: ``champion``, or another name; not ``latest``, and not a number.
            version: number of an existing version.
            expected_revision: the alias's revision that the caller saw, 0 for an alias that did not exist; None does
                not compare.
            reason: why, in words.

        Raises:
            InvalidName, UnknownVersion: nothing was changed.
            AliasMoved: the alias's revision is another one by now.
        """
        if alias == LATEST or alias.isdigit() or not NAME.fullmatch(alias):
            raise InvalidName(f"{alias!r} cannot be an alias: it is computed, a number, or not a name")
        self._locked(model)
        if expected_revision is not None:
            self.expect_revision(model, alias, expected_revision)
        before = self._alias(model, alias)
        if self._version(model, version) is None:
            raise UnknownVersion(f"model {model.name!r} has no version {version}")
        moved = Alias(model.name, alias, version, before.revision + 1 if before else 1, self._now)
        self._write_move(model, moved, before, reason)
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
        wanted = sa.select(alias_moves).where(alias_moves.c.model_id == model.id, alias_moves.c.alias == alias)
        return wanted.order_by(alias_moves.c.revision.desc())

    def _named(self, model: Model, ref: str) -> Version | None:
        if ref != LATEST:
            alias = self._alias(model, ref)
            return self._version(model, alias.version) if alias else None
        published = self._of(model).where(versions.c.status == VersionStatus.PUBLISHED.value)
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
        return sa.select(versions).where(versions.c.model_id == model.id)

    def _page(self, name: str, wanted: sa.Select[Any], limit: int) -> Page[Version]:
        items = tuple(version_of(row, name) for row in self._connection.execute(wanted.limit(limit + 1)))
        return Page(items[:limit], str(items[limit - 1].number) if len(items) > limit else None)


def _move_of(row: sa.Row[Any], model: str) -> AliasMove:
    return AliasMove(model, row.alias, row.revision, row.previous, row.version, row.actor, row.reason, row.moved_at)


def _unknown(name: str, alias: str) -> UnknownAlias:
    return UnknownAlias(f"model {name!r} has no alias {alias!r}")
