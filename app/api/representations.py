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
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from app.api.problems import RANGE, HttpProblem
from app.config import Settings
from app.domain import Alias, Digest
from app.errors import CorruptBlob


def strong(tag: object) -> str:
    """A strong entity tag."""
    return f'"{tag}"'


def is_current(request: Request, etag: str) -> bool:
    """Whether the caller holds this representation: If-None-Match by weak comparison (RFC 9110, 13.1.2)."""
    given = ", ".join(request.headers.getlist("if-none-match")).strip()
    return given == "*" or etag in re.findall(r'(?:W/)?("[^"]*")', given)


def answer(request: Request, body: BaseModel, etag: str, headers: dict[str, str] | None = None) -> Response:
    """200 with the body, or 304 when the caller holds it already."""
    tagged = {"ETag": etag, **(headers or {})}
    if is_current(request, etag):
        return Response(status_code=304, headers=tagged)
    return Response(body.model_dump_json(), media_type="application/json", headers=tagged)


def caching(settings: Settings, ref: str, alias: Alias | None = None) -> dict[str, str]:
    """Numbers never change; what an alias points to must be asked for again every time."""
    if ref.isdecimal():
        scope = "public" if settings.api_key is None else "private"
        return {"Cache-Control": f"{scope}, max-age=31536000, immutable"}
    revision = {} if alias is None else {"Espalier-Alias-Revision": str(alias.revision)}
    return {"Cache-Control": "no-cache", **revision}


def structured_digest(digest: Digest) -> str:
    """A digest as RFC 9530 writes it."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(digest.removeprefix('sha256:'))).decode()}:"


class CheckpointFile(FileResponse):
    """A checkpoint's bytes, whole or one range of them.

    Starlette's own entity tag is made of time and size, and it answers faulty ranges in plain text. Here the tag is the
    digest; several ranges, and ranges that cannot be read, are ignored as RFC 9110 allows; one that lies outside is a
    416 problem.
    """

    chunk_size = 256 * 1024

    def __init__(self, path: Path, digest: Digest, size: int, filename: str, headers: dict[str, str]) -> None:
        named = {"ETag": strong(digest), "Repr-Digest": structured_digest(digest), **headers}
        super().__init__(path, headers=named, media_type="application/octet-stream", filename=filename)
        self._size = size
        self._content_digest = structured_digest(digest)

    def set_stat_headers(self, stat_result: os.stat_result) -> None:
        """Only the length: times differ between machines that hold the same bytes.

        Raises:
            CorruptBlob: the file is not as long as it was; none of it is sent.
        """
        if stat_result.st_size != self._size:
            raise CorruptBlob(
                f"{self.path} has {stat_result.st_size} bytes instead of {self._size}: restore it from a backup"
            )
        self.headers.setdefault("content-length", str(stat_result.st_size))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                message["headers"] = [*message["headers"], (b"content-digest", self._content_digest.encode())]
            await send(message)

        await super().__call__(self._with_sound_range(scope), receive, send_named)

    def _with_sound_range(self, scope: Scope) -> Scope:
        """The scope with its Range if it is one that can be served, else without."""
        request = Request(scope)
        wanted = parse_range(request.headers.get("range", ""), self._size)
        if_range = request.headers.get("if-range", self.headers["etag"])
        kept = [(name, value) for name, value in scope["headers"] if name not in (b"range", b"if-range")]
        if wanted is not None and if_range == self.headers["etag"]:
            first, last = wanted
            if first >= self._size:
                detail = f"the checkpoint has {self._size} bytes: ask for a range within them"
                raise HttpProblem(
                    RANGE, detail, headers={"Content-Range": f"bytes */{self._size}", "ETag": self.headers["etag"]}
                )
            kept.append((b"range", f"bytes={first}-{last}".encode()))
        return {**scope, "headers": kept}


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
