"""Initial weights: is this upload a safetensors file whose tensors a network can load?

Knows: the safetensors header. Must never know: which network they are for (the worker loads them strictly), torch, SQL.

Laws:
    * The header is bounded before it is parsed; values are read in blocks.
    * Tensors fill the file without gap or overlap, and every floating-point value is finite.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from app.errors import InvalidWeights

_LONGEST_HEADER = 4 << 20
_BLOCK = 1 << 23
_DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def check_weights(path: Path) -> tuple[dict[str, Any], ...]:
    """Check an upload of initial weights.

    Args:
        path: the upload; nothing about it is trusted.

    Returns:
        For each tensor, by name, its ``name``, ``shape`` (a list) and ``dtype`` (numpy's name).

    Raises:
        InvalidWeights: naming what is wrong and what to send instead.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        header, begin = _read_header(file, size)
        tensors = sorted((_Tensor(name, entry) for name, entry in header.items()), key=lambda tensor: tensor.span)
        position = 0
        for tensor in tensors:
            if tensor.span[0] != position:
                _refuse(f"the tensor {tensor.name!r} does not begin where the one before it ends")
            position = tensor.span[1]
        if begin + position != size:
            _refuse(f"the tensors take {position} bytes, but {size - begin} are there: it was cut off or damaged")
        for tensor in tensors:
            _check_finite(file, tensor, begin)
    return tuple(
        {"name": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype.name}
        for tensor in sorted(tensors, key=lambda tensor: tensor.name)
    )


class _Tensor:
    """One entry of the header, checked by itself."""

    def __init__(self, name: str, entry: Any) -> None:
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            _refuse(f"the entry of {name!r} is not dtype, shape and data_offsets")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
            _refuse(f"the tensor {name!r} is {entry['dtype']!r}: send one of {', '.join(_DTYPES)}")
        numbers = (entry["shape"], entry["data_offsets"])
        if not all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in numbers):
            _refuse(f"the shape or offsets of {name!r} are not lists of whole numbers")
        if len(entry["data_offsets"]) != 2 or len(entry["shape"]) > 32:
            _refuse(f"the tensor {name!r} has no begin and end, or over 32 axes")
        self.name = name
        self.dtype = _DTYPES[entry["dtype"]]
        self.shape: list[int] = entry["shape"]
        self.span: tuple[int, int] = (entry["data_offsets"][0], entry["data_offsets"][1])
        if self.span[1] - self.span[0] != math.prod(self.shape) * self.dtype.itemsize:
            _refuse(f"the tensor {name!r} does not have as many bytes as its shape needs")


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > min(size - 8, _LONGEST_HEADER):
        _refuse("it is not safetensors, or was cut off")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        _refuse("its header is not JSON")
    if not isinstance(header, dict):
        _refuse("its header is not a JSON object")
    header.pop("__metadata__", None)
    if not header:
        _refuse("there is no tensor in it")
    return header, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands there twice")
    return members


def _check_finite(file: BinaryIO, tensor: _Tensor, begin: int) -> None:
    if tensor.dtype.kind != "f":
        return
    for start in range(*tensor.span, _BLOCK):
        file.seek(begin + start)
        values = np.frombuffer(file.read(min(_BLOCK, tensor.span[1] - start)), tensor.dtype)
        if not np.isfinite(values).all():
            _refuse(f"the tensor {tensor.name!r} holds NaN or infinity")


def _refuse(why: str) -> NoReturn:
    raise InvalidWeights(
        f"initial weights cannot be used; {why}: send a file that safetensors.torch.save_file(state_dict, path) made"
    )
