"""Sources: whatever a user hands over comes out of the server's decoders as it went in."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from app.intake.arrays import DecodedFiles, Limits, Reading
from app.intake.decoders import decode
from espalier import sources, tables
from espalier.errors import EspalierClientError
from espalier.formats.megabatch import arrays_digest, encode
from espalier.sources import Source, media_of, prepared

X = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
Y = np.arange(300) % 3
NAMES = np.array(["iris", "rose", "tulip"])[Y]
COLUMNS = [f"f{at}" for at in range(4)]
PLAIN = Reading()


def read(source: Source, work: Path, reading: Reading = PLAIN) -> DecodedFiles:
    """What the server makes of a source; the media type that it is sent with is declared."""
    path = work / "sent"
    path.write_bytes(source.content if isinstance(source.content, bytes) else source.content.read_bytes())
    assert path.stat().st_size == source.size
    return decode(path, work, Limits(64 << 20), reading, source.media)


def decoded(data: Any, work: Path, labels: Any = None, reading: Reading = PLAIN, **options: Any) -> DecodedFiles:
    with prepared(data, labels, **options) as source:
        return read(source, work, reading)


@pytest.fixture
def without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client machine that has no pyarrow."""
    found = tables.importlib.import_module

    def import_module(name: str) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return found(name)

    monkeypatch.setattr(tables.importlib, "import_module", import_module)


def frame() -> pd.DataFrame:
    return pd.DataFrame(X, columns=COLUMNS)


# -- arrays -----------------------------------------------------------------------------------------------------------


def test_small_arrays_stay_in_memory(tmp_path: Path) -> None:
    with prepared(X, Y) as source:
        assert (source.content, source.media) == (encode(X, Y), "application/x-npz")
        assert read(source, tmp_path).digest == arrays_digest(X, Y)


@pytest.mark.parametrize(
    "x",
    [X, np.asfortranarray(X), X.astype(">f4"), X[::-1][::-1], X.tolist(), X.reshape(300, 2, 2, 1)],
    ids=["C", "Fortran", "big-endian", "reversed", "lists", "images"],
)
def test_large_arrays_go_through_a_file_with_the_same_bytes(
    x: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = encode(np.asarray(x), Y)
    monkeypatch.setattr(sources, "_IN_MEMORY", 0)
    with prepared(x, Y) as source:
        assert isinstance(source.content, Path)
        assert source.content.read_bytes() == small
        kept = np.load(read(source, tmp_path).x)
    assert not source.content.exists()
    np.testing.assert_array_equal(kept, np.asarray(x, np.float32))


def test_memory_stays_bounded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((60, 1 << 20), np.uint8))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        with prepared(x, np.zeros(60, np.int64)) as source:
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.size > 60 << 20
    assert peak < 20 << 20


def test_tensors_are_arrays(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, requires_grad=True)
    assert decoded(x, tmp_path, torch.tensor(Y)).digest == arrays_digest(X, Y)


@pytest.mark.parametrize("labels", [None, "species", NAMES, NAMES.astype(object)], ids=["none", "a name", "U", "O"])
def test_arrays_need_class_numbers(labels: Any) -> None:
    with pytest.raises(EspalierClientError, match="class number"), prepared(X, labels):
        pass


def test_arrays_of_objects_are_refused() -> None:
    with pytest.raises(EspalierClientError, match="array of objects"), prepared(np.array([[1, None]]), [0]):
        pass


# -- columns ----------------------------------------------------------------------------------------------------------


def tabular() -> dict[str, Any]:
    """The same features in everything that has columns."""
    table = pa.table(dict(zip(COLUMNS, X.T, strict=True)))
    return {
        "pandas": frame(),
        "pyarrow table": table,
        "pyarrow batch": table.combine_chunks().to_batches()[0],
        "chunked": pa.concat_tables([table.slice(0, 100), table.slice(100)]),
        "mapping": dict(zip(COLUMNS, X.T, strict=True)),
        "lists": {name: values.tolist() for name, values in zip(COLUMNS, X.T, strict=True)},
        "reader": table.to_reader(max_chunksize=70),
    }


@pytest.mark.parametrize("kind", tabular())
@pytest.mark.parametrize("labels", [Y, Y.tolist(), pd.Series(Y), NAMES, NAMES.tolist(), pd.Series(NAMES)])
def test_columns_with_labels_beside_them(
    kind: str, labels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BATCH", 1000)
    found = decoded(tabular()[kind], tmp_path, labels)
    assert found.digest == arrays_digest(X, Y)
    assert found.features == tuple(COLUMNS)
    assert found.classes == (("iris", "rose", "tulip") if isinstance(list(labels)[0], str) else None)


@pytest.mark.parametrize("name", ["label", "species"])
@pytest.mark.parametrize("values", [Y, NAMES, pd.Categorical(NAMES)], ids=["numbers", "names", "categories"])
def test_columns_with_the_labels_among_them(name: str, values: Any, tmp_path: Path) -> None:
    labelled = frame().assign(**{name: values})
    as_columns = {key: labelled[key].to_numpy() for key in labelled}
    for data in (labelled, pa.Table.from_pandas(labelled), as_columns):
        found = decoded(data, tmp_path, name)
        assert (found.digest, found.features) == (arrays_digest(X, Y), tuple(COLUMNS))
        kept = decoded(data, tmp_path, name, Reading(label="species"), column="species")
        assert kept.digest == found.digest


def test_a_frame_that_names_its_labels_itself(tmp_path: Path) -> None:
    assert decoded(frame().assign(label=NAMES), tmp_path).classes == ("iris", "rose", "tulip")


def test_an_index_and_names_that_are_numbers(tmp_path: Path) -> None:
    odd = pd.DataFrame(X, index=np.arange(300)[::-1] * 7)
    found = decoded(odd, tmp_path, Y)
    assert (found.digest, found.features) == (arrays_digest(X, Y), ("0", "1", "2", "3"))


@pytest.mark.usefixtures("without_pyarrow")
def test_frames_travel_without_pyarrow_too(tmp_path: Path) -> None:
    with prepared(frame(), NAMES) as source:
        assert source.media == "application/jsonl"
        assert read(source, tmp_path).digest == arrays_digest(X, Y)
    table = pa.table({"a": [1.0]})
    with pytest.raises(EspalierClientError, match="install pyarrow"), prepared(table, [0]):
        pass


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (frame(), "species", "no column 'species': name one of 'f0', 'f1'"),
        (frame(), Y[:-1], "299 labels"),
        (frame(), [*Y, 0], "301 labels"),
        (frame().assign(label=0), Y, "rename it"),
        (frame().assign(label=0, species=1), "species", "rename it"),
        (frame()[:0], Y[:0], "no rows"),
        ({"a": X[:, 0], "b": X[:9, 0]}, Y, r"a \(300,\) float32, b \(9,\) float32"),
        ({"a": X[:, 0]}, Y[:9], r"label \(9,\)"),
        ({"a": X}, Y, r"a \(300, 4\)"),
        ({"a": []}, [], "one number"),
        ({"a": np.array(["2026-01-01"], "M8[s]")}, [0], "datetime64"),
        ({"a": [1.0, np.nan]}, [0, 1], "NaN"),
        ({"a": np.array([1.0, object()], object)}, [0, 1], "cannot be sent"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_sent(data: Any, labels: Any, message: str) -> None:
    with pytest.raises(EspalierClientError, match=message), prepared(data, labels):
        pass


@pytest.mark.parametrize("make", [pd.DataFrame, pa.table], ids=["pandas", "pyarrow"])
def test_wide_tables_come_in_small_batches(make: Any) -> None:
    wide = make({f"f{at}": np.zeros(3000) for at in range(1000)})
    with prepared(wide, np.zeros(3000, np.uint8)) as source, pa.ipc.open_stream(source.content) as batches:
        sizes = [batch.nbytes for batch in batches]
    assert (sum(sizes) >= 24_000_000, max(sizes) < 10 << 20) == (True, True)


def test_tables_are_streamed() -> None:
    batch = pa.record_batch({name: np.zeros(65_536, np.float32) for name in COLUMNS})
    made = 0

    def batches() -> Any:
        nonlocal made
        for _ in range(50):
            made += 1
            yield batch

    reader = pa.RecordBatchReader.from_batches(batch.schema, batches())
    before = pa.total_allocated_bytes()
    with prepared(reader, np.zeros(50 * 65_536, np.uint8)) as source:
        assert (made, source.size > 50 << 20) == (50, True)
        assert pa.total_allocated_bytes() - before < 8 << 20


# -- files and folders ------------------------------------------------------------------------------------------------


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def made_folder(root: Path) -> Path:
    for at in range(6):
        path = root / "pictures" / ("cat", "dog")[at % 2] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(at)).save(path)
    for junk in (".DS_Store", ".git/config", "cat/._0.png", "__MACOSX/cat/0.png", "Thumbs.db"):
        (root / "pictures" / junk).parent.mkdir(parents=True, exist_ok=True)
        (root / "pictures" / junk).write_text("junk")
    return root / "pictures"


def test_a_folder_of_images_is_packed_in_order(tmp_path: Path) -> None:
    folder = made_folder(tmp_path)
    with prepared(str(folder)) as source:
        assert (source.media, source.name) == ("application/x-tar", "images of pictures")
        assert isinstance(source.content, Path)
        once, found = source.content.read_bytes(), read(source, tmp_path)
    assert not source.content.exists()
    np.testing.assert_array_equal(np.load(found.x), [picture(at) for at in (0, 2, 4, 1, 3, 5)])
    np.testing.assert_array_equal(np.load(found.y), [0, 0, 0, 1, 1, 1])
    assert found.classes == ("cat", "dog")
    for path in folder.rglob("*.png"):
        path.touch()
    with prepared(folder) as source:
        assert source.content.read_bytes() == once


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder = made_folder(tmp_path)
    (folder / "dog").rename(tmp_path / "elsewhere")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    assert decoded(folder, tmp_path).labels == ((0, 3), (1, 3))
    (folder / "cat" / "all").symlink_to(folder)
    with pytest.raises(EspalierClientError, match="in the folder already"), prepared(folder):
        pass


def test_a_folder_with_a_labels_file(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for at in range(3):
        Image.fromarray(picture(at)).save(folder / f"{at}.png")
    (folder / "labels.csv").write_text("file,label\n2.png,dog\n0.png,cat\n1.png,dog\n")
    found = decoded(folder, tmp_path)
    np.testing.assert_array_equal(np.load(found.y), [1, 0, 1])
    np.testing.assert_array_equal(np.load(found.x)[0], picture(2))


def test_empty_folders_and_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(EspalierClientError, match="no file"), prepared(path):
            pass


def test_a_file_brings_its_labels(tmp_path: Path) -> None:
    (tmp_path / "batch.npz").write_bytes(encode(X, Y))
    with pytest.raises(EspalierClientError, match="labels itself"), prepared(tmp_path / "batch.npz", Y):
        pass


def written(kind: str, path: Path) -> str:
    """A file of the same megabatch in one of the formats, and its media type."""
    labelled = frame().assign(label=Y)
    table = pa.Table.from_pandas(labelled)
    if kind == "npz":
        path.write_bytes(encode(X, Y))
        return "application/x-npz"
    if kind == "parquet":
        pq.write_table(table, path)
        return "application/vnd.apache.parquet"
    if kind in ("arrow stream", "arrow file"):
        with (pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file)(path, table.schema) as writer:
            writer.write_table(table)
        return f"application/vnd.apache.arrow.{kind.split()[1]}"
    if kind == "csv":
        labelled.to_csv(path, index=False)
        return "text/csv"
    labelled.to_json(path, orient="records", lines=True, double_precision=15)
    return "application/jsonl"


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("npz", ""), ("parquet", ""), ("arrow stream", ""), ("arrow file", ""), ("csv", ".csv"), ("jsonl", ".jsonl")],
)
def test_files_are_sent_as_they_are(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"batch{suffix}"
    media = written(kind, path)
    with prepared(path) as source:
        assert source == Source(path, media, path.stat().st_size, path.name)
        assert read(source, tmp_path).digest == arrays_digest(X, Y)


def test_archives_are_told_by_their_bytes(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(picture(0)).save(out, "PNG")
    with sources.tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        info = sources.tarfile.TarInfo("cat/0.png")
        info.size = len(out.getvalue())
        tar.addfile(info, io.BytesIO(out.getvalue()))
    assert media_of(tmp_path / "a.tgz") == "application/x-tar"
    assert decoded(tmp_path / "a.tgz", tmp_path).examples == 1
    (tmp_path / "b").write_bytes(b"anything")
    assert media_of(tmp_path / "b") == "application/octet-stream"
