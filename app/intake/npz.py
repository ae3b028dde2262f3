"""npz -> blocks of examples and labels.

Knows: how an npz file holds ``x`` and ``y``. Must never know: SQL, torch, a model's classes, or that it runs in a
sandbox.

Laws:
    * Limits come before allocation: sizes are computed from headers, and compared, before a byte of an array is read.
    * Memory stays bounded (blocks of a few MiB), however large the arrays are.
    * Accepted or refused whole, never repaired; the message of every refusal says the remedy. Never pickle.

Reasons of refusal, stable words for programs, beside those of ``app.intake.arrays``:

    the file      not-npz, truncated, corrupt, encrypted, compression
    its members   missing-member, unknown-member, duplicate-member, unsafe-member, overlapping-members, too-many-members
    an array      not-npy, object-array, dtype, shape, empty, too-large, length-mismatch
    its labels    label-not-integer
"""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from app.intake.archive import Reader, read_directory
from app.intake.arrays import (
    BLOCK,
    MIB,
    DecodedFiles,
    Limits,
    Reading,
    check_example,
    refuse,
    refuse_size,
    stored_dtype,
    write,
)

_COLUMNS = 8 * MIB
_LONGEST_HEADER = 4096

_KINDS = {
    "b": "booleans",
    "?": "booleans",
    "c": "complex numbers",
    "S": "bytes",
    "U": "text",
    "V": "records",
    "M": "dates",
    "m": "durations",
}


@dataclass(frozen=True, slots=True)
class _Header:
    """What an npy header says. ``begin`` is its length."""

    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]
    begin: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


def decode_npz(path: Path, work: Path, limits: Limits, reading: Reading) -> DecodedFiles:
    """Decode an npz upload with the members ``x`` and ``y`` into ``work/x.npy``, ``work/y.npy`` and ``work/ids.npy``.

    Args:
        path: the upload; nothing about it is trusted.
        work: an empty folder; on a refusal it may hold partial files.
        limits: ``max_bytes`` and ``memory_bytes`` are kept here, the deadline by the sandbox.

    Raises:
        InvalidMegabatch: with one of the reasons above, or of ``arrays``.
    """
    with path.open("rb") as file:
        x_reader, y_reader = _open_members(file)
        x, y = _read_header(x_reader, "x", limits), _read_header(y_reader, "y", limits)
        _check_headers(x, y, limits)
        blocks = _pairs((x_reader, x), (y_reader, y), work, limits)
        return write(blocks, work, limits, reading, format="npz", examples=x.shape[0])


# -- members and headers ----------------------------------------------------------------------------------------------


def _open_members(file: BinaryIO) -> tuple[Reader, Reader]:
    if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
        refuse("not-npz", "the upload is not an npz file: send np.savez(file, x=x, y=y)")
    members = {member.name: member for member in read_directory(file)}
    strange = sorted(members.keys() - {"x.npy", "y.npy"})
    if strange:
        names = ", ".join(repr(name.removesuffix(".npy")[:64]) for name in strange)
        refuse("unknown-member", f"the npz also holds {names}: send exactly x and y, as np.savez(file, x=x, y=y)")
    for name in ("x", "y"):
        if f"{name}.npy" not in members:
            refuse("missing-member", f"the npz has no {name}: send np.savez(file, x=x, y=y)")
    return Reader(file, members["x.npy"]), Reader(file, members["y.npy"])


def _read_header(reader: Reader, name: str, limits: Limits) -> _Header:
    """Read and check the npy header (versions 1, 2 and 3); the reader stands at the first value then."""
    if reader.size < 10:
        refuse("not-npy", f"{name} is not an npy array: write the npz with np.savez")
    start = reader.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        refuse("not-npy", f"{name} is not an npy array of version 1, 2 or 3: write the npz with np.savez")
    width = 2 if start[6] == 1 else 4
    begin = 8 + width
    length = int.from_bytes(reader.read(width), "little") if reader.size >= begin else _LONGEST_HEADER + 1
    if length > min(_LONGEST_HEADER, reader.size - begin):
        refuse("not-npy", f"{name}'s npy header is longer than numbers need: write the npz with np.savez")
    header = _parse_header(reader.read(length), name, begin + length)
    if header.nbytes > limits.max_bytes:
        refuse_size(name, header.nbytes, limits)
    if header.begin + header.nbytes != reader.size:
        refuse(
            "corrupt",
            f"{name}'s header promises {header.nbytes} bytes of values, but {reader.size - header.begin} are there: "
            "the file was damaged; write it again and send it again",
        )
    return header


def _parse_header(text: bytes, name: str, begin: int) -> _Header:
    try:
        fields = ast.literal_eval(text.decode("utf-8").strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        fields = None
    if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
        refuse("not-npy", f"{name}'s npy header is not descr, fortran_order and shape: write the npz with np.savez")
    shape, fortran = fields["shape"], fields["fortran_order"]
    if not isinstance(shape, tuple) or any(type(length) is not int or length < 0 for length in shape):
        refuse("not-npy", f"{name}'s npy header has no valid shape: write the npz with np.savez")
    if type(fortran) is not bool:
        refuse("not-npy", f"{name}'s npy header has no valid fortran_order: write the npz with np.savez")
    return _Header(_parse_dtype(fields["descr"], name), fortran, shape, begin)


def _parse_dtype(descr: object, name: str) -> np.dtype[Any]:
    remedy = "send y as integers" if name == "y" else "send x as float32 or uint8"
    found = re.fullmatch(r"([<>|=]?)([A-Za-z?])(\d{0,3})(\[.*\])?", descr) if isinstance(descr, str) else None
    if found is None:
        refuse("dtype", f"{name} has fields or an unknown dtype: {remedy}")
    order, kind, width = found.group(1, 2, 3)
    if kind == "O":
        refuse("object-array", f"{name} is an array of objects, which only pickle can read: {remedy}; pad ragged rows")
    if kind + width not in {"f2", "f4", "f8", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"}:
        refuse("dtype", f"{name} holds {_KINDS.get(kind, kind + width)}, not numbers that can be kept: {remedy}")
    if name == "y" and kind == "f":
        refuse("label-not-integer", "y holds fractions: send class numbers, such as y.astype('int64') of whole numbers")
    return np.dtype(order + kind + width)


def _check_headers(x: _Header, y: _Header, limits: Limits) -> None:
    """Check both arrays against each other and the limits."""
    if not x.shape:
        refuse("shape", "x has 0 axes: send (n, features), or images as (n, height, width, channels)")
    if len(y.shape) != 1:
        refuse("shape", f"y has {len(y.shape)} axes: send one class number an example (y.ravel() or y.argmax(axis=1))")
    if x.shape[0] != y.shape[0]:
        refuse("length-mismatch", f"x has {x.shape[0]} examples and y {y.shape[0]} labels: send one label per example")
    if 0 in x.shape:
        refuse("empty", f"x has the shape {x.shape}, so nothing is in it: send at least one example with one feature")
    stored = stored_dtype(x.dtype)
    size = x.count * stored.itemsize + y.count * 8
    if size > limits.max_bytes:
        refuse_size("the megabatch", size, limits)
    check_example(x.shape[1:], max(x.dtype.itemsize, stored.itemsize))


# -- values -----------------------------------------------------------------------------------------------------------


def _pairs(
    examples: tuple[Reader, _Header], labels: tuple[Reader, _Header], work: Path, limits: Limits
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Both arrays' rows side by side; then both members are checked to have been whole."""
    reader, header = labels
    for block in _blocks(*examples, work, limits):
        yield block, np.frombuffer(reader.read(len(block) * header.dtype.itemsize), header.dtype)
    examples[0].finish()
    reader.finish()


def _blocks(reader: Reader, header: _Header, work: Path, limits: Limits) -> Iterator[npt.NDArray[Any]]:
    """The array's rows in order, a few MiB at a time."""
    if header.fortran and len(header.shape) > 1:
        yield from _fortran_blocks(reader, header, work, limits)
        return
    width = header.nbytes // header.shape[0]
    rows = max(1, BLOCK // width)
    for start in range(0, header.shape[0], rows):
        count = min(rows, header.shape[0] - start)
        yield np.frombuffer(reader.read(count * width), header.dtype).reshape(count, *header.shape[1:])


def _fortran_blocks(reader: Reader, header: _Header, work: Path, limits: Limits) -> Iterator[npt.NDArray[Any]]:
    """Turn a column-major array: unpack it to disk, then gather for each block of rows its piece of every column."""
    scratch = work / "columns"
    with scratch.open("w+b", buffering=0) as columns:
        for start in range(0, header.nbytes, BLOCK):
            columns.write(reader.read(min(BLOCK, header.nbytes - start)))
        examples, itemsize = header.shape[0], header.dtype.itemsize
        features = header.count // examples
        rows = max(1, max(_COLUMNS, limits.memory_bytes // 16) // (features * itemsize))
        for start in range(0, examples, rows):
            count = min(rows, examples - start)
            block = np.empty((features, count), header.dtype)
            for feature in range(features):
                os.preadv(columns.fileno(), [block[feature].view(np.uint8)], (feature * examples + start) * itemsize)
            yield block.reshape(*reversed(header.shape[1:]), count).T
    scratch.unlink()
