"""Representations: entity tags, conditional answers, and checkpoints as files.

Knows: RFC 9110 conditions and ranges, RFC 9530 digests, what may be cached for how long. Must never know: how a version
is found.

Laws:
    * An entity tag is strong and is the digest of what never changes, or the revision of what does.
    * A 304 has the headers of the 200 that it stands for, and no body.
    * A checkpoint's bytes are named by digest in every answer that holds any of them.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self
from urllib.parse import quote

from anyio import to_thread
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from app.api.problems import RANGE, HttpProblem
from app.domain import Alias, Digest
from app.errors import CorruptBlob, MissingBlob

_CHUNK = 256 * 1024
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
"""Linux alone can read what is in its memory and no more."""


def strong(tag: object) -> str:
    """A strong entity tag."""
    return f'"{tag}"'


@dataclass(frozen=True, slots=True)
class Representation:
    """One answer to a GET, ready to be sent: whole, or as a 304.

    Attributes:
        etag: its strong entity tag.
        body: JSON.
        whole: headers of the 200.
        unchanged: headers of the 304.
        whole_lines, unchanged_lines: status line and headers as HTTP/1.1 spells them.
    """

    etag: bytes
    body: bytes
    whole: tuple[tuple[bytes, bytes], ...]
    unchanged: tuple[tuple[bytes, bytes], ...]
    whole_lines: bytes
    unchanged_lines: bytes

    @classmethod
    def of(cls, body: BaseModel, etag: str, headers: Mapping[str, str]) -> Self:
        """The representation of a body, under a strong entity tag."""
        tagged = {"ETag": etag, **headers}
        whole = Response(body.model_dump_json(), media_type="application/json", headers=tagged)
        unchanged = Response(status_code=304, headers=tagged)
        return cls(
            etag.encode("latin-1"),
            bytes(whole.body),
            tuple(whole.raw_headers),
            tuple(unchanged.raw_headers),
            b"HTTP/1.1 200 OK\r\n" + _lines(whole),
            b"HTTP/1.1 304 Not Modified\r\n" + _lines(unchanged),
        )

    def is_held(self, if_none_match: bytes) -> bool:
        """Whether a caller with this If-None-Match holds it."""
        # Almost always the tag alone, as it was given: comparing that first spares the rest.
        return if_none_match == self.etag or matches(if_none_match.decode("latin-1"), self.etag.decode("latin-1"))

    def answer(self, request: Request) -> Response:
        """200 with the body, or 304 when the caller holds it already."""
        held = matches(_if_none_match(request), self.etag.decode("latin-1"))
        response = Response(b"" if held else self.body, status_code=304 if held else 200)
        response.raw_headers = list(self.unchanged if held else self.whole)
        return response


def _lines(response: Response) -> bytes:
    return b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)


def is_current(request: Request, etag: str) -> bool:
    """Whether the caller holds this representation."""
    return matches(_if_none_match(request), etag)


def matches(if_none_match: str, etag: str) -> bool:
    """If-None-Match by weak comparison (RFC 9110, 13.1.2)."""
    given = if_none_match.strip()
    return given == "*" or etag in re.findall(r'(?:W/)?("[^"]*")', given)


def _if_none_match(request: Request) -> str:
    return ", ".join(request.headers.getlist("if-none-match"))


def caching(ref: str, alias: Alias | None = None) -> dict[str, str]:
    """Numbers never change; what an alias points to must be asked for again every time. A cache that several share
    would give it to whoever has no key.
    """
    if ref.isdecimal():
        return {"Cache-Control": "private, max-age=31536000, immutable"}
    revision = {} if alias is None else {"Espalier-Alias-Revision": str(alias.revision)}
    return {"Cache-Control": "no-cache", **revision}


def structured_digest(digest: Digest) -> str:
    """A digest as RFC 9530 writes it."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(digest.removeprefix('sha256:'))).decode()}:"


class CheckpointFile(Response):
    """A checkpoint's bytes, whole or one range of them; or where a proxy in front finds them.

    Several ranges, and ranges that cannot be read, are ignored as RFC 9110 allows; one that lies outside is a 416
    problem. A proxy reads ranges by rules of its own, so it is given those alone that mean the same to both.
    """

    def __init__(
        self,
        path: Path,
        digest: Digest,
        size: int,
        filename: str,
        headers: Mapping[str, str],
        offload: str = "",
        media: str = "application/octet-stream",
    ) -> None:
        """Nothing is opened yet.

        Args:
            path: the file.
            digest: of all of it.
            size: its length in bytes.
            filename: what a browser should call it.
            headers: further ones.
            offload: the proxy's own name of the file, for ``X-Accel-Redirect``; empty sends the bytes from here.
            media: its type.
        """
        named = {
            "Content-Disposition": f'attachment; filename="{filename}"',
            "ETag": strong(digest),
            "Repr-Digest": structured_digest(digest),
            **headers,
        }
        super().__init__(headers=named, media_type=media)
        self._path, self._digest, self._size, self._offload = path, digest, size, offload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            HttpProblem: 416, the range lies outside.
            MissingBlob, CorruptBlob: the file is gone, or not as long as it was; none of it is sent.
        """
        request = Request(scope)
        part = self._part(request)
        if self._offload and (part is not None or "range" not in request.headers):
            self._describe(part)
            self.headers["X-Accel-Redirect"] = quote(self._offload)
            await super().__call__(scope, receive, send)
            return
        first, last = part or (0, self._size - 1)
        with await to_thread.run_sync(self._opened) as file:
            self._describe(part)
            self.headers["Accept-Ranges"] = "bytes"
            self.headers["Content-Length"] = str(last + 1 - first)
            if part is not None:
                self.status_code = 206
                self.headers["Content-Range"] = f"bytes {first}-{last}/{self._size}"
            if scope["method"] == "HEAD":
                await super().__call__(scope, receive, send)
                return
            body = StreamingResponse(_chunks(file, first, last), self.status_code)
            body.raw_headers = self.raw_headers
            await body(scope, receive, send)

    def _part(self, request: Request) -> tuple[int, int] | None:
        """First and last byte of the range that is asked for, if it can be served; None for the whole."""
        wanted = parse_range(request.headers.get("range", ""), self._size)
        tag = self.headers["etag"]
        if wanted is None or request.headers.get("if-range", tag) != tag:
            return None
        if wanted[0] >= self._size:
            detail = f"the checkpoint has {self._size} bytes: ask for a range within them"
            raise HttpProblem(RANGE, detail, headers={"Content-Range": f"bytes */{self._size}", "ETag": tag})
        return wanted

    def _describe(self, part: tuple[int, int] | None) -> None:
        if part is None:
            self.headers["Content-Digest"] = structured_digest(self._digest)

    def _opened(self) -> FileIO:
        try:
            file = FileIO(self._path)
        except FileNotFoundError:
            raise MissingBlob(f"{self._path} is gone: restore it from a backup") from None
        found = os.fstat(file.fileno()).st_size
        if found != self._size:
            file.close()
            raise CorruptBlob(f"{self._path} has {found} bytes instead of {self._size}: restore it from a backup")
        return file


async def _chunks(file: FileIO, first: int, last: int) -> AsyncIterator[bytes | memoryview]:
    """Bytes of a file. What lies in the system's memory is read at once; a thread waits for the disk."""
    while first <= last:
        wanted = min(_CHUNK, last + 1 - first)
        chunk: bytes | memoryview | None = _at_hand(file, first, wanted)
        if not chunk:
            chunk = await to_thread.run_sync(os.pread, file.fileno(), wanted, first)
        if not chunk:
            raise CorruptBlob(f"{file.name!r} ended at byte {first}: restore it from a backup")
        first += len(chunk)
        yield chunk


def _at_hand(file: FileIO, first: int, wanted: int) -> memoryview | None:
    """What can be read without waiting for the disk, if anything and if the system can tell."""
    if _NOWAIT is None:
        return None
    chunk = bytearray(wanted)
    try:
        return memoryview(chunk)[: os.preadv(file.fileno(), [chunk], first, _NOWAIT)]
    except OSError:  # not without waiting; or a file system that cannot tell
        return None


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single range; ``first >= size`` when it lies outside; None when none can be read."""
    found = re.fullmatch(r"\s*bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})\s*", header, re.IGNORECASE)
    if found is None or found.groups() == ("", ""):
        return None
    if not found[1]:
        suffix = int(found[2])
        return (max(size - suffix, 0), size - 1) if suffix else (size, size)
    first, last = int(found[1]), int(found[2] or size)
    return None if found[2] and last < first else (first, min(last, size - 1))
