"""Copies of blobs on this machine, under a limit of bytes.

Knows: files by digest, when each was asked for last. Must never know: where the originals lie, or whether the bytes of
an entry are right (who reads it checks).

Laws:
    * An entry appears whole, by a rename, and never changes. Any number of processes share one folder without a lock.
    * What was asked for longest ago goes first. What any process has asked for within the last minute stays, though the
      limit be passed: whoever was given its path has time to open it. Once it is open or mapped, removing it takes
      nothing from its reader; the disk gets the space back when the last reader is done.

When an entry was asked for last stands in its access time, which is set by hand: mounts with ``noatime`` do as well.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from app.domain import Digest
from app.store.blobs.shelf import hex_of, is_digest

_YOUNG_SECONDS = 60.0
_MARK_SECONDS = 5.0
"""An access time is written anew when it is older than this."""


class Cache:
    """A folder of copies by digest."""

    def __init__(self, root: Path, limit: int) -> None:
        """Open a folder.

        Args:
            root: it is made if it is not there.
            limit: bytes that entries may take together.
        """
        self._root = root
        self._limit = limit
        root.mkdir(parents=True, exist_ok=True)

    def find(self, digest: Digest) -> Path | None:
        """The entry's file, which stays for the next minute; None without one."""
        path = self._target(digest)
        try:
            found = path.stat()
            if found.st_atime < time.time() - _MARK_SECONDS:
                os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
        except FileNotFoundError:
            return None
        return path

    def add(self, path: Path, digest: Digest) -> Path:
        """Move a file of this file system into place; others may have to go for it."""
        target = self._target(digest)
        target.parent.mkdir(exist_ok=True)
        os.utime(path)
        path.replace(target)
        self.shrink()
        return target

    def drop(self, digest: Digest) -> None:
        """Forget an entry, if there is one."""
        self._target(digest).unlink(missing_ok=True)

    def wrong(self) -> Iterator[Digest]:
        """Entries whose bytes do not hash to their name."""
        for path in self._root.glob("??/*"):
            digest = f"sha256:{path.parent.name}{path.name}"
            try:
                with path.open("rb") as file:
                    right = digest == f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            except FileNotFoundError:
                continue  # it went meanwhile
            if is_digest(digest) and not right:
                yield digest

    def shrink(self) -> None:
        """Remove what was asked for longest ago until the limit is kept."""
        entries = sorted(self._entries())
        excess = sum(size for _, size, _ in entries) - self._limit
        for asked, size, path in entries:
            if excess <= 0 or asked > time.time() - _YOUNG_SECONDS:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._root.glob("??/*"):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            yield found.st_atime, found.st_size, path

    def _target(self, digest: Digest) -> Path:
        name = hex_of(digest)
        return self._root / name[:2] / name[2:]
