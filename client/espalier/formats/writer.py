"""Write a checkpoint's tensors: byte planes, bits or gaps, and the container they lie in.

Knows: how arrays become the smallest bytes of ``espalier-sparse-2`` (docs/checkpoint-format.md); ``reader`` undoes it.
Must never know: manifests, networks, or where bytes go.

Laws:
    * The same tensors give the same bytes, under one version of the zstd library, whatever the order of names.
    * Of the ways in which a tensor can be stored the shortest is taken; of two as short, the one named first below.
    * Rounding is done here or not at all: everything else is lossless.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from espalier.errors import CheckpointMismatch
from espalier.formats.canonical import canonical_json
from espalier.formats.reader import DTYPES

Array = npt.NDArray[Any]

VALUES = ("float32", "bfloat16", "float16")
"""What the kept weights of float32 layers may be rounded to; float32 is as they are."""

ZSTD = ".".join(map(str, zstandard.ZSTD_VERSION))
"""Version of the zstd library: another one may compress to other bytes, of the same content."""

LEVEL = 1
"""Of zstd. Higher levels search for repetitions, which weights do not have: 3 takes 1.5 times as long for nothing."""

WORTH = 128
"""Bytes that coding a tensor must save: about what its description takes."""

ESCAPE = 255
"""A gap byte that says: as many are pruned, and more follow."""

_NAMES = {kind.newbyteorder("="): name for name, kind in DTYPES.items()}
_WIDEST_FIRST = ("U64", "I64", "F64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in the file.

    Attributes:
        dtype, shape: of its values.
        parts: its bytes: all of them, or one part for each byte plane.
        coded: whether they are byte planes.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[bytes, ...]
    coded: bool = False

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return sum(map(len, self.parts))

    @property
    def cost(self) -> int:
        """Bytes in the file, and of what must be said of them."""
        return self.size + WORTH * self.coded


# -- tensors -----------------------------------------------------------------------------------------------------------


def stored(array: Array, name: str) -> Stored:
    """Plain, or in byte planes, whichever is shorter.

    Raises:
        CheckpointMismatch: for a dtype that the format does not have.
    """
    kind = _NAMES.get(array.dtype.newbyteorder("="))
    if kind is None:
        raise CheckpointMismatch(f"{name!r} is {array.dtype}, which checkpoints do not hold: use one of {[*DTYPES]}")
    flat = np.ascontiguousarray(array, DTYPES[kind]).reshape(-1)
    if flat.nbytes <= WORTH:
        return Stored(kind, array.shape, (flat.tobytes(),))
    planes = tuple(_packed(plane) for plane in _planes(flat))
    if sum(map(len, planes)) + WORTH < flat.nbytes:
        return Stored(kind, array.shape, planes, coded=True)
    return Stored(kind, array.shape, (flat.tobytes(),))


def which(mask: npt.NDArray[np.bool_], where: npt.NDArray[np.int64], name: str) -> dict[str, Stored]:
    """Which weights are kept: ``name.mask``, as bits, or ``name.gaps``, whichever is shorter.

    Args:
        mask: True where a weight is kept.
        where: (kept,) flat indices of these, ascending.
    """
    bits = stored(np.packbits(mask.reshape(-1)), name)
    if 8 * len(where) > mask.size:  # a byte for each gap is more than a bit for each weight, and compresses no better
        return {name + ".mask": bits}
    gaps = stored(_gaps(where), name)
    return {name + ".mask": bits} if bits.cost <= gaps.cost else {name + ".gaps": gaps}


def rounded(values: Array, kind: str, name: str) -> Array:
    """The nearest values, ties to even, that ``bfloat16`` or ``float16`` can hold, as float32.

    Args:
        values: float32; other dtypes are left as they are. Zeros, infinities and NaN stay what they are.

    Raises:
        CheckpointMismatch: when a finite value is too large.
    """
    if kind == "float32" or values.dtype != np.float32:
        return values
    if kind == "float16":
        with np.errstate(over="ignore"):
            near = values.astype(np.float16).astype(np.float32)
    else:
        words = values.astype("<f4").view("<u4")
        near = ((words + (0x7FFF + ((words >> 16) & 1))) & np.uint32(0xFFFF0000)).view("<f4")
    if (np.isinf(near) & np.isfinite(values)).any():
        most = np.abs(values[np.isfinite(values)]).max()
        raise CheckpointMismatch(
            f"{name!r} has weights up to {most:g}, more than {kind} holds: set checkpoint.values to "
            + ("bfloat16 or float32" if kind == "float16" else "float32")
        )
    return np.where(np.isnan(values), values, near)


def _planes(flat: Array) -> list[npt.NDArray[np.uint8]]:
    """Byte planes, the least significant first.

    A float is first rotated by a bit, sign to the end, so that the exponent fills a byte of its own: nearly all that
    can be foreseen of a trained weight stands there.
    """
    words = flat.view(f"<u{flat.itemsize}") if flat.dtype.kind == "f" else flat
    if flat.dtype.kind == "f":
        words = (words << 1) | (words >> (8 * flat.itemsize - 1))
    rows = words.view(np.uint8).reshape(-1, flat.itemsize)
    return [np.ascontiguousarray(rows[:, significance]) for significance in range(flat.itemsize)]


def _packed(plane: npt.NDArray[np.uint8]) -> bytes:
    """A plane as it is, or as a zstd frame that says its size, if that saves more than a 16th.

    Less is not worth a reader's time: the upper mantissa byte is nearly random, and all of it would be unpacked.
    """
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(plane.data)
    return frame if len(frame) < len(plane) - len(plane) // 16 else plane.tobytes()


def _gaps(where: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """How many weights are pruned before each kept one: ``ESCAPE`` as often as that fits, and a byte for the rest."""
    gaps = np.diff(where, prepend=-1) - 1
    escapes = gaps // ESCAPE
    found = np.full(len(gaps) + int(escapes.sum()), ESCAPE, np.uint8)
    found[np.cumsum(escapes + 1) - 1] = gaps - ESCAPE * escapes
    return found


# -- the container -----------------------------------------------------------------------------------------------------


def container(tensors: dict[str, Stored], manifest: str) -> bytes:
    """One safetensors file: its header, then the tensors, widest dtype first, then by name.

    Args:
        tensors: by name; emptied, so that nothing is held twice.
        manifest: its text.

    Raises:
        ValueError: for a name that UTF-8 cannot hold.
    """
    names = sorted(tensors, key=lambda name: (_WIDEST_FIRST.index(_file_dtype(tensors[name])), name))
    ends = list(accumulate((tensors[name].size for name in names), initial=0))
    coded = {
        name: {"dtype": found.dtype, "shape": list(found.shape), "planes": [len(part) for part in found.parts]}
        for name, found in tensors.items()
        if found.coded
    }
    header: dict[str, Any] = {"__metadata__": {"coded": canonical_json(coded).decode(), "espalier": manifest}}
    for name, begin in zip(names, ends, strict=False):
        found = tensors[name]
        shape = [found.size] if found.coded else list(found.shape)
        header[name] = {"dtype": _file_dtype(found), "shape": shape, "data_offsets": [begin, begin + found.size]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file = io.BytesIO()
    file.writelines([len(text).to_bytes(8, "little"), text])
    for name in names:
        file.writelines(tensors.pop(name).parts)
    return file.getvalue()


def _file_dtype(tensor: Stored) -> str:
    return "U8" if tensor.coded else tensor.dtype
