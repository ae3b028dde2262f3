"""Bytes onto a service: in one request when they are few, resumed from wherever they broke off when they are many.

Knows: digests, the upload resource and its offsets, retries, where this machine remembers unfinished uploads. Must
never know: what the bytes mean.

Laws:
    * Memory is one block, whatever the size; a file is hashed once, before it is sent.
    * A large upload outlives lost connections, a service that is killed and started again, and this process: the next
      one that uploads the same bytes to the same model of the same service goes on.
    * Tries are bounded: an upload that gets nowhere ends with an error that says how to go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from espalier.download import BLOCK, Progress, content_digest, file_digest
from espalier.errors import ApiProblem, EspalierClientError, ServiceUnreachable
from espalier.formats.canonical import sha256_digest
from espalier.sources import Source
from espalier.transport import RETRIED, Body, Transport, backoff, json_of, path_of, problem_of

RESUMABLE_BYTES = 16 * 1024 * 1024
"""Above this, an upload is resumable: the cost of two requests more is nothing there."""

MOST_FAILURES = 12
"""Tries in a row that brought nothing new, before an upload is given up; half a minute and more."""

_AGAIN = RETRIED | {408, 409, 423}
_POLL_SECONDS = (0.1, 1.0)


@dataclass(frozen=True, slots=True)
class Sent:
    """A megabatch's document; whether the same arrays were there before; whether its cycle has to be looked up."""

    document: dict[str, Any]
    replayed: bool
    apart: bool


def send(
    transport: Transport, method: str, path: str, source: Source, progress: Progress | None = None
) -> httpx.Response:
    """Send bytes in one request that may be repeated as a whole."""
    return _send(transport, method, path, source, _digest(source), progress)


def send_megabatch(transport: Transport, name: str, source: Source, progress: Progress | None = None) -> Sent:
    """Upload a megabatch, and stay until it is accepted.

    Raises:
        ApiProblem: it was refused. ServiceUnreachable: what was sent is kept, and the same upload goes on from it.
    """
    digest = _digest(source)
    if source.size > RESUMABLE_BYTES:
        return _Resumable(transport, name, source, digest, progress).run()
    answer = _send(transport, "POST", path_of("models", name, "megabatches"), source, digest, progress)
    return _sent(transport, answer)


def _digest(source: Source) -> str:
    return sha256_digest(source.content) if isinstance(source.content, bytes) else file_digest(source.content)


def _send(
    transport: Transport, method: str, path: str, source: Source, digest: str, progress: Progress | None
) -> httpx.Response:
    headers = {
        "Content-Type": source.media,
        "Content-Length": str(source.size),
        "Content-Digest": content_digest(digest),
    }
    return transport.request(method, path, body=_body(source, 0, progress), headers=headers, repeatable=True)


def _sent(transport: Transport, answer: httpx.Response) -> Sent:
    """What an answer comes to; one that says that decoding takes a while is waited for."""
    document = json_of(answer)
    if answer.status_code == 202:
        return _awaited(transport, str(document["id"]))
    return Sent(document, answer.headers.get("idempotency-replayed", "").lower() == "true", apart=False)


def _awaited(transport: Transport, upload: str) -> Sent:
    """Look at a complete upload until it has an outcome."""
    wait, longest = _POLL_SECONDS
    while True:
        view = json_of(transport.request("GET", path_of("uploads", upload)))
        if view["state"] == "refused":
            raise problem_of(int(view["problem"]["status"]), view["problem"])
        if view["state"] == "accepted":
            path = path_of("models", view["model"], "megabatches", view["megabatch"])
            return Sent(json_of(transport.request("GET", path)), replayed=False, apart=True)
        time.sleep(wait)
        wait = min(longest, wait * 1.5)


class _Resumable:
    """One upload, over as many requests, connections and processes as it takes."""

    def __init__(self, transport: Transport, name: str, source: Source, digest: str, progress: Progress | None) -> None:
        self.transport, self.name, self.source = transport, name, source
        self.digest, self.progress = digest, progress
        self.memory = _Memory(transport.url, name, digest)
        self.upload = self.memory.recall()
        self.key = uuid.uuid4().hex
        self.offset = -1

    def run(self) -> Sent:
        """Send what is missing until all of it is there."""
        failures = 0
        while True:
            before = self.offset
            try:
                sent = self._attempt()
            except (ServiceUnreachable, ApiProblem) as error:
                if not self._worth_another(error):
                    raise
                failures = 0 if self.offset > before >= 0 else failures + 1
                if failures > MOST_FAILURES:
                    raise ServiceUnreachable(
                        f"{error}\nwhat was sent is kept by the service: the same upload goes on from it"
                    ) from error
                time.sleep(backoff(failures, base=0.25))
            else:
                self.memory.forget()
                return sent

    def _attempt(self) -> Sent:
        """One connection's share of it."""
        if self.upload is None:
            self.upload = self._begin()
            self.memory.remember(self.upload)
        view = json_of(self.transport.request("GET", path_of("uploads", self.upload)))
        if view["state"] != "open":
            return _awaited(self.transport, self.upload)
        self.offset = offset = int(view["offset"])
        if self.progress is not None:
            self.progress(offset, self.source.size)
        headers = {
            "Content-Type": "application/partial-upload",
            "Content-Length": str(self.source.size - offset),
            "Upload-Offset": str(offset),
            "Upload-Complete": "?1",
        }
        body = _body(self.source, offset, self.progress)
        answer = self.transport.request("PATCH", path_of("uploads", self.upload), body=body, headers=headers)
        return _sent(self.transport, answer)

    def _begin(self) -> str:
        headers = {
            "Content-Type": self.source.media,
            "Upload-Complete": "?0",
            "Upload-Length": str(self.source.size),
            "Repr-Digest": content_digest(self.digest),
            "Idempotency-Key": f'"{self.key}"',
        }
        path = path_of("models", self.name, "uploads")
        answer = self.transport.request("POST", path, headers=headers, repeatable=True)
        return str(answer.headers.get("location", "")).rpartition("/")[2]

    def _worth_another(self, error: ServiceUnreachable | ApiProblem) -> bool:
        """Whether trying again may help; an upload that the service has forgotten is begun anew, once."""
        if isinstance(error, ServiceUnreachable):
            return True
        if error.type.rpartition(":")[2] in ("unknown-upload", "upload-expired") and self.memory.recalled:
            self.memory.forget()
            self.upload = None
            return True
        if error.status not in _AGAIN:
            self.memory.forget()
        return error.status in _AGAIN and not error.type.endswith(("megabatch-quarantined", "model-paused"))


class _Memory:
    """Where this machine remembers an unfinished upload; one that cannot be remembered is none the worse."""

    def __init__(self, url: str, name: str, digest: str) -> None:
        told = hashlib.sha256(f"{url}\n{name}\n{digest}".encode()).hexdigest()
        self._path = cache_folder() / "uploads" / f"{told[:40]}.json"
        self.recalled = False

    def recall(self) -> str | None:
        """The upload's id, if one was begun and not ended."""
        try:
            upload = str(json.loads(self._path.read_text())["upload"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self.recalled = True
        return upload

    def remember(self, upload: str) -> None:
        """Keep the upload's id for the next process."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = self._path.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps({"upload": upload}))
            new.replace(self._path)

    def forget(self) -> None:
        """It has ended."""
        self.recalled = False
        with contextlib.suppress(OSError):
            self._path.unlink()


def cache_folder() -> Path:
    """Where this user's programs keep what may be lost: ``ESPALIER_CACHE_DIR``, or as the system has it."""
    if given := os.environ.get("ESPALIER_CACHE_DIR"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "espalier"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "espalier"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier"


def _body(source: Source, offset: int, progress: Progress | None) -> Body:
    """A body that is read anew for each attempt, block by block, from a byte on."""

    def blocks() -> Iterator[bytes]:
        sent, content = offset, source.content
        made = _memory_blocks(content, offset) if isinstance(content, bytes) else _file_blocks(content, source, offset)
        for block in made:
            yield block
            sent += len(block)
            if progress is not None:
                progress(sent, source.size)

    return blocks


def _file_blocks(path: Path, source: Source, offset: int) -> Iterator[bytes]:
    left = source.size - offset
    with path.open("rb") as file:
        file.seek(offset)
        while left > 0 and (block := file.read(min(BLOCK, left))):
            left -= len(block)
            yield block
        if left or file.read(1):
            raise EspalierClientError(f"{path} changed while it was uploaded: upload it again when it is complete")


def _memory_blocks(data: bytes, offset: int) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(offset, len(data), BLOCK):
        yield bytes(view[start : start + BLOCK])
