"""Formats with columns: what pandas, pyarrow and hands write comes out exactly; the rest is refused by name."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import csv, feather, ipc, parquet

from app.errors import InvalidMegabatch
from app.intake import arrow, tables
from app.intake.arrays import DecodedFiles, Limits, Reading
from app.intake.decoders import decode
from espalier.formats.megabatch import arrays_digest, example_ids

LIMITS = Limits(max_bytes=64 << 20, seconds=10, memory_bytes=256 << 20)
N = 300
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, 3)).astype(np.float32)
Y = np.arange(N, dtype=np.int64) % 4
NAMES = np.array(["gut", "mittel", "schlecht", "ärger"])[Y]
COLUMNS = ("höhe", "b c", "z")


def decoded(data: bytes, folder: Path, reading: Reading | None = None, media: str | None = None) -> DecodedFiles:
    (folder / "upload").write_bytes(data)
    return decode(folder / "upload", folder, LIMITS, reading or Reading(), media)


def refused(data: bytes, folder: Path, reading: Reading | None = None, media: str | None = None) -> tuple[str, str]:
    with pytest.raises(InvalidMegabatch) as caught:
        decoded(data, folder, reading, media)
    return caught.value.reason, str(caught.value)


def table(label: Any = Y, name: str = "label", x: np.ndarray = X) -> pa.Table:
    return pa.table({**{c: x[:, i] for i, c in enumerate(COLUMNS)}, name: label})


def to_parquet(given: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(given, file, **options)
    return file.getvalue()


def to_stream(given: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    with ipc.new_stream(file, given.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(given, max_chunksize=100)
    return file.getvalue()


def to_file(given: pa.Table) -> bytes:
    file = io.BytesIO()
    with ipc.new_file(file, given.schema) as writer:
        writer.write_table(given)
    return file.getvalue()


def to_feather(given: pa.Table) -> bytes:
    file = io.BytesIO()
    feather.write_feather(given, file)
    return file.getvalue()


def to_csv(given: pa.Table) -> bytes:
    file = io.BytesIO()
    csv.write_csv(given, file)
    return file.getvalue()


def to_jsonl(given: pa.Table) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in given.to_pylist()).encode()


def pandas_parquet(given: pa.Table) -> bytes:
    return bytes(given.to_pandas().to_parquet(index=False))


def pandas_feather(given: pa.Table) -> bytes:
    file = io.BytesIO()
    given.to_pandas().to_feather(file)
    return file.getvalue()


def pandas_csv(given: pa.Table) -> bytes:
    return str(given.to_pandas().to_csv(index=False)).encode()


def pandas_jsonl(given: pa.Table) -> bytes:
    return str(given.to_pandas().to_json(orient="records", lines=True, double_precision=15)).encode()


WRITERS = [
    *(to_parquet, to_stream, to_file, to_feather, to_csv, to_jsonl),
    *(pandas_parquet, pandas_feather, pandas_csv, pandas_jsonl),
]
TYPED = [to_parquet, to_stream, to_file, to_feather]


@pytest.mark.parametrize("write", WRITERS)
def test_numbered_labels_come_out_exactly(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    found = decoded(write(table()), tmp_path)
    np.testing.assert_array_equal(np.load(found.x), X)
    np.testing.assert_array_equal(np.load(found.y), Y)
    np.testing.assert_array_equal(np.load(found.ids), example_ids(X))
    assert found.digest == arrays_digest(X, Y)
    assert (found.examples, found.shape, found.dtype) == (N, (3,), "float32")
    assert (found.classes, found.features) == (None, COLUMNS)
    assert found.labels == tuple((label, N // 4) for label in range(4))
    assert found.bytes == X.nbytes + Y.nbytes


@pytest.mark.parametrize("write", WRITERS)
def test_named_labels_get_numbers_by_the_alphabet(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    found = decoded(write(table(NAMES)), tmp_path)
    assert found.classes == ("gut", "mittel", "schlecht", "ärger")
    np.testing.assert_array_equal(np.load(found.y), Y)
    assert found.digest == arrays_digest(X, Y)


@pytest.mark.parametrize("write", WRITERS)
def test_the_models_columns_classes_and_shape_decide(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    reading = Reading("kind", ("z", "höhe", "b c"), ("ärger", "neu", "gut"), True, (1, 3))
    found = decoded(write(table(NAMES, "kind")), tmp_path, reading)
    assert found.classes == ("ärger", "neu", "gut", "mittel", "schlecht")
    np.testing.assert_array_equal(np.load(found.x), X[:, [2, 0, 1]].reshape(N, 1, 3))
    np.testing.assert_array_equal(np.load(found.y), np.array([2, 3, 4, 0])[Y])
    assert found.features == ("z", "höhe", "b c")


@pytest.mark.parametrize("write", WRITERS)
def test_an_unknown_name_is_refused_with_the_classes(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    reason, told = refused(write(table(NAMES)), tmp_path, Reading(classes=("gut", "schlecht")))
    assert reason == "unknown-class"
    assert "'gut', 'schlecht'" in told and "'mittel'" in told and "unseen_classes" in told


@pytest.mark.parametrize("write", WRITERS)
def test_columns_are_taken_by_name(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    data = write(table())
    reason, told = refused(data, tmp_path, Reading(features=("z", "höhe", "b c", "länge")))
    assert reason == "missing-column" and "'länge'" in told
    reason, told = refused(data, tmp_path, Reading(features=("z", "höhe")))
    assert reason == "unknown-column" and "'b c'" in told
    reason, told = refused(data, tmp_path, Reading(label="kind"))
    assert reason == "label-column" and "'kind'" in told and "'label'" in told
    reason, told = refused(write(table(name="was")), tmp_path)
    assert reason == "label-column" and "'was'" in told and '"label"' in told


@pytest.mark.parametrize("write", WRITERS)
def test_two_usual_names_are_not_guessed_between(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    data = write(table().append_column("y", pa.array(X[:, 0])))
    reason, told = refused(data, tmp_path)
    assert reason == "label-column" and "'label'" in told and "'y'" in told
    assert decoded(data, tmp_path, Reading(label="label")).features == (*COLUMNS, "y")
    assert decoded(data, tmp_path, Reading(features=(*COLUMNS, "y"))).shape == (4,)


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_value_is_refused_with_its_place(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    x = pa.array([None if row == 203 else 1.5 for row in range(N)])
    reason, told = refused(write(pa.table({"a": X[:, 0], "b": x, "label": Y})), tmp_path)
    assert reason in ("null", "not-finite")
    assert "'b'" in told and "row 203" in told
    label = pa.array([None if row == 203 else "k" for row in range(N)])
    reason, told = refused(write(pa.table({"a": X[:, 0], "label": label})), tmp_path)
    assert reason in ("null", "label-name")


@pytest.mark.parametrize("write", WRITERS)
def test_no_rows_are_refused(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    reason, _ = refused(write(table().slice(0, 0)), tmp_path, media="text/csv" if "csv" in write.__name__ else None)
    assert reason in ("empty", "unknown-format")


@pytest.mark.parametrize("write", TYPED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_refused_with_its_place(
    write: Callable[[pa.Table], bytes], value: float, tmp_path: Path
) -> None:
    x = X.copy()
    x[123, 1] = value
    assert refused(write(table(x=x)), tmp_path)[0] == "not-finite"
    assert "column 'b c', row 123," in refused(write(table(x=x)), tmp_path)[1]


@pytest.mark.parametrize("write", TYPED)
def test_numbers_and_booleans_of_every_width(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    kinds = [pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.float16(), pa.float64()]
    columns = {str(kind): pa.array(np.arange(100)).cast(kind) for kind in kinds}
    flags = pa.array([n % 2 == 0 for n in range(100)])
    found = decoded(write(pa.table({**columns, "flag": flags, "class": pa.array(range(100), pa.uint8())})), tmp_path)
    expected = np.stack([*(np.arange(100) for _ in kinds), 1 - np.arange(100) % 2], axis=1).astype(np.float32)
    np.testing.assert_array_equal(np.load(found.x), expected)
    assert found.dtype == "float32"


@pytest.mark.parametrize("write", TYPED)
def test_bytes_stay_bytes_unless_the_model_takes_floats(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    x = RANDOM.integers(0, 256, (N, 3)).astype(np.uint8)
    found = decoded(write(table(x=x)), tmp_path)
    assert found.dtype == "uint8"
    np.testing.assert_array_equal(np.load(found.x), x)
    assert decoded(write(table(x=x)), tmp_path, Reading(dtype="float32")).dtype == "float32"


@pytest.mark.parametrize("write", [to_csv, to_jsonl, pandas_csv, pandas_jsonl])
def test_text_becomes_bytes_where_the_model_takes_these(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    x = RANDOM.integers(0, 256, (N, 3))
    found = decoded(write(table(x=x)), tmp_path, Reading(dtype="uint8"))
    assert found.dtype == "uint8"
    np.testing.assert_array_equal(np.load(found.x), x)
    assert refused(write(table(x=x + 200)), tmp_path, Reading(dtype="uint8"))[0] in ("dtype", "corrupt")


@pytest.mark.parametrize("write", TYPED)
def test_one_column_of_lists_is_a_tensor(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (N, 4, 5)).astype(np.uint8)
    lists = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), 5), 4)
    data = write(pa.table({"target": NAMES, "image": lists}))
    found = decoded(data, tmp_path)
    assert (found.shape, found.dtype, found.features) == ((4, 5), "uint8", ("image",))
    np.testing.assert_array_equal(np.load(found.x), images)
    assert decoded(data, tmp_path, Reading(shape=(5, 4, 1))).shape == (5, 4, 1)
    assert decoded(data, tmp_path, Reading(shape=(5, 5))).shape == (4, 5), "one that does not fit is ingest's to refuse"


@pytest.mark.parametrize("write", TYPED)
def test_a_plain_tensor_extension_is_read(write: Callable[[pa.Table], bytes], tmp_path: Path) -> None:
    images = RANDOM.normal(size=(N, 2, 5)).astype(np.float32)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    found = decoded(write(pa.table({"x": tensor, "y": Y})), tmp_path)
    np.testing.assert_array_equal(np.load(found.x), images)


def test_lists_in_json_are_a_tensor(tmp_path: Path) -> None:
    images = RANDOM.normal(size=(N, 4, 5)).astype(np.float32)
    lines = [json.dumps({"x": x.tolist(), "y": int(y)}) for x, y in zip(images, Y, strict=True)]
    found = decoded("\n".join(lines).encode(), tmp_path)
    np.testing.assert_array_equal(np.load(found.x), images)
    assert found.shape == (4, 5)
    assert found.digest == arrays_digest(images, Y)


def test_a_pandas_category_is_a_name(tmp_path: Path) -> None:
    label = pd.Categorical(NAMES, ["ärger", "unused", "gut", "schlecht", "mittel"])
    frame = pd.DataFrame({"a": X[:, 0], "label": label})
    found = decoded(frame.to_parquet(index=False), tmp_path)
    assert found.classes == ("gut", "mittel", "schlecht", "ärger")
    np.testing.assert_array_equal(np.load(found.y), Y)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_every_compression_of_parquet(compression: str, tmp_path: Path) -> None:
    data = to_parquet(table(NAMES), compression=compression, row_group_size=77, data_page_version="2.0")
    assert decoded(data, tmp_path).digest == arrays_digest(X, Y)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_every_compression_of_arrow(compression: str, tmp_path: Path) -> None:
    assert decoded(to_stream(table(NAMES), compression=compression), tmp_path).digest == arrays_digest(X, Y)


def test_batches_beyond_one_slice_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MOST_ROWS", 7)
    monkeypatch.setattr(arrow, "_CSV_BLOCK", 300)
    for write in (*TYPED, to_csv):
        assert decoded(write(table(NAMES)), tmp_path).digest == arrays_digest(X, Y)


# -- CSV --------------------------------------------------------------------------------------------------------------


def test_whole_numbers_in_a_csv_are_class_numbers(tmp_path: Path) -> None:
    found = decoded(b"a,label\n1,2\n2,0\n3,10\n", tmp_path, Reading(classes=("x", "y")))
    assert (found.classes, found.labels) == (None, ((0, 1), (2, 1), (10, 1)))
    assert np.load(found.y).tolist() == [2, 0, 10]


def test_names_among_numbers_in_a_csv_are_names(tmp_path: Path) -> None:
    found = decoded(b"a,label\n1,2\n2,two\n3,10\n", tmp_path)
    assert (found.classes, np.load(found.y).tolist()) == (("10", "2", "two"), [1, 2, 0])
    reason, told = refused(b"a,label\n1,2\n2,two\n3,10\n", tmp_path, Reading(classes=("two", "2")))
    assert reason == "unknown-class" and "'10'" in told


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b\n1,2\n", "label-column"),
        ("0.1,0.2,1\n0.3,0.2,1\n", "label-column"),
        ("label\n1\n", "missing-column"),
        ("a,a,label\n1,2,0\n", "duplicate-column"),
        (",a,label\n0,1,0\n", "index-column"),
        ("a,label\n1,0\n2\n", "corrupt"),
        ("a,label\n1,0\n2,1,3\n", "corrupt"),
        ("a,label\n1,0\nx,1\n", "dtype"),
        ("a,label\n" + "1,0\n" * 2_000_000 + "x,1\n", "corrupt"),
        ("a,label\n1,0\n,1\n", "null"),
        ("a,label\n1,0\nnan,1\n", "null"),
        ("a,label\n1,0\ninf,1\n", "not-finite"),
        ("a,label\n1,0\n1e300,1\n", "overflow"),
        ("a,label\n1,0.5\n1,1.0\n", "label-not-integer"),
        ("a,label\n1,-1\n", "label-out-of-range"),
        ("a,label\n1,9223372036854775808\n", "label-out-of-range"),
        ("a,label\n1,\n", "label-name"),
        ("a,label\n2024-01-01,1\n", "dtype"),
        ("a,label\n", "empty"),
        ("a;label\n1;2\n", "label-column"),
        ("a,label\n" + "9" * 5_000_000 + ",1\n", "not-finite"),
        ("a,label\n" + "9" * 20_000_000 + ",1\n", "corrupt"),
        ("label," + "x" * 300 + "\n1,1\n", "column-name"),
    ],
)
def test_other_csv_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    assert refused(text.encode(), tmp_path)[0] == reason


def test_a_csv_may_have_a_byte_order_mark_and_booleans(tmp_path: Path) -> None:
    found = decoded("\ufeffa,flag,label\r\n1,True,u\r\n2,False,v\r\n".encode(), tmp_path)
    assert (found.features, found.classes) == (("a", "flag"), ("u", "v"))
    assert np.load(found.x).tolist() == [[1, 1], [2, 0]]


# -- JSON lines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":1,"label":0}\n{"a":1,"label":0,"b":2}', "unknown-column"),
        ('{"a":1,"b":3,"label":0}\n{"a":1,"label":0}', "missing-column"),
        ('{"a":1,"label":0}\n{"a":1}', "label-column"),
        ('{"a":1,"label":0}\n{"a":1,"label":"x"}', "mixed-labels"),
        ('{"a":1,"label":0}\n{"a":1,"label":1.0}', "label-not-integer"),
        ('{"a":1,"label":0}\n{"a":1,"label":null}', "null"),
        ('{"a":1,"label":-1}', "label-out-of-range"),
        ('{"a":1,"label":9223372036854775808}', "label-out-of-range"),
        ('{"a":1,"label":[1]}', "label-not-integer"),
        ('{"a":NaN,"label":1}', "corrupt"),
        ('{"a":Infinity,"label":1}', "corrupt"),
        ('{"a":1e999,"label":1}', "not-finite"),
        ('{"a":1e300,"label":1}', "overflow"),
        ('{"a":1,"a":2,"label":1}', "corrupt"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + ',"label":1}', "corrupt"),
        ('{"a":' + "1" * 100_000 + ',"label":1}', "corrupt"),
        ('{"a":' + "1" * 300 + ',"label":1}', "overflow"),
        ('{"a":"1.5","label":1}', "not-a-number"),
        ('{"a":null,"label":1}', "null"),
        ('{"a":{"b":1},"label":1}', "not-a-number"),
        ('{"x":[1,2],"y":1}\n{"x":[1],"y":1}', "shape"),
        ('{"x":[1,[2]],"y":1}', "shape"),
        ('{"x":["1","2"],"y":1}', "shape"),
        ('{"x":[1,null],"y":1}', "shape"),
        ('{"x":[1,2],"y":1}\n{"x":3,"y":1}', "not-a-number"),
        ('{"x":[],"y":1}', "empty"),
        ('{"a":1,"b":[1],"label":1}', "not-a-number"),
        ('{"a":1,"label":1}\n[1,2]', "corrupt"),
        ('{"a":1,"label":1}{"a":1,"label":1}', "corrupt"),
        ('{"a":1,"label":"\\ud800"}', "label-name"),
        ('{"a\\ud800":1,"label":"x"}', "column-name"),
        ('{"":1,"label":"x"}', "index-column"),
        ("{" + " " * (17 << 20) + "}", "too-large"),
        ("{}", "label-column"),
    ],
)
def test_other_json_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    assert refused(text.encode(), tmp_path)[0] == reason
