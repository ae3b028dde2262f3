"""The files of a folder that was packed as a zip, a tar, or a tar under gzip; by their paths.

Knows: which of the strict readers reads an archive. Must never know: what the files hold.

Laws:
    * The order is that of the paths, whatever the order in the archive; a path stands there once.
    * All that may ever be unpacked is bounded before anything is.
    * The notes of file managers (``__MACOSX``, ``._*``, ``.DS_Store``, ``Thumbs.db``) are no files.

Reasons of refusal, stable words for programs:

    the archive   truncated, corrupt, encrypted, compression, too-large
    its members   duplicate-member, unsafe-member, overlapping-members, too-many-members
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from app.intake.archive import Member, Reader, read_directory
from app.intake.arrays import LARGEST_EXAMPLE, Limits, refuse, refuse_size
from app.intake.tarball import gunzip, read_stored, read_tar

MOST_MEMBERS = 65_535
"""Files in one archive: what a zip without zip64 can hold."""

_JUNK = re.compile(r"(^|/)(__MACOSX(/|$)|\._[^/]*$|\.DS_Store$|Thumbs\.db$)")


@dataclass(frozen=True, slots=True)
class File:
    """One file of the folder; ``path`` is its name, as parts; ``read`` gives all its bytes."""

    path: tuple[str, ...]
    size: int
    read: Callable[[], bytes]

    @property
    def name(self) -> str:
        """The path for messages."""
        return "/".join(self.path)[-100:]


@contextmanager
def opened(path: Path, work: Path, limits: Limits) -> Iterator[list[File]]:
    """The folder's files, to be read within the context.

    Args:
        path: the archive; nothing about it is trusted.
        work: a folder, where what gzip packs is unpacked to; that is removed in the end.
        limits: ``max_bytes`` for what is unpacked, beyond what was sent; a quarter of ``memory_bytes`` for one file.

    Raises:
        InvalidMegabatch: with one of the reasons above.
    """
    with path.open("rb") as file:
        start = file.read(4)
        if not start.startswith(b"\x1f\x8b"):
            yield _files(file, start, limits)
            return
    plain = work / "unpacked.tar"
    try:
        gunzip(path, plain, limits.max_bytes)
        with plain.open("rb") as file:
            yield _files(file, b"", limits)
    finally:
        plain.unlink(missing_ok=True)


def _files(file: BinaryIO, start: bytes, limits: Limits) -> list[File]:
    """The archive's files by path."""
    files: list[File]
    if start[:2] == b"PK":
        zipped = read_directory(file, MOST_MEMBERS, folders=True)
        files = [File(_parts(member.name), member.size, partial(_unzipped, file, member)) for member in zipped]
    else:
        stored = read_tar(file, MOST_MEMBERS)
        files = [File(_parts(member.name), member.size, partial(read_stored, file, member)) for member in stored]
    _check_sizes(files, file.seek(0, os.SEEK_END), limits)
    files.sort(key=lambda each: each.path)
    for one, other in pairwise(files):
        if one.path == other.path:
            refuse("duplicate-member", f"the archive has {one.name!r} twice: send each file once")
    return [each for each in files if not _JUNK.search("/".join(each.path))]


def _unzipped(file: BinaryIO, member: Member) -> bytes:
    reader = Reader(file, member)
    data = reader.read(member.size)
    reader.finish()
    return data


def _parts(name: str) -> tuple[str, ...]:
    """A member's name as parts. macOS takes accents apart in names; put together they are what others write."""
    parts = tuple(unicodedata.normalize("NFC", name).split("/"))
    parts = parts[1:] if parts[0] == "." and len(parts) > 1 else parts
    if not all(parts) or "." in parts:
        refuse("unsafe-member", f"the archive has a member with the path {name[:64]!r}: write it with plain names")
    return parts


def _check_sizes(files: Sequence[File], packed: int, limits: Limits) -> None:
    """Nothing here may unpack to much more than could be decoded, even if none of it is an image."""
    for file in files:
        if file.size > min(LARGEST_EXAMPLE, limits.memory_bytes // 4):
            refuse("too-large", f"{file.name!r} takes {file.size} bytes: send smaller images")
    if (total := sum(file.size for file in files)) > packed + limits.max_bytes:
        refuse_size("what the archive unpacks to", total, limits)
