"""Tables that no well-meaning program writes: Parquet, Arrow, CSV and JSON lines, and the refusal that each gets."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet

N = 50
A = pa.array(np.arange(N, dtype=np.float32))
Y = pa.array(np.arange(N) % 3)

Make = Callable[[], bytes]


def to_parquet(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table, file, **options)
    return file.getvalue()


def to_stream(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    with ipc.new_stream(file, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch)
    return file.getvalue()


def to_file(table: pa.Table) -> bytes:
    file = io.BytesIO()
    with ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def labelled(column: Any, label: Any = None) -> pa.Table:
    return pa.table({"a": column, "label": Y.slice(0, len(column)) if label is None else label})


def bomb(rows: int = 40_000_000) -> bytes:
    """Zeros by run lengths: a few hundred bytes that decode to 160 MB."""
    return to_parquet(labelled(pa.array(np.zeros(rows, np.int8)), pa.array(np.zeros(rows, np.int8))))


def varint(number: int) -> bytes:
    """A signed number as Thrift's compact protocol writes it."""
    number, out = number * 2, bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def lying_bomb(rows: int = 40_000_000, claimed: int = 1_100_000) -> bytes:
    """The same, whose metadata claims a fortieth of the rows."""
    data = bomb(rows)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:footer] + data[footer:].replace(varint(rows), varint(claimed))


def long_page() -> bytes:
    """One page whose header claims to unpack to 2 GB."""
    schema = pa.schema([pa.field("a", pa.float32(), nullable=False), pa.field("label", pa.int64())])
    data = to_parquet(pa.table([A, Y], schema=schema), compression="zstd", use_dictionary=False)
    return data.replace(b"\x15" + varint(4 * N), b"\x15" + varint(2**31 - 1), 1)


def unpacking(size: int) -> bytes:
    """A compressed stream, one of whose buffers claims to unpack to ``size``."""
    data = to_stream(labelled(A), compression="zstd")
    at = data.rindex(struct.pack("<q", 4 * N))
    return data[:at] + struct.pack("<q", size) + data[at + 8 :]


def with_offsets(*offsets: int) -> bytes:
    """Three names of two bytes each, whose offsets are these instead."""
    data = to_stream(labelled(A.slice(0, 3), pa.array(["ab", "cd", "ef"])))
    return data.replace(struct.pack("<4i", 0, 2, 4, 6), struct.pack("<4i", *offsets))


def to_stream_unchecked(batch: pa.RecordBatch) -> bytes:
    file = io.BytesIO()
    with ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    return file.getvalue()


def no_text() -> bytes:
    offsets = np.array([0, 1, 2, 3], np.int32)
    label = pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(b"a\xff\xfe"))
    return to_stream_unchecked(pa.record_batch([A.slice(0, 3), label], ["a", "label"]))


def outside_dictionary() -> bytes:
    codes = pa.array([0, 1, 99], pa.int32())
    label = pa.DictionaryArray.from_arrays(codes, pa.array(["u", "v"]), safe=False)
    return to_stream_unchecked(pa.record_batch([A.slice(0, 3), label], ["a", "label"]))


class Bomb:
    """Would leave a mark if anyone unpickled it."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


def pickled_type(write: Callable[[pa.Table], bytes]) -> bytes:
    """A column whose type is to be built from a pickle, as pyarrow did before 14.0.1 (CVE-2023-47248)."""
    told = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Bomb()),
    }
    schema = pa.schema([pa.field("a", pa.float32(), metadata=told), pa.field("label", pa.int64())])
    return write(pa.table([A, Y], schema=schema))


def schema_only(kind: pa.DataType) -> bytes:
    return to_stream(pa.schema([("a", kind), ("label", pa.int64())]).empty_table())


def many_columns(count: int) -> bytes:
    return to_stream(pa.schema([*((f"c{n}", pa.int8()) for n in range(count)), ("label", pa.int8())]).empty_table())


def many_batches(count: int) -> bytes:
    file, batch = io.BytesIO(), pa.record_batch([A, Y], ["a", "label"]).slice(0, 0)
    with ipc.new_stream(file, batch.schema) as writer:
        for _ in range(count):
            writer.write_batch(batch)
    return file.getvalue()


def halved(make: Make) -> Make:
    return lambda: make()[: len(make()) // 2]


def both(name: str, make: Callable[[], pa.Table], reason: str) -> list[tuple[str, Make, str]]:
    """The same table as Parquet and as an Arrow stream."""
    return [
        (f"{name}, Parquet", lambda: to_parquet(make()), reason),
        (f"{name}, Arrow", lambda: to_stream(make()), reason),
    ]


STRUCT = pa.array([{"u": 1.0, "v": 2.0}] * N)
MAP = pa.array([[("k", 1.0)]] * N, pa.map_(pa.string(), pa.float32()))
RUNS = pa.RunEndEncodedArray.from_arrays(pa.array([N], pa.int32()), pa.array([1.0]))
UNION = pa.UnionArray.from_sparse(pa.array([0] * N, pa.int8()), [A, A])

TABLES: list[tuple[str, Make, str]] = [
    ("Parquet bomb", bomb, "too-large"),
    ("lying Parquet bomb", lying_bomb, "corrupt"),
    ("long page", long_page, "corrupt"),
    ("half a Parquet", halved(lambda: to_parquet(labelled(A))), "truncated"),
    ("Parquet's mark alone", lambda: b"PAR1PAR1", "truncated"),
    ("Parquet of noise", lambda: b"PAR1" + bytes(range(256)) * 8 + b"\0\4\0\0PAR1", "corrupt"),
    ("footer beyond the file", lambda: b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", "truncated"),
    ("encrypted Parquet", lambda: b"PARE" + bytes(100) + b"PARE", "unknown-format"),
    ("half a stream", halved(lambda: to_stream(labelled(A))), "corrupt"),
    ("half an Arrow file", halved(lambda: to_file(labelled(A))), "corrupt"),
    ("Arrow's mark alone", lambda: b"ARROW1\0\0", "corrupt"),
    ("stream of noise", lambda: b"\xff\xff\xff\xff" + bytes(range(256)) * 8, "corrupt"),
    ("schema of 2 GB", lambda: b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100), "corrupt"),
    ("buffer of 10 TB", lambda: unpacking(10 << 40), "too-large"),
    ("buffer of 2**58 bytes", lambda: unpacking(2**58), "too-large"),
    ("buffer of -1 bytes", lambda: unpacking(-2), "corrupt"),
    ("offsets outside", lambda: with_offsets(0, 2, 4, 2**30), "corrupt"),
    ("offsets backwards", lambda: with_offsets(0, 4, 2, 6), "corrupt"),
    ("offsets below zero", lambda: with_offsets(-2, 2, 4, 6), "corrupt"),
    ("no UTF-8", no_text, "corrupt"),
    ("index outside the dictionary", outside_dictionary, "corrupt"),
    ("lists of 2 billion", lambda: schema_only(pa.list_(pa.float32(), 2**31 - 1)), "too-large"),
    ("lists of lists of a million", lambda: schema_only(pa.list_(pa.list_(pa.float32(), 10**6), 10**6)), "too-large"),
    ("tensor of a billion", lambda: schema_only(pa.fixed_shape_tensor(pa.float32(), (10**9,))), "too-large"),
    ("lists of nothing", lambda: schema_only(pa.list_(pa.float32(), 0)), "empty"),
    ("100,001 columns", lambda: many_columns(100_001), "too-large"),
    ("10,000 empty batches", lambda: many_batches(10_000), "empty"),
    ("pickled type, Parquet", lambda: pickled_type(to_parquet), "extension-type"),
    ("pickled type, Arrow", lambda: pickled_type(to_stream), "extension-type"),
    ("union", lambda: to_stream(labelled(UNION)), "dtype"),
    ("runs", lambda: to_stream(labelled(RUNS)), "dtype"),
    ("view of 2 GB", lambda: to_stream(labelled(A, pa.array(["x" * 1000] * N, pa.string_view()))), "label-name"),
    *both("struct", lambda: labelled(STRUCT), "dtype"),
    *both("map", lambda: labelled(MAP), "dtype"),
    *both("ragged lists", lambda: labelled(pa.array([[1.0], [1.0, 2.0]] * 25)), "dtype"),
    *both("uuid", lambda: labelled(pa.array([b"0" * 16] * N, pa.uuid())), "extension-type"),
    *both("dates", lambda: labelled(pa.array([0] * N, pa.timestamp("us"))), "dtype"),
    *both("decimals", lambda: labelled(pa.array([1] * N, pa.decimal128(10, 2))), "dtype"),
    *both("bytes", lambda: labelled(pa.array([b"1"] * N)), "dtype"),
    *both("nothing but nulls", lambda: labelled(pa.nulls(N)), "dtype"),
    *both("categories as features", lambda: labelled(pa.array(["u"] * N).dictionary_encode()), "dtype"),
    *both("label of fractions", lambda: labelled(A, A), "label-not-integer"),
    *both("label of structs", lambda: labelled(A, STRUCT), "dtype"),
    *both("label -1", lambda: labelled(A, pa.array([-1] * N)), "label-out-of-range"),
    *both("label 2**63", lambda: labelled(A, pa.array([2**63] * N, pa.uint64())), "label-out-of-range"),
    *both("no label", lambda: labelled(A, pa.array([None] * N, pa.int64())), "null"),
    *both("no name", lambda: labelled(A, pa.array([None] * N, pa.string()).dictionary_encode()), "null"),
    *both("name of a megabyte", lambda: labelled(A, pa.array(["x" * 2**20] * N).dictionary_encode()), "label-name"),
    *both("name with NUL", lambda: labelled(A, pa.array(["a\0b"] * N)), "label-name"),
    *both("infinity", lambda: labelled(pa.array([np.inf] * N)), "not-finite"),
    *both("beyond float32", lambda: labelled(pa.array([1e300] * N)), "overflow"),
    *both("rounded integer", lambda: labelled(pa.array([2**24 + 1] * N)), "inexact"),
    *both(
        "rounded beside fractions",
        lambda: pa.table({"a": A, "b": pa.array([2**53 + 1] * N), "label": Y}),
        "inexact",
    ),
    *both("hole in a list", lambda: labelled(pa.array([[1.0, None]] * N, pa.list_(pa.float32(), 2))), "null"),
    *both("no rows", lambda: labelled(A.slice(0, 0)), "empty"),
    *both("column without a name", lambda: pa.table({"": A, "label": Y}), "index-column"),
    *both("column with a line break", lambda: pa.table({"a\nb": A, "label": Y}), "column-name"),
    ("column twice", lambda: to_stream(pa.table([A, A, Y], ["a", "a", "label"])), "duplicate-column"),
    ("open quote", lambda: b'a,label\n"' + b"1,0\n" * 3_000_000, "corrupt"),
    ("NUL in text", lambda: b"a,label\n1,\x00\n", "unknown-format"),
    ("no UTF-8 in text", lambda: b"a,label\n" + b"1,x\n" * 3000 + b"1,\xff\n", "corrupt"),
    ("UTF-16", lambda: "a,label\n1,2\n".encode("utf-16"), "unknown-format"),
    ("wide CSV", lambda: ",".join(f"c{n}" for n in range(100_001)).encode() + b",label\n", "too-large"),
    ("deep JSON", lambda: b'{"a":' * 100_000, "corrupt"),
    ("long JSON", lambda: b'{"a":"' + b"x" * (17 << 20) + b'"}', "too-large"),
]
