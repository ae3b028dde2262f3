"""``tx.uploads``: resumable uploads, from their creation until they are forgotten.

Knows: how far each has come, and what became of it. Must never know: its bytes (``app.store.staging`` holds them),
HTTP.

Laws:
    * The offset of an upload never decreases, and moves only while it is open.
    * An upload becomes ``complete`` once, and from there ``accepted`` or ``refused`` once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.domain import Digest, Model, Upload, UploadState
from app.errors import UnknownUpload
from app.store.tables import models, uploads

_UNFINISHED = (UploadState.OPEN.value, UploadState.COMPLETE.value)
_COLUMNS = (*(column for column in uploads.c if column.name != "model_id"), models.c.name.label("model"))

_ID = re.compile(r"[a-z0-9-]{1,32}")


class Uploads:
    """The resumable uploads, as one transaction sees them."""

    def __init__(self, connection: sa.Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now

    def create(
        self,
        upload: str,
        model: Model,
        *,
        actor: str,
        length: int | None,
        digest: Digest | None,
        media: str | None,
        metadata: str | None,
        expires_at: datetime,
    ) -> Upload:
        """Begin an upload."""
        self._connection.execute(
            sa.insert(uploads).values(
                id=upload,
                model_id=model.id,
                state=UploadState.OPEN.value,
                actor=actor,
                length=length,
                offset=0,
                digest=digest,
                media=media,
                metadata=metadata,
                created_at=self._now,
                expires_at=expires_at,
            )
        )
        return self.get(upload)

    def get(self, upload: str) -> Upload:
        """One upload.

        Raises:
            UnknownUpload: there is none of this id.
        """
        query = sa.select(*_COLUMNS).join(models, models.c.id == uploads.c.model_id).where(uploads.c.id == upload)
        # What cannot be an id is never sent to the database: PostgreSQL takes no NUL.
        row = self._connection.execute(query).mappings().one_or_none() if _ID.fullmatch(upload) else None
        if row is None:
            raise UnknownUpload(f"there is no upload {upload[:40]!r}: it was removed or has expired; begin a new one")
        return Upload(**{**row, "state": UploadState(row["state"])})

    def advance(
        self, upload: str, offset: int, expires_at: datetime, *, length: int | None = None, complete: bool = False
    ) -> Upload:
        """Record how many bytes are durable.

        Args:
            length: of the whole, where it has become known.
            complete: whether that is all of it.

        Raises:
            UnknownUpload: it was removed meanwhile.
        """
        values: dict[str, Any] = {"offset": offset, "expires_at": expires_at}
        if length is not None:
            values["length"] = length
        if complete:
            values["state"] = UploadState.COMPLETE.value
        self._connection.execute(
            sa.update(uploads)
            .where(uploads.c.id == upload, uploads.c.state == UploadState.OPEN.value, uploads.c.offset <= offset)
            .values(values)
        )
        return self.get(upload)

    def settle(
        self, upload: str, *, megabatch: int | None, problem: Mapping[str, Any] | None, expires_at: datetime
    ) -> Upload:
        """Record what became of a complete upload: a megabatch, or a refusal. The first outcome stays."""
        state = UploadState.REFUSED if megabatch is None else UploadState.ACCEPTED
        self._connection.execute(
            sa.update(uploads)
            .where(uploads.c.id == upload, uploads.c.state == UploadState.COMPLETE.value)
            .values(
                state=state.value,
                megabatch=megabatch,
                problem=None if problem is None else dict(problem),
                expires_at=expires_at,
            )
        )
        return self.get(upload)

    def remove(self, upload: str) -> None:
        """Forget an upload; without effect when it is forgotten already."""
        self._connection.execute(sa.delete(uploads).where(uploads.c.id == upload))

    def unfinished(self, model: Model) -> int:
        """How many uploads of a model have no outcome yet."""
        query = sa.select(sa.func.count()).select_from(uploads)
        return self._count(query.where(uploads.c.model_id == model.id, uploads.c.state.in_(_UNFINISHED)))

    def staged_bytes(self) -> int:
        """Bytes that all unfinished uploads come to: by declared length, or as many as are there."""
        size = sa.func.coalesce(uploads.c.length, uploads.c.offset)
        query = sa.select(sa.func.coalesce(sa.func.sum(size), 0)).where(uploads.c.state.in_(_UNFINISHED))
        return self._count(query)

    def expired(self, limit: int) -> list[str]:
        """Uploads whose time is up, oldest first."""
        query = sa.select(uploads.c.id).where(uploads.c.expires_at <= self._now).order_by(uploads.c.expires_at)
        return list(self._connection.execute(query.limit(limit)).scalars())

    def known(self) -> set[str]:
        """The ids of all uploads."""
        return set(self._connection.execute(sa.select(uploads.c.id)).scalars())

    def _count(self, query: sa.Select[Any]) -> int:
        return int(self._connection.execute(query).scalar_one())
