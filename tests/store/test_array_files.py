from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.learning.reading import Stored
from app.store.array_files import Column, side_by_side

SHAPES = [(3,), (1,), (28, 28), (7, 5, 3), (4099,)]


def saved(folder: Path, arrays: list[np.ndarray]) -> list[Callable[[], Path]]:
    for number, array in enumerate(arrays):
        np.save(folder / f"{number}.npy", array)
    return [lambda number=number: folder / f"{number}.npy" for number in range(len(arrays))]  # type: ignore[misc]


def arrays_of(shape: tuple[int, ...], dtype: str = "uint8", lengths: tuple[int, ...] = (9, 1, 40)) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 200, (length, *shape)).astype(dtype) for length in lengths]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_files_are_mapped_as_one_table(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    arrays = arrays_of(shape, dtype)
    mapped = side_by_side(saved(tmp_path, arrays))
    for found, expected in zip(mapped, arrays, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype and not found.flags.writeable
    stored = Stored(mapped, [np.arange(len(array)) for array in mapped])
    assert len(stored._tables) == 1, "one gather reads all of them"
    at = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(stored.gather(at), np.concatenate(arrays)[at])
    for rows, part in zip(stored.read(np.split(at, 5)), np.split(at, 5), strict=True):
        np.testing.assert_array_equal(rows, np.concatenate(arrays)[part])


def test_no_file_stays_open(tmp_path: Path) -> None:
    finds = saved(tmp_path, arrays_of((3,), lengths=(2,) * 200))
    before = len(os.listdir("/proc/self/fd"))
    mapped = side_by_side(finds)
    columns = [np.asarray(Column(find, 2)) for find in finds]
    assert len(os.listdir("/proc/self/fd")) == before and len(mapped) == len(columns) == 200


def maps(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


def test_a_map_lives_as_long_as_what_looks_at_it(tmp_path: Path) -> None:
    finds, expected = saved(tmp_path, arrays_of((3,))), arrays_of((3,))[2]
    mapped = side_by_side(finds)
    view = mapped[2][3:]
    del mapped
    for find in finds:
        find().unlink()
    gc.collect()
    np.testing.assert_array_equal(view, expected[3:])
    assert maps(tmp_path)
    del view
    gc.collect()
    assert not maps(tmp_path)


def test_a_column_is_mapped_while_it_is_looked_at(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.int64)
    column = Column(saved(tmp_path, [labels])[0], 12)
    assert len(column) == 12 and not maps(tmp_path)
    looked = np.asarray(column)
    np.testing.assert_array_equal(looked, labels)
    assert maps(tmp_path)
    del looked
    gc.collect()
    assert not maps(tmp_path)
    assert np.array(column, dtype=np.int32).dtype == np.int32 and np.array(column).flags.writeable


def test_empty_arrays_are_arrays(tmp_path: Path) -> None:
    (empty,) = side_by_side(saved(tmp_path, [np.empty((0, 3), np.float32)]))
    assert empty.shape == (0, 3) and empty.dtype == np.float32 and side_by_side([]) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: np.save(path, np.asfortranarray(np.zeros((3, 2)))),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: np.save(path, np.array([{}, {}], dtype=object)),
        lambda path: path.write_bytes(b"not numpy at all"),
    ],
    ids=["columns first", "cut short", "objects", "no array"],
)
def test_what_is_no_whole_array_is_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    (find,) = saved(tmp_path, [np.zeros((4, 2))])
    damage(find())
    with pytest.raises(ValueError):
        side_by_side([find])


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        side_by_side([lambda: tmp_path / "none.npy"])
