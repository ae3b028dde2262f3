"""Dependencies: what a route asks for by type.

Knows: how a request carries its actor, its body, its cursor and its preconditions. Must never know: what a use case
does with them.

Laws:
    * What can be refused from the headers is refused before a byte of the body is read.
    * An upload that ends in any other way than in ``blobs.keep`` leaves nothing in staging.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import Depends, Header, Path, Query, Request
from fastapi.concurrency import run_in_threadpool

from app.api.problems import MALFORMED_HEADER, REQUEST_ID, TOO_SLOW, UNSUPPORTED_MEDIA, HttpProblem
from app.config import Settings
from app.domain import Actor, Digest
from app.errors import DigestMismatch, InvalidCursor, LengthMismatch, PreconditionMissing, UploadTooLarge
from app.service.evaluation import require_input
from app.service.models import ModelSummary, describe_model
from app.store.blobs import Receiver, Staged
from app.store.database import Store

ACTOR = "espalier.actor"
"""Where the edge leaves the actor's name in an ASGI scope."""

UPLOAD_TYPES = ("application/octet-stream", "application/x-npz", "application/zip")
STALL_SECONDS = 60.0
"""An upload that sends nothing for this long is given up, so that staged bytes and connections do not pile up."""

MAX_NUMBER = 2**31 - 1
_WRITE_BYTES = 1024 * 1024

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"

ModelName = Annotated[
    str, Path(alias="model", pattern=NAME_PATTERN, description="Name of a model.", examples=["gas-sensors"])
]
Number = Annotated[
    int, Path(alias="number", ge=0, le=MAX_NUMBER, description="Number, counted per model.", examples=[1])
]
VersionRef = Annotated[
    str,
    Path(
        alias="ref",
        pattern=r"^([0-9]{1,9}|[a-z][a-z0-9-]{0,62})$",
        description="Number of a version, or an alias: `champion`, `latest`.",
        examples=["champion"],
    ),
]
AliasName = Annotated[
    str, Path(alias="alias", pattern=NAME_PATTERN, description="Name of an alias.", examples=["champion"])
]
Limit = Annotated[int, Query(ge=1, le=1000, description="Items on one page.", examples=[50])]
CursorText = Annotated[
    str | None,
    Query(alias="cursor", max_length=400, description="`next_cursor` of the page before; absent for the first page."),
]


def get_store(request: Request) -> Store:
    """The service's memory, opened with the application."""
    store: Store = request.app.state.store
    return store


def get_settings(request: Request) -> Settings:
    """The deployment's settings, as ``create_app`` got them."""
    settings: Settings = request.app.state.settings
    return settings


def get_actor(request: Request) -> Actor:
    """Who asks: the name that the edge checked, and the request's id."""
    return Actor(request.scope[ACTOR], request.scope[REQUEST_ID])


StoreDep = Annotated[Store, Depends(get_store)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
ActorDep = Annotated[Actor, Depends(get_actor)]


def known_model(name: ModelName, store: StoreDep) -> ModelSummary:
    """The model of the path.

    Raises:
        UnknownModel: before anything else of the request is looked at.
    """
    return describe_model(store, name)


ModelDep = Annotated[ModelSummary, Depends(known_model)]


# -- conditions --------------------------------------------------------------------------------------------------------


def alias_revision(
    if_match: Annotated[
        str | None,
        Header(
            description="The alias's revision as it was seen: the ETag of `GET .../aliases/champion`.", examples=['"3"']
        ),
    ] = None,
) -> int:
    """The revision that a move of the champion compares.

    Raises:
        PreconditionMissing: no If-Match.
        HttpProblem: 400, anything but one strong entity tag with a number in it.
    """
    remedy = 'send the ETag of GET .../aliases/champion, such as If-Match: "3" ("0" while there is no champion)'
    if if_match is None:
        raise PreconditionMissing(f"a move of the champion must say which state of it was seen: {remedy}")
    found = re.fullmatch(r'\s*"([0-9]{1,9})"\s*', if_match)
    if found is None:
        raise HttpProblem(MALFORMED_HEADER, f"If-Match must be one revision of the alias, in double quotes: {remedy}")
    return int(found[1])


AliasRevision = Annotated[int, Depends(alias_revision)]


# -- cursors -----------------------------------------------------------------------------------------------------------


def encode_cursor(listing: str, key: object) -> str:
    """An opaque cursor: the key to go on from, and the listing that it belongs to."""
    return base64.urlsafe_b64encode(f"{listing}:{key}".encode()).decode().rstrip("=")


def decode_cursor(listing: str, cursor: str | None) -> str | None:
    """The key of a cursor.

    Raises:
        InvalidCursor: not made by this listing.
    """
    if cursor is None:
        return None
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        kind, colon, key = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii").partition(":")
    except (ValueError, binascii.Error):
        kind, colon, key = "", "", ""
    if kind != listing or not colon or not re.fullmatch(r"[a-z0-9-]{1,63}", key):
        raise InvalidCursor("the cursor was not made by this listing: leave it out to begin with the first page")
    return key


def decode_number(listing: str, cursor: str | None) -> int | None:
    """The key of a cursor whose listing goes by numbers.

    Raises:
        InvalidCursor: not made by this listing.
    """
    key = decode_cursor(listing, cursor)
    if key is not None and not (key.isdecimal() and int(key) <= MAX_NUMBER):
        raise InvalidCursor("the cursor was not made by this listing: leave it out to begin with the first page")
    return None if key is None else int(key)


# -- uploads -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declared:
    """What an upload's headers say about its body."""

    length: int | None
    digest: Digest | None


def declared_upload(
    request: Request,
    settings: SettingsDep,
    content_digest: Annotated[
        str | None,
        Header(
            description="SHA-256 of the body (RFC 9530); a body with another one is refused.",
            examples=["sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"],
        ),
    ] = None,
) -> Declared:
    """Check an upload's headers.

    Raises:
        HttpProblem: 415 for a form, JSON or compressed body; 400 for a header that cannot be read.
        UploadTooLarge: the declared length is over the limit.
    """
    headers = request.headers
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media and media not in UPLOAD_TYPES:
        detail = f"{media[:80]} is not taken: send the file's bytes with `Content-Type: application/octet-stream`"
        raise HttpProblem(UNSUPPORTED_MEDIA, detail, headers={"Accept": ", ".join(UPLOAD_TYPES)})
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        detail = "send the body as it is, without Content-Encoding: an npz file may be compressed inside"
        raise HttpProblem(UNSUPPORTED_MEDIA, detail, headers={"Accept-Encoding": "identity"})
    length = headers.get("content-length")
    if length is not None and not re.fullmatch(r"[0-9]{1,18}", length):
        raise HttpProblem(MALFORMED_HEADER, "Content-Length must be the number of bytes of the body")
    if length is not None and int(length) > settings.max_upload_bytes:
        raise _over(settings)
    return Declared(None if length is None else int(length), parse_content_digest(content_digest))


def parse_content_digest(header: str | None) -> Digest | None:
    """The SHA-256 of a Content-Digest header; None when it names other algorithms only, which may be ignored.

    Raises:
        HttpProblem: 400, the value is not 32 bytes in base64 between colons.
    """
    for member in (header or "").split(","):
        name, _, value = member.strip().partition("=")
        if name.strip().lower() != "sha-256":
            continue
        found = re.fullmatch(r":([A-Za-z0-9+/]{43}=):\s*(;.*)?", value)
        if found is None:
            detail = "Content-Digest must be sha-256=:<base64 of the 32 bytes>:, as RFC 9530 says"
            raise HttpProblem(MALFORMED_HEADER, detail)
        return "sha256:" + base64.b64decode(found[1]).hex()
    return None


async def received_body(
    request: Request, settings: SettingsDep, store: StoreDep, declared: Annotated[Declared, Depends(declared_upload)]
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
    """``received_body`` for a model that is known to exist before the body is read."""
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


Upload = Annotated[Staged, Depends(received_body, scope="function")]
MegabatchUpload = Annotated[Staged, Depends(received_megabatch, scope="function")]
EvaluationUpload = Annotated[Staged, Depends(received_evaluation, scope="function")]


@asynccontextmanager
async def _received(
    request: Request, settings: Settings, store: Store, declared: Declared
) -> AsyncGenerator[Staged, None]:
    with store.blobs.receiver(settings.max_upload_bytes) as receiver:
        size = await _write(request, receiver, settings)
        if declared.length is not None and size != declared.length:
            raise LengthMismatch(
                f"{size} bytes arrived, {declared.length} were declared in Content-Length: send the body again"
            )
        staged = await run_in_threadpool(receiver.finish)
        if declared.digest is not None and staged.digest != declared.digest:
            raise DigestMismatch(
                f"the body hashes to {staged.digest}, but Content-Digest says {declared.digest}: send it again"
            )
        yield staged


async def _write(request: Request, receiver: Receiver, settings: Settings) -> int:
    """Write the body as it comes, a mebibyte at a time and off the event loop: polls go on meanwhile."""
    stream = request.stream()
    size, held, waiting = 0, 0, list[bytes]()
    while True:
        try:
            with anyio.fail_after(STALL_SECONDS):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise HttpProblem(TOO_SLOW, f"nothing arrived for {STALL_SECONDS:.0f} s: send the body again") from None
        if chunk:
            size, held = size + len(chunk), held + len(chunk)
            if size > settings.max_upload_bytes:
                raise _over(settings)
            waiting.append(chunk)
        if waiting and (chunk is None or held >= _WRITE_BYTES):
            await run_in_threadpool(receiver.write, b"".join(waiting))
            held, waiting = 0, []
        if chunk is None:
            return size


def _over(settings: Settings) -> UploadTooLarge:
    return UploadTooLarge(
        f"a body may have at most {settings.max_upload_bytes} bytes here: send smaller megabatches, "
        "or raise ESPALIER_MAX_UPLOAD_BYTES on the server"
    )
