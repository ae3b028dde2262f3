"""Plain zip files, in one spelling: members as they are, one after another, without times, gaps or comments.

Knows: the bytes of a zip (APPNOTE 6.3.10, sections 4.3 to 4.5). Must never know: what the members mean.

Laws:
    * The same members in the same order give the same bytes; any unzip program reads them.
    * What is read is spelled exactly so: every byte that is no member's content is compared with what would be written.
      So there is nothing in a file that is not looked at, members cannot overlap, and nothing unfolds.
    * A member's content is handed out in blocks; memory does not grow with it.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from espalier.errors import ProofRejected

_BLOCK = 1 << 18
_WIDE = 0xFFFFFFFF
"""A size or place from here on stands in a zip64 field, and this in its stead."""

_MOST_MEMBERS = 1000
_DATE = 0x0021
"""1980-01-01, the first day that a zip can name; the time is 0."""

_UNIX, _REGULAR = 3, 0o100644 << 16
_END = struct.Struct("<4s4H2LH")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127})?")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive.

    Attributes:
        size: of its content, in bytes.
        crc: CRC-32 of it.
        at: where its header begins.
    """

    name: str
    size: int
    crc: int
    at: int

    @property
    def start(self) -> int:
        """Where its content begins."""
        return self.at + len(self.header())

    def header(self) -> bytes:
        """What stands before its content."""
        wide = self.size >= _WIDE
        extra = struct.pack("<2H2Q", 1, 16, self.size, self.size) if wide else b""
        size = _WIDE if wide else self.size
        fixed = struct.pack(
            "<4s5H3L2H", b"PK\3\4", _needed(wide), 0, 0, 0, _DATE, self.crc, size, size, len(self.name), len(extra)
        )
        return fixed + self.name.encode() + extra

    def entry(self) -> bytes:
        """Its line in the directory at the end."""
        wide = [n for n in (self.size, self.size, self.at) if n >= _WIDE]
        extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        size, at = min(self.size, _WIDE), min(self.at, _WIDE)
        version = _needed(bool(wide))
        fixed = struct.pack(
            "<4s6H3L5H2L",
            *(b"PK\1\2", _UNIX << 8 | version, version, 0, 0, 0, _DATE, self.crc, size, size),
            *(len(self.name), len(extra), 0, 0, 0, _REGULAR, at),
        )
        return fixed + self.name.encode() + extra


def _needed(wide: bool) -> int:
    return 45 if wide else 20


def _end(members: Iterable[Member], at: int) -> bytes:
    """The directory, which begins at ``at``, and what closes the file."""
    entries = [member.entry() for member in members]
    directory = b"".join(entries)
    closing = b""
    if at >= _WIDE:
        fields = (b"PK\6\6", 44, _UNIX << 8 | 45, 45, 0, 0, len(entries), len(entries), len(directory), at)
        closing = struct.pack("<4sQ2H2L4Q", *fields)
        closing += struct.pack("<4sLQL", b"PK\6\7", 0, at + len(directory), 1)
    last = _END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), min(at, _WIDE), 0)
    return directory + closing + last


class Writer:
    """Writes an archive into a file that can be gone back in; ``close`` completes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: list[Member] = []
        self._at = 0

    def add(self, name: str, blocks: Iterable[bytes], size: int = 0) -> str:
        """Add a member.

        Args:
            name: of letters, digits, ``.``, ``_`` and ``-``, with at most one folder.
            blocks: its content.
            size: in bytes, where it is known; it must be where it may be 4 GiB or more.

        Returns:
            The digest of its content.

        Raises:
            ValueError: the name cannot be used, or the content has another size than was said.
        """
        if not _NAME.fullmatch(name) or name in {member.name for member in self._members}:
            raise ValueError(f"{name!r} cannot name a member of an archive")
        place = Member(name, size, 0, self._at)
        self._file.write(place.header())
        found, crc, state = 0, 0, hashlib.sha256()
        for block in blocks:
            self._file.write(block)
            found, crc = found + len(block), zlib.crc32(block, crc)
            state.update(block)
        done = Member(name, found, crc, self._at)
        if size not in (0, found) or len(done.header()) != len(place.header()):
            raise ValueError(f"{name!r} has {found} bytes, not {size}")
        self._file.seek(self._at)
        self._file.write(done.header())
        self._at = self._file.seek(0, os.SEEK_END)
        self._members.append(done)
        return "sha256:" + state.hexdigest()

    def close(self) -> None:
        """Write the directory; the file itself is left open."""
        self._file.write(_end(self._members, self._at))


class Archive:
    """An archive that is read. Use it as a context manager.

    Attributes:
        members: by name, in the order of the file.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and check that it is one, in the one spelling; contents are checked as they are read.

        Raises:
            ProofRejected: it is not, with the reason.
            OSError: it cannot be read.
        """
        self._file = path.open("rb")
        try:
            self.members = self._listed()
        except (struct.error, UnicodeDecodeError) as error:
            self._file.close()
            raise _not_one(f"its directory cannot be read ({error})") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def blocks(self, name: str) -> Iterator[bytes]:
        """A member's content.

        Raises:
            ProofRejected: there is no such member, or the content is not what its checksum says.
        """
        member = self._member(name)
        at, left, crc = member.start, member.size, 0
        while left:
            self._file.seek(at)
            block = self._file.read(min(_BLOCK, left))
            if not block:
                raise _not_one("it ended while it was read")
            at, left, crc = at + len(block), left - len(block), zlib.crc32(block, crc)
            yield block
        if crc != member.crc:
            raise ProofRejected(f"{name}: its bytes do not have their checksum: the file is damaged; download it again")

    def read(self, name: str, most: int) -> bytes:
        """A member's whole content.

        Args:
            name: of the member.
            most: bytes that it may have.

        Raises:
            ProofRejected: there is no such member, it is larger, or damaged.
        """
        member = self._member(name)
        if member.size > most:
            raise ProofRejected(f"{name} has {member.size:,} bytes, more than the {most:,} that it may have")
        return b"".join(self.blocks(name))

    def lines(self, name: str, most: int) -> Iterator[bytes]:
        """A member's lines, without their line ends.

        Args:
            name: of the member.
            most: bytes that a line may have.

        Raises:
            ProofRejected: as for ``blocks``; a line is longer, or the last one has no end.
        """
        rest = b""
        for block in self.blocks(name):
            *whole, rest = (rest + block).split(b"\n")
            if len(rest) > most or any(len(line) > most for line in whole):
                raise ProofRejected(f"{name} has a line of more than {most:,} bytes")
            yield from whole
        if rest:
            raise ProofRejected(f"{name} does not end with a line end: it is cut off")

    def _member(self, name: str) -> Member:
        if (member := self.members.get(name)) is None:
            raise ProofRejected(f"{name} is missing in the file")
        return member

    def _listed(self) -> dict[str, Member]:
        size = self._file.seek(0, os.SEEK_END)
        start, count = self._directory(size)
        tail = self._part(start, size - start)
        members, at, place = [], 0, 0
        for _ in range(count):
            member, length = _entry(tail, at, place)
            members.append(member)
            at, place = at + length, member.start + member.size
            if place > start or self._part(member.at, member.start - member.at) != member.header():
                raise _not_one(f"what stands before {member.name} is not its header")
        if place != start or tail != _end(members, start):
            raise _not_one("its directory does not agree with its members")
        named = {member.name: member for member in members}
        if len(named) != len(members) or not all(map(_NAME.fullmatch, named)):
            raise _not_one("two members have one name, or a name that none may have")
        return named

    def _directory(self, size: int) -> tuple[int, int]:
        """Where the directory begins, and how many members it lists."""
        _, _, _, _, count, length, start, _ = _END.unpack(self._part(size - _END.size, _END.size))
        if start == _WIDE:
            (start,) = struct.unpack("<Q", self._part(size - _END.size - 20 - 8, 8))
        if not 0 <= start <= size or count > _MOST_MEMBERS or length > size - start or size - start > 1 << 20:
            raise _not_one("it does not end with a directory")
        return start, count

    def _part(self, at: int, length: int) -> bytes:
        if at < 0:
            raise _not_one("it is too short")
        self._file.seek(at)
        return self._file.read(length)


def _entry(tail: bytes, at: int, place: int) -> tuple[Member, int]:
    """The member of a line of the directory, and the line's length. ``place`` is where the member must begin."""
    fixed = struct.unpack_from("<4s6H3L5H2L", tail, at)
    crc, size, named, extra = fixed[7], fixed[8], fixed[10], fixed[11]
    name = tail[at + 46 : at + 46 + named].decode("ascii")
    if size == _WIDE:
        (size,) = struct.unpack_from("<Q", tail, at + 46 + named + 4)
    return Member(name, size, crc, place), 46 + named + extra


def _not_one(why: str) -> ProofRejected:
    return ProofRejected(
        f"this is no bundle as Espalier writes it: {why}. Download it again, and do not pack it anew: what is checked "
        "is the file as it was downloaded"
    )
