"""Parquet, Arrow IPC and CSV -> batches of an Arrow table.

Knows: how pyarrow reads these files piece by piece, and what may not be trusted in them. Must never know: what the
columns mean.

Laws:
    * One thread, small batches: memory follows the batch, not the file, and the running count of ``arrays`` ends a file
      that unpacks to more than it says.
    * What pyarrow finds wrong is the upload's fault, with pyarrow's words; what the machine does wrong is not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
from pyarrow import csv, ipc, parquet, types

from app.intake.arrays import DecodedFiles, Limits, Reading, refuse, refuse_size, stored_dtype, write
from app.intake.columns import choose
from app.intake.tables import Block, blocks, lay_out

_CSV_BLOCK = 4 << 20
_MOST_CSV_COLUMNS = 10_000
_READ = 1 << 20
_LONGEST_METADATA = 64 << 20

pa.set_cpu_count(1)
pa.set_io_thread_count(1)


def decode_parquet(path: Path, work: Path, limits: Limits, reading: Reading) -> DecodedFiles:
    """Decode a Parquet file; see ``app.intake.tables`` for its columns.

    Raises:
        InvalidMegabatch: ``corrupt``, or one of the reasons of ``tables``, ``columns`` and ``arrays``.
    """
    with _blaming("the Parquet file"):
        _check_footer(path)
        with _parquet(path) as file:
            layout = lay_out(file.schema_arrow, reading)
            rows = file.metadata.num_rows
            names = [layout.label] if not types.is_integer(file.schema_arrow.field(layout.label).type) else []
    size = rows * (math.prod(layout.shape) * stored_dtype(layout.dtype).itemsize + 8)
    if size > limits.max_bytes:
        refuse_size("the megabatch", size, limits)
    with _parquet(path, names) as file:
        batches = file.iter_batches(layout.rows, columns=layout.columns, use_threads=False)
        found = _blamed(blocks(_counted(batches, rows), layout), "the Parquet file")
        return write(found, work, limits, reading, format="parquet", features=layout.features)


def decode_arrow(path: Path, work: Path, limits: Limits, reading: Reading) -> DecodedFiles:
    """Decode an Arrow IPC stream or file; see ``app.intake.tables`` for its columns.

    Raises:
        InvalidMegabatch: ``corrupt``, or one of the reasons of ``tables``, ``columns`` and ``arrays``.
    """
    with _blaming("the Arrow data"):
        source = pa.memory_map(str(path))
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        options = ipc.IpcReadOptions(use_threads=False)
        reader: Any = (ipc.open_file if is_file else ipc.open_stream)(source, options=options)
        layout = lay_out(reader.schema, reading)
        batches = (reader.get_batch(at) for at in range(reader.num_record_batches)) if is_file else iter(reader)
    with source:
        found = _blamed(blocks(batches, layout), "the Arrow data")
        return write(found, work, limits, reading, format="arrow", features=layout.features)


def decode_csv(path: Path, work: Path, limits: Limits, reading: Reading) -> DecodedFiles:
    """Decode a CSV file: UTF-8, commas, and a first line with the columns' names.

    Features are read as float64, or as booleans where the first rows are such; labels as names, which are numbers
    where all of them are whole numbers.

    Raises:
        InvalidMegabatch: ``corrupt``, or one of the reasons of ``tables``, ``columns`` and ``arrays``.
    """
    _check_first_line(path)
    with _blaming("the CSV file"), _csv(path, None) as reader:
        chosen = choose(reader.schema.names, reading)
        kinds = {field.name: _csv_type(field.type, reading) for field in reader.schema}
    kinds[chosen.label] = pa.dictionary(pa.int32(), pa.string())
    with _blaming("the CSV file"):
        reader = _csv(path, kinds)
    with reader:
        layout = lay_out(reader.schema, reading)
        found = _blamed(blocks(iter(reader), layout), "the CSV file")
        return write(found, work, limits, reading, format="csv", features=layout.features, numeric_names=True)


# -- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet(path: Path, names: list[str] | None = None) -> parquet.ParquetFile:
    """Columns are read through a small buffer; label names as indices into a dictionary, each name once."""
    return parquet.ParquetFile(
        pa.OSFile(str(path)),
        read_dictionary=names,
        buffer_size=_READ,
        pre_buffer=False,
        thrift_string_size_limit=_LONGEST_METADATA,
        thrift_container_size_limit=1_000_000,
        arrow_extensions_enabled=False,
    )


def _check_footer(path: Path) -> None:
    """Check that the file ends as Parquet does, in the plain, with metadata of a sane length."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        end = file.read()
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or not 0 < length <= min(size - 12, _LONGEST_METADATA):
        refuse("truncated", "the Parquet file does not end as one: it was cut off or damaged; send it again")


def _counted(batches: Iterator[pa.RecordBatch], promised: int) -> Iterator[pa.RecordBatch]:
    """The batches, which may not hold more or fewer rows than the file's metadata promises."""
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        if rows > promised:
            break
        yield batch
    if rows != promised:
        refuse("corrupt", f"the Parquet file promises {promised} rows, but holds others: write it again")


# -- CSV --------------------------------------------------------------------------------------------------------------


def _csv(path: Path, kinds: dict[str, pa.DataType] | None) -> csv.CSVStreamingReader:
    return csv.open_csv(
        pa.OSFile(str(path)),
        read_options=csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
        convert_options=csv.ConvertOptions(column_types=kinds),
    )


def _check_first_line(path: Path) -> None:
    """Count the columns before pyarrow makes room for each of them."""
    with path.open("rb") as file:
        columns = file.readline(_CSV_BLOCK).count(b",") + 1
    if columns > _MOST_CSV_COLUMNS:
        refuse(
            "too-large", f"there are {columns} columns, over {_MOST_CSV_COLUMNS}: send npz, Parquet or Arrow instead"
        )


def _csv_type(inferred: pa.DataType, reading: Reading) -> pa.DataType:
    """What a column of features is read as: numbers, unless the first rows are true and false, or are no numbers."""
    if types.is_integer(inferred) and reading.dtype == "uint8":
        return pa.uint8()
    numbers = types.is_integer(inferred) or types.is_floating(inferred) or types.is_null(inferred)
    return pa.float64() if numbers else inferred


# -- faults -----------------------------------------------------------------------------------------------------------


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Turn pyarrow's errors into refusals. An OSError without a number is pyarrow's word for a damaged file."""
    try:
        yield
    except MemoryError:
        refuse("too-large", f"{what} needs too much memory to unpack: write smaller batches or row groups")
    except OSError as error:
        if error.errno is not None:
            raise
        _refuse_corrupt(what, error)
    except (pa.ArrowException, ValueError, TypeError, LookupError, NotImplementedError, OverflowError) as error:
        _refuse_corrupt(what, error)


def _refuse_corrupt(what: str, error: Exception) -> NoReturn:
    told = ascii(str(error).split("\n")[0][:300]).strip("'\"")
    refuse("corrupt", f"{what} cannot be read ({told}): write it again")


def _blamed(found: Iterator[Block], what: str) -> Iterator[Block]:
    """The blocks, where an error on the way to one is the upload's; an error of who takes it is not caught here."""
    while True:
        with _blaming(what):
            block = next(found, None)
        if block is None:
            return
        yield block
