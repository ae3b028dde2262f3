"""Decoding npz uploads: what is accepted comes out exactly; what is hostile is refused with a reason and a remedy."""

from __future__ import annotations

import inspect
import io
import pickle
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.errors import InvalidMegabatch
from app.intake import archive as archive_module
from app.intake import arrays, classes, npz
from app.intake.arrays import DecodedFiles, Limits, Reading
from app.intake.npz import decode_npz
from espalier.formats.megabatch import arrays_digest, encode, example_ids
from tests.intake.hostile import Entry, archive, npy, npy_header, npy_text

LIMITS = Limits(max_bytes=64 << 20, seconds=10, memory_bytes=256 << 20)
X = np.random.default_rng(0).normal(size=(30, 4, 5, 3)).astype(np.float32)
Y = np.arange(30, dtype=np.int64) % 7


def decoded(data: bytes, folder: Path, limits: Limits = LIMITS) -> DecodedFiles:
    (folder / "upload").write_bytes(data)
    return decode_npz(folder / "upload", folder, limits, Reading())


def savez(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def savez_compressed(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


class Unseekable(io.RawIOBase):
    """A pipe: zipfile then writes sizes behind the data, and leaves them out of local headers."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


def piped(**arrays: np.ndarray) -> bytes:
    pipe = Unseekable()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:  # type: ignore[arg-type]
        for name, array in arrays.items():
            file.writestr(f"{name}.npy", npy(array))
    return bytes(pipe.data)


@pytest.mark.parametrize("write", [encode, savez, savez_compressed, piped])
def test_every_usual_writer_is_read(write: Callable[..., bytes], tmp_path: Path) -> None:
    found = decoded(write(x=X, y=Y), tmp_path)
    x, y, ids = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (found.x, found.y, found.ids))
    assert (x.dtype, y.dtype, ids.dtype) == (np.float32, np.int64, np.uint64)
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    np.testing.assert_array_equal(ids, example_ids(X))
    assert found.digest == arrays_digest(X, Y)
    assert (found.examples, found.shape, found.dtype) == (30, (4, 5, 3), "float32")
    assert found.labels == ((0, 5), (1, 5), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4))
    assert found.largest == float(np.abs(X).max())
    assert found.bytes == X.nbytes + Y.nbytes


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "i1", ">i2", "<i4", ">i8", "<u2", ">u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_become_float32(dtype: str, order: Any, tmp_path: Path) -> None:
    x = np.array(np.random.default_rng(1).integers(0, 100, (50, 3, 2)), dtype=dtype, order=order)
    found = decoded(savez(x=x, y=Y[:1].repeat(50)), tmp_path)
    kept = np.load(found.x, mmap_mode="r")
    assert kept.dtype == np.dtype("float32")
    assert kept.dtype.isnative
    np.testing.assert_array_equal(kept, x.astype(np.float64))
    assert found.digest == arrays_digest(np.ascontiguousarray(x, np.float32), Y[:1].repeat(50))


@pytest.mark.parametrize("order", ["C", "F"])
def test_bytes_stay_bytes(order: Any, tmp_path: Path) -> None:
    x = np.array(np.random.default_rng(1).integers(0, 256, (50, 6, 5, 3)), dtype=np.uint8, order=order)
    found = decoded(savez(x=x, y=np.zeros(50, np.uint8)), tmp_path)
    np.testing.assert_array_equal(np.load(found.x), x)
    assert (found.dtype, found.largest) == ("uint8", float(x.max()))
    assert not (tmp_path / "columns").exists()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_npy_version_is_read(version: tuple[int, int], tmp_path: Path) -> None:
    data = archive(Entry("y.npy", npy(Y, version), deflate=True), Entry("x.npy", npy(X, version)))
    np.testing.assert_array_equal(np.load(decoded(data, tmp_path).x), X)


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "i1", "<u4", "u1", ">u8"])
def test_labels_become_int64(dtype: str, tmp_path: Path) -> None:
    found = decoded(savez(x=X, y=Y.astype(dtype)), tmp_path)
    assert np.load(found.y).dtype == np.int64
    assert found.digest == arrays_digest(X, Y)


def test_arrays_beyond_one_block_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "BLOCK", 1000)
    monkeypatch.setattr(npz, "_COLUMNS", 1000)
    for x in (X, np.asfortranarray(X), X.astype(">f8")):
        found = decoded(savez_compressed(x=x, y=Y), tmp_path, Limits(64 << 20, 10, 4000))
        assert found.digest == arrays_digest(X, Y)
        np.testing.assert_array_equal(np.load(found.x), X)
        np.testing.assert_array_equal(np.load(found.ids), example_ids(X))


def test_the_largest_magnitude_may_be_negative(tmp_path: Path) -> None:
    assert decoded(encode(np.float32([[1, -5], [2, 3]]), [0, 1]), tmp_path).largest == 5.0


def with_x(array: Any) -> bytes:
    return encode(np.asarray(array), np.zeros(len(array), np.int64))


def with_y(array: Any) -> bytes:
    return encode(np.zeros((len(array), 2), np.float32), np.asarray(array))


class Bomb:
    """Would leave a mark if anyone unpickled it."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


def objects() -> bytes:
    array = np.empty(2, dtype=object)
    array[:] = [Bomb(), Bomb()]
    return archive(Entry("x.npy", npy(array)), Entry("y.npy", npy(Y[:2])))


def members(x: bytes, y: bytes = npy(Y)) -> bytes:
    return archive(Entry("x.npy", x), Entry("y.npy", y))


def renamed(*names: str, mode: int = 0o100644) -> bytes:
    return archive(Entry("x.npy", npy(X)), Entry("y.npy", npy(Y)), *(Entry(name, b"#!", mode=mode) for name in names))


def overlapping() -> bytes:
    x = npy(X)
    return archive(Entry("x.npy", x), Entry("y.npy", x, offset=0, local_name="x.npy"))


def quoted() -> bytes:
    """The second member's local header inside the first member's data (as in the zip bomb of D. Fifield)."""
    inner = archive(Entry("y.npy", npy(Y)))
    return archive(Entry("x.npy", npy(X) + inner), Entry("y.npy", npy(Y), offset=30 + 5 + len(npy(X))))


def bomb(size: int) -> bytes:
    """Zeros: 1,000 times smaller packed."""
    x = npy_header("|u1", (size // 64, 64)) + bytes(size)
    return archive(Entry("x.npy", x, deflate=True), Entry("y.npy", npy(np.zeros(size // 64, np.uint8)), deflate=True))


def liar() -> bytes:
    """Inflates to 100 times what header and directory say."""
    x = npy(X)
    lie = Entry("x.npy", x + bytes(100 * len(x)), deflate=True, size=len(x))
    return archive(lie, Entry("y.npy", npy(Y)))


def damaged(data: bytes) -> bytes:
    at = data.index(npy(X)[200:300]) + 50
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def zip64(count: int) -> bytes:
    """An end that sends the reader to a zip64 record with any number of members."""
    data = archive(Entry("x.npy", npy(X)), Entry("y.npy", npy(Y)), count=0xFFFF)
    end = data.rindex(b"PK\x05\x06")
    length, start = (int.from_bytes(data[end + at : end + at + 4], "little") for at in (12, 16))
    record = (
        b"PK\x06\x06"
        + (44).to_bytes(8, "little")
        + bytes(12)
        + b"".join(number.to_bytes(8, "little") for number in (count, count, length, start))
    )
    locator = b"PK\x06\x07" + bytes(4) + end.to_bytes(8, "little") + (1).to_bytes(4, "little")
    return data[:end] + record + locator + data[end:]


WIDE = np.full((3, 2), 2**24 + 1)
HOSTILE: list[tuple[str, bytes | Callable[[], bytes], str]] = [
    ("nothing", b"", "not-npz"),
    ("text", b"x,y\n1,2\n", "not-npz"),
    ("one npy", npy(X), "not-npz"),
    ("png", b"\x89PNG\r\n\x1a\n" + bytes(100), "not-npz"),
    ("parquet", b"PAR1" + bytes(100), "not-npz"),
    ("gzip", b"\x1f\x8b\x08" + bytes(100), "not-npz"),
    ("pickle", pickle.dumps({"x": [1]}), "not-npz"),
    ("start of a zip", b"PK\x03\x04", "truncated"),
    ("truncated", lambda: savez(x=X, y=Y)[:-30], "truncated"),
    ("half", lambda: savez(x=X, y=Y)[:3000], "truncated"),
    ("trailing bytes", lambda: savez(x=X, y=Y) + b"more", "corrupt"),
    ("bytes before", lambda: b"PK\x03\x04" + savez(x=X, y=Y), "corrupt"),
    ("a flipped bit", lambda: damaged(savez(x=X, y=Y)), "corrupt"),
    ("bad deflate", archive(Entry("x.npy", npy(X), body=b"\xff" * 500, method=8), Entry("y.npy", npy(Y))), "corrupt"),
    ("wrong crc", archive(Entry("x.npy", npy(X), crc=1), Entry("y.npy", npy(Y))), "corrupt"),
    ("past the end", archive(Entry("x.npy", npy(X), packed=10**6, size=10**6), Entry("y.npy", npy(Y))), "corrupt"),
    ("offset outside", archive(Entry("x.npy", npy(X), offset=2**31), Entry("y.npy", npy(Y))), "corrupt"),
    ("other local name", archive(Entry("x.npy", npy(X), local_name="z.npy"), Entry("y.npy", npy(Y))), "corrupt"),
    ("lying bomb", liar, "corrupt"),
    ("empty zip", archive(), "missing-member"),
    ("zip64 without its record", archive(Entry("x.npy", npy(X)), count=0xFFFF), "corrupt"),
    ("zip64 of many", lambda: zip64(2**40), "too-many-members"),
    ("wrong count", archive(Entry("x.npy", npy(X)), Entry("y.npy", npy(Y)), count=1), "corrupt"),
    ("no y", lambda: savez(x=X), "missing-member"),
    ("no x", lambda: savez(y=Y), "missing-member"),
    ("other names", lambda: savez(data=X, target=Y), "unknown-member"),
    ("one too many", lambda: savez(x=X, y=Y, batch=Y), "unknown-member"),
    ("folder", lambda: renamed("a/x.npy"), "unknown-member"),
    ("a parent folder", lambda: renamed("../x.npy"), "unsafe-member"),
    ("parent in the middle", lambda: renamed("a/../../etc/passwd"), "unsafe-member"),
    ("absolute", lambda: renamed("/etc/passwd"), "unsafe-member"),
    ("backslash", lambda: renamed("..\\x.npy"), "unsafe-member"),
    ("drive", lambda: renamed("C:x.npy"), "unsafe-member"),
    ("NUL", lambda: renamed("x.npy\0.txt"), "unsafe-member"),
    ("symlink", lambda: renamed("link", mode=0o120777), "unsafe-member"),
    (
        "symlink named x",
        archive(Entry("x.npy", b"/etc/passwd", mode=0o120777), Entry("y.npy", npy(Y))),
        "unsafe-member",
    ),
    ("duplicate", archive(Entry("x.npy", npy(X)), Entry("x.npy", npy(X)), Entry("y.npy", npy(Y))), "duplicate-member"),
    ("overlapping", overlapping, "corrupt"),
    ("quoted", quoted, "overlapping-members"),
    ("encrypted", archive(Entry("x.npy", npy(X), flags=1), Entry("y.npy", npy(Y))), "encrypted"),
    ("lzma", archive(Entry("x.npy", npy(X), method=14), Entry("y.npy", npy(Y))), "compression"),
    (
        "100,000 members",
        lambda: archive(*(Entry(f"{n}.npy", b"") for n in range(50_000)), count=0xFFFE),
        "too-many-members",
    ),
    ("objects", objects, "object-array"),
    ("10 TB", lambda: members(npy_header("<f4", (2_500_000_000, 1000)) + bytes(100)), "too-large"),
    ("10 TB in 2**63 rows", lambda: members(npy_header("<f4", (2**63, 2**63)) + bytes(100)), "too-large"),
    ("no values", lambda: members(npy_header("<f4", (30, 3))), "corrupt"),
    ("rows of nothing", lambda: members(npy_header("<f4", (2**62, 0)), npy_header("<i8", (2**62,))), "too-large"),
    ("zip bomb", lambda: bomb(80 << 20), "too-large"),
    ("one huge example", lambda: with_x(np.zeros((1, 65 << 20), np.uint8)), "too-large"),
    ("grows by conversion", lambda: with_x(np.zeros((2, 9 << 20), np.int8)), "too-large"),
    ("not npy", lambda: members(b"this is no array at all"), "not-npy"),
    ("too short", lambda: members(b"\x93NUMPY"), "not-npy"),
    ("ten bytes", lambda: members(b"\x93NUMPY\x02\x00\x00\x00"), "not-npy"),
    ("npy version 4", lambda: members(npy_header("<f4", (30, 3), version=4) + bytes(360)), "not-npy"),
    ("long header", lambda: members(npy_text("{" + " " * 5000 + "}", version=2)), "not-npy"),
    ("header past the end", lambda: members(b"\x93NUMPY\x01\x00\xff\x0f" + bytes(100)), "not-npy"),
    ("nested header", lambda: members(npy_text("[" * 4000)), "not-npy"),
    ("negated header", lambda: members(npy_text("-" * 4000 + "1")), "not-npy"),
    ("code in the header", lambda: members(npy_text("__import__('os').system('true')")), "not-npy"),
    (
        "header of bytes",
        lambda: members(npy_text("\udcff".encode("utf-8", "surrogatepass").decode("latin-1"))),
        "not-npy",
    ),
    (
        "header with more",
        lambda: members(npy_text("{'descr':'<f4','fortran_order':False,'shape':(1,),'z':1}")),
        "not-npy",
    ),
    ("negative shape", lambda: members(npy_header("<f4", (-1, 3)) + bytes(12)), "not-npy"),
    ("boolean shape", lambda: members(npy_header("<f4", (True, 3)) + bytes(12)), "not-npy"),
    ("fractional shape", lambda: members(npy_header("<f4", (1.0, 3)) + bytes(12)), "not-npy"),
    ("shape of text", lambda: members(npy_header("<f4", "30") + bytes(12)), "not-npy"),
    ("order of text", lambda: members(npy_header("<f4", (1, 3), "False") + bytes(12)), "not-npy"),
    ("records", lambda: with_x(np.zeros(3, [("a", "f4"), ("b", "f4")])), "dtype"),
    ("subarrays", lambda: members(npy_header("(1000000,)<f4", (30, 3))), "dtype"),
    ("booleans", lambda: with_x(np.zeros((3, 2), bool)), "dtype"),
    ("complex", lambda: with_x(np.zeros((3, 2), complex)), "dtype"),
    ("text in x", lambda: with_x(np.array([["a"], ["b"]])), "dtype"),
    ("bytes in x", lambda: with_x(np.array([[b"a"], [b"b"]])), "dtype"),
    ("dates", lambda: members(npy(np.zeros((30, 2), "M8[s]"))), "dtype"),
    ("long doubles", lambda: with_x(np.zeros((3, 2), np.longdouble)), "dtype"),
    ("flat", lambda: with_x(np.zeros(3, np.float32)), "shape"),
    ("a scalar", lambda: members(npy(np.float32(1))), "shape"),
    ("nine axes", lambda: with_x(np.zeros((3, *[1] * 8), np.float32)), "shape"),
    ("no rows", lambda: with_x(np.zeros((0, 3), np.float32)), "empty"),
    ("no features", lambda: with_x(np.zeros((3, 0), np.float32)), "empty"),
    ("NaN", lambda: with_x([[0.5, np.nan]]), "not-finite"),
    ("infinity", lambda: with_x(np.float32([[1, 2], [3, np.inf]])), "not-finite"),
    ("minus infinity in half", lambda: with_x(np.float16([[1, -np.inf]])), "not-finite"),
    ("overflow", lambda: with_x([[0.5, 1e300]]), "overflow"),
    ("wide integers", lambda: with_x(WIDE), "inexact"),
    ("the widest integer", lambda: with_x(np.uint64([[2**64 - 1]])), "inexact"),
    ("the widest signed integer", lambda: with_x(np.int64([[2**63 - 1]])), "inexact"),
    ("label -1", lambda: with_y([0, 1, -1]), "label-out-of-range"),
    ("label -1 in a byte", lambda: with_y(np.int8([0, 1, -1])), "label-out-of-range"),
    ("label 2**63", lambda: with_y(np.uint64([0, 2**63])), "label-out-of-range"),
    ("label 2**31", lambda: with_y([0, 2**31]), "label-out-of-range"),
    ("fractional labels", lambda: with_y([0.5, 1.0]), "label-not-integer"),
    ("whole labels as floats", lambda: with_y([0.0, 1.0]), "label-not-integer"),
    ("truth as labels", lambda: with_y([True, False]), "dtype"),
    ("names as labels", lambda: with_y(["cat", "dog"]), "dtype"),
    ("objects as labels", lambda: members(npy(X), npy(np.array([Bomb()] * 30, object))), "object-array"),
    ("one-hot labels", lambda: with_y(np.eye(3, dtype=np.int64)), "shape"),
    ("columns of labels", lambda: with_y(np.zeros((3, 1), np.int64)), "shape"),
    ("too many labels", lambda: with_y(np.arange(100_001)), "too-many-labels"),
    ("fewer labels", lambda: encode(X, Y[:-1]), "length-mismatch"),
    ("more labels", lambda: encode(X[:-1], Y), "length-mismatch"),
]


@pytest.mark.parametrize(("make", "reason"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_uploads_are_refused(
    make: bytes | Callable[[], bytes], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = make if isinstance(make, bytes) else make()
    began = time.monotonic()
    with pytest.raises(InvalidMegabatch) as caught:
        decoded(data, tmp_path)
    assert caught.value.reason == reason, str(caught.value)
    assert time.monotonic() - began < 10
    message = str(caught.value)
    assert len(message) < 400
    assert re.search(r"send|write|use|number the classes|scale|fill", message), f"no remedy: {message}"
    assert not (tmp_path / "unpickled").exists()


def test_every_reason_is_documented_and_tried() -> None:
    modules = (archive_module, arrays, classes, npz)
    said = {word for module in modules for word in re.findall(r'refuse\(\s*"([a-z-]+)"', inspect.getsource(module))}
    tried = {reason for _, _, reason in HOSTILE}
    names_only = {"unknown-class", "label-name", "mixed-labels"}
    assert said - names_only == tried
    documented = " ".join(module.__doc__ or "" for module in modules)
    assert all(re.search(rf"\b{reason}\b", documented) for reason in said)


def test_the_error_names_the_strange_members(tmp_path: Path) -> None:
    with pytest.raises(InvalidMegabatch, match="'batch', 'weights'"):
        decoded(savez(x=X, y=Y, batch=Y, weights=Y), tmp_path)


def test_the_error_names_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "BLOCK", 64)
    x = np.zeros((100, 3, 2), np.float32)
    x[77, 1, 1] = np.nan
    with pytest.raises(InvalidMegabatch, match="example 77"):
        decoded(with_x(x), tmp_path)
    with pytest.raises(InvalidMegabatch, match="label -4 of example 9 "):
        decoded(with_y([0] * 9 + [-4]), tmp_path)


def test_zip64_is_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(np.load(decoded(zip64(2), tmp_path).x), X)


def test_zip64_sizes_are_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, array in (("x", X), ("y", Y)):
            with packed.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(npy(array))
    np.testing.assert_array_equal(np.load(decoded(file.getvalue(), tmp_path).x), X)


def test_an_archive_comment_is_no_harm(tmp_path: Path) -> None:
    data = archive(Entry("x.npy", npy(X)), Entry("y.npy", npy(Y)), comment=b"made by hand PK\x05\x06")
    with pytest.raises(InvalidMegabatch, match="send it again"):
        decoded(data, tmp_path)
    data = archive(Entry("x.npy", npy(X)), Entry("y.npy", npy(Y)), comment=b"made by hand")
    np.testing.assert_array_equal(np.load(decoded(data, tmp_path).x), X)
