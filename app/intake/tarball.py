"""A tar archive, read strictly.

Knows: the tar format (POSIX.1-2017 pax and ustar, and GNU's long names), plain or under gzip. Must never know: what the
members hold. The standard library's reader takes a damaged header for the end of the archive, and follows what an
archive says about links.

Laws:
    * Members are regular files and folders: no link, no device, no file with holes.
    * Nothing is allocated by what an archive claims; what gzip unpacks to is counted while it is written.
    * A member lies in the file whole, and the archive ends as the format says.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from app.errors import InvalidMegabatch
from app.intake.archive import is_unsafe, text_of

_BLOCK = 512
_PIECE = 1 << 20
_EMPTY = bytes(_BLOCK)
_LONGEST_NOTE = 1 << 16
_LONGEST_NAME = 4096
_FILES, _FOLDER, _PAX, _PAX_GLOBAL, _LONG_NAME = b"0\0", b"5", b"x", b"g", b"L"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a file with holes",
    b"K": "a link with a long name",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One regular file's place in the archive."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class _Header:
    """One header block; ``start`` is where its ``size`` bytes begin."""

    name: bytes
    kind: bytes
    start: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header stands."""
        return self.start + -(-self.size // _BLOCK) * _BLOCK


def is_tar(start: bytes) -> bool:
    """Whether a file that begins with these bytes (512 are enough) is a tar archive."""
    return start[257:262] == b"ustar"


def read_tar(file: BinaryIO, most: int) -> tuple[Stored, ...]:
    """The regular files of a plain tar archive, in order. Folders hold nothing, and are left out.

    Args:
        file: the archive, open for reading.
        most: how many members there may be.

    Raises:
        InvalidMegabatch: ``truncated``, ``corrupt``, ``too-many-members``, ``duplicate-member`` or ``unsafe-member``.
    """
    members: dict[str, Stored] = {}
    for count, header in enumerate(_members(file), start=1):
        if count > most:
            _refuse("too-many-members", f"the tar has over {most} members: send fewer at a time")
        name = text_of(header.name)
        _check(header, name)
        if header.kind == _FOLDER or header.name.endswith(b"/"):
            continue
        if name in members:
            _refuse("duplicate-member", f"the tar has {name[:64]!r} twice: send each member once")
        members[name] = Stored(name, header.start, header.size)
    return tuple(members.values())


def read_stored(file: BinaryIO, member: Stored) -> bytes:
    """All bytes of a member, which ``read_tar`` has found to lie in the file whole."""
    file.seek(member.start)
    return file.read(member.size)


def gunzip(path: Path, to: Path, most: int) -> None:
    """Unpack a gzip file.

    Raises:
        InvalidMegabatch: ``too-large`` as soon as more than ``most`` bytes come out; ``truncated`` or ``corrupt``.
    """
    with path.open("rb") as packed, to.open("wb") as plain:
        written = 0
        for piece in _inflated(packed):
            written += len(piece)
            if written > most:
                _refuse("too-large", f"the gzip unpacks to over {most} bytes, the limit: send fewer at a time")
            plain.write(piece)


def _inflated(packed: BinaryIO) -> Iterator[bytes]:
    """What one gzip member holds, at most a MiB at a time."""
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    while not inflater.eof:
        data = inflater.unconsumed_tail or packed.read(_PIECE)
        if not data:
            _refuse("truncated", "the gzip ends early: it was cut off on its way; send it again")
        try:
            yield inflater.decompress(data, _PIECE)
        except zlib.error as error:
            _refuse("corrupt", f"the gzip cannot be unpacked ({error}): write it again")
    if inflater.unused_data or packed.read(1):
        _refuse("corrupt", "the gzip goes on past its end: write it again")


# -- headers ----------------------------------------------------------------------------------------------------------


def _members(file: BinaryIO) -> Iterator[_Header]:
    """Headers of members, under their long names, up to the end."""
    length = file.seek(0, os.SEEK_END)
    at, name, size = 0, b"", -1
    while (header := _read_header(file, at, length, size)) is not None:
        at = header.end
        if header.kind == _PAX_GLOBAL:
            if _notes(file, header).keys() & {b"path", b"size"}:
                _refuse("unsafe-member", "the tar gives all its members one path or size: write it again with tar")
        elif header.kind == _PAX:
            notes = _notes(file, header)
            name, size = notes.get(b"path", name), _decimal(notes.get(b"size", b"")) if b"size" in notes else size
        elif header.kind == _LONG_NAME:
            name = _note(file, header).rstrip(b"\0")
        else:
            yield _Header(name or header.name, header.kind, header.start, header.size)
            name, size = b"", -1
    if name or size >= 0:
        _refuse("corrupt", "the tar ends with a name that belongs to no member: write it again with tar")


def _read_header(file: BinaryIO, at: int, length: int, size: int) -> _Header | None:
    """The header at an offset; None at the end. ``size`` is that of the member where a note before it said so."""
    file.seek(at)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        _refuse("truncated", "the tar has no end: it was cut off on its way; send it again")
    if block == _EMPTY:
        _check_end(file)
        return None
    if sum(block[:148]) + sum(block[156:]) + 8 * ord(" ") != _number(block[148:156]):
        _refuse("corrupt", f"the tar's header at byte {at} is damaged: write it again with tar")
    kind = block[156:157]
    own = _number(block[124:136])
    header = _Header(_name(block), kind, at + _BLOCK, size if size >= 0 and kind in _FILES else own)
    if header.end > length:
        _refuse("truncated", f"the tar ends within {text_of(header.name)[:64]!r}: it was cut off; send it again")
    return header


def _check_end(file: BinaryIO) -> None:
    while piece := file.read(_PIECE):
        if piece.count(0) != len(piece):
            _refuse("corrupt", "the tar goes on past its end: write it again with tar")


def _name(block: bytes) -> bytes:
    name, prefix = block[:100].split(b"\0", 1)[0], block[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _number(field: bytes) -> int:
    """An octal field; or GNU's form for large numbers, whose first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        _refuse("corrupt", "the tar has a header whose numbers are none: write it again with tar")
    return int(digits or b"0", 8)


def _note(file: BinaryIO, header: _Header) -> bytes:
    if header.size > _LONGEST_NOTE:
        _refuse("corrupt", f"the tar holds {header.size} bytes of notes about one member: write it again with tar")
    file.seek(header.start)
    return file.read(header.size)


def _notes(file: BinaryIO, header: _Header) -> dict[bytes, bytes]:
    """The records of a pax header: each ``length key=value`` and a line's end, where length counts all of it."""
    text, notes = _note(file, header), {}
    while text:
        digits, space, _ = text[:8].partition(b" ")
        length = _decimal(digits) if space else 0
        record, text = text[len(digits) + 1 : length], text[length:]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            _refuse("corrupt", "the tar has notes that cannot be read: write it again with tar")
        if key.startswith(b"GNU.sparse"):
            _refuse("unsafe-member", "the tar holds a file with holes: write it again without --sparse")
        notes[key] = value[:-1]
    return notes


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 18:
        _refuse("corrupt", "the tar has notes whose numbers are none: write it again with tar")
    return int(digits)


def _check(header: _Header, name: str) -> None:
    if header.kind != _FOLDER and header.kind not in _FILES:
        what = _KINDS.get(header.kind, "of an unknown kind")
        _refuse("unsafe-member", f"the member {name[:64]!r} is {what}: send plain files and folders alone")
    if not name or len(header.name) > _LONGEST_NAME or is_unsafe(header.name):
        _refuse("unsafe-member", f"the tar has a member with the path {name[:64]!r}: write it again with plain names")
    if header.size and (header.kind == _FOLDER or header.name.endswith(b"/")):
        _refuse("corrupt", f"the folder {name[:64]!r} holds bytes as a file does: write the tar again")


def _refuse(reason: str, message: str) -> NoReturn:
    raise InvalidMegabatch(reason, message)
