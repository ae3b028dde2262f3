"""A zip archive of a few members, read strictly.

Knows: the zip format (PKWARE APPNOTE 6.3.10) as far as npz files use it: stored and deflated members, zip64. Must never
know: what the members hold. The standard library's reader repairs and tolerates, and before Python 3.11.8 it accepts
overlapping members (CVE-2024-0450).

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
"""Members that are looked at, so that an error can name the ones that do not belong."""

_LONGEST_DIRECTORY = 1 << 20


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


def read_directory(file: BinaryIO) -> tuple[Member, ...]:
    """The members of an archive, in the order of the directory.

    Raises:
        InvalidMegabatch: ``truncated``, ``corrupt``, ``too-many-members``, ``duplicate-member``, ``unsafe-member``,
            ``overlapping-members``, ``encrypted`` or ``compression``.
    """
    start, length, count = _find_directory(file)
    if count > MOST_MEMBERS or length > _LONGEST_DIRECTORY:
        _refuse("too-many-members", f"the npz has {count} members: send exactly x and y")
    file.seek(start)
    entries = _read_entries(file.read(length), count)
    for entry in entries:
        _check(entry)
    _check_unique(entries)
    members = [_locate(file, entry, start) for entry in entries]
    _check_apart(entries, members)
    return tuple(members)


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
        _refuse("truncated", "the npz has no end: it was cut off on its way; send it again")
    _, disk, first_disk, _, count, length, start, comment = _END.unpack_from(tail, at)
    end = base + at
    if end + _END.size + comment != size or disk or first_disk:
        _refuse("corrupt", "the npz does not end where its directory says: write it again with np.savez")
    if count == _FULL16 or length == _FULL32 or start == _FULL32:
        start, length, count, end = _find_directory64(file, end)
    if start + length != end:
        _refuse("corrupt", "the npz's directory is not where its end says: write it again with np.savez")
    return start, length, count


def _find_directory64(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    """The same from the zip64 records, which stand right before the end; and where these begin."""
    expected = end - _END64_LOCATOR.size - _END64.size
    file.seek(max(0, expected))
    records = file.read(_END64.size + _END64_LOCATOR.size)
    signature, _, _, _, disk, first_disk, _, count, length, start = _END64.unpack_from(records)
    locator, _, offset, _ = _END64_LOCATOR.unpack_from(records, _END64.size)
    if (signature, locator, offset, disk, first_disk) != (b"PK\x06\x06", b"PK\x06\x07", expected, 0, 0):
        _refuse("corrupt", "the npz's zip64 end is damaged: write it again with np.savez")
    return start, length, count, offset


def _read_entries(directory: bytes, count: int) -> list[_Entry]:
    entries, at = [], 0
    for _ in range(count):
        if len(directory) - at < _ENTRY.size or directory[at : at + 4] != b"PK\x01\x02":
            _refuse("corrupt", "the npz's directory is damaged: write it again with np.savez")
        fields = _ENTRY.unpack_from(directory, at)
        flags, method, crc, packed, size = fields[3], fields[4], *fields[7:10]
        name_length, extra_length, comment_length, _, _, attributes, offset = fields[10:]
        at += _ENTRY.size
        name, extra = directory[at : at + name_length], directory[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        size, packed, offset = _widened(extra, size, packed, offset)
        entries.append(_Entry(name, flags, method, crc, packed, size, attributes >> 16, offset))
    if at != len(directory):
        _refuse("corrupt", "the npz's directory is not as long as its end says: write it again with np.savez")
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
                _refuse("corrupt", "a size in the npz's directory is missing: write it again with np.savez")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        widened.append(value)
    return widened


def _check(entry: _Entry) -> None:
    name = entry.name.decode("utf-8", "replace")
    parts = entry.name.split(b"/")
    if entry.name[:1] == b"/" or b".." in parts or any(byte < 32 or byte in b"\\:\x7f" for byte in entry.name):
        _refuse("unsafe-member", f"the npz has a member with the path {name[:64]!r}: send exactly x and y")
    if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG):
        _refuse("unsafe-member", f"the member {name!r} is not a plain file but a link or folder: send exactly x and y")
    if entry.flags & _ENCRYPTED:
        _refuse("encrypted", f"the member {name!r} is encrypted: send the npz as np.savez writes it")
    if entry.method not in (_STORED, _DEFLATED):
        _refuse(
            "compression",
            f"the member {name!r} is packed by method {entry.method}: use np.savez or np.savez_compressed",
        )
    if entry.method == _STORED and entry.packed != entry.size:
        _refuse("corrupt", f"the member {name!r} is stored with two sizes: write the npz again with np.savez")


def _check_unique(entries: Sequence[_Entry]) -> None:
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        _refuse("duplicate-member", f"the npz has {twice[0].decode('utf-8', 'replace')!r} twice: send x and y once")


def _locate(file: BinaryIO, entry: _Entry, directory: int) -> Member:
    name = entry.name.decode("utf-8", "replace")
    if entry.offset + _LOCAL.size > directory:
        _refuse("corrupt", f"the member {name!r} lies outside the npz: it was damaged; send it again")
    file.seek(entry.offset)
    local = file.read(_LOCAL.size + len(entry.name))
    signature, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(local)
    agrees = signature == b"PK\x03\x04" and name_length == len(entry.name) and local[_LOCAL.size :] == entry.name
    if not agrees or method != entry.method or (flags ^ entry.flags) & _ENCRYPTED:
        _refuse("corrupt", f"the two headers of the member {name!r} disagree: write the npz again with np.savez")
    start = entry.offset + _LOCAL.size + name_length + extra_length
    if start + entry.packed > directory:
        _refuse("corrupt", f"the member {name!r} goes on past the npz's directory: it was damaged; send it again")
    return Member(name, entry.method, start, entry.packed, entry.size, entry.crc)


def _check_apart(entries: Sequence[_Entry], members: Sequence[Member]) -> None:
    spans = sorted((entry.offset, member.start + member.packed) for entry, member in zip(entries, members, strict=True))
    for (_, end), (begin, _) in pairwise(spans):
        if begin < end:
            _refuse("overlapping-members", "two members of the npz share bytes: write it again with np.savez")


def _refuse(reason: str, message: str) -> NoReturn:
    raise InvalidMegabatch(reason, message)
