"""Uploads: bytes on their way to a megabatch.

Knows: how a resumable upload and its outcome look. Must never know: which protocol its bytes came by.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field

from app import domain
from app.api.problems import kind_of
from app.api.schemas.wire import DIGEST, TIME, Digest, Time, example
from app.service.uploads import refusal

_UPLOAD = {
    "id": "5c1f0f0e3d7a4f8e9b1d2c3a4b5c6d7e",
    "model": "gas-sensors",
    "state": "accepted",
    "offset": 268_435_456,
    "length": 268_435_456,
    "digest": DIGEST,
    "media_type": None,
    "megabatch": 5,
    "problem": None,
    "created_at": TIME,
    "expires_at": "2026-03-03T09:30:00Z",
}


class Refusal(BaseModel):
    """Why an upload did not become a megabatch: the problem that a request of its own would have been answered with."""

    type: str = Field(description="Stable URI of the kind of problem; programs compare this.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="HTTP status code.")
    detail: str = Field(description="What is wrong, and what to do.")
    reason: str | None = Field(None, description="A stable word for why it was refused, such as `not-npz`.")

    @classmethod
    def from_domain(cls, upload: domain.Upload) -> Self:
        """Of a refused upload."""
        error = refusal(upload)
        kind = kind_of(type(error))
        reason = getattr(error, "reason", None)
        return cls(type=kind.type, title=kind.title, status=kind.status, detail=str(error), reason=reason)


class Upload(BaseModel):
    """An upload that may take several requests."""

    model_config = example(_UPLOAD)

    id: str = Field(description="Id, which nobody can guess.")
    model: str = Field(description="Name of the model.")
    state: domain.UploadState = Field(
        description="`open`: bytes are missing. `complete`: it is being decoded. `accepted`: it is a megabatch. "
        "`refused`: `problem` says why."
    )
    offset: int = Field(description="Bytes that are durable; it goes on from here.")
    length: int | None = Field(description="Bytes of the whole; null until that is known.")
    digest: Digest | None = Field(description="Of the whole, where it was declared.")
    media_type: str | None = Field(description="Of the whole, where it was declared.")
    megabatch: int | None = Field(description="Number of the megabatch that it became.")
    problem: Refusal | None = Field(description="Why it was refused.")
    created_at: Time = Field(description="When it was begun.")
    expires_at: Time = Field(description="When it is given up, or forgotten.")

    @classmethod
    def from_domain(cls, upload: domain.Upload) -> Self:
        """From the domain's value."""
        return cls(
            id=upload.id,
            model=upload.model,
            state=upload.state,
            offset=upload.offset,
            length=upload.length,
            digest=upload.digest,
            media_type=upload.media,
            megabatch=upload.megabatch,
            problem=Refusal.from_domain(upload) if upload.state is domain.UploadState.REFUSED else None,
            created_at=upload.created_at,
            expires_at=upload.expires_at,
        )
