"""Content-addressed bytes on a local disk.

Knows: staging, hashing, fsync, rename, sweep. Must never know: what the bytes mean, or which rows name them (the sweep
asks).

Laws:
    * A name appears only when all of its bytes are durable: temporary name, fsync, rename, fsync of the folder.
    * A blob's name is the SHA-256 of its bytes. ``read`` and ``verify`` check it; ``path`` checks that it is there.
    * The sweep takes a blob only if it is older than the grace period and no row names it. Keeping bytes again makes
      their blob young, and the two exclude each other by a lock on a file, so neither can undo the other.

    <root>/sha256/ab/cd...      the blobs, read-only
    <root>/staging/...          what is being written; the same file system, so that a rename is atomic
    <root>/staging.lock         shared by those who keep, exclusive to the sweep while it removes one blob
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BufferedReader, FileIO
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from app.domain import Digest
from app.errors import CorruptBlob, MissingBlob, StorageFull, UploadTooLarge

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_CHUNK = 1024 * 1024
_CHECKED = 100_000
"""Blobs that a process remembers having verified; then it starts anew."""

_SWEEP_BATCH = 500


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes that are durable, but have no name yet: they go when their receiver is left, unless they were kept."""

    path: Path
    digest: Digest
    size: int


class Blobs:
    """A folder of immutable bytes by digest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names = root / "sha256"
        self._staging = root / "staging"
        self._lock = root / "staging.lock"
        self._checked: dict[Digest, tuple[int, int, int]] = {}
        with _disk():
            self._staging.mkdir(parents=True, exist_ok=True)
            self._names.mkdir(exist_ok=True)
            _fsync_folder(root)
            _fsync_folder(root.parent)

    # -- in ------------------------------------------------------------------------------------------------------------

    def receiver(self, limit: int) -> Receiver:
        """Take in bytes of unknown length, ``limit`` at most. Use it as a context manager."""
        with _disk():
            return Receiver(self._staging / secrets.token_hex(16), limit)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder under staging, removed on exit with all that is left in it."""
        with _disk():
            folder = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, path: Path) -> tuple[Digest, int]:
        """Move a file of this file system among the blobs. The same bytes again only make their blob young.

        Returns:
            Its digest, and its size in bytes.

        Raises:
            StorageFull: nothing was kept.
        """
        with _disk(), path.open("rb") as file:
            digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
            self._publish(path, digest)
        return digest, size

    def put(self, data: bytes) -> Digest:
        """Keep bytes from memory.

        Raises:
            StorageFull: nothing was kept.
        """
        with self.receiver(len(data)) as receiver:
            receiver.write(data)
            staged = receiver.finish()
            with _disk():
                staged.path.chmod(0o444)
                self._publish(staged.path, staged.digest)
        return staged.digest

    def _publish(self, path: Path, digest: Digest) -> None:
        target = self._target(digest)
        target.parent.mkdir(exist_ok=True)
        with self._locked(fcntl.LOCK_SH):
            os.utime(path)  # young from now on, however long ago it was written
            path.replace(target)
        _fsync_folder(target.parent)
        _fsync_folder(self._names)  # another process may have made the folder, and not have come this far

    # -- out -----------------------------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether a blob of this name is there; its bytes are not checked."""
        return bool(_DIGEST.fullmatch(digest)) and self._target(digest).is_file()

    def touch(self, digest: Digest) -> bool:
        """Like ``has``, and the blob is young from now on: a row that names it may follow within the grace period."""
        if not _DIGEST.fullmatch(digest):
            return False
        with self._locked(fcntl.LOCK_SH):
            try:
                os.utime(self._target(digest))
            except FileNotFoundError:
                return False
        return True

    def path(self, digest: Digest) -> Path:
        """The file of a blob, to map into memory or to send. Its bytes are not checked here.

        Raises:
            MissingBlob: there is none.
        """
        if not self.has(digest):
            raise self._missing(digest)
        return self._target(digest)

    def size(self, digest: Digest) -> int:
        """Bytes of a blob.

        Raises:
            MissingBlob: there is none.
        """
        try:
            return self._target(digest).stat().st_size
        except FileNotFoundError:
            raise self._missing(digest) from None

    def read(self, digest: Digest) -> bytes:
        """A blob's bytes, verified.

        Raises:
            MissingBlob, CorruptBlob: there is none, or its bytes changed.
        """
        with self._open(digest) as file:
            data = file.read()
        _check(digest, hashlib.sha256(data).hexdigest())
        return data

    def verify(self, digest: Digest) -> None:
        """Hash a blob without holding it in memory.

        Raises:
            MissingBlob, CorruptBlob: there is none, or its bytes changed.
        """
        with self._open(digest) as file:
            _check(digest, hashlib.file_digest(file, "sha256").hexdigest())

    def verified(self, digest: Digest) -> Path:
        """The file of a blob whose bytes were checked by this process, once for each state of the file.

        Raises:
            MissingBlob, CorruptBlob: there is none, or its bytes changed.
        """
        path = self.path(digest)
        found = path.stat()
        state = (found.st_ino, found.st_size, found.st_mtime_ns)
        if self._checked.get(digest) != state:
            self.verify(digest)
            if len(self._checked) >= _CHECKED:
                self._checked.clear()
            self._checked[digest] = state
        return path

    def _open(self, digest: Digest) -> BufferedReader:
        try:
            return self._target(digest).open("rb")
        except FileNotFoundError:
            raise self._missing(digest) from None

    def _missing(self, digest: Digest) -> MissingBlob:
        return MissingBlob(f"blob {digest} is missing under {self.root}: restore it from a backup")

    # -- away ----------------------------------------------------------------------------------------------------------

    def discard(self, digest: Digest) -> None:
        """Remove a blob that only its caller names, such as a snapshot; without effect when it is gone already."""
        self._target(digest).unlink(missing_ok=True)

    def sweep(
        self, referenced: Callable[[Iterable[Digest]], set[Digest]], older_than_seconds: float, now: datetime
    ) -> list[Digest]:
        """Remove blobs that no row names, and what was left in staging, once they are older than the grace period.

        Args:
            referenced: which of these digests any row names.
            older_than_seconds: the grace period, longer than any time between keeping bytes and committing their row.
            now: aware time that ages are measured from.

        Returns:
            Digests of the blobs that went.
        """
        limit = now.timestamp() - older_than_seconds
        swept: list[Digest] = []
        old = self._older_than(limit)
        while candidates := list(islice(old, _SWEEP_BATCH)):
            named = referenced(candidates)
            swept += [digest for digest in candidates if digest not in named and self._remove(digest, limit)]
        self._sweep_staging(limit)
        return swept

    def _older_than(self, limit: float) -> Iterator[Digest]:
        for path in self._names.glob("??/*"):
            digest = f"sha256:{path.parent.name}{path.name}"
            if _DIGEST.fullmatch(digest) and _time_of(path) < limit:
                yield digest

    def _remove(self, digest: Digest, limit: float) -> bool:
        """Look at the age again where nobody can keep the same bytes meanwhile, then remove."""
        path = self._target(digest)
        with self._locked(fcntl.LOCK_EX):
            if _time_of(path) >= limit:
                return False
            path.unlink(missing_ok=True)
            return True

    def _sweep_staging(self, limit: float) -> None:
        for path in self._staging.glob("*"):
            if max(map(_time_of, (path, *path.rglob("*")))) >= limit:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    # -- places --------------------------------------------------------------------------------------------------------

    def _target(self, digest: Digest) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise MissingBlob(f"{digest!r} is no digest: expected sha256: and 64 lower-case hexadecimal digits")
        name = digest.removeprefix("sha256:")
        return self._names / name[:2] / name[2:]

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, mode)
            yield
        finally:
            os.close(descriptor)  # and the lock with it


class Receiver:
    """Bytes on their way in: written to a temporary name and hashed as they come."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._size = 0
        self._hash = hashlib.sha256()
        self._file: FileIO = path.open("xb", buffering=0)

    def write(self, data: bytes) -> None:
        """Append a chunk.

        Raises:
            UploadTooLarge: past the limit; the chunk was not written.
            StorageFull: the disk is full.
        """
        self._size += len(data)
        if self._size > self._limit:
            raise UploadTooLarge(f"more than {self._limit} bytes, which is the limit here")
        self._hash.update(data)
        rest = memoryview(data)
        with _disk():
            while rest:
                rest = rest[self._file.write(rest) :]

    def finish(self) -> Staged:
        """Make the bytes durable, and say what they are.

        Raises:
            StorageFull: the disk is full.
        """
        with _disk():
            os.fsync(self._file.fileno())
            self._file.close()
        return Staged(self._path, f"sha256:{self._hash.hexdigest()}", self._size)

    def abort(self) -> None:
        """Leave nothing behind. Without effect on bytes that were kept."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull("the disk is full: free space, then send it again") from error
        raise


def _check(digest: Digest, found: str) -> None:
    if digest != f"sha256:{found}":
        raise CorruptBlob(f"blob {digest} hashes to sha256:{found}: its bytes changed; restore it from a backup")


def _time_of(path: Path) -> float:
    """Modification time in seconds; what is gone meanwhile counts as young."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
