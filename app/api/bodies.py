"""Bodies: raw bytes of a request on their way to a file.

Knows: how a body arrives, what its headers declare, when it is too large or too slow. Must never know: what the bytes
mean, or what becomes of them.

Laws:
    * What can be refused from the headers is refused before a byte of the body is read.
    * A process holds two mebibytes of a body at most, whatever its size: one is written while the next one comes.
    * An upload that ends in any other way than in ``blobs.keep`` leaves nothing in staging.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.api.dependencies import ModelDep, SettingsDep, StoreDep
from app.api.problems import MALFORMED_HEADER, TOO_SLOW, UNSUPPORTED_MEDIA, HttpProblem
from app.config import Settings
from app.domain import Digest
from app.errors import DigestMismatch, EspalierError, LengthMismatch, UploadTooLarge
from app.intake.formats import MEDIA_TYPES
from app.service.evaluation import require_input
from app.store.blobs import Staged
from app.store.database import Store

CONTENT = "espalier.content"
"""Where a received body leaves its digest in an ASGI scope."""

OCTETS = "application/octet-stream"
UPLOAD_TYPES = (OCTETS, *MEDIA_TYPES)
WEIGHT_TYPES = (OCTETS, "application/x-safetensors")

STALL_SECONDS = 60.0
"""An upload that sends nothing for this long is given up, so that staged bytes and connections do not pile up."""

APPEND_STALL_SECONDS = 15.0
"""The same for a part of a resumable upload: it keeps what came, and must not keep out whoever resumes it."""

RATE_SECONDS = 30.0
"""The window over which the slowest rate is taken; whoever has sent for less has time to become faster."""

_WRITE_BYTES = 1024 * 1024


# -- headers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declared:
    """What an upload's headers say about its body."""

    length: int | None
    digest: Digest | None
    media: str | None


ContentDigest = Annotated[
    str | None,
    Header(
        description="SHA-256 of the body (RFC 9530); a body with another one is refused.",
        examples=["sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"],
    ),
]


def declared_upload(request: Request, settings: SettingsDep, content_digest: ContentDigest = None) -> Declared:
    """Check the headers of an upload of examples.

    Raises:
        HttpProblem: 415 for a form, JSON or compressed body; 400 for a header that cannot be read.
        UploadTooLarge: the declared length is over the limit.
    """
    return _declared(request, settings, content_digest, UPLOAD_TYPES)


def declared_weights(request: Request, settings: SettingsDep, content_digest: ContentDigest = None) -> Declared:
    """``declared_upload`` for a safetensors file."""
    return _declared(request, settings, content_digest, WEIGHT_TYPES)


def _declared(request: Request, settings: Settings, digest: str | None, taken: Sequence[str]) -> Declared:
    media = check_media(request.headers.get("content-type"), taken)
    check_encoding(request)
    length = content_length(request)
    if length is not None and length > settings.max_upload_bytes:
        raise too_large(settings)
    return Declared(length, parse_digest("Content-Digest", digest), media)


def check_media(header: str | None, taken: Sequence[str] = UPLOAD_TYPES) -> str | None:
    """The media type of a Content-Type header, without parameters; None where it says nothing.

    Raises:
        HttpProblem: 415, none that is taken.
    """
    media = (header or "").partition(";")[0].strip().lower()
    if media and media not in taken:
        detail = f"{media[:80]} is not taken: send the file's bytes with one of {', '.join(taken)}"
        raise HttpProblem(UNSUPPORTED_MEDIA, detail, headers={"Accept": ", ".join(taken)})
    return None if media in ("", OCTETS) else media


def check_encoding(request: Request) -> None:
    """Refuse a compressed body.

    Raises:
        HttpProblem: 415.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        detail = "send the body as it is, without Content-Encoding: an npz or Parquet file may be compressed inside"
        raise HttpProblem(UNSUPPORTED_MEDIA, detail, headers={"Accept-Encoding": "identity"})


def content_length(request: Request) -> int | None:
    """The declared length of a body.

    Raises:
        HttpProblem: 400, it is no number.
    """
    length = request.headers.get("content-length")
    if length is not None and not re.fullmatch(r"[0-9]{1,18}", length):
        raise HttpProblem(MALFORMED_HEADER, "Content-Length must be the number of bytes of the body")
    return None if length is None else int(length)


def parse_digest(name: str, header: str | None) -> Digest | None:
    """The SHA-256 of a Content-Digest or Repr-Digest header; None when it names other algorithms only, which may be
    ignored.

    Raises:
        HttpProblem: 400, the value is not 32 bytes in base64 between colons.
    """
    for member in (header or "").split(","):
        algorithm, _, value = member.strip().partition("=")
        if algorithm.strip().lower() != "sha-256":
            continue
        found = re.fullmatch(r":([A-Za-z0-9+/]{43}=):\s*(;.*)?", value)
        if found is None:
            detail = f"{name} must be sha-256=:<base64 of the 32 bytes>:, as RFC 9530 says"
            raise HttpProblem(MALFORMED_HEADER, detail)
        return "sha256:" + base64.b64decode(found[1]).hex()
    return None


def prefers_async(request: Request) -> bool:
    """Whether the client would rather have 202 than wait (RFC 7240)."""
    asked = ",".join(request.headers.getlist("prefer"))
    return any(part.partition(";")[0].strip().lower() == "respond-async" for part in asked.split(","))


def too_large(settings: Settings) -> UploadTooLarge:
    """What a body over the limit is refused with."""
    return UploadTooLarge(
        f"a body may have at most {settings.max_upload_bytes} bytes here: send smaller megabatches, "
        "or raise ESPALIER_MAX_UPLOAD_BYTES on the server"
    )


# -- bytes -------------------------------------------------------------------------------------------------------------


async def pour(
    request: Request,
    write: Callable[[Sequence[bytes]], None],
    *,
    most: int,
    over: Callable[[], EspalierError],
    settings: Settings,
    stall: float | None = None,
) -> int:
    """Hand a body to ``write``, a mebibyte at a time and in a thread, while the next mebibyte comes: polls go on.

    Args:
        most: how many bytes are taken; ``over`` makes the error for the one beyond.
        stall: seconds without a byte after which the body is given up; ``STALL_SECONDS`` by default.

    Returns:
        How many bytes came.

    Raises:
        HttpProblem: 408, nothing came for so long, or too little in ``RATE_SECONDS``.
        ClientDisconnect: the client went away. What came before either has been written.
    """
    hand, patience = _Hand(write), STALL_SECONDS if stall is None else stall
    size, held, waiting = 0, 0, list[bytes]()
    slow = _Pace(settings.min_upload_bytes_per_second)
    try:
        with anyio.move_on_after(patience) as stalling:
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect()
                block, more = message.get("body", b""), message.get("more_body", False)
                size, held = size + len(block), held + len(block)
                if size > most:
                    raise over()
                waiting.append(block)
                if held >= _WRITE_BYTES or not more:
                    stalling.deadline = float("inf")  # a slow disk is not the client's fault
                    await hand.over(waiting)
                    held, waiting = 0, []
                slow.look(size)
                stalling.deadline = anyio.current_time() + patience
        if stalling.cancelled_caught:
            raise HttpProblem(TOO_SLOW, f"nothing arrived for {patience:.0f} s: {_GO_ON}")
    finally:
        with anyio.CancelScope(shield=True):
            await hand.over(waiting)
            await hand.empty()
    return size


_GO_ON = "send the body again; a resumable upload goes on from its offset"


class _Hand:
    """Writes one batch in a thread while the next one is received; after an error it writes nothing more."""

    def __init__(self, write: Callable[[Sequence[bytes]], None]) -> None:
        self._write = write
        self._task: asyncio.Task[None] | None = None
        self._failed = False

    async def over(self, blocks: Sequence[bytes]) -> None:
        await self.empty()
        if blocks and not self._failed:
            self._task = asyncio.ensure_future(run_in_threadpool(self._write, blocks))

    async def empty(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._failed = True
            await task
            self._failed = False


class _Pace:
    """Whether a client keeps up with the slowest rate that is waited for."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._since, self._before = anyio.current_time(), 0

    def look(self, size: int) -> None:
        """Look at how many bytes have come, once in a window.

        Raises:
            HttpProblem: 408, too few.
        """
        seconds = anyio.current_time() - self._since
        if seconds < RATE_SECONDS:
            return
        if size - self._before < self._rate * seconds:
            raise HttpProblem(TOO_SLOW, f"fewer than {self._rate} bytes a second arrived: {_GO_ON}")
        self._since, self._before = anyio.current_time(), size


# -- whole bodies ------------------------------------------------------------------------------------------------------


async def received_weights(
    request: Request, settings: SettingsDep, store: StoreDep, declared: Annotated[Declared, Depends(declared_weights)]
) -> AsyncIterator[Staged]:
    """The body, streamed to disk under the limit, hashed, and compared with what was declared.

    Raises:
        UploadTooLarge, LengthMismatch, DigestMismatch, StorageFull: nothing is left in staging.
    """
    async with _received(request, settings, store, declared) as staged:
        yield staged


async def received_megabatch(
    model: ModelDep,
    request: Request,
    settings: SettingsDep,
    store: StoreDep,
    declared: Annotated[Declared, Depends(declared_upload)],
) -> AsyncIterator[Staged]:
    """``received_weights`` for examples, and a model that is known to exist before the body is read."""
    async with _received(request, settings, store, declared) as staged:
        yield staged


async def received_evaluation(
    model: ModelDep,
    request: Request,
    settings: SettingsDep,
    store: StoreDep,
    declared: Annotated[Declared, Depends(declared_upload)],
) -> AsyncIterator[Staged]:
    """``received_megabatch`` for a model whose input is known before the body is read.

    Raises:
        InputUnknown: it is not.
    """
    require_input(model.model)
    async with _received(request, settings, store, declared) as staged:
        yield staged


def upload_media(declared: Annotated[Declared, Depends(declared_upload)]) -> str | None:
    """The media type that an upload of examples declares, if it says more than that it is bytes."""
    return declared.media


WeightsUpload = Annotated[Staged, Depends(received_weights, scope="function")]
MegabatchUpload = Annotated[Staged, Depends(received_megabatch, scope="function")]
EvaluationUpload = Annotated[Staged, Depends(received_evaluation, scope="function")]
UploadMedia = Annotated[str | None, Depends(upload_media)]


@asynccontextmanager
async def _received(
    request: Request, settings: Settings, store: Store, declared: Declared
) -> AsyncGenerator[Staged, None]:
    await run_in_threadpool(store.partials.require_space, declared.length or 0)
    with store.blobs.receiver(settings.max_upload_bytes) as receiver:

        def write(blocks: Sequence[bytes]) -> None:
            for block in blocks:
                receiver.write(block)

        size = await pour(
            request, write, most=settings.max_upload_bytes, over=lambda: too_large(settings), settings=settings
        )
        if declared.length is not None and size != declared.length:
            raise LengthMismatch(
                f"{size} bytes arrived, {declared.length} were declared in Content-Length: send the body again"
            )
        staged = await run_in_threadpool(receiver.finish)
        if declared.digest is not None and staged.digest != declared.digest:
            raise DigestMismatch(
                f"the body hashes to {staged.digest}, but Content-Digest says {declared.digest}: send it again"
            )
        request.scope[CONTENT] = staged.digest
        yield staged
