"""Uploads: bytes that come over as many requests as it takes, and then become a megabatch, once.

Knows: how many uploads a deployment allows, when their bytes count as received, what is left to do when a process was
killed in between. Must never know: HTTP, or which protocol the bytes came by.

Laws:
    * Only bytes that are durable are acknowledged: fsync first, then the row.
    * An upload that is complete becomes exactly one megabatch, whoever finishes it and however often that was tried:
      one process at a time holds its file, and the same decoded arrays are one megabatch.
    * A refusal of the content is final and remembered; trouble of the service is not, and is tried again.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from app import crash, errors
from app.config import Settings
from app.domain import Actor, Cycle, Digest, Upload, UploadState
from app.errors import (
    BadInput,
    ChecksumMismatch,
    Conflict,
    DigestMismatch,
    EspalierError,
    InvalidMegabatch,
    LengthMismatch,
    MissingBlob,
    NotFound,
    OffsetMismatch,
    TooManyUploads,
    UploadBusy,
    UploadClosed,
    UploadExpired,
    UploadTooLarge,
)
from app.intake.arrays import Limits
from app.service.ingest import accept_megabatch
from app.store.blobs import Staged
from app.store.database import Store, Transaction
from app.store.staging import Part

RECORD_BYTES = 32 * 1024 * 1024
"""How many bytes a killed process can make a client send again."""

_SWEEP = 500
_SYSTEM = Actor("uploads")


@dataclass(frozen=True, slots=True)
class Described:
    """What a client says about an upload before its bytes come."""

    length: int | None = None
    digest: Digest | None = None
    media: str | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """An upload as it stands; with the cycle that its megabatch set off and whether that was new, if this very call
    finished it.
    """

    upload: Upload
    cycle: Cycle | None = None
    new: bool = False


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a part must hash to."""

    algorithm: str
    digest: bytes


def create_upload(store: Store, name: str, told: Described, *, settings: Settings, actor: Actor) -> Upload:
    """Begin an upload.

    Raises:
        UnknownModel, UploadTooLarge, TooManyUploads, StorageFull: nothing was begun.
    """
    _check_length(told.length, settings)
    store.partials.require_space(told.length or 0)
    upload = secrets.token_hex(16)
    forget_expired(store)
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        _check_quota(tx, tx.uploads.unfinished(model), told.length or 0, settings)
        created = tx.uploads.create(
            upload,
            model,
            actor=actor.name,
            length=told.length,
            digest=told.digest,
            media=told.media,
            metadata=told.metadata,
            expires_at=_expiry(tx, settings),
        )
        store.partials.create(upload)  # before the row is seen; without its row, the sweep takes it
    return created


def adopt_upload(
    store: Store, name: str, staged: Staged, *, media: str | None, settings: Settings, actor: Actor
) -> Upload:
    """Make a body that was received whole an upload that is complete: it is decoded afterwards.

    Raises:
        UnknownModel, TooManyUploads: nothing was begun.
    """
    upload = secrets.token_hex(16)
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        _check_quota(tx, tx.uploads.unfinished(model), staged.size, settings)
        expires_at = _expiry(tx, settings)
        tx.uploads.create(
            upload,
            model,
            actor=actor.name,
            length=staged.size,
            digest=staged.digest,
            media=media,
            metadata=None,
            expires_at=expires_at,
        )
        store.partials.adopt(upload, staged)
        return tx.uploads.advance(upload, staged.size, expires_at, complete=True)


def get_upload(store: Store, upload: str) -> Upload:
    """An upload as it stands.

    Raises:
        UnknownUpload, UploadExpired: it is gone.
    """
    with store.reading() as tx:
        found = tx.uploads.get(upload)
        if found.expires_at <= tx.now:
            raise UploadExpired(f"upload {upload} was left alone for too long and is given up: begin a new one")
    return found


def remove_upload(store: Store, upload: str, *, actor: Actor) -> None:
    """Give an upload up, or forget its outcome; its megabatch, if it became one, stays.

    Raises:
        UnknownUpload: there is none.
    """
    with store.transaction(actor) as tx:
        tx.uploads.get(upload)
        tx.uploads.remove(upload)
    store.partials.remove(upload)


class Appending:
    """One request's share of an upload, written as it comes."""

    def __init__(self, store: Store, upload: Upload, part: Part, settings: Settings, recorder: Executor | None) -> None:
        self.upload = upload
        self._store, self._part, self._settings = store, part, settings
        self._recorder = recorder
        self._recording: Future[Upload] | None = None
        self._asked = upload.offset

    @property
    def most(self) -> int:
        """How many bytes the whole upload may come to."""
        return self._settings.max_upload_bytes if self.upload.length is None else self.upload.length

    @property
    def content(self) -> Digest | None:
        """Of all bytes from the upload's first on, where this process has followed them."""
        return None if self._part.state is None else f"sha256:{self._part.state.hexdigest()}"

    def write(self, blocks: Sequence[bytes]) -> None:
        """Append; every ``RECORD_BYTES`` are made durable and recorded, while the next ones come.

        Raises:
            StorageFull, UnknownUpload: what was recorded before stays, where the upload itself is still there.
        """
        self._part.write(blocks)
        waiting = self._part.offset - self._asked
        if self._recorder is None or waiting < RECORD_BYTES:
            return
        if waiting >= 2 * RECORD_BYTES or self._recording is None or self._recording.done():
            self._join()
            self._asked = self._part.offset
            self._recording = self._recorder.submit(self._record)

    def record(self, *, complete: bool = False) -> Upload:
        """Make what was appended durable, then say so in the row.

        Args:
            complete: whether the client says that this is all of it.
        """
        self._join()
        return self._record(complete=complete)

    def _join(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.result()

    def _record(self, *, complete: bool = False) -> Upload:
        offset = self._part.sync()
        crash.point("upload.appended")
        length = offset if complete else None
        with self._store.transaction(_SYSTEM) as tx:
            self.upload = tx.uploads.advance(
                self.upload.id, offset, _expiry(tx, self._settings), length=length, complete=complete
            )
        crash.point("upload.counted")
        return self.upload

    def check(self, checksum: Checksum) -> None:
        """Compare what was appended with its checksum, before any of it is recorded.

        Raises:
            ChecksumMismatch: it has another one; nothing of it is recorded.
        """
        if self._part.digest_since(self.upload.offset, checksum.algorithm) != checksum.digest:
            raise ChecksumMismatch(
                f"the part does not have the {checksum.algorithm} that Upload-Checksum says: send it again from byte "
                f"{self.upload.offset}"
            )


@contextmanager
def appending(
    store: Store, upload: str, offset: int, *, length: int | None, settings: Settings, steps: bool = True
) -> Iterator[Appending]:
    """Hold an upload, to append to it at its offset.

    Args:
        length: of the whole, where the client says it now.
        steps: False where nothing may be recorded before all of the part was checked.

    Raises:
        UnknownUpload, UploadExpired, UploadClosed, UploadBusy, OffsetMismatch, LengthMismatch, UploadTooLarge,
            StorageFull: nothing was changed.
    """
    with _held(store, upload) as (found, part):
        if found.offset != offset:
            raise OffsetMismatch(found.offset, offset)
        if length is not None and length != found.length:
            found = _lengthened(store, found, length, settings)
        store.partials.require_space((found.length or offset) - offset)
        with ThreadPoolExecutor(1, "upload") as recorder:
            yield Appending(store, found, part, settings, recorder if steps else None)


def finish_upload(store: Store, upload: str, *, limits: Limits, settings: Settings, actor: Actor) -> Outcome:
    """Turn an upload that is complete into a megabatch, or say what became of it.

    Raises:
        UnknownUpload, UploadExpired, UploadBusy: another request is at it.
        Unavailable, Fault: it stays complete; the next one tries again.
    """
    found = get_upload(store, upload)
    try:
        if found.state is UploadState.COMPLETE:
            return _finished(store, upload, limits, settings, actor)
    except MissingBlob:
        found = get_upload(store, upload)  # another request may have finished it, and removed the bytes
        if found.state is UploadState.COMPLETE:
            raise
    return Outcome(found)


def refusal(upload: Upload) -> EspalierError:
    """The error that a refused upload was refused with."""
    problem = upload.problem or {}
    kind = getattr(errors, str(problem.get("error")), BadInput)
    told = str(problem.get("message", ""))
    found = InvalidMegabatch(str(problem["reason"]), told) if kind is InvalidMegabatch else kind(told)
    assert isinstance(found, EspalierError)
    return found


def forget_expired(store: Store) -> int:
    """Give up uploads whose time is up, and forget outcomes and answers that were kept long enough; returns how many
    uploads went.
    """
    with store.reading() as tx:
        expired = tx.uploads.expired(_SWEEP)
    if expired:
        with store.transaction(_SYSTEM) as tx:
            for upload in expired:
                tx.uploads.remove(upload)
        for upload in expired:
            store.partials.remove(upload)
    return len(expired)


def sweep_uploads(store: Store, settings: Settings) -> int:
    """What the clock does about uploads: everything that has expired, and files that no row names.

    Returns:
        How many uploads and files went.
    """
    swept = forget_expired(store)
    with store.transaction(_SYSTEM) as tx:
        tx.replays.sweep()
    with store.reading() as tx:
        known = tx.uploads.known()
        limit = tx.now.timestamp() - settings.orphan_grace_seconds
    strays = store.partials.strays(known, limit)
    for upload in strays:
        store.partials.remove(upload)
    return swept + len(strays)


# -- inside ------------------------------------------------------------------------------------------------------------


@contextmanager
def _held(store: Store, upload: str) -> Iterator[tuple[Upload, Part]]:
    """The upload and its file. The row is read when the lock is held: nobody moves the offset then."""
    _open(get_upload(store, upload))
    with store.partials.held(upload) as file:
        found = _open(get_upload(store, upload))
        with store.partials.appending(upload, file, found.offset) as part:
            yield found, part


def _finished(store: Store, upload: str, limits: Limits, settings: Settings, actor: Actor) -> Outcome:
    with store.partials.held(upload) as file:
        found = get_upload(store, upload)
        if found.state is not UploadState.COMPLETE:
            return Outcome(found)
        staged = store.partials.whole(upload, file, found.offset)
        outcome = _decided(store, found, staged, limits, settings, Actor(found.actor, actor.request_id))
    store.partials.remove(upload)
    return outcome


def _open(upload: Upload) -> Upload:
    if upload.state is not UploadState.OPEN:
        raise UploadClosed(f"upload {upload.id} is complete: nothing can be appended to it")
    return upload


def _lengthened(store: Store, upload: Upload, length: int, settings: Settings) -> Upload:
    """The upload with a length that was left open at first."""
    if upload.length is not None or length < upload.offset:
        raise LengthMismatch(
            f"the upload's length is {upload.length if upload.length is not None else f'at least {upload.offset}'}, "
            f"not {length}: it cannot be changed; begin a new upload"
        )
    _check_length(length, settings)
    with store.transaction(_SYSTEM) as tx:
        _check_quota(tx, 0, length - upload.offset, settings)
        return tx.uploads.advance(upload.id, upload.offset, upload.expires_at, length=length)


def _decided(store: Store, upload: Upload, staged: Staged, limits: Limits, settings: Settings, actor: Actor) -> Outcome:
    try:
        if upload.digest not in (None, staged.digest):
            raise DigestMismatch(
                f"the upload hashes to {staged.digest}, but {upload.digest} was declared: upload it again"
            )
        accepted = accept_megabatch(store, upload.model, staged, limits=limits, actor=actor, media=upload.media)
    except (BadInput, NotFound, Conflict) as error:
        if isinstance(error, UploadBusy):
            raise
        told = {"error": type(error).__name__, "message": str(error), "reason": getattr(error, "reason", None)}
        with store.transaction(actor) as tx:
            return Outcome(tx.uploads.settle(upload.id, megabatch=None, problem=told, expires_at=_expiry(tx, settings)))
    with store.transaction(actor) as tx:
        settled = tx.uploads.settle(
            upload.id, megabatch=accepted.megabatch.number, problem=None, expires_at=_expiry(tx, settings)
        )
    return Outcome(settled, accepted.cycle, accepted.new)


def _check_length(length: int | None, settings: Settings) -> None:
    if length is not None and length > settings.max_upload_bytes:
        raise UploadTooLarge(
            f"an upload may have at most {settings.max_upload_bytes} bytes here: send smaller megabatches, "
            "or raise ESPALIER_MAX_UPLOAD_BYTES on the server"
        )


def _check_quota(tx: Transaction, unfinished: int, length: int, settings: Settings) -> None:
    if unfinished >= settings.max_open_uploads:
        raise TooManyUploads(
            f"{unfinished} uploads of this model are unfinished, which is the limit: finish or delete one, "
            "or raise ESPALIER_MAX_OPEN_UPLOADS on the server"
        )
    staged = tx.uploads.staged_bytes()
    if staged + length > settings.max_staged_bytes:
        raise TooManyUploads(
            f"{staged} bytes of unfinished uploads are staged, and {length} more would be over the limit of "
            f"{settings.max_staged_bytes}: try again when others have ended"
        )


def _expiry(tx: Transaction, settings: Settings) -> datetime:
    return tx.now + timedelta(seconds=settings.upload_expiry_seconds)
