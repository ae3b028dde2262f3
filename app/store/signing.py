"""What the log is signed with, and what was signed last: two files beside the blobs.

Knows: the key file, the last signed checkpoint, and the lock that lets one process of a machine sign at a time. Must
never know: what may be signed (``service.notary``), or HTTP.

Laws:
    * The key file is its owner's alone to read, or it is not used.
    * A checkpoint is in its file, durably, before anybody is told it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.errors import Fault
from app.store.blobs.staging import disk_errors, fsync_folder
from espalier.errors import ProofRejected
from espalier.formats.note import SignerKey

_UNFINISHED = re.compile(r"\.[0-9a-f]{16}")
"""How the name of a file ends that is being written."""


class SigningFiles:
    """The files of one machine."""

    def __init__(self, folder: Path, keys: Path) -> None:
        """Name the files; none is read or made yet.

        Args:
            folder: for the last checkpoint and the lock.
            keys: the key file.
        """
        self._checkpoint, self._lock, self.keys = folder / "checkpoint", folder / "lock", keys
        self._read: tuple[tuple[int, int, int], tuple[SignerKey, ...]] | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this lasts, no other process of this machine signs; what one left that was killed as it wrote, maybe a
        key, is gone.
        """
        with disk_errors():
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._tidy()
            yield
        finally:
            os.close(handle)

    def _tidy(self) -> None:
        for path in (self.keys, self._checkpoint):
            with disk_errors():
                for left in path.parent.glob(f".{path.name}.*"):
                    if _UNFINISHED.fullmatch(left.suffix):
                        left.unlink(missing_ok=True)

    # -- keys ----------------------------------------------------------------------------------------------------------

    def signers(self) -> tuple[SignerKey, ...]:
        """The keys that sign, the present one first; none where there is no file.

        Raises:
            Fault: the file cannot be used, with the remedy.
        """
        try:
            with disk_errors():
                found = self.keys.stat()
        except FileNotFoundError:
            return ()
        if found.st_mode & 0o077:
            raise Fault(
                f"{self.keys} can be read by others: run `chmod 600 {self.keys}`, and consider rotating the key"
            )
        state = found.st_ino, found.st_size, found.st_mtime_ns
        if self._read is None or self._read[0] != state:
            with disk_errors():
                self._read = state, self._parsed(self.keys.read_text("utf-8", errors="replace"))
        return self._read[1]

    def _parsed(self, text: str) -> tuple[SignerKey, ...]:
        try:
            signers = tuple(SignerKey.parse(line) for line in text.splitlines() if line.strip())
        except ProofRejected as error:
            raise Fault(f"{self.keys} cannot be used ({error}): restore it from its copy") from error
        if not signers:
            raise Fault(f"{self.keys} is empty: restore it from its copy")
        return signers

    def write_signers(self, signers: Sequence[SignerKey]) -> None:
        """Replace the key file."""
        self._replace(self.keys, "".join(f"{signer.text}\n" for signer in signers), 0o600)

    # -- the last checkpoint -------------------------------------------------------------------------------------------

    def kept(self) -> str | None:
        """The last checkpoint that was signed on this machine."""
        try:
            with disk_errors():
                return self._checkpoint.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def keep(self, note: str) -> None:
        """Write a checkpoint down, durably, in place of the last one."""
        self._replace(self._checkpoint, note, 0o644)

    def give_up(self) -> None:
        """Forget the last checkpoint, which nothing will continue. The database has it still."""
        with disk_errors():
            self._checkpoint.unlink(missing_ok=True)
            fsync_folder(self._checkpoint.parent)

    def _replace(self, path: Path, text: str, mode: int) -> None:
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            try:
                handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(handle)
                unfinished.replace(path)
                fsync_folder(path.parent)
                fsync_folder(path.parent.parent)  # the folder may be new
            finally:
                unfinished.unlink(missing_ok=True)
