"""The door to all bytes: in by a receiver or a workspace, out by digest, verified.

Knows: staging, hashing, what this process has verified. Must never know: what the bytes mean, which rows name them (the
sweep asks), or what kind of shelf they lie on.

Laws:
    * A blob's name is the SHA-256 of its bytes. ``read`` and ``verify`` check it; ``path`` checks that it is there.
    * The sweep takes a blob only if it is older than the grace period and no row names it. Keeping bytes, or touching
      them, makes them young enough for a row to follow.
    * Every method raises ``StorageFailed`` where the disk reports errors.
    * Whatever fails, a name has all of its bytes or is not there, and doing it again mends it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

from app.domain import Digest
from app.store.blobs.disk import Disk
from app.store.blobs.shelf import Referenced, Shelf, Stored
from app.store.blobs.staging import Receiver, Staging, disk_errors

_CHECKED = 100_000
"""Blobs that a process remembers having verified; then it starts anew."""


class Blobs:
    """Immutable bytes by digest.

    Attributes:
        root: the folder of this machine for what is on its way in, and for copies; on a disk, for the blobs too.
    """

    def __init__(self, root: Path, shelf: Shelf | None = None) -> None:
        """Open a folder.

        Args:
            root: it is made if it is not there.
            shelf: where blobs lie; None: in the folder itself.
        """
        self.root = root
        self._staging = Staging(root / "staging")
        self._shelf = shelf if shelf is not None else Disk(root)
        self._checked: dict[Digest, tuple[int, int, int]] = {}

    def check(self) -> None:
        """Find out whether the blobs can be reached and written.

        Raises:
            StorageUnreachable, StorageRefused: they cannot, with the remedy.
        """
        self._shelf.check()

    # -- in ------------------------------------------------------------------------------------------------------------

    def receiver(self, limit: int) -> Receiver:
        """Take in bytes of unknown length, ``limit`` at most. Use it as a context manager."""
        with disk_errors():
            return Receiver(self._staging.name(), limit)

    def workspace(self) -> AbstractContextManager[Path]:
        """A folder under staging, removed on exit with all that is left in it."""
        return self._staging.workspace()

    def keep(self, path: Path) -> tuple[Digest, int]:
        """Move a file of the staging file system among the blobs. The same bytes again only make their blob young.

        Returns:
            Its digest, and its size in bytes.

        Raises:
            StorageFull, StorageUnreachable, StorageRefused: nothing was kept; the file is as it was.
        """
        with disk_errors():
            with path.open("rb") as file:
                digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
                os.fchmod(file.fileno(), 0o444)
            self._shelf.publish(path, digest, durable=False)
        return digest, size

    def put(self, data: bytes) -> Digest:
        """Keep bytes from memory.

        Raises:
            StorageFull, StorageUnreachable, StorageRefused: nothing was kept.
        """
        with self.receiver(len(data)) as receiver:
            receiver.write(data)
            staged = receiver.finish()
            with disk_errors():
                staged.path.chmod(0o444)
                self._shelf.publish(staged.path, staged.digest, durable=True)
        return staged.digest

    # -- out -----------------------------------------------------------------------------------------------------------

    @disk_errors()
    def has(self, digest: Digest) -> bool:
        """Whether a blob of this name is there; its bytes are not checked."""
        return self._shelf.has(digest)

    @disk_errors()
    def touch(self, digest: Digest) -> bool:
        """Like ``has``, and a row that names it may follow from now on, within half the grace period."""
        return self._shelf.touch(digest)

    @disk_errors()
    def path(self, digest: Digest) -> Path:
        """A file with a blob's bytes, to map into memory or to send: open it at once. Its bytes are not checked here.

        Raises:
            MissingBlob: there is none.
        """
        return self._shelf.local(digest).path

    @disk_errors()
    def size(self, digest: Digest) -> int:
        """Bytes of a blob.

        Raises:
            MissingBlob: there is none.
        """
        return self._shelf.size(digest)

    @disk_errors()
    def read(self, digest: Digest) -> bytes:
        """A blob's bytes, verified.

        Raises:
            MissingBlob, CorruptBlob: there is none, or its bytes changed.
        """
        data = self._shelf.local(digest).path.read_bytes()
        if digest == f"sha256:{hashlib.sha256(data).hexdigest()}":
            return data
        return self._shelf.renewed(digest).read_bytes()

    @disk_errors()
    def verify(self, digest: Digest) -> None:
        """Hash a blob where it really lies, without holding it in memory.

        Raises:
            MissingBlob, CorruptBlob: there is none, or its bytes changed.
        """
        self._shelf.verify(digest)

    @disk_errors()
    def verified(self, digest: Digest) -> Path:
        """A file with a blob's bytes, checked by this process once for each state of the file: open it at once.

        Raises:
            MissingBlob, CorruptBlob: there is none, or its bytes changed.
        """
        found = self._shelf.local(digest)
        path, state = found.path, _state(found.path)
        if self._checked.get(digest) == state:
            return path
        if not found.checked and not _hashes_to(path, digest):
            path = self._shelf.renewed(digest)
            state = _state(path)
        if len(self._checked) >= _CHECKED:
            self._checked.clear()
        self._checked[digest] = state
        return path

    # -- away ----------------------------------------------------------------------------------------------------------

    @disk_errors()
    def discard(self, digest: Digest) -> None:
        """Remove a blob that only its caller names, such as a snapshot; without effect when it is gone already."""
        self._shelf.discard(digest)

    @disk_errors()
    def erase(self, digest: Digest) -> None:
        """Remove a blob and the copy on this machine, however young, and make sure of it; without effect when it is
        gone already. The caller sees to it that no row names it, nor is about to.

        Raises:
            StorageUnreachable, StorageRefused: it may be there still.
        """
        self._shelf.erase(digest)

    @disk_errors()
    def drop_copy(self, digest: Digest) -> None:
        """Remove the copy of a blob on this machine, if it is one of a blob that lies elsewhere."""
        self._shelf.drop_copy(digest)

    @disk_errors()
    def sweep(self, referenced: Referenced, older_than_seconds: float, now: datetime) -> list[Digest]:
        """Remove blobs that no row names, and what was left in staging, once they are older than the grace period.

        Args:
            referenced: which of these digests any row names.
            older_than_seconds: the grace period, longer than any time between keeping bytes and committing their row.
            now: aware time that ages are measured from.

        Returns:
            Digests of the blobs that went.
        """
        limit = now.timestamp() - older_than_seconds
        self._staging.sweep(limit)
        return self._shelf.sweep(referenced, limit)

    # -- to look after -------------------------------------------------------------------------------------------------

    def stored(self) -> Iterator[Stored]:
        """Every blob that is there, named by a row or not."""
        return self._shelf.stored()

    def stale(self) -> Iterator[tuple[Digest, str]]:
        """Copies on this machine whose bytes are wrong, and what to do. None is ever served: it is fetched anew."""
        return self._shelf.stale()


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _hashes_to(path: Path, digest: Digest) -> bool:
    with path.open("rb") as file:
        return digest == f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
