"""What an image says of itself before a pixel of it is decoded.

Knows: the headers of PNG, JPEG and WebP. Must never know: archives, labels, a model, Pillow.

Laws:
    * What an image is, its own bytes say, never its name.
    * Nothing is allocated by what a header claims.
    * An image is whole and has one frame, or is refused; never repaired.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

from app.errors import InvalidMegabatch

Kind = Literal["PNG", "JPEG", "WEBP"]

LONGEST_SIDE = 65_535
"""Pixels: what JPEG can say. Filters of an image that is all length would take more memory than its pixels."""

_MOST_CHUNKS = 50_000
_SIDEWAYS = 5
"""From this orientation on, width and height change places."""

_OTHERS = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"\0\0\1\0", "ICO"),
    (b"\x93NUMPY", "a numpy array"),
    (b"PK\3\4", "a zip archive"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
)


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says of itself: ``width`` and ``height`` as it is stored, ``channels`` 1 (gray) or 3 (colour)."""

    kind: Kind
    width: int
    height: int
    channels: int
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as the image is shown, its orientation applied."""
        return (self.width, self.height) if self.orientation >= _SIDEWAYS else (self.height, self.width)


def read_header(data: bytes, name: str) -> Header:
    """What an image says of itself.

    Args:
        data: the whole file.
        name: for messages.

    Raises:
        InvalidMegabatch: ``not-an-image``, ``animated``, ``truncated`` or ``corrupt``.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            header = _png(data, name)
        elif data.startswith(b"\xff\xd8\xff"):
            header = _jpeg(data, name)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            header = _webp(data, name)
        else:
            _refuse_other(data, name)
    except (IndexError, struct.error):
        refuse_truncated(name)
    if not header.width or not header.height:
        refuse_corrupt(name, "has no width or height")
    return header


# -- headers ----------------------------------------------------------------------------------------------------------


def _png(data: bytes, name: str) -> Header:
    """PNG (third edition): IHDR says the size, PLTE holds the palette, acTL the number of frames, eXIf the notes."""
    if data[12:16] != b"IHDR":
        refuse_corrupt(name, "does not begin with its header")
    width, height, _, colour = struct.unpack_from(">2L2B", data, 16)
    orientation, gray = 1, colour in (0, 4)
    for kind, body in _png_chunks(data, name):
        if kind == b"acTL" and bytes(body[:4]) != b"\0\0\0\1":
            refuse_frames(name)
        if kind == b"PLTE" and colour == 3:
            gray = bytes(body[::3]) == bytes(body[1::3]) == bytes(body[2::3])
        if kind == b"eXIf":
            orientation = _orientation(body)
    return Header("PNG", width, height, 1 if gray else 3, orientation)


def _png_chunks(data: bytes, name: str) -> Iterator[tuple[bytes, memoryview]]:
    """Chunks of length, type, body and CRC, up to the last one, IEND."""
    view, at, kind = memoryview(data), 8, b""
    for _ in range(_MOST_CHUNKS):
        length, kind = struct.unpack_from(">L4s", data, at)
        end = at + 8 + length
        (crc,) = struct.unpack_from(">L", data, end)
        if zlib.crc32(view[at + 4 : end]) != crc:
            refuse_corrupt(name, f"does not have the CRC that its chunk {kind!r} promises")
        if kind == b"IEND":
            return
        yield kind, view[at + 8 : end]
        at = end + 4
    refuse_corrupt(name, f"has over {_MOST_CHUNKS} chunks")


def _jpeg(data: bytes, name: str) -> Header:
    """JPEG (ITU-T T.81, annex B): one segment before the first scan is the frame's header; APP1 may hold EXIF."""
    orientation, frames = 1, []
    for marker, body in _jpeg_segments(data, name):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frames.append(struct.unpack_from(">2HB", body, 1))
        if marker == 0xE1 and bytes(body[:6]) == b"Exif\0\0":
            orientation = _orientation(body[6:])
    if len(frames) != 1:
        refuse_corrupt(name, "has no size, or several")
    height, width, parts = frames[0]
    return Header("JPEG", width, height, 1 if parts == 1 else 3, orientation)


def _jpeg_segments(data: bytes, name: str) -> Iterator[tuple[int, memoryview]]:
    """Segments of marker, length and body, up to the first scan; bytes of 255 may stand before a marker."""
    view, at = memoryview(data), 2
    for _ in range(_MOST_CHUNKS):
        marker, ahead = data[at + 1], data[at]
        if ahead == 0xFF and marker in (0xFF, 0x00):  # filling, or an escaped byte that some cameras leave behind
            at += 1 if marker else 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if ahead != 0xFF or length < 2 or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9:
            refuse_corrupt(name, "has bytes or a segment out of place")
        if marker == 0xDA:
            return
        yield marker, view[at + 4 : at + 2 + length]
        at += 2 + length
    refuse_corrupt(name, f"has over {_MOST_CHUNKS} segments")


def _webp(data: bytes, name: str) -> Header:
    """WebP (RFC 9649): RIFF chunks; the first says the size, in one of three ways. Colour is all that it can hold."""
    end = int.from_bytes(data[4:8], "little") + 8
    if end > len(data):
        refuse_truncated(name)
    kind, start, size, frames, orientation = data[12:16], 20, (0, 0), 0, 1
    if kind == b"VP8X":
        size = (int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<L", data, start + 1)
        size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<2H", data, start + 6)
        size = (width & 0x3FFF, height & 0x3FFF)
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at >= end:
            break
        chunk, length = struct.unpack_from("<4sL", data, at)
        frames += chunk == b"ANMF"
        if chunk == b"EXIF":
            orientation = _orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    if frames > 1:
        refuse_frames(name)
    return Header("WEBP", *size, 3, orientation)


def _orientation(exif: bytes | memoryview) -> int:
    """The orientation that EXIF (a TIFF file of tags) gives; 1 where it gives none, or cannot be read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(exif[:4]))
    try:
        if order is None:
            return 1
        (at,) = struct.unpack_from(f"{order}L", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}2HLH", exif, at + 2 + 12 * entry)
            if (tag, kind) == (0x0112, 3):
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


# -- refusals ---------------------------------------------------------------------------------------------------------


def _refuse_other(data: bytes, name: str) -> NoReturn:
    found = next((what for start, what in _OTHERS if data.startswith(start)), None)
    if data[4:8] == b"ftyp":
        found = "HEIC, AVIF or a film"
    what = f"it looks like {found}" if found else "it is something else" if data else "it is empty"
    raise InvalidMegabatch("not-an-image", f"{name!r} is no PNG, JPEG or WebP image; {what}: send such images alone")


def refuse_frames(name: str) -> NoReturn:
    """Refuse an image of several frames."""
    raise InvalidMegabatch("animated", f"{name!r} has several frames: send each one as an image of its own")


def refuse_truncated(name: str) -> NoReturn:
    """Refuse an image that was cut off."""
    raise InvalidMegabatch("truncated", f"the image {name!r} ends early: write it again and send it again")


def refuse_corrupt(name: str, how: str) -> NoReturn:
    """Refuse an image that is damaged."""
    raise InvalidMegabatch("corrupt", f"the image {name!r} {how}: write it again and send it again")
