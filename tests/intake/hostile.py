"""Archives that no well-meaning program writes, built byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    """An array as an npy file; objects are pickled, as an attacker would."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=True)
    return file.getvalue()


def npy_header(descr: Any, shape: Any, fortran: Any = False, version: int = 1) -> bytes:
    """An npy header that says whatever it is told to."""
    return npy_text(repr({"descr": descr, "fortran_order": fortran, "shape": shape}), version)


def npy_text(text: str, version: int = 1) -> bytes:
    data = text.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(data).to_bytes(2 if version == 1 else 4, "little") + data


@dataclass
class Entry:
    """A member, and the lies told about it; None tells the truth."""

    name: str
    data: bytes
    deflate: bool = False
    method: int | None = None
    flags: int = 0
    mode: int = 0o100644
    size: int | None = None
    packed: int | None = None
    crc: int | None = None
    offset: int | None = None
    local_name: str | None = None
    body: bytes | None = None


def archive(*entries: Entry, comment: bytes = b"", count: int | None = None, prefix: bytes = b"") -> bytes:
    """A zip archive of these members."""
    out, directory = bytearray(prefix), bytearray()
    for entry in entries:
        body = entry.body
        if body is None:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            body = packer.compress(entry.data) + packer.flush() if entry.deflate else entry.data
        method = entry.method if entry.method is not None else 8 * entry.deflate
        size = entry.size if entry.size is not None else len(entry.data)
        packed = entry.packed if entry.packed is not None else len(body)
        crc = entry.crc if entry.crc is not None else zlib.crc32(entry.data)
        name, local = entry.name.encode(), (entry.local_name or entry.name).encode()
        offset = entry.offset if entry.offset is not None else len(out)
        common = (20, entry.flags, method, 0, 0x21, crc, packed, size)
        out += struct.pack("<4s5H3L2H", b"PK\x03\x04", *common, len(local), 0) + local + body
        fields = (0x0300 | 20, *common, len(name), 0, 0, 0, 0, entry.mode << 16, offset)
        directory += struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *fields) + name
    total = len(entries) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, total, total, len(directory), len(out), len(comment))
    return bytes(out + directory) + end + comment
