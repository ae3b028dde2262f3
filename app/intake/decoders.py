"""Hostile bytes -> validated arrays on disk.

Knows: what a megabatch must be, and how an npz file holds one. Must never know: SQL, torch, a model's classes, or that
it runs in a sandbox.

Laws:
    * Limits come before allocation: sizes are computed from headers, and compared, before a byte of an array is read.
    * Memory stays bounded (blocks of a few MiB), however large the arrays are.
    * Accepted or refused whole, never repaired; the message of every refusal says the remedy. Never pickle.

Reasons of refusal, stable words for programs:

    the file      not-npz, truncated, corrupt, encrypted, compression
    its members   missing-member, unknown-member, duplicate-member, unsafe-member, overlapping-members, too-many-members
    an array      not-npy, object-array, dtype, shape, empty, too-large, length-mismatch
    its values    not-finite, overflow, inexact, label-not-integer, label-out-of-range, too-many-labels
    the decoder   too-slow, undecodable (from the sandbox)
"""

from __future__ import annotations

import ast
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from app.errors import InvalidMegabatch
from app.intake.archive import Reader, read_directory
from espalier.formats.megabatch import array_preamble, example_ids

_MIB = 1 << 20
_BLOCK = 8 * _MIB
_LARGEST_EXAMPLE = 64 * _MIB
_LONGEST_HEADER = 4096
_MOST_AXES = 8
_MOST_LABELS = 100_000
_LABELS = 2**31

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
_MAGIC = (
    (b"\x93NUMPY", "one .npy array"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x1f\x8b", "gzip"),
    (b"\x89HDF", "HDF5"),
    (b"\x80", "a pickle"),
    (b"SQLite", "SQLite"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much decoding one upload may take.

    Attributes:
        max_bytes: of the decoded arrays together.
        seconds: until the deadline.
        memory_bytes: beyond what the bare decoder takes.
    """

    max_bytes: int
    seconds: float = 60.0
    memory_bytes: int = 512 * _MIB


@dataclass(frozen=True, slots=True)
class DecodedFiles:
    """A decoded megabatch: three ``.npy`` files, C order and native byte order, to be memory-mapped; and their content.

    Attributes:
        x, y, ids: (n, *shape) float32 or uint8; (n,) int64; (n,) uint64.
        digest: ``espalier.formats.megabatch.arrays_digest`` of x and y.
        examples, shape, dtype: n; the shape of one example; ``float32`` or ``uint8``.
        labels: (label, count) pairs, by label.
        largest: the largest ``|x|``.
        bytes: of x and y together.
    """

    x: Path
    y: Path
    ids: Path
    digest: str
    examples: int
    shape: tuple[int, ...]
    dtype: str
    labels: tuple[tuple[int, int], ...]
    largest: float
    bytes: int


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


def decode_npz(path: Path, work: Path, limits: Limits) -> DecodedFiles:
    """Decode an npz upload with the members ``x`` and ``y`` into ``work/x.npy``, ``work/y.npy`` and ``work/ids.npy``.

    float16, float32 and float64 become float32 (what overflows is refused), uint8 stays, other integers become float32
    where that is exact; labels become int64. Big-endian and Fortran-ordered arrays are turned.

    Args:
        path: the upload; nothing about it is trusted.
        work: an empty folder; on a refusal it may hold partial files.
        limits: ``max_bytes`` and ``memory_bytes`` are kept here, the deadline by the sandbox.

    Raises:
        InvalidMegabatch: with one of the reasons above.
    """
    with path.open("rb") as file:
        x_reader, y_reader = _open_members(file)
        x, y = _read_header(x_reader, "x", limits), _read_header(y_reader, "y", limits)
        stored = _check_headers(x, y, limits)
        state = hashlib.sha256(array_preamble(stored, x.shape))
        largest = _write_examples(_blocks(x_reader, x, work, limits), work, x.shape, stored, state)
        x_reader.finish()
        state.update(array_preamble(np.dtype(np.int64), y.shape))
        labels = _write_labels(_blocks(y_reader, y, work, limits), work, y.shape, state)
        y_reader.finish()
    return DecodedFiles(
        x=work / "x.npy",
        y=work / "y.npy",
        ids=work / "ids.npy",
        digest="sha256:" + state.hexdigest(),
        examples=x.shape[0],
        shape=x.shape[1:],
        dtype=stored.name,
        labels=tuple(sorted(labels.items())),
        largest=largest,
        bytes=x.count * stored.itemsize + y.count * 8,
    )


# -- members and headers ----------------------------------------------------------------------------------------------


def _open_members(file: BinaryIO) -> tuple[Reader, Reader]:
    magic = file.read(8)
    if magic[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        found = next((name for start, name in _MAGIC if magic.startswith(start)), None)
        what = "it is empty" if not magic else f"it looks like {found}" if found else "it is another format"
        _refuse("not-npz", f"the upload is not an npz file; {what}: send np.savez(file, x=x, y=y)")
    members = {member.name: member for member in read_directory(file)}
    strange = sorted(members.keys() - {"x.npy", "y.npy"})
    if strange:
        names = ", ".join(repr(name.removesuffix(".npy")[:64]) for name in strange)
        _refuse("unknown-member", f"the npz also holds {names}: send exactly x and y, as np.savez(file, x=x, y=y)")
    for name in ("x", "y"):
        if f"{name}.npy" not in members:
            _refuse("missing-member", f"the npz has no {name}: send np.savez(file, x=x, y=y)")
    return Reader(file, members["x.npy"]), Reader(file, members["y.npy"])


def _read_header(reader: Reader, name: str, limits: Limits) -> _Header:
    """Read and check the npy header (versions 1, 2 and 3); the reader stands at the first value then."""
    if reader.size < 10:
        _refuse("not-npy", f"{name} is not an npy array: write the npz with np.savez")
    start = reader.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        _refuse("not-npy", f"{name} is not an npy array of version 1, 2 or 3: write the npz with np.savez")
    width = 2 if start[6] == 1 else 4
    begin = 8 + width
    length = int.from_bytes(reader.read(width), "little") if reader.size >= begin else _LONGEST_HEADER + 1
    if length > min(_LONGEST_HEADER, reader.size - begin):
        _refuse("not-npy", f"{name}'s npy header is longer than numbers need: write the npz with np.savez")
    header = _parse_header(reader.read(length), name, begin + length)
    if header.nbytes > limits.max_bytes:
        _refuse_size(name, header.nbytes, limits)
    if header.begin + header.nbytes != reader.size:
        _refuse(
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
        _refuse("not-npy", f"{name}'s npy header is not descr, fortran_order and shape: write the npz with np.savez")
    shape, fortran = fields["shape"], fields["fortran_order"]
    if not isinstance(shape, tuple) or any(type(length) is not int or length < 0 for length in shape):
        _refuse("not-npy", f"{name}'s npy header has no valid shape: write the npz with np.savez")
    if type(fortran) is not bool:
        _refuse("not-npy", f"{name}'s npy header has no valid fortran_order: write the npz with np.savez")
    return _Header(_parse_dtype(fields["descr"], name), fortran, shape, begin)


def _parse_dtype(descr: object, name: str) -> np.dtype[Any]:
    remedy = "send y as integers" if name == "y" else "send x as float32 or uint8"
    found = re.fullmatch(r"([<>|=]?)([A-Za-z?])(\d{0,3})(\[.*\])?", descr) if isinstance(descr, str) else None
    if found is None:
        _refuse("dtype", f"{name} has fields or an unknown dtype: {remedy}")
    order, kind, width = found.group(1, 2, 3)
    if kind == "O":
        _refuse("object-array", f"{name} is an array of objects, which only pickle can read: {remedy}; pad ragged rows")
    if kind + width not in {"f2", "f4", "f8", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"}:
        _refuse("dtype", f"{name} holds {_KINDS.get(kind, kind + width)}, not numbers that can be kept: {remedy}")
    if name == "y" and kind == "f":
        _refuse(
            "label-not-integer", "y holds fractions: send class numbers, such as y.astype('int64') of whole numbers"
        )
    return np.dtype(order + kind + width)


def _check_headers(x: _Header, y: _Header, limits: Limits) -> np.dtype[Any]:
    """Check both arrays against each other and the limits; returns the dtype that x is stored in."""
    if not 2 <= len(x.shape) <= _MOST_AXES:
        _refuse("shape", f"x has {len(x.shape)} axes: send (n, features), or images as (n, height, width, channels)")
    if len(y.shape) != 1:
        _refuse("shape", f"y has {len(y.shape)} axes: send one class number an example (y.ravel() or y.argmax(axis=1))")
    if x.shape[0] != y.shape[0]:
        _refuse("length-mismatch", f"x has {x.shape[0]} examples and y {y.shape[0]} labels: send one label per example")
    if 0 in x.shape:
        _refuse("empty", f"x has the shape {x.shape}, so nothing is in it: send at least one example with one feature")
    stored = np.dtype(np.uint8) if x.dtype == np.uint8 else np.dtype(np.float32)
    size = x.count * stored.itemsize + y.count * 8
    if size > limits.max_bytes:
        _refuse_size("the megabatch", size, limits)
    if x.nbytes // x.shape[0] > _LARGEST_EXAMPLE:
        _refuse("too-large", f"one example takes {x.nbytes // x.shape[0]} bytes, over {_LARGEST_EXAMPLE}")
    return stored


# -- values -----------------------------------------------------------------------------------------------------------


def _blocks(reader: Reader, header: _Header, work: Path, limits: Limits) -> Iterator[npt.NDArray[Any]]:
    """The array's rows in order, a few MiB at a time."""
    if header.fortran and len(header.shape) > 1:
        yield from _fortran_blocks(reader, header, work, limits)
        return
    width = header.nbytes // header.shape[0]
    rows = max(1, _BLOCK // width)
    for start in range(0, header.shape[0], rows):
        count = min(rows, header.shape[0] - start)
        yield np.frombuffer(reader.read(count * width), header.dtype).reshape(count, *header.shape[1:])


def _fortran_blocks(reader: Reader, header: _Header, work: Path, limits: Limits) -> Iterator[npt.NDArray[Any]]:
    """Turn a column-major array: unpack it to disk, then gather for each block of rows its piece of every column."""
    scratch = work / "columns"
    with scratch.open("w+b", buffering=0) as columns:
        for start in range(0, header.nbytes, _BLOCK):
            columns.write(reader.read(min(_BLOCK, header.nbytes - start)))
        examples, itemsize = header.shape[0], header.dtype.itemsize
        features = header.count // examples
        rows = max(1, max(_BLOCK, limits.memory_bytes // 16) // (features * itemsize))
        for start in range(0, examples, rows):
            count = min(rows, examples - start)
            block = np.empty((features, count), header.dtype)
            for feature in range(features):
                os.preadv(columns.fileno(), [block[feature].view(np.uint8)], (feature * examples + start) * itemsize)
            yield block.reshape(*reversed(header.shape[1:]), count).T
    scratch.unlink()


def _write_examples(
    blocks: Iterator[npt.NDArray[Any]], work: Path, shape: tuple[int, ...], stored: np.dtype[Any], state: Any
) -> float:
    """Write x.npy and ids.npy, feed the digest, and return the largest magnitude."""
    largest, row = 0.0, 0
    with (work / "x.npy").open("wb") as x, (work / "ids.npy").open("wb") as ids:
        _write_header(x, stored, shape)
        _write_header(ids, np.dtype(np.uint64), shape[:1])
        for block in blocks:
            converted = np.ascontiguousarray(_converted(block, stored, row))
            x.write(converted.data)
            state.update(converted.data)
            ids.write(example_ids(converted).data)
            largest = max(largest, float(converted.max()), -float(converted.min()))
            row += len(block)
    return largest


def _converted(block: npt.NDArray[Any], stored: np.dtype[Any], row: int) -> npt.NDArray[Any]:
    if block.dtype == stored and stored.kind == "u":
        return block
    with np.errstate(over="ignore"):
        converted = block.astype(stored)
    bad = ~np.isfinite(converted)
    if bad.any():
        at = row + int(np.flatnonzero(bad.any(axis=tuple(range(1, bad.ndim))))[0])
        if np.isfinite(block[bad]).all():
            _refuse("overflow", f"x has values in example {at} that float32 cannot hold: scale them before sending")
        _refuse("not-finite", f"x holds NaN or infinity in example {at}: fill or drop such values before sending")
    if block.dtype.kind in "iu" and not _exactly(converted, block):
        _refuse("inexact", "x holds integers that float32 would round: send x.astype('float32') if that is fine")
    return converted


def _exactly(converted: npt.NDArray[Any], block: npt.NDArray[Any]) -> bool:
    """Whether float32 holds these integers without rounding; values beyond the integer type would not convert back."""
    fits = converted < np.float32(2.0 ** (8 * block.dtype.itemsize - (block.dtype.kind == "i")))
    return bool(fits.all() and (converted.astype(block.dtype) == block).all())


def _write_labels(blocks: Iterator[npt.NDArray[Any]], work: Path, shape: tuple[int, ...], state: Any) -> Counter[int]:
    """Write y.npy, feed the digest, and count the labels."""
    counts: Counter[int] = Counter()
    row = 0
    with (work / "y.npy").open("wb") as y:
        _write_header(y, np.dtype(np.int64), shape)
        for block in blocks:
            _check_labels(block, row)
            converted = np.ascontiguousarray(block, dtype=np.int64)
            y.write(converted.data)
            state.update(converted.data)
            labels, found = np.unique(converted, return_counts=True)
            counts.update(dict(zip(labels.tolist()[: _MOST_LABELS + 1], found.tolist(), strict=False)))
            if len(counts) > _MOST_LABELS:
                _refuse("too-many-labels", f"y holds over {_MOST_LABELS} different labels: send class numbers")
            row += len(block)
    return counts


def _check_labels(block: npt.NDArray[Any], row: int) -> None:
    bad = (block < 0) | (block > block.dtype.type(min(_LABELS - 1, np.iinfo(block.dtype).max)))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        _refuse(
            "label-out-of-range",
            f"label {int(block[at])} of example {row + at} is not a class number: number the classes from 0",
        )


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _refuse_size(what: str, size: int, limits: Limits) -> NoReturn:
    _refuse(
        "too-large", f"{what} takes {size} bytes, over the limit of {limits.max_bytes}: send fewer examples at a time"
    )


def _refuse(reason: str, message: str) -> NoReturn:
    raise InvalidMegabatch(reason, message)
