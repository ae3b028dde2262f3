"""Columns that a user hands over -> an Arrow stream, or JSON lines where no pyarrow is there.

Knows: pandas and polars data frames, everything that speaks Arrow's C interface, mappings of columns: by what they can
do. pyarrow is used where it is there, and never asked for. Must never know: the service, HTTP, files.

Laws:
    * A batch of rows at a time is in memory beside the data.
    * Columns keep their names and values; that of the labels alone is renamed.
    * What cannot be sent as it is, such as a date, is refused here, by name.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from espalier.errors import EspalierClientError

LABEL = "label"
"""What the column of the labels is called, unless the model's input says otherwise."""

ARROW = "application/vnd.apache.arrow.stream"
JSON_LINES = "application/jsonl"

_BATCH = 8 << 20
"""Bytes of one batch, about: small enough for whoever reads it."""

_LINES = 4_096


def has_columns(data: Any) -> bool:
    """Whether this is a mapping of columns, a data frame, or an Arrow table or reader."""
    return (
        isinstance(data, Mapping)
        or _is_pandas(data)
        or hasattr(data, "__arrow_c_stream__")
        or hasattr(data, "__arrow_c_array__")
    )


def write_table(data: Any, labels: npt.ArrayLike | str | None, column: str, file: BinaryIO) -> str:
    """Write columns with their labels.

    Args:
        data: what ``has_columns`` says yes to.
        labels: (n,) class numbers or names; or the name of the column that holds them; None: it is ``column`` already.
        column: what the column of the labels is called in what is written.

    Returns:
        The media type of what was written.

    Raises:
        EspalierClientError: it cannot be sent; the message says what can.
    """
    arrow = None if isinstance(data, Mapping) else _pyarrow()
    if arrow is not None:
        _write_arrow(arrow, data, labels, column, file)
        return ARROW
    if isinstance(data, Mapping) or _is_frame(data):
        _write_lines(data, labels, column, file)
        return JSON_LINES
    raise EspalierClientError("tables other than data frames and mappings need pyarrow here: install pyarrow")


def array_of(values: Any) -> npt.NDArray[Any]:
    """A numpy array of one, of lists, or of a torch tensor by its own methods; without a copy where possible."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _is_frame(data: Any) -> bool:
    """Whether this is a data frame, of pandas or polars."""
    return hasattr(data, "columns") and hasattr(data, "dtypes")


def _is_pandas(data: Any) -> bool:
    return _is_frame(data) and hasattr(data, "iloc")


def _pyarrow() -> Any:
    """The module, where it is installed: it is no dependency of this package."""
    try:
        importlib.import_module("pyarrow.ipc")
        return importlib.import_module("pyarrow")
    except ImportError:
        return None


def _write_arrow(arrow: Any, data: Any, labels: npt.ArrayLike | str | None, column: str, file: BinaryIO) -> None:
    """Write an Arrow stream, a batch of rows at a time, whose columns are plain: no dictionary, no view."""
    batches = _pandas_batches(arrow, data) if _is_pandas(data) else _arrow_batches(arrow, data)
    given = None if labels is None or isinstance(labels, str) else arrow.array(array_of(labels))
    writer, row = None, 0
    for batch in batches:
        names, arrays = list(batch.schema.names), [_plain(arrow, values) for values in batch.columns]
        _place_labels(names, labels, column)
        if given is not None:
            arrays.append(given[row : row + batch.num_rows])
        row += batch.num_rows
        _check_lengths(given, row, at_least=True)
        whole = arrow.RecordBatch.from_arrays(arrays, names=names)
        if writer is None:
            writer = arrow.ipc.new_stream(file, whole.schema)
        writer.write_batch(whole)
    _check_lengths(given, row)
    if writer is None:
        raise EspalierClientError("the table has no rows: upload at least one example")
    writer.close()


def _pandas_batches(arrow: Any, frame: Any) -> Iterator[Any]:
    """A pandas data frame's rows, without its index; one schema for all of them."""
    schema = arrow.Schema.from_pandas(frame, preserve_index=False)
    count = max(1, _BATCH // (8 * max(1, len(frame.columns))))
    for start in range(0, len(frame), count):
        rows = frame.iloc[start : start + count].rename(columns=str)
        yield arrow.RecordBatch.from_pandas(rows, schema=schema, preserve_index=False)


def _arrow_batches(arrow: Any, data: Any) -> Iterator[Any]:
    """Batches of anything that speaks Arrow's C interface."""
    if hasattr(data, "__arrow_c_stream__"):
        reader = arrow.RecordBatchReader.from_stream(data)
    else:
        reader = arrow.table(data).to_reader()
    for batch in reader:
        count = max(1, _BATCH * batch.num_rows // max(1, batch.nbytes))
        for start in range(0, batch.num_rows, count):
            yield batch.slice(start, count)


def _plain(arrow: Any, values: Any) -> Any:
    """Values without a dictionary; text in its usual layout."""
    types = arrow.types
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if types.is_large_string(values.type) or types.is_string_view(values.type):
        values = values.cast(arrow.string())
    return values


def _write_lines(data: Any, labels: npt.ArrayLike | str | None, column: str, file: BinaryIO) -> None:
    """Write a mapping of columns, or a data frame, as JSON lines: that needs nothing but numpy."""
    keys = list(data if isinstance(data, Mapping) else data.columns)
    names, values = [str(key) for key in keys], [array_of(data[key]) for key in keys]
    _place_labels(names, labels, column)
    if labels is not None and not isinstance(labels, str):
        values.append(array_of(labels))
    rows = _rows(names, values)
    for start in range(0, rows, _LINES):
        block = zip(*(each[start : start + _LINES].tolist() for each in values), strict=True)
        try:
            lines = [json.dumps(dict(zip(names, row, strict=True)), allow_nan=False) for row in block]
        except (TypeError, ValueError) as error:
            raise EspalierClientError(
                f"the columns hold what cannot be sent ({error}): fill or drop NaN and infinity, and keep numbers and "
                "names alone"
            ) from error
        file.write(("\n".join(lines) + "\n").encode())


def _rows(names: list[str], values: list[npt.NDArray[Any]]) -> int:
    """How many rows the columns have, which are alike."""
    shapes = {each.shape for each in values}
    kinds = {each.dtype.kind for each in values}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or not values[0].size or not kinds <= set("biufUTO"):
        told = ", ".join(f"{name} {each.shape} {each.dtype}" for name, each in zip(names[:10], values, strict=False))
        raise EspalierClientError(f"columns hold one number or name for each example; these are: {told}")
    return len(values[0])


def _place_labels(names: list[str], labels: npt.ArrayLike | str | None, column: str) -> None:
    """Name the column of the labels: rename the one that is meant, or make a name for those that come beside."""
    if labels is None:
        return
    if isinstance(labels, str):
        if labels not in names:
            some = ", ".join(map(repr, names[:20]))
            raise EspalierClientError(f"the data have no column {labels!r}: name one of {some}")
        at = names.index(labels)
    else:
        at = len(names)
        names.append("")
    if column in names and names[at] != column:
        raise EspalierClientError(
            f"the data have a column {column!r} beside the labels, which are to be sent under that name: rename it, or "
            "leave it out"
        )
    names[at] = column


def _check_lengths(labels: Any, rows: int, *, at_least: bool = False) -> None:
    if labels is not None and (len(labels) < rows or (len(labels) > rows and not at_least)):
        raise EspalierClientError(f"there are {len(labels)} labels, but {rows} rows: upload one label for each row")
