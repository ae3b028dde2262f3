"""Keys: who may do what.

Knows: how keys are made, listed and revoked, and how one asks whose key one has. Must never know: what a scope means;
the service does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from espalier.records import Record
from espalier.resources import every, made, one
from espalier.transport import Transport, path_of


@dataclass(frozen=True)
class Key(Record):
    """A key, without its text. ``models`` None: all; ``requests_per_minute`` None: as the service says."""

    id: str
    name: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    created_by: str
    created_at: datetime
    requests_per_minute: int | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    revoked_reason: str | None = None
    used_at: datetime | None = None

    def state(self, now: datetime | None = None) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        over = self.expires_at is not None and self.expires_at <= (now or datetime.now(UTC))
        return "expired" if over else "valid"


@dataclass(frozen=True)
class CreatedKey(Key):
    """A new key. ``key`` is its text, which the service tells this once."""

    key: str = field(kw_only=True, repr=False)


@dataclass(frozen=True)
class Caller(Record):
    """Whose key one has, and what it allows. ``models`` None: all."""

    name: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None = None
    expires_at: datetime | None = None


class Keys:
    """``client.keys``."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def create(
        self,
        name: str,
        scopes: Collection[str],
        *,
        models: Collection[str] | None = None,
        expires: datetime | timedelta | None = None,
        requests_per_minute: int | None = None,
    ) -> CreatedKey:
        """Make a key. Its text is told this once; a request whose answer was lost is not repeated.

        Args:
            name: for the audit log; no other key ever gets it.
            scopes: of ``read, ingest, train, release, audit, admin``.
            models: the models that it is for; None: all.
            expires: when it ends, or after how long; None: only when it is revoked.
            requests_per_minute: None: as the service says.

        Raises:
            ApiProblem: with status 403 where it would allow more than one's own key; 409 for a name that is taken.
        """
        ends = datetime.now(UTC) + expires if isinstance(expires, timedelta) else expires
        body = {
            "name": name,
            "scopes": list(scopes),
            "models": None if models is None else list(models),
            "expires_at": None if ends is None else ends.astimezone(UTC).isoformat(),
            "requests_per_minute": requests_per_minute,
        }
        return made(self._http, CreatedKey, path_of("keys"), body)

    def list(self) -> Iterator[Key]:
        """Every key by name, those that are over too."""
        return every(self._http, Key, path_of("keys"))

    def get(self, name: str) -> Key:
        """One key."""
        return one(self._http, Key, path_of("keys", name))

    def revoke(self, name: str, reason: str) -> Key:
        """End a key at once and for good; one that is revoked already stays as it is."""
        return made(self._http, Key, path_of("keys", name, "revoke"), {"reason": reason})

    def mine(self) -> Caller:
        """Whose key this client uses, and what it allows."""
        return one(self._http, Caller, path_of("session"))
