"""Megabatches as bytes: the same bytes, digest and ids for the same arrays."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from espalier.formats.megabatch import array_preamble, arrays_digest, encode, example_ids, is_validation

X = np.random.default_rng(0).normal(size=(40, 3, 4)).astype(np.float32)
Y = np.arange(40) % 5


def test_encode_is_an_npz_that_numpy_reads() -> None:
    with np.load(io.BytesIO(encode(X, Y)), allow_pickle=False) as npz:
        assert set(npz.files) == {"x", "y"}
        np.testing.assert_array_equal(npz["x"], X)
        np.testing.assert_array_equal(npz["y"], Y)
        assert npz["x"].dtype == np.float32


def test_encode_gives_the_same_bytes_for_equal_arrays() -> None:
    data = encode(X, Y)
    assert data == encode(np.asfortranarray(X), Y.tolist())
    assert data == encode(X.astype(">f4"), Y.astype(">i8"))
    assert data == encode(np.repeat(X, 2, axis=0)[::2], Y)
    assert hashlib.sha256(data).hexdigest() == hashlib.sha256(encode(X.copy(), Y.copy())).hexdigest()


def test_encode_tells_neither_time_nor_system() -> None:
    with zipfile.ZipFile(io.BytesIO(encode(X, Y))) as archive:
        assert {(item.date_time, item.create_system) for item in archive.infolist()} == {((1980, 1, 1, 0, 0, 0), 3)}


@pytest.mark.parametrize("x", [np.zeros((0, 3)), np.zeros((4, 0), np.uint8), np.float32(1), np.zeros(3, np.bool_)])
def test_encode_packs_what_the_service_will_refuse(x: np.ndarray) -> None:
    with np.load(io.BytesIO(encode(x, Y)), allow_pickle=False) as npz:
        assert npz["x"].shape == x.shape


def test_encode_refuses_objects() -> None:
    with pytest.raises(ValueError, match="pad rows"):
        encode(np.array([[1], [2, 3]], dtype=object), Y)


def test_digest_is_what_its_docstring_says() -> None:
    expected = hashlib.sha256(
        b'{"dtype":"float32","shape":[40,3,4]}\n' + X.tobytes() + b'{"dtype":"int64","shape":[40]}\n' + Y.tobytes()
    )
    assert arrays_digest(X, Y) == "sha256:" + expected.hexdigest()
    assert array_preamble(X.dtype, X.shape) == b'{"dtype":"float32","shape":[40,3,4]}\n'


def test_digest_depends_on_content_alone() -> None:
    digest = arrays_digest(X, Y)
    assert digest == arrays_digest(np.asfortranarray(X).astype(">f4"), Y.astype(">i8"))
    different = [
        arrays_digest(X.reshape(40, 12), Y),
        arrays_digest(X.astype(np.float64), Y),
        arrays_digest(X, Y.astype(np.int32)),
        arrays_digest(np.concatenate([X[1:], X[:1]]), Y),
        arrays_digest(X, (Y + 1) % 5),
    ]
    assert len({digest, *different}) == 6


def test_large_arrays_are_read_in_blocks_with_the_same_result(tmp_path: Path) -> None:
    large = np.random.default_rng(1).integers(0, 256, (7000, 5000), dtype=np.uint8)
    labels = np.zeros(7000, np.int64)
    np.save(tmp_path / "x.npy", large)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    direct = hashlib.sha256(array_preamble(large.dtype, large.shape) + large.tobytes())
    direct.update(array_preamble(labels.dtype, labels.shape) + labels.tobytes())
    assert arrays_digest(mapped, labels) == "sha256:" + direct.hexdigest()
    ids = example_ids(mapped)
    for row in (0, 3354, 3355, 3356, 6999):  # about the border of 16 MiB
        assert int(ids[row]) == int.from_bytes(hashlib.sha256(large[row].tobytes()).digest()[:8], "big")


def test_example_ids_are_of_rows_so_duplicates_share_them() -> None:
    x = np.concatenate([X, X[:5]])
    ids = example_ids(np.asfortranarray(x).astype(">f4"))
    assert ids.dtype == np.uint64
    assert int(ids[7]) == int.from_bytes(hashlib.sha256(X[7].tobytes()).digest()[:8], "big")
    np.testing.assert_array_equal(ids[:5], ids[40:])
    assert len(np.unique(ids)) == 40
    assert example_ids(X[:0]).shape == (0,)
    assert len(np.unique(example_ids(np.zeros((3, 0), np.uint8)))) == 1


def test_validation_split_is_by_id() -> None:
    ids = np.array([0, 2**62 - 1, 2**62, 2**63, 2**64 - 1], dtype=np.uint64)
    assert is_validation(ids, 0.25).tolist() == [True, True, False, False, False]
    assert is_validation(ids, 0).tolist() == [False] * 5
    assert is_validation(ids, 1).tolist() == [True] * 5
    assert is_validation(ids, 2.0**-64).tolist() == [True, False, False, False, False]
    many = example_ids(np.arange(20_000, dtype=np.float32).reshape(-1, 1))
    assert abs(is_validation(many, 0.1).mean() - 0.1) < 0.01
    assert not (is_validation(many, 0.1) & ~is_validation(many, 0.2)).any(), "a larger share only adds"


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        is_validation(np.zeros(1, np.uint64), share)


def test_import_stays_light() -> None:
    heavy = ["httpx", "safetensors", "torch"]
    code = f"import sys, espalier.formats.megabatch; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
