"""``tx.replays``: answers kept under idempotency keys, so that a repeated request gets the first one again.

Knows: which request of an actor owns a key, until when, and what it was answered. Must never know: HTTP beyond a
status and a JSON document.

Laws:
    * A key of an actor is owned by one request at a time. An owner that stops renewing loses it, so a request that was
      killed blocks its key for a short time only.
    * Only an owner's answer is kept, together with the fingerprint of the content that it answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.domain import Digest
from app.store.tables import idempotency_keys

_KEYS = idempotency_keys.c


@dataclass(frozen=True, slots=True)
class Replay:
    """What is known of a key: ``status`` and ``answer`` are None while its first request still runs."""

    fingerprint: Digest | None
    status: int | None
    answer: Mapping[str, Any] | None
    expires_at: datetime


class Replays:
    """The kept answers, as one transaction sees them."""

    def __init__(self, connection: sa.Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now

    def claim(self, actor: str, key: str, until: datetime) -> Replay | None:
        """Own a key that nobody owns and no answer is kept under.

        Returns:
            None: it is the caller's. Otherwise what stands under it.
        """
        self._connection.execute(sa.delete(idempotency_keys).where(*_at(actor, key), _KEYS.expires_at <= self._now))
        query = sa.select(_KEYS.fingerprint, _KEYS.status, _KEYS.answer, _KEYS.expires_at).where(*_at(actor, key))
        row = self._connection.execute(query).one_or_none()
        if row is not None:
            return Replay(*row)
        values = {"actor": actor, "key": key, "created_at": self._now, "expires_at": until}
        self._connection.execute(sa.insert(idempotency_keys).values(values))
        return None

    def renew(self, actor: str, key: str, until: datetime) -> None:
        """Own a key for longer."""
        self._connection.execute(
            sa.update(idempotency_keys).where(*_at(actor, key), _KEYS.status.is_(None)).values(expires_at=until)
        )

    def keep(
        self, actor: str, key: str, *, fingerprint: Digest, status: int, answer: Mapping[str, Any], until: datetime
    ) -> None:
        """Keep the answer of the request that owns a key. The first one stays."""
        values = {"fingerprint": fingerprint, "status": status, "answer": dict(answer), "expires_at": until}
        self._connection.execute(
            sa.update(idempotency_keys).where(*_at(actor, key), _KEYS.status.is_(None)).values(values)
        )

    def release(self, actor: str, key: str) -> None:
        """Give a key back: its request changed nothing."""
        self._connection.execute(sa.delete(idempotency_keys).where(*_at(actor, key), _KEYS.status.is_(None)))

    def sweep(self) -> None:
        """Forget answers whose time is up."""
        self._connection.execute(sa.delete(idempotency_keys).where(_KEYS.expires_at <= self._now))


def _at(actor: str, key: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return _KEYS.actor == actor, _KEYS.key == key
