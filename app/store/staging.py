"""Bytes of resumable uploads, from their first byte to the megabatch: ``<root>/uploads/<id>``.

Knows: files, locks between processes, what is on the disk for certain. Must never know: HTTP, rows, what the bytes
mean.

Laws:
    * One file has one writer: whoever appends or decodes holds its lock, and a second one gets ``UploadBusy``. A lock
      goes with its process, however that ends.
    * What ``Part.sync`` has returned is on the disk. Bytes beyond the offset that a caller recorded are cut off before
      anything is appended, so a torn tail is never part of an upload.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from app.errors import MissingBlob, StorageFull, UploadBusy
from app.store.blobs import Staged, disk_errors
from app.store.blobs.staging import fsync_folder

SPARE_BYTES = 64 * 1024 * 1024
"""What must stay free on the disk beside an upload: the database and the logs are on it too."""

_REMEMBERED = 256
"""Uploads whose hash a process carries from request to request; others are hashed once more when they are whole."""


class Part:
    """An upload's file, held by one writer."""

    def __init__(self, file: FileIO, offset: int, state: hashlib._Hash | None) -> None:
        self._file = file
        self.offset = offset
        self.state = state
        self._started = offset

    def write(self, blocks: Sequence[bytes]) -> None:
        """Append, and let the disk begin with it at once, so that ``sync`` has little left to wait for.

        Raises:
            StorageFull: the disk is full; what was appended before stays.
        """
        with disk_errors():
            for block in blocks:
                rest = memoryview(block)
                while rest:
                    rest = rest[self._file.write(rest) :]
                if self.state is not None:
                    self.state.update(block)
                self.offset += len(block)
            os.posix_fadvise(self._file.fileno(), self._started, self.offset - self._started, os.POSIX_FADV_DONTNEED)
        self._started = self.offset

    def sync(self) -> int:
        """Make what was appended by now durable; returns its size in bytes. More may be appended meanwhile."""
        offset = self.offset
        with disk_errors():
            os.fdatasync(self._file.fileno())
        return offset

    def digest_since(self, offset: int, algorithm: str) -> bytes:
        """The hash of the bytes that were appended from an offset on."""
        state = hashlib.new(algorithm)
        with open(self._file.fileno(), "rb", closefd=False, buffering=0) as file:
            file.seek(offset)
            while block := file.read(1 << 20):
                state.update(block)
        return state.digest()


class Partials:
    """The folder of unfinished uploads."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "uploads"
        self._states: OrderedDict[str, tuple[int, hashlib._Hash]] = OrderedDict()
        with disk_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            fsync_folder(root)

    def path(self, upload: str) -> Path:
        """The file of an upload, whether it is there or not."""
        return self._folder / upload

    def create(self, upload: str) -> None:
        """Make the empty file of a new upload, durably."""
        with disk_errors():
            self.path(upload).touch(exist_ok=False)
            fsync_folder(self._folder)

    def adopt(self, upload: str, staged: Staged) -> None:
        """Make a body that was received whole the file of an upload."""
        with disk_errors():
            staged.path.replace(self.path(upload))
            fsync_folder(self._folder)
        self._remember(upload, staged.size, None)

    def require_space(self, needed: int) -> None:
        """Check that the disk has room for so many bytes more.

        Raises:
            StorageFull: it has not.
        """
        free = shutil.disk_usage(self._folder).free
        if free < needed + SPARE_BYTES:
            raise StorageFull(
                f"the disk has {max(0, free - SPARE_BYTES)} bytes to spare, and {needed} are needed: "
                "free space on the server, then send it again"
            )

    @contextmanager
    def appending(self, upload: str, file: FileIO, offset: int) -> Iterator[Part]:
        """Append to a file that is held, at the recorded offset; what lies beyond it is cut off first.

        Raises:
            MissingBlob: it is shorter than was recorded.
        """
        with disk_errors():
            if file.seek(0, os.SEEK_END) < offset:
                raise _lost(upload)
            file.truncate(offset)
            file.seek(offset)
        part = Part(file, offset, self._state(upload, offset))
        try:
            yield part
        finally:
            self._remember(upload, part.offset, part.state)

    @disk_errors()
    def whole(self, upload: str, file: FileIO, length: int) -> Staged:
        """A file that is held and complete, with its digest.

        Raises:
            MissingBlob: its bytes are not all there.
        """
        if os.fstat(file.fileno()).st_size != length:
            raise _lost(upload)
        state = self._state(upload, length)
        found = hashlib.file_digest(file, "sha256") if state is None else state
        return Staged(self.path(upload), f"sha256:{found.hexdigest()}", length)

    @disk_errors()
    def remove(self, upload: str) -> None:
        """Remove an upload's bytes; without effect when they are gone."""
        self._states.pop(upload, None)
        self.path(upload).unlink(missing_ok=True)

    @disk_errors()
    def strays(self, known: Collection[str], older_than: float) -> list[str]:
        """Uploads whose files no row names, last written before a time (seconds since the epoch)."""
        found = [path for path in self._folder.iterdir() if path.name not in known]
        return sorted(path.name for path in found if path.exists() and path.stat().st_mtime < older_than)

    @contextmanager
    def held(self, upload: str) -> Iterator[FileIO]:
        """Hold an upload's file against everybody else.

        Raises:
            UploadBusy: somebody holds it. MissingBlob: it is gone.
        """
        try:
            with disk_errors():
                file = self.path(upload).open("r+b", buffering=0)
        except FileNotFoundError:
            raise _lost(upload) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UploadBusy(
                    f"upload {upload} is being written by another request: ask for its offset when that has ended"
                ) from None
            yield file

    def _state(self, upload: str, offset: int) -> hashlib._Hash | None:
        """The hash so far, where this process has followed the upload from its first byte."""
        if offset == 0:
            return hashlib.sha256()
        at, state = self._states.get(upload, (-1, None))
        return state.copy() if state is not None and at == offset else None

    def _remember(self, upload: str, offset: int, state: hashlib._Hash | None) -> None:
        self._states.pop(upload, None)
        if state is not None:
            self._states[upload] = (offset, state)
        while len(self._states) > _REMEMBERED:
            self._states.popitem(last=False)


def _lost(upload: str) -> MissingBlob:
    return MissingBlob(f"bytes of upload {upload} are missing on the server: delete it, then upload again")
