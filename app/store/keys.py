"""``tx.keys``: keys, when each was last used, and the browsers that are signed in with one.

Knows: a key's hash and what it allows; a session's hash and whose it is. Must never know: a secret, or whether it is
the right one.

Laws:
    * A key is never deleted and its name never given again: the log goes by names. Revoking it is final.
    * What is stored cannot be turned into what is presented.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.domain import Key, Page, Scope
from app.errors import KeyNameTaken, UnknownKey
from app.store.registry import NAME
from app.store.tables import key_uses, keys, sessions


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is signed in. ``key`` is the id of a key, or of the key of the settings."""

    hash: str
    key: str
    expires_at: datetime


class Keys:
    """Keys and sessions, as one transaction sees them."""

    def __init__(self, connection: sa.Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now

    # -- keys ----------------------------------------------------------------------------------------------------------

    def create(
        self,
        key: str,
        name: str,
        *,
        hash: str,
        scopes: Collection[Scope],
        models: Collection[str] | None,
        requests_per_minute: int | None,
        expires_at: datetime | None,
        created_by: str,
    ) -> Key:
        """Write a new key down.

        Raises:
            KeyNameTaken: nothing was changed.
        """
        row = sa.insert(keys).values(
            id=key,
            name=name,
            hash=hash,
            scopes=sorted(scope.value for scope in scopes),
            models=None if models is None else sorted(models),
            requests_per_minute=requests_per_minute,
            created_by=created_by,
            created_at=self._now,
            expires_at=expires_at,
        )
        try:
            self._connection.execute(row)
        except sa.exc.IntegrityError as error:
            raise KeyNameTaken(
                f"a key named {name!r} exists or existed, and the log goes by names: choose another, such as {name}-2"
            ) from error
        return self.key(name)

    def key(self, name: str) -> Key:
        """A key by its name.

        Raises:
            UnknownKey: with the remedy.
        """
        row = None
        if NAME.fullmatch(name):
            row = self._connection.execute(_KEYS.where(keys.c.name == name)).one_or_none()
        if row is None:
            raise UnknownKey(f"no key is named {name[:63]!r}: list the keys to see their names")
        return _key(row)

    def keys(self, after: str | None, limit: int) -> Page[Key]:
        """Keys by name, revoked and expired ones too."""
        wanted = _KEYS.order_by(keys.c.name).limit(limit + 1)
        if after is not None:
            wanted = wanted.where(keys.c.name > after)
        rows = self._connection.execute(wanted).all()
        items = tuple(_key(row) for row in rows[:limit])
        return Page(items, items[-1].name if len(rows) > limit else None)

    def hashes(self) -> list[tuple[Key, str]]:
        """Every key, with its hash."""
        return [(_key(row), row.hash) for row in self._connection.execute(_KEYS)]

    def any(self) -> bool:
        """Whether a key was ever created."""
        return self._connection.execute(sa.select(keys.c.id).limit(1)).one_or_none() is not None

    def revoke(self, key: Key, reason: str) -> Key:
        """End a key."""
        values = {"revoked_at": self._now, "revoked_reason": reason}
        self._connection.execute(sa.update(keys).where(keys.c.id == key.id).values(values))
        self._connection.execute(sa.delete(sessions).where(sessions.c.key_id == key.id))
        return self.key(key.name)

    # -- use -----------------------------------------------------------------------------------------------------------

    def used(self, key: str, at: datetime) -> None:
        """Remember when a key was last used."""
        newer = sa.update(key_uses).where(key_uses.c.key_id == key)
        if self._connection.execute(newer.values(used_at=at)).rowcount == 0:
            self._connection.execute(sa.insert(key_uses).values(key_id=key, used_at=at))

    # -- sessions ------------------------------------------------------------------------------------------------------

    def begin_session(self, hash: str, key: str, expires_at: datetime) -> None:
        """Remember a browser; those whose time is up are forgotten."""
        self._connection.execute(sa.delete(sessions).where(sessions.c.expires_at <= self._now))
        self._connection.execute(
            sa.insert(sessions).values(hash=hash, key_id=key, created_at=self._now, expires_at=expires_at)
        )

    def session(self, hashes: Sequence[str]) -> Session | None:
        """The session that one of these hashes names, unless it is over."""
        wanted = sa.select(sessions).where(sessions.c.hash.in_(hashes), sessions.c.expires_at > self._now)
        row = self._connection.execute(wanted).one_or_none()
        return None if row is None else Session(row.hash, row.key_id, row.expires_at)

    def end_session(self, hashes: Sequence[str]) -> None:
        """Forget a browser."""
        self._connection.execute(sa.delete(sessions).where(sessions.c.hash.in_(hashes)))


_KEYS = sa.select(keys, key_uses.c.used_at).select_from(keys.outerjoin(key_uses, key_uses.c.key_id == keys.c.id))


def _key(row: sa.Row[Any]) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        scopes=frozenset(map(Scope, row.scopes)),
        models=None if row.models is None else frozenset(row.models),
        requests_per_minute=row.requests_per_minute,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        revoked_reason=row.revoked_reason,
        used_at=row.used_at,
    )
