"""A checkpoint onto a disk: whole and right, or not there at all.

Knows: temporary files, ranges, digests, fsync and rename. Must never know: which version is wanted, or why.

Laws:
    * The target appears only after every byte of it was hashed and its digest compared; it is replaced atomically.
    * What was fetched before a lost connection or a killed process is kept beside the target and gone on from, unless
      the service's bytes changed meanwhile (``If-Range``).
    * Bytes of a wrong digest are removed, never kept.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import httpx

from espalier.errors import DigestMismatch, EspalierClientError, ServiceUnreachable
from espalier.transport import Transport, backoff

if sys.platform != "win32":
    import fcntl

BLOCK = 1 << 18

Progress = Callable[[int, int | None], None]
"""Told how many bytes are there, and how many there will be, if that is known."""


def file_digest(path: Path) -> str:
    """``sha256:`` of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(digest: str) -> str:
    """``sha256:<hex>`` as RFC 9530 writes it: ``sha-256=:<base64>:``."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(digest.removeprefix('sha256:'))).decode()}:"


def promised_digest(headers: Mapping[str, str], whole: bool) -> str | None:
    """The digest of the whole file that an answer promises.

    Args:
        headers: of the answer.
        whole: False for a part of the file (206), of which ``Content-Digest`` is the digest of that part alone.
    """
    fields = [headers.get("repr-digest", ""), headers.get("content-digest", "") if whole else ""]
    for field in fields:
        if found := re.search(r"sha-256=:([A-Za-z0-9+/]{43}=):", field):
            return "sha256:" + base64.b64decode(found[1]).hex()
    tag = headers.get("etag", "").strip('"')
    return tag if re.fullmatch(r"sha256:[0-9a-f]{64}", tag) else None


def fetch(
    transport: Transport,
    path: str,
    target: Path,
    *,
    params: Mapping[str, str],
    expected: str | None,
    progress: Progress | None = None,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Download to ``target``.

    Args:
        expected: digest that the bytes must have, when it is known; otherwise what the service promises counts.
        check: told the whole file before it gets its name; what it raises leaves nothing of the file.

    Raises:
        DigestMismatch: the bytes are not what was promised; nothing is left of them.
        ServiceUnreachable: a connection brought nothing new; what was fetched is kept, and the next call goes on.
    """
    if expected is not None and check is None and target.is_file() and file_digest(target) == expected:
        return target
    reached = 0
    while True:
        attempt = _Attempt(transport, path, target, params, expected, progress, check)
        try:
            return attempt.run()
        except ServiceUnreachable as error:
            if attempt.at <= reached:  # this connection brought nothing new
                raise ServiceUnreachable(
                    f"{error}\nwhat was fetched is kept: the same download goes on from it"
                ) from error
            reached = attempt.at
            time.sleep(backoff(0))


class _Attempt:
    """One connection's share of a download."""

    def __init__(
        self,
        transport: Transport,
        path: str,
        target: Path,
        params: Mapping[str, str],
        expected: str | None,
        progress: Progress | None,
        check: Callable[[Path], object] | None,
    ) -> None:
        self.transport, self.path, self.target, self.params = transport, path, target, params
        self.expected, self.progress, self.check = expected, progress, check
        self.at = 0

    def run(self) -> Path:
        """Fetch what is missing, verify, rename."""
        with self.transport.stream("GET", self.path, params=self.params, headers=_IDENTITY) as answer:
            tag = answer.headers.get("etag")
            with _partial(self.target, tag) as (part, file):
                have = file.seek(0, os.SEEK_END)
                if have and tag and have <= int(answer.headers.get("content-length", -1)):
                    answer.close()  # it would send from the first byte on; the missing ones are asked for instead
                    return self._resume(part, file, have, tag)
                return self._finish(answer, part, file, 0)

    def _resume(self, part: Path, file: IO[bytes], have: int, tag: str) -> Path:
        # Asking for the last byte again keeps the range satisfiable when nothing is missing.
        ranged = {**_IDENTITY, "Range": f"bytes={have - 1}-", "If-Range": tag}
        with self.transport.stream("GET", self.path, params=self.params, headers=ranged) as answer:
            if answer.status_code != 206:
                return self._finish(answer, part, file, 0)
            if not answer.headers.get("content-range", "").startswith(f"bytes {have - 1}-"):
                raise EspalierClientError(
                    "the service answered with another range than was asked for; is a proxy between?"
                )
            return self._finish(answer, part, file, have - 1)

    def _finish(self, answer: httpx.Response, part: Path, file: IO[bytes], start: int) -> Path:
        promised = promised_digest(answer.headers, whole=answer.status_code == 200)
        length = answer.headers.get("content-length")
        total = start + int(length) if length else None
        state = hashlib.sha256()
        file.seek(0)
        for block in _read(file, start):
            state.update(block)
        file.truncate(start)
        self.at = start
        with self.transport.reaching():
            for block in answer.iter_raw():  # as it comes: blocks of a fixed size would hold bytes back
                file.write(block)
                state.update(block)
                self.at += len(block)
                if self.progress:
                    self.progress(self.at, total)
        file.flush()
        os.fsync(file.fileno())
        self._verify("sha256:" + state.hexdigest(), promised, part, file)
        self._check(part, file)
        _rename(part, file, self.target)
        return self.target

    def _check(self, part: Path, file: IO[bytes]) -> None:
        if self.check is None:
            return
        try:
            self.check(part)
        except EspalierClientError:
            _discard(part, file)
            raise

    def _verify(self, actual: str, promised: str | None, part: Path, file: IO[bytes]) -> None:
        wanted = {digest for digest in (self.expected, promised) if digest}
        if wanted == {actual}:
            return
        _discard(part, file)
        if not wanted:
            raise DigestMismatch(f"the service promised no digest for {self.target.name}: nothing was kept")
        raise DigestMismatch(
            f"{self.target.name}: the bytes that came hash to {actual}, "
            f"but {' and '.join(sorted(wanted))} was promised. "
            "Nothing was kept; download again, and if it repeats, run `espalier doctor` where the service runs"
        )


_IDENTITY = {"Accept-Encoding": "identity"}
"""A compressed body would have other bytes than the digest is of."""


@contextlib.contextmanager
def _partial(target: Path, tag: str | None) -> Iterator[tuple[Path, IO[bytes]]]:
    """The unfinished download of these very bytes beside the target, or a new file; locked against a second process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256((tag or "").encode()).hexdigest()[:12]
    part = target.with_name(f".{target.name}.{name}.part")
    file = _claimed(part) if tag else None
    kept = file is not None
    if file is None:  # nothing to resume by, or another process is at it: work apart from it
        part = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
        file = part.open("x+b")
    try:
        yield part, file
    except BaseException:
        # The lock is still held: until the file is closed, the name is nobody else's.
        if not kept or file.seek(0, os.SEEK_END) == 0:
            _discard(part, file)
        raise
    finally:
        file.close()


def _claimed(part: Path) -> IO[bytes] | None:
    """The open partial file, ours alone; None while another process holds it."""
    file = part.open("a+b")
    if sys.platform == "win32":
        return file  # an open file can be neither renamed nor removed there: a second process fails instead
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held the lock before may have renamed this very file into the target.
        if os.fstat(file.fileno()).st_ino == part.stat().st_ino:
            return file
    except OSError:
        pass
    file.close()
    return None


def _discard(part: Path, file: IO[bytes]) -> None:
    if sys.platform == "win32":
        file.close()
    part.unlink(missing_ok=True)


def _rename(part: Path, file: IO[bytes], target: Path) -> None:
    """Put the file in its place, durably."""
    if sys.platform == "win32":
        file.close()
        part.replace(target)
        return
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(file: IO[bytes], count: int) -> Iterator[bytes]:
    while count:
        block = file.read(min(BLOCK, count))
        if not block:
            raise EspalierClientError("an unfinished download was changed while it was read; start the download again")
        count -= len(block)
        yield block
