"""A megabatch as bytes: labelled arrays packed for upload, their digest, and the ids of examples.

Knows: npz, the digest of arrays, the ids of examples and the split that follows from them. Must never know: a service,
a model, a limit.

Laws:
    * ``encode`` gives the same bytes for equal arrays, on every machine and day.
    * The digest and the ids depend on dtype, shape and values alone, not on memory order, byte order or packing.
    * Equal rows have equal ids, so duplicates fall on the same side of every split.

The service digests what it stores: ``x`` as float32 or uint8, ``y`` as int64.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from espalier.formats.canonical import canonical_json

_BLOCK_BYTES = 1 << 24
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The zip format's earliest date: a real one would make the bytes differ from day to day."""


def encode(x: npt.ArrayLike, y: npt.ArrayLike) -> bytes:
    """Pack a megabatch as an npz file with the members ``x.npy`` and ``y.npy``.

    Args:
        x: examples, (n, features), (n, height, width) or (n, height, width, channels); float32 or uint8 travel best.
        y: labels, (n,) integers.

    Returns:
        The file's bytes: stored, not deflated, and the same for equal arrays.

    Raises:
        ValueError: for arrays of objects, which only pickle could carry.
    """
    packed = io.BytesIO()
    encode_to(packed, x, y)
    return packed.getvalue()


def encode_to(file: IO[bytes], x: npt.ArrayLike, y: npt.ArrayLike) -> None:
    """Write what ``encode`` gives to a file, block by block: memory-mapped arrays are never in memory whole.

    Args:
        file: open for writing, seekable.
        x, y: as ``encode`` takes them.

    Raises:
        ValueError: for arrays of objects, which only pickle could carry.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in (("x.npy", x), ("y.npy", y)):
            _add(archive, name, np.asarray(array))


def arrays_digest(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> str:
    """Digest of a megabatch's content: dtype, shape and C-order little-endian bytes of ``x``, then of ``y``.

    Returns:
        ``sha256:`` and 64 hexadecimal digits of ``array_preamble(x) || x || array_preamble(y) || y``.
    """
    state = hashlib.sha256()
    for array in (np.asarray(x), np.asarray(y)):
        state.update(array_preamble(array.dtype, array.shape))
        for block in _blocks(array):
            state.update(_bytes(block))
    return "sha256:" + state.hexdigest()


def array_preamble(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What stands before an array's bytes in ``arrays_digest``: a line of canonical JSON with its dtype and shape."""
    return canonical_json({"dtype": dtype.name, "shape": [int(length) for length in shape]}) + b"\n"


def example_ids(x: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """One id per example: the first 8 bytes, big-endian, of the SHA-256 of the row's C-order little-endian bytes.

    Args:
        x: (n, ...), as stored (float32 or uint8). A memory-mapped array is read block by block.

    Returns:
        (n,) uint64. Equal rows have equal ids.
    """
    width = math.prod(x.shape[1:]) * x.dtype.itemsize
    heads = bytearray()
    sha256 = hashlib.sha256
    for block in _blocks(x):
        data = _bytes(block)
        for row in range(block.shape[0]):
            heads += sha256(data[row * width : (row + 1) * width]).digest()[:8]
    return np.frombuffer(heads, dtype=">u8").astype(np.uint64)


def is_validation(ids: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """Which examples are held out for validation: those with ``id < share * 2**64``.

    The same example is always on the same side, in every megabatch and cycle, and a larger share only adds examples.

    Args:
        ids: (n,) uint64 from ``example_ids``.
        share: in [0, 1].

    Returns:
        (n,) bool.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of validation examples is {share}, not between 0 and 1")
    bound = math.ceil(share * 2.0**64)
    if bound >= 2**64:
        return np.ones(ids.shape, dtype=np.bool_)
    return ids < np.uint64(bound)


def _add(archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any]) -> None:
    if array.dtype.hasobject:
        raise ValueError(f"{name} is an array of objects; only numbers can be uploaded: pad rows of unequal length")
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(array.dtype.newbyteorder("<"))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": array.shape})
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3  # Unix; otherwise the bytes would tell on which system they were made
    entry.external_attr = 0o644 << 16
    entry.file_size = header.tell() + array.nbytes
    with archive.open(entry, "w") as member:
        member.write(header.getvalue())
        for block in _blocks(array):
            member.write(_bytes(block))


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    """The bytes of a C-order array, without a copy."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _portable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array in C order and little-endian."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _blocks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The array's rows in portable blocks of about 16 MiB, so that a memory-mapped one is never in memory whole."""
    if array.ndim == 0 or array.size == 0:
        yield _portable(array)
        return
    rows = max(1, _BLOCK_BYTES // max(1, array.nbytes // array.shape[0]))
    for start in range(0, array.shape[0], rows):
        yield _portable(array[start : start + rows])
