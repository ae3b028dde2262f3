"""Bytes on their way in: written to a temporary name, hashed as they come, gone unless they were kept.

Knows: temporary files, fsync, full disks. Must never know: where blobs lie.

Laws:
    * Whatever ends a receiver or a workspace, nothing is left of it. What a killed process left goes by its age.
    * A full disk is ``StorageFull``, and one that reports errors ``StorageFailed``, wherever it is met.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from app import crash
from app.domain import Digest
from app.errors import StorageFailed, StorageFull, UploadTooLarge

_log = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FAILED = {errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EREMOTEIO}


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes that are durable, but have no name yet: they go when their receiver is left, unless they were kept."""

    path: Path
    digest: Digest
    size: int


class Staging:
    """A folder of files that nobody names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with disk_errors():
            folder.mkdir(parents=True, exist_ok=True)

    def name(self) -> Path:
        """A path that nobody else uses."""
        return self.folder / secrets.token_hex(16)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder, removed on exit with all that is left in it."""
        with disk_errors():
            folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, limit: float) -> None:
        """Remove what was left behind and is older than ``limit``, in seconds since the epoch."""
        for path in self.folder.glob("*"):
            try:
                newest = max(map(modified_at, (path, *path.rglob("*"))))
            except FileNotFoundError:
                continue  # its owner has just been done with it, or with a part of it
            if newest >= limit:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


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
        with disk_errors():
            while rest:
                rest = rest[self._file.write(rest) :]

    def finish(self) -> Staged:
        """Make the bytes durable, and say what they are.

        Raises:
            StorageFull: the disk is full.
        """
        crash.point("blob.written")
        with disk_errors():
            os.fsync(self._file.fileno())
            self._file.close()
        crash.point("blob.synced")
        return Staged(self._path, f"sha256:{self._hash.hexdigest()}", self._size)

    def abort(self) -> None:
        """Leave nothing behind; what the disk does not let go is left to the sweep. Bytes that were kept stay."""
        try:
            self._file.close()
            self._path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s stays until it is swept: %s", self._path, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


@contextmanager
def disk_errors() -> Iterator[None]:
    """Say what a full disk, or one that reports errors, means here."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull("the disk is full: free space, then send it again") from error
        if error.errno in _FAILED:
            raise StorageFailed(
                f"the disk reports an error ({error.strerror}): look at it and at the machine's log, then try again"
            ) from error
        raise


def modified_at(path: Path) -> float:
    """Modification time in seconds; what is gone meanwhile counts as young."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
