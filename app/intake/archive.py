"""A zip archive, read strictly.

Knows: the zip format (PKWARE APPNOTE 6.3.10) as far as npz files and folders of images use it: stored and deflated
members, zip64. Must never know: what the members hold. The standard library's reader repairs and tolerates, and before
Python 3.11.8 it accepts overlapping members (CVE-2024-0450).

Laws:
    * Nothing is allocated by what an archive claims: the directory and every piece that is read are bounded first.
    * Every byte belongs to at most one member, and both headers of a member agree.
    * What is read is whole: size and CRC are those of the directory, or ``InvalidMegabatch`` is raised.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, NoReturn

from app.errors import InvalidMegabatch

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_FIELD = 1
_PIECE = 1 << 16

MOST_MEMBERS = 16
"""Members of an npz that are looked at, so that an error can name the ones that do not belong."""

_DIRECTORY, _DIRECTORY_ENTRY = 1 << 20, 256
"""How long a directory may be, in bytes: at all, and for each member that there may be."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member's place in the file: ``start`` is where its ``packed`` bytes begin, ``size`` what they unpack to."""

    name: str
    method: int
    start: int
    packed: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A member as the directory describes it; ``offset`` is that of its local header."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int
    offset: int

    @property
    def text(self) -> str:
        """The name as text."""
        return text_of(self.name)

    @property
    def folder(self) -> bool:
        """Whether it stands for a folder."""
        return self.name.endswith(b"/") or stat.S_ISDIR(self.mode)


def read_directory(file: BinaryIO, most: int = MOST_MEMBERS, *, folders: bool = False) -> tuple[Member, ...]:
    """The members of an archive, in the order of the directory.

    Args:
        file: the archive, open for reading.
        most: how many members there may be.
        folders: whether members may be folders. They hold nothing, and are left out of the answer.

    Raises:
        InvalidMegabatch: ``truncated``, ``corrupt``, ``too-many-members``, ``duplicate-member``, ``unsafe-member``,
            ``overlapping-members``, ``encrypted`` or ``compression``.
    """
    start, length, count = _find_directory(file)
    if count > most or length > _DIRECTORY + most * _DIRECTORY_ENTRY:
        _refuse("too-many-members", f"the zip has {count} members, and {most} at most are read: send fewer at a time")
    file.seek(start)
    entries = _read_entries(file.read(length), count)
    for entry in entries:
        _check(entry, folders)
    _check_unique(entries)
    members = [_locate(file, entry, start) for entry in entries]
    _check_apart(entries, members)
    return tuple(member for entry, member in zip(entries, members, strict=True) if not entry.folder)


def text_of(name: bytes) -> str:
    """A member's name as text: UTF-8, or else zip's old code page, in which every byte is a character."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("cp437")


def is_unsafe(name: bytes) -> bool:
    """Whether a member's name is no plain path: absolute, with ``..``, a backslash, a drive or a control character."""
    return name[:1] == b"/" or b".." in name.split(b"/") or any(byte < 32 or byte in b"\\:\x7f" for byte in name)


class Reader:
    """Reads one member from its beginning, in pieces of the caller's choice; ``finish`` checks that it was whole."""

    def __init__(self, file: BinaryIO, member: Member) -> None:
        self._file, self._member = file, member
        self._position, self._left = member.start, member.packed
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == _DEFLATED else None
        self._crc = self._read = 0

    @property
    def size(self) -> int:
        """Unpacked bytes, as the directory promises."""
        return self._member.size

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes.

        Raises:
            InvalidMegabatch: ``corrupt``, when the member ends before, or cannot be unpacked.
        """
        pieces = self._inflate(size) if self._inflater else self._take(size)
        if len(pieces) != size:
            self._corrupt("ends early")
        self._crc = zlib.crc32(pieces, self._crc)
        self._read += size
        return bytes(pieces)

    def finish(self) -> None:
        """Check that the member ends here, with the size and CRC that the directory promised.

        Raises:
            InvalidMegabatch: ``corrupt``.
        """
        if self._inflater and (self._inflate(1) or not self._inflater.eof or self._inflater.unused_data):
            self._corrupt("goes on past its declared size")
        if self._left or self._read != self._member.size:
            self._corrupt("is not as long as declared")
        if self._crc != self._member.crc:
            self._corrupt("does not have the CRC that the archive promises")

    def _take(self, size: int) -> bytes:
        self._file.seek(self._position)
        piece = self._file.read(min(size, self._left))
        self._position += len(piece)
        self._left -= len(piece)
        return piece

    def _inflate(self, size: int) -> bytearray:
        assert self._inflater is not None
        out = bytearray()
        try:
            while len(out) < size and not self._inflater.eof:
                packed = self._inflater.unconsumed_tail or self._take(_PIECE)
                piece = self._inflater.decompress(packed, size - len(out))
                if not packed and not piece:
                    break
                out += piece
        except zlib.error as error:
            self._corrupt(f"cannot be unpacked ({error})")
        return out

    def _corrupt(self, how: str) -> NoReturn:
        _refuse("corrupt", f"{self._member.name} {how}: the file was damaged; write it again and send it again")


def _find_directory(file: BinaryIO) -> tuple[int, int, int]:
    """Offset, length and number of entries of the central directory."""
    size = file.seek(0, os.SEEK_END)
    base = max(0, size - _END.size - _FULL16)
    file.seek(base)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        _refuse("truncated", "the zip has no end: it was cut off on its way; send it again")
    _, disk, first_disk, _, count, length, start, comment = _END.unpack_from(tail, at)
    end = base + at
    if end + _END.size + comment != size or disk or first_disk:
        _refuse("corrupt", "the zip does not end where its directory says: write it again")
    if count == _FULL16 or length == _FULL32 or start == _FULL32:
        if _has_locator64(file, end):
            start, length, count, end = _find_directory64(file, end)
        elif count * _ENTRY.size > length:
            _refuse("corrupt", "the zip's zip64 end is missing: write it again")
    if start + length != end:
        _refuse("corrupt", "the zip's directory is not where its end says: write it again")
    return start, length, count


def _has_locator64(file: BinaryIO, end: int) -> bool:
    """Whether zip64 records stand before the end; without them, 65,535 members are just as many."""
    file.seek(max(0, end - _END64_LOCATOR.size))
    return file.read(4) == b"PK\x06\x07"


def _find_directory64(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    """The same from the zip64 records, which stand right before the end; and where these begin."""
    expected = end - _END64_LOCATOR.size - _END64.size
    file.seek(max(0, expected))
    records = file.read(_END64.size + _END64_LOCATOR.size)
    if expected < 0:
        _refuse("corrupt", "the zip's zip64 end is missing: write it again")
    signature, _, _, _, disk, first_disk, _, count, length, start = _END64.unpack_from(records)
    locator, _, offset, _ = _END64_LOCATOR.unpack_from(records, _END64.size)
    if (signature, locator, offset, disk, first_disk) != (b"PK\x06\x06", b"PK\x06\x07", expected, 0, 0):
        _refuse("corrupt", "the zip's zip64 end is damaged: write it again")
    return start, length, count, offset


def _read_entries(directory: bytes, count: int) -> list[_Entry]:
    entries, at = [], 0
    for _ in range(count):
        if len(directory) - at < _ENTRY.size or directory[at : at + 4] != b"PK\x01\x02":
            _refuse("corrupt", "the zip's directory is damaged: write it again")
        fields = _ENTRY.unpack_from(directory, at)
        flags, method, crc, packed, size = fields[3], fields[4], *fields[7:10]
        name_length, extra_length, comment_length, _, _, attributes, offset = fields[10:]
        at += _ENTRY.size
        name, extra = directory[at : at + name_length], directory[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        size, packed, offset = _widened(extra, size, packed, offset)
        entries.append(_Entry(name, flags, method, crc, packed, size, attributes >> 16, offset))
    if at != len(directory):
        _refuse("corrupt", "the zip's directory is not as long as its end says: write it again")
    return entries


def _widened(extra: bytes, *values: int) -> list[int]:
    """Replace the 32-bit values that are full by those of the zip64 field, which holds them in this order."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == _ZIP64_FIELD:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    widened = []
    for value in values:
        if value == _FULL32:
            if len(wide) < 8:
                _refuse("corrupt", "a size in the zip's directory is missing: write it again")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        widened.append(value)
    return widened


def _check(entry: _Entry, folders: bool) -> None:
    name, kind = entry.text[:64], stat.S_IFMT(entry.mode)
    if is_unsafe(entry.name):
        _refuse("unsafe-member", f"the zip has a member with the path {name!r}: write it again with plain names")
    if kind not in (0, stat.S_IFREG) and not (folders and kind == stat.S_IFDIR and entry.name.endswith(b"/")):
        _refuse("unsafe-member", f"the member {name!r} is not a plain file but a link or folder: send files alone")
    if folders and entry.folder and (entry.packed or entry.size):
        _refuse("corrupt", f"the folder {name!r} holds bytes as a file does: write the zip again")
    if entry.flags & _ENCRYPTED:
        _refuse("encrypted", f"the member {name!r} is encrypted: write the zip again without a password")
    if entry.method not in (_STORED, _DEFLATED):
        _refuse("compression", f"the member {name!r} is packed by method {entry.method}: use deflate, or store it")
    if entry.method == _STORED and entry.packed != entry.size:
        _refuse("corrupt", f"the member {name!r} is stored with two sizes: write the zip again")


def _check_unique(entries: Sequence[_Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.text in seen:
            _refuse("duplicate-member", f"the zip has {entry.text[:64]!r} twice: send each member once")
        seen.add(entry.text)


def _locate(file: BinaryIO, entry: _Entry, directory: int) -> Member:
    name = entry.text
    if entry.offset + _LOCAL.size > directory:
        _refuse("corrupt", f"the member {name!r} lies outside the zip: it was damaged; send it again")
    file.seek(entry.offset)
    local = file.read(_LOCAL.size + len(entry.name))
    signature, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(local)
    agrees = signature == b"PK\x03\x04" and name_length == len(entry.name) and local[_LOCAL.size :] == entry.name
    if not agrees or method != entry.method or (flags ^ entry.flags) & _ENCRYPTED:
        _refuse("corrupt", f"the two headers of the member {name!r} disagree: write the zip again")
    start = entry.offset + _LOCAL.size + name_length + extra_length
    if start + entry.packed > directory:
        _refuse("corrupt", f"the member {name!r} goes on past the zip's directory: it was damaged; send it again")
    return Member(name, entry.method, start, entry.packed, entry.size, entry.crc)


def _check_apart(entries: Sequence[_Entry], members: Sequence[Member]) -> None:
    spans = sorted((entry.offset, member.start + member.packed) for entry, member in zip(entries, members, strict=True))
    for (_, end), (begin, _) in pairwise(spans):
        if begin < end:
            _refuse("overlapping-members", "two members of the zip share bytes: write it again")


def _refuse(reason: str, message: str) -> NoReturn:
    raise InvalidMegabatch(reason, message)
