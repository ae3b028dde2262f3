"""Arrow tables, batch by batch -> blocks of examples and labels.

Knows: Arrow's types, and which of them are numbers and names. Must never know: the file that the batches come from,
SQL, torch.

Laws:
    * Types come before values: what cannot become features or labels is refused by the schema, by name.
    * No extension type is ever built from what a file says; a tensor's shape is read where its storage is plain.
    * Every batch is validated in full (offsets, lengths, UTF-8, indices) before a value of it is looked at.
    * A row is a few slices at a time: memory does not grow with a batch.

Reasons of refusal beside those of ``arrays`` and ``columns``: extension-type, null, label-not-integer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import compute, types

from app.intake.arrays import BLOCK, MIB, Labels, Reading, check_example, exactly, refuse
from app.intake.columns import choose

Block = tuple[npt.NDArray[Any], Labels]

_MOST_ROWS = 1 << 16
_SLICE = 32 * MIB
_FEW_ROWS = 512
_TENSOR = "arrow.fixed_shape_tensor"
_EXTENSION_NAME = b"ARROW:extension:name"
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the columns of a schema become x and y.

    Attributes:
        label, features: names of columns.
        shape: of one example.
        dtype: that features are gathered in.
        nested: the one column of features holds lists.
        rows: how many rows to take at a time.
    """

    label: str
    features: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nested: bool
    rows: int

    @property
    def columns(self) -> list[str]:
        """All columns to be read."""
        return [*self.features, self.label]


def lay_out(schema: pa.Schema, reading: Reading) -> Layout:
    """Decide by a schema, before any value, how it is read.

    Raises:
        InvalidMegabatch: with one of the reasons above.
    """
    chosen = choose(schema.names, reading)
    _check_label(schema.field(chosen.label))
    fields = [schema.field(name) for name in chosen.features]
    nested = len(fields) == 1 and _is_list(fields[0].type)
    if nested:
        shape, dtype = _tensor(fields[0])
    else:
        shape, dtype = (len(fields),), np.result_type(*{_number(field) for field in fields})
    if reading.dtype == "float32":
        dtype = np.result_type(dtype, _FLOAT32)  # columns of small numbers are bytes in one upload and not in the next
    if reading.shape is not None and math.prod(reading.shape) == math.prod(shape):
        shape = reading.shape
    check_example(shape, dtype.itemsize)
    width = math.prod(shape) * dtype.itemsize
    rows = min(max(BLOCK // width, min(_FEW_ROWS, _SLICE // width), 1), _MOST_ROWS)
    return Layout(chosen.label, chosen.features, shape, dtype, nested, rows)


def blocks(batches: Iterable[pa.RecordBatch], layout: Layout) -> Iterator[Block]:
    """The batches' rows as (x, y).

    Raises:
        InvalidMegabatch: ``null``, or one of the reasons of ``arrays``.
        pa.ArrowInvalid: a batch is corrupt.
    """
    first = 0
    for batch in batches:
        batch = batch.select(layout.columns)
        batch.validate(full=True)
        for start in range(0, batch.num_rows, layout.rows):
            piece = batch.slice(start, layout.rows)
            yield _examples(piece, layout, first), _labels(piece.column(layout.label), layout.label, first)
            first += piece.num_rows


# -- types ------------------------------------------------------------------------------------------------------------


def _check_label(field: pa.Field) -> None:
    _check_plain(field)
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if _is_name(kind) or (kind is field.type and (types.is_integer(kind) or types.is_boolean(kind))):
        return
    if types.is_floating(kind) or types.is_decimal(kind):
        refuse("label-not-integer", f"the label column {field.name!r} holds fractions: write whole numbers or names")
    refuse("dtype", f"the label column {field.name!r} holds {_told(field.type)}: write class numbers or class names")


def _number(field: pa.Field) -> np.dtype[Any]:
    """The dtype that a column of numbers is gathered in; booleans count as 0.0 and 1.0."""
    _check_plain(field)
    if types.is_boolean(field.type):
        return _FLOAT32
    if not (types.is_integer(field.type) or types.is_floating(field.type)):
        refuse(
            "dtype",
            f"column {field.name!r} holds {_told(field.type)}, not numbers: convert or drop it; several values of an "
            "example go into one column of fixed-size lists",
        )
    dtype: np.dtype[Any] = np.dtype(field.type.to_pandas_dtype())
    return dtype


def _tensor(field: pa.Field) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a column of fixed-size lists, nested or as a tensor."""
    kind, shape = field.type, tuple[int, ...]()
    if isinstance(kind, pa.FixedShapeTensorType):
        if kind.permutation not in (None, list(range(len(kind.shape)))):
            refuse("extension-type", f"column {field.name!r} is a tensor with permuted axes: write it in C order")
        return tuple(kind.shape), _number(pa.field(field.name, kind.value_type))
    _check_plain(field)
    while types.is_fixed_size_list(kind):
        shape, kind = (*shape, kind.list_size), kind.value_type
    return shape, _number(pa.field(field.name, kind))


def _is_list(kind: pa.DataType) -> bool:
    return types.is_fixed_size_list(kind) or isinstance(kind, pa.FixedShapeTensorType)


def _is_name(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _check_plain(field: pa.Field) -> None:
    named = (field.metadata or {}).get(_EXTENSION_NAME)
    if isinstance(field.type, pa.BaseExtensionType) or named is not None:
        refuse(
            "extension-type",
            f"column {field.name!r} has the extension type {_told(field.type)}: write it as plain numbers or lists",
        )


def _told(kind: pa.DataType) -> str:
    """A type in words, as safe and short as a message needs."""
    return ascii(str(kind)[:80]).strip("'")


# -- values -----------------------------------------------------------------------------------------------------------


def _examples(batch: pa.RecordBatch, layout: Layout, first: int) -> npt.NDArray[Any]:
    arrays = [batch.column(name) for name in layout.features]
    for name, array in zip(layout.features, arrays, strict=True):
        _check_whole(array, name, first)
    if layout.nested:
        flat = _flat(arrays[0], layout.features[0], first)
        return flat.astype(layout.dtype, copy=False).reshape(batch.num_rows, *layout.shape)
    gathered = np.empty((len(arrays), batch.num_rows), layout.dtype)
    for at, array in enumerate(arrays):
        values = array.to_numpy(zero_copy_only=False)
        gathered[at] = values
        if values.dtype.kind in "iu" and layout.dtype.kind == "f":
            _check_exact(values, layout.features[at], first)
    return np.ascontiguousarray(gathered.T).reshape(batch.num_rows, *layout.shape)


def _flat(array: pa.Array, name: str, first: int) -> npt.NDArray[Any]:
    """The values of lists within lists."""
    rows = len(array)
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    while types.is_fixed_size_list(array.type):
        array = array.flatten()
        _check_whole(array, name, first, len(array) // rows)
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def _check_whole(array: pa.Array, name: str, first: int, each: int = 1) -> None:
    if array.null_count:
        at = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        refuse("null", f"column {name!r}, row {first + at // each}, holds no value: fill or drop such rows")


def _check_exact(values: npt.NDArray[Any], name: str, first: int) -> None:
    """Integers beside fractions become float32, too; none of them may be rounded."""
    rounded = values.astype(np.float32)
    if not exactly(rounded, values):
        row = first + next(at for at in range(len(values)) if int(rounded[at]) != int(values[at]))
        refuse("inexact", f"column {name!r}, row {row}, holds an integer that float32 would round: write it as float32")


def _labels(array: pa.Array, name: str, first: int) -> Labels:
    if types.is_dictionary(array.type):
        _check_whole(array.indices, name, first)
        used, codes = np.unique(array.indices.to_numpy(zero_copy_only=False), return_inverse=True)
        names = compute.take(array.dictionary, pa.array(used.tolist(), pa.int64())).to_pylist()
        if None in names:
            refuse("null", f"the label column {name!r} holds no value in some row: fill or drop such rows")
        return [names[code] for code in codes.tolist()]
    _check_whole(array, name, first)
    if _is_name(array.type):
        return list(array.to_pylist())
    numbers: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return numbers.astype(np.uint8) if numbers.dtype.kind == "b" else numbers
