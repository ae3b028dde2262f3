"""A whole log outside its service: entries in files of many, the signed checkpoint, the public keys.

Knows: the layout of a folder or tar that holds a log, and how it is verified. Must never know: a service.
``docs/log-format.md`` describes the bytes.

Laws:
    * Entries are the bytes that were hashed, one a line; a file of entries never changes once it is there.
    * The checkpoint is written last: what lies past it was left by an export that was cut off, and does not count.
    * A log is verified entry by entry, in constant memory. Every byte counts that is not past the checkpoint: of a tar
      also what stands between its files, and of the keys, though they prove nothing, that they are keys.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from espalier.errors import EspalierClientError, ProofRejected
from espalier.formats.note import LogCheckpoint, VerifierKey, opened
from espalier.formats.proof import Frontier, leaf_hash

CHECKPOINT, KEYS = "checkpoint", "keys"
_ENTRIES = re.compile(r"entries/([0-9]{12})-([0-9]{12})\.jsonl")
_LINE = 1 << 26
"""Bytes that one entry may have."""

Progress = Callable[[int, int], None]


def entries_name(first: int, last: int) -> str:
    """The file of these entries."""
    return f"entries/{first:012}-{last:012}.jsonl"


class LogFiles:
    """A log in a folder, or in one tar where the name ends with ``.tar``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packed = path.suffix == ".tar"

    @property
    def empty(self) -> bool:
        """Whether nothing was exported to it yet."""
        return not (self.path.exists() if self.packed else (self.path / CHECKPOINT).exists())

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], BinaryIO]]:
        """How its files are read, by name.

        Raises:
            ProofRejected: one that is asked for is missing, or it is no such tar.
        """
        if not self.packed:
            yield self._file
            return
        try:
            with tarfile.open(self.path, "r:") as tar:
                _expect_spelled(self.path, tar)
                yield lambda name: _member(tar, name)
        except tarfile.TarError as error:
            raise ProofRejected(f"{self.path} is no tar of a log: {error}") from error

    def names(self, size: int) -> list[str]:
        """The files of entries that a log of this size is in, in order.

        Raises:
            ProofRejected: there is a gap.
        """
        found = {match[0]: (int(match[1]), int(match[2])) for match in map(_ENTRIES.fullmatch, self._all()) if match}
        names, reached = [], 0
        for name, (first, last) in sorted(found.items()):
            if last <= size and first == reached + 1:
                names.append(name)
                reached = last
        if reached != size:
            raise ProofRejected(
                f"{self.path} holds entries 1 to {reached}, but its checkpoint says {size}: some are missing"
            )
        return names

    def commit(self, added: Sequence[tuple[str, Path]], keep: Sequence[str], checkpoint: str, keys: str) -> None:
        """Add files of entries, then the checkpoint that covers them.

        Args:
            added: names, and where their bytes lie now; they are moved or copied.
            keep: names of those that are there and stay.
            checkpoint: the signed note.
            keys: public keys, one a line.
        """
        if self.packed:
            self._pack(added, keep, {CHECKPOINT: checkpoint, KEYS: keys})
            return
        (self.path / "entries").mkdir(parents=True, exist_ok=True)
        for left in set(filter(_ENTRIES.fullmatch, self._all())) - set(keep):
            (self.path / left).unlink()
        for name, source in added:
            _settle(source, self.path / name)
        for name, text in ((KEYS, keys), (CHECKPOINT, checkpoint)):
            draft = self.path / f".{name}.{secrets.token_hex(6)}"
            draft.write_text(text, "utf-8")
            _settle(draft, self.path / name)

    def _pack(self, added: Sequence[tuple[str, Path]], keep: Sequence[str], texts: dict[str, str]) -> None:
        draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}")
        try:
            with tarfile.open(draft, "x:", format=tarfile.PAX_FORMAT) as tar:
                if keep:
                    with tarfile.open(self.path, "r:") as old:
                        for name in keep:
                            tar.addfile(old.getmember(name), old.extractfile(name))
                for name, source in added:
                    with source.open("rb") as file:
                        tar.addfile(_header(name, source.stat().st_size), file)
                for name, text in texts.items():
                    plain = draft.with_name(f"{draft.name}.{name}")
                    plain.write_text(text, "utf-8")
                    with plain.open("rb") as file:
                        tar.addfile(_header(name, plain.stat().st_size), file)
                    plain.unlink()
            _settle(draft, self.path)
        finally:
            draft.unlink(missing_ok=True)

    def _all(self) -> list[str]:
        if self.packed:
            with tarfile.open(self.path, "r:") as tar:
                return tar.getnames()
        return [f"entries/{path.name}" for path in (self.path / "entries").glob("*.jsonl")]

    def _file(self, name: str) -> BinaryIO:
        try:
            return (self.path / name).open("rb")
        except FileNotFoundError:
            raise ProofRejected(f"{name} is missing in {self.path}") from None


def verify_files(
    path: Path, keys: Sequence[VerifierKey], *, progress: Progress | None = None
) -> tuple[LogCheckpoint, Frontier, list[str]]:
    """Verify an exported log with the public keys alone.

    Args:
        path: the folder or tar.
        keys: those of the log that the caller trusts.
        progress: told how many entries were verified, and how many there are.

    Returns:
        Its checkpoint, the frontier after its last entry, and the names of its files of entries.

    Raises:
        ProofRejected: naming the first entry that does not hold.
    """
    files = LogFiles(path)
    if files.empty:
        raise EspalierClientError(f"{path} holds no exported log: `espalier audit export {path}` makes one")
    with files.opened() as read:
        with read(CHECKPOINT) as file:
            log = opened(_text(file, CHECKPOINT), keys)
        with read(KEYS) as file:
            _expect_keys(_text(file, KEYS))
        names, frontier = files.names(log.size), Frontier()
        for name in names:
            with read(name) as file:
                for line in _lines(file, name):
                    frontier = frontier.append(leaf_hash(line))
                    if _seq(line) != frontier.size:
                        raise ProofRejected(f"{name}: entry {frontier.size} is not where it belongs", frontier.size)
                    if progress is not None:
                        progress(frontier.size, log.size)
    if frontier.size != log.size or frontier.root() != log.root:
        raise ProofRejected(
            f"the {frontier.size} entries in {path} hash to {frontier.root().hex()}, but its checkpoint says "
            f"{log.size} entries with the root {log.root.hex()}: an entry was changed, removed or added"
        )
    return log, frontier, names


def _text(file: BinaryIO, name: str) -> str:
    try:
        return file.read(_LINE).decode()
    except UnicodeDecodeError:
        raise ProofRejected(f"{name} is not UTF-8") from None


def _expect_keys(text: str) -> None:
    """What is there for people to compare must at least be keys, or they would compare damage."""
    try:
        listed = [VerifierKey.parse(line).text for line in text.splitlines()]
    except ProofRejected as error:
        raise ProofRejected(f"{KEYS}: {error}") from None
    if not listed or "".join(f"{key}\n" for key in listed) != text:
        raise ProofRejected(f"{KEYS} does not hold public keys, one a line")


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    while line := file.readline(_LINE):
        if not line.endswith(b"\n"):
            raise ProofRejected(f"{name} is cut off, or has a line that is longer than any entry")
        yield line[:-1]


def _seq(line: bytes) -> object:
    try:
        return json.loads(line)["seq"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _member(tar: tarfile.TarFile, name: str) -> BinaryIO:
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ProofRejected(f"{name} is missing in {tar.name!r}")
    return file  # type: ignore[return-value]  # a buffered reader, which typeshed calls IO[bytes]


def _expect_spelled(path: Path, tar: tarfile.TarFile) -> None:
    """Every byte of a tar that is no file's content is what would be written there, and every file has its place."""
    at, members = 0, tar.getmembers()
    with path.open("rb") as file:
        for member in members:
            if member.name not in (CHECKPOINT, KEYS) and not _ENTRIES.fullmatch(member.name):
                raise ProofRejected(f"{path} holds {member.name!r:.99}, which is no part of a log")
            header = _header(member.name, member.size).tobuf(tarfile.PAX_FORMAT)
            if _part(file, at, len(header)) != header:
                raise ProofRejected(f"{path}: what stands before {member.name} is not its header")
            end = at + len(header) + member.size
            at = end + -member.size % tarfile.BLOCKSIZE
            if _part(file, end, at - end).strip(b"\0"):
                raise ProofRejected(f"{path}: what stands after {member.name} is not empty")
        closing = 2 * tarfile.BLOCKSIZE + -(at + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE
        if len({member.name for member in members}) != len(members) or _part(file, at, closing + 1) != bytes(closing):
            raise ProofRejected(f"{path} does not end as a tar does, or names a file twice")


def _part(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _header(name: str, size: int) -> tarfile.TarInfo:
    found = tarfile.TarInfo(str(PurePosixPath(name)))
    found.size, found.mode = size, 0o644
    return found


def _settle(draft: Path, target: Path) -> None:
    """Move a file to its place, durably."""
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    try:
        draft.replace(target)
    except OSError:  # another file system
        shutil.copyfile(draft, target)
        draft.unlink()
