"""Resumable: what the two protocols of resumable uploads say in headers; one implementation stands behind both.

Knows: tus 1.0.0 (https://tus.io/protocols/resumable-upload, with creation, creation-with-upload, creation-defer-length,
checksum, expiration and termination), and draft-ietf-httpbis-resumable-upload. Must never know: where bytes go.

Law: a request with ``Tus-Resumable`` is tus; every other one is the draft's. Both see the same upload, and may take
turns on it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from email.utils import format_datetime
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers

from app.api.bodies import check_encoding, check_media, content_length, parse_digest, too_large
from app.api.problems import (
    COMPLETED_UPLOAD,
    INCONSISTENT_LENGTH,
    MALFORMED_HEADER,
    MISMATCHING_OFFSET,
    REQUEST_ID,
    TUS_VERSION,
    UNSUPPORTED_MEDIA,
    HttpProblem,
    problem_response,
)
from app.api.strict_json import JsonRoute
from app.config import Settings
from app.domain import Digest, Upload, UploadState
from app.errors import EspalierError, LengthMismatch, OffsetMismatch, UploadClosed, UploadTooLarge
from app.service.uploads import Checksum, Described

TUS = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,creation-defer-length,checksum,expiration,termination"
ALGORITHMS = {"sha256": 32, "sha1": 20}
"""Checksums of parts, with their bytes."""

TUS_PART = "application/offset+octet-stream"
PARTIAL = "application/partial-upload"
MEGABATCH = "Espalier-Megabatch"

_MOST_METADATA = 4096


@dataclass(frozen=True, slots=True)
class Part:
    """What a request says about the bytes that it carries.

    Attributes:
        length: of the whole upload, where it is said.
        last: whether the upload is complete with these bytes; None where its length alone decides that.
        empty: whether the request says that it carries nothing.
    """

    offset: int
    length: int | None
    last: bool | None
    checksum: Checksum | None
    empty: bool


def is_tus(headers: Headers) -> bool:
    """Whether a request is of tus.

    Raises:
        HttpProblem: 412, of a version that is not spoken here.
    """
    version = headers.get("tus-resumable")
    if version is None and headers.get("content-type", "").startswith(TUS_PART):
        raise HttpProblem(TUS_VERSION, f"send the header Tus-Resumable: {TUS}", headers={"Tus-Version": TUS})
    if version not in (None, TUS):
        raise HttpProblem(
            TUS_VERSION, f"tus {TUS} is spoken here: send Tus-Resumable: {TUS}", headers={"Tus-Version": TUS}
        )
    return version is not None


# -- what requests say -------------------------------------------------------------------------------------------------


def creation(request: Request, settings: Settings) -> tuple[Described, Part | None]:
    """What a request that begins an upload says about the whole, and about the first part, if it carries one.

    Raises:
        HttpProblem: 400, 412 or 415. UploadTooLarge: by the declared length.
    """
    told, part = (_tus_creation if is_tus(request.headers) else _draft_creation)(request)
    if told.length is not None and told.length > settings.max_upload_bytes:
        raise too_large(settings)
    return told, part


def append(request: Request) -> Part:
    """What a request that goes on with an upload says about its part.

    Raises:
        HttpProblem: 400, 412 or 415.
    """
    headers = request.headers
    tus = is_tus(headers)
    taken = TUS_PART if tus else PARTIAL
    if headers.get("content-type", "").partition(";")[0].strip().lower() != taken:
        detail = f"send the part with `Content-Type: {taken}`"
        raise HttpProblem(UNSUPPORTED_MEDIA, detail, headers={"Accept-Patch": taken})
    offset = _number(headers, "Upload-Offset")
    if offset is None:
        raise HttpProblem(MALFORMED_HEADER, "Upload-Offset is missing: say at which byte the part begins")
    size = content_length(request)
    if tus:
        return Part(offset, _number(headers, "Upload-Length"), None, _checksum(headers), size == 0)
    last = _complete(headers)
    if last is None:
        raise HttpProblem(MALFORMED_HEADER, "Upload-Complete is missing: ?1 with the last part, ?0 before")
    return Part(offset, _draft_length(headers, offset, size, last), last, None, size == 0)


def _tus_creation(request: Request) -> tuple[Described, Part | None]:
    headers = request.headers
    length, defer = _number(headers, "Upload-Length"), headers.get("upload-defer-length")
    if (length is None) == (defer is None) or defer not in (None, "1"):
        raise HttpProblem(MALFORMED_HEADER, "send either Upload-Length, or Upload-Defer-Length: 1")
    raw = headers.get("upload-metadata") or None
    said = _metadata(raw)
    part = None
    if headers.get("content-type", "").startswith(TUS_PART):
        part = Part(0, None, None, _checksum(headers), content_length(request) == 0)
    kind = said.get("filetype") or said.get("type") or said.get("content_type")
    digest = _hex_digest(said.get("sha256")) or _whole_digest(headers)
    return Described(length, digest, _known_media(kind), raw), part


def _draft_creation(request: Request) -> tuple[Described, Part | None]:
    headers = request.headers
    last = _complete(headers)
    if last is None:
        detail = (
            f"say how the upload goes on: Tus-Resumable: {TUS} (tus), or Upload-Complete: ?0 (the IETF draft); "
            "to send a megabatch in one request, post it to .../megabatches"
        )
        raise HttpProblem(MALFORMED_HEADER, detail, headers={"Tus-Version": TUS})
    check_encoding(request)
    media = check_media(headers.get("content-type"))
    size = content_length(request)
    length = _draft_length(headers, 0, size, last)
    return Described(length, _whole_digest(headers, whole=last), media), Part(0, None, last, None, size == 0)


def _draft_length(headers: Headers, offset: int, size: int | None, last: bool) -> int | None:
    """The length of the whole, by either way of saying it (section "Length" of the draft).

    Raises:
        HttpProblem: 400, they contradict each other.
    """
    said = _number(headers, "Upload-Length")
    implied = offset + size if last and size is not None else None
    if None not in (said, implied) and said != implied:
        detail = f"Upload-Length says {said} bytes, but the upload would have {implied} with this last part"
        raise HttpProblem(INCONSISTENT_LENGTH, detail)
    return said if implied is None else implied


def _complete(headers: Headers) -> bool | None:
    return {"?1": True, "?0": False}.get(headers.get("upload-complete", "").strip())


def _number(headers: Headers, name: str) -> int | None:
    value = headers.get(name)
    if value is not None and not re.fullmatch(r"[0-9]{1,15}", value.strip()):
        raise HttpProblem(MALFORMED_HEADER, f"{name} must be a number of bytes")
    return None if value is None else int(value)


def _metadata(header: str | None) -> dict[str, str]:
    """tus: keys with values in base64, separated by commas."""
    if header is None:
        return {}
    if len(header) > _MOST_METADATA:
        raise HttpProblem(MALFORMED_HEADER, f"Upload-Metadata may have at most {_MOST_METADATA} characters")
    found: dict[str, str] = {}
    for pair in header.split(","):
        key, _, value = pair.strip().partition(" ")
        try:
            found[key] = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            detail = "Upload-Metadata must be keys, each with a value in base64, separated by commas"
            raise HttpProblem(MALFORMED_HEADER, detail) from None
    return found


def _known_media(said: str | None) -> str | None:
    """What a tus client's metadata says about the type. Browsers guess it, so one that is not known says nothing."""
    try:
        return check_media(said)
    except HttpProblem:
        return None


def _hex_digest(said: str | None) -> Digest | None:
    if said is None:
        return None
    if not re.fullmatch(r"(sha256:)?[0-9a-fA-F]{64}", said):
        raise HttpProblem(MALFORMED_HEADER, "sha256 in Upload-Metadata must be 64 hexadecimal digits")
    return "sha256:" + said.removeprefix("sha256:").lower()


def _whole_digest(headers: Headers, *, whole: bool = False) -> Digest | None:
    """Of the whole upload: Repr-Digest; Content-Digest too where the request carries all of it."""
    declared = parse_digest("Repr-Digest", headers.get("repr-digest"))
    if declared is None and whole:
        declared = parse_digest("Content-Digest", headers.get("content-digest"))
    return declared


def _checksum(headers: Headers) -> Checksum | None:
    header = headers.get("upload-checksum")
    if header is None:
        return None
    algorithm, _, value = header.strip().partition(" ")
    try:
        digest = base64.b64decode(value.strip(), validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != ALGORITHMS.get(algorithm):
        known = " or ".join(ALGORITHMS)
        detail = f"Upload-Checksum must be {known}, a space, and the part's checksum in base64"
        raise HttpProblem(MALFORMED_HEADER, detail, headers={"Tus-Checksum-Algorithm": ",".join(ALGORITHMS)})
    return Checksum(algorithm, digest)


# -- what answers say --------------------------------------------------------------------------------------------------


def offers(settings: Settings) -> dict[str, str]:
    """What both protocols ask OPTIONS for."""
    return {
        "Tus-Resumable": TUS,
        "Tus-Version": TUS,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(settings.max_upload_bytes),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        "Accept-Patch": f"{PARTIAL}, {TUS_PART}",
        "Upload-Limit": _limit(settings, settings.upload_expiry_seconds),
        "Cache-Control": "no-store",
    }


def standing(upload: Upload, request: Request, settings: Settings) -> dict[str, str]:
    """Where an upload stands, in the headers of the request's protocol."""
    headers = {"Upload-Offset": str(upload.offset), "Cache-Control": "no-store"}
    if upload.length is not None:
        headers["Upload-Length"] = str(upload.length)
    if upload.megabatch is not None:
        headers[MEGABATCH] = str(upload.megabatch)
    if not is_tus(request.headers):
        left = (upload.expires_at - request.app.state.store.clock()).total_seconds()
        return headers | {
            "Upload-Complete": "?0" if upload.state is UploadState.OPEN else "?1",
            "Upload-Limit": _limit(settings, left),
        }
    headers["Upload-Expires"] = format_datetime(upload.expires_at, usegmt=True)
    if upload.length is None:
        headers["Upload-Defer-Length"] = "1"
    if upload.metadata is not None:
        headers["Upload-Metadata"] = upload.metadata
    return headers


def _limit(settings: Settings, seconds: float) -> str:
    return f"max-size={settings.max_upload_bytes}, max-age={max(0, round(seconds))}"


class ResumableRoute(JsonRoute):
    """A route whose every answer, a refusal too, is one of the request's protocol."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, whose errors are put in the protocol's words."""
        handle = super().get_route_handler()

        async def spoken(request: Request) -> Response:
            try:
                response = await handle(request)
            except (EspalierError, HttpProblem, RequestValidationError) as error:
                response = problem_response(_in_words(error, request), request.scope.get(REQUEST_ID))
                response.headers.setdefault("Cache-Control", "no-store")
                if isinstance(error, OffsetMismatch):
                    response.headers["Upload-Offset"] = str(error.expected)
                if isinstance(error, UploadTooLarge):
                    settings: Settings = request.app.state.settings
                    response.headers["Upload-Limit"] = _limit(settings, settings.upload_expiry_seconds)
            if "tus-resumable" in request.headers:
                response.headers["Tus-Resumable"] = TUS
            return response

        return spoken


def _in_words(error: Exception, request: Request) -> Exception:
    """The draft has problem types of its own."""
    if "tus-resumable" in request.headers:
        return error
    match error:
        case OffsetMismatch():
            offsets = {"expected-offset": error.expected, "provided-offset": error.provided}
            return HttpProblem(MISMATCHING_OFFSET, str(error), extension=offsets)
        case UploadClosed():
            return HttpProblem(COMPLETED_UPLOAD, str(error), headers={"Upload-Complete": "?1"})
        case LengthMismatch():
            return HttpProblem(INCONSISTENT_LENGTH, str(error))
        case _:
            return error
