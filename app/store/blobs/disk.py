"""Blobs on a local disk, or on a file system that every machine mounts.

Knows: fsync, rename, locks on files. Must never know: what the bytes mean, or which rows name them (the sweep asks).

Laws:
    * A name appears only when all of its bytes are durable: temporary name, fsync, rename, fsync of the folder.
    * Keeping bytes again makes their blob young; this and the sweep exclude each other by a lock on a file, so neither
      can undo the other.

    <root>/sha256/ab/cd...      the blobs, read-only
    <root>/staging.lock         shared by those who keep, exclusive to the sweep while it removes one blob
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from app import crash
from app.domain import Digest
from app.errors import MissingBlob
from app.store.blobs.shelf import SWEEP_BATCH, Local, Referenced, Stored, check_digest, hex_of, is_digest
from app.store.blobs.staging import disk_errors, fsync_folder, modified_at


class Disk:
    """A folder of immutable files by digest."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names = root / "sha256"
        self._lock = root / "staging.lock"
        with disk_errors():
            self._names.mkdir(parents=True, exist_ok=True)
            fsync_folder(root)
            fsync_folder(root.parent)

    def check(self) -> None:
        """Nothing to find out: the folder was made."""

    def publish(self, path: Path, digest: Digest, *, durable: bool) -> None:
        """Rename a file of this file system into place."""
        target = self._target(digest)
        if not durable:
            _fsync_file(path)
        target.parent.mkdir(exist_ok=True)
        with self._locked(fcntl.LOCK_SH):
            os.utime(path)  # young from now on, however long ago it was written
            path.replace(target)
        crash.point("blob.renamed")
        fsync_folder(target.parent)
        fsync_folder(self._names)  # another process may have made the folder, and not have come this far
        crash.point("blob.kept")

    def has(self, digest: Digest) -> bool:
        """Whether its file is there."""
        return is_digest(digest) and self._target(digest).is_file()

    def touch(self, digest: Digest) -> bool:
        """Set the file's time, unless there is none."""
        if not is_digest(digest):
            return False
        with self._locked(fcntl.LOCK_SH):
            try:
                os.utime(self._target(digest))
            except FileNotFoundError:
                return False
        return True

    def size(self, digest: Digest) -> int:
        """Bytes of a blob."""
        try:
            return self._target(digest).stat().st_size
        except FileNotFoundError:
            raise self._missing(digest) from None

    def local(self, digest: Digest) -> Local:
        """The blob's own file."""
        if not self.has(digest):
            raise self._missing(digest)
        return Local(self._target(digest), checked=False)

    def renewed(self, digest: Digest) -> Path:
        """There is no other file to take: look once more, for somebody may have kept the bytes again."""
        self.verify(digest)
        return self._target(digest)

    def verify(self, digest: Digest) -> None:
        """Hash the file without holding it in memory."""
        try:
            with self._target(digest).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise self._missing(digest) from None
        check_digest(digest, found, str(self._root))

    def discard(self, digest: Digest) -> None:
        """Unlink the file."""
        self._target(digest).unlink(missing_ok=True)

    def erase(self, digest: Digest) -> None:
        """Unlink the file, and make that durable. Whoever has it mapped reads on; then the disk gets the space back."""
        target = self._target(digest)
        with self._locked(fcntl.LOCK_EX):
            crash.point("sweep.removing")
            target.unlink(missing_ok=True)
            crash.point("sweep.removed")
        if target.parent.is_dir():
            fsync_folder(target.parent)

    def drop_copy(self, digest: Digest) -> None:
        """There are no copies."""

    def stored(self) -> Iterator[Stored]:
        """Every file whose name is a digest."""
        for digest, path in self._files():
            try:
                yield Stored(digest, path.stat().st_size)
            except FileNotFoundError:
                continue  # swept meanwhile

    def stale(self) -> Iterator[tuple[Digest, str]]:
        """There are no copies."""
        return iter(())

    def sweep(self, referenced: Referenced, limit: float) -> list[Digest]:
        """Look at the age again where nobody can keep the same bytes meanwhile, then remove."""
        swept: list[Digest] = []
        old = (digest for digest, path in self._files() if modified_at(path) < limit)
        while candidates := list(islice(old, SWEEP_BATCH)):
            named = referenced(candidates)
            swept += [digest for digest in candidates if digest not in named and self._remove(digest, limit)]
        return swept

    def _remove(self, digest: Digest, limit: float) -> bool:
        path = self._target(digest)
        with self._locked(fcntl.LOCK_EX):
            if modified_at(path) >= limit:
                return False
            crash.point("sweep.removing")
            path.unlink(missing_ok=True)
            crash.point("sweep.removed")
            return True

    def _files(self) -> Iterator[tuple[Digest, Path]]:
        for path in self._names.glob("??/*"):
            digest = f"sha256:{path.parent.name}{path.name}"
            if is_digest(digest):
                yield digest, path

    def _target(self, digest: Digest) -> Path:
        name = hex_of(digest)
        return self._names / name[:2] / name[2:]

    def _missing(self, digest: Digest) -> MissingBlob:
        return MissingBlob(f"blob {digest} is missing under {self._root}: restore it from a backup")

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, mode)
            yield
        finally:
            os.close(descriptor)  # and the lock with it


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
