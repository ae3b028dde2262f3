from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from app.learning import reading as module
from app.learning.reading import Stored


def one_table(*lengths: int, shape: tuple[int, ...] = (3,)) -> list[np.ndarray]:
    """Arrays that lie at whole rows from one another, with rows of nobody between them."""
    whole = np.random.default_rng(1).integers(0, 255, (sum(lengths) + 5 * len(lengths), *shape), dtype=np.uint8)
    starts = np.cumsum([0, *(length + 5 for length in lengths)])
    return [whole[start : start + length] for start, length in zip(starts, lengths, strict=False)]


def apart(*lengths: int, shape: tuple[int, ...] = (3,)) -> list[np.ndarray]:
    """The same arrays, one of them a byte off."""
    arrays = [array.copy() for array in one_table(*lengths, shape=shape)]
    odd = np.empty(arrays[0].nbytes + 64, dtype=np.uint8)
    rest = (arrays[-1].__array_interface__["data"][0] + 1 - odd.__array_interface__["data"][0]) % arrays[0][0].nbytes
    arrays[0] = odd[rest : rest + arrays[0].nbytes].reshape(arrays[0].shape)
    arrays[0][:] = one_table(*lengths, shape=shape)[0]
    return arrays


def stored(arrays: list[np.ndarray], every: int = 1) -> tuple[Stored, np.ndarray]:
    """Every n-th row of each, and what they are."""
    rows = [np.arange(0, len(array), every) for array in arrays]
    return Stored(arrays, rows), np.concatenate([array[part] for array, part in zip(arrays, rows, strict=True)])


@pytest.fixture(params=[one_table, apart], ids=["one table", "apart"])
def arrays(request: pytest.FixtureRequest) -> list[np.ndarray]:
    made: list[np.ndarray] = request.param(40, 7, 60)
    return made


def test_both_kinds_are_what_they_say(arrays: list[np.ndarray], request: pytest.FixtureRequest) -> None:
    tables = len(Stored(arrays, [np.arange(len(array)) for array in arrays])._tables)
    assert tables == (1 if "one" in request.node.name else 3)


@pytest.mark.parametrize("every", [1, 3])
def test_rows_are_gathered_in_the_order_asked_for(arrays: list[np.ndarray], every: int) -> None:
    found, expected = stored(arrays, every)
    at = np.random.default_rng(2).integers(0, len(expected), 50)
    np.testing.assert_array_equal(found.gather(at), expected[at])
    np.testing.assert_array_equal(found.gather(np.arange(len(expected))), expected)
    assert found.gather(at[:0]).shape == (0, 3)


def test_a_position_says_where_its_row_lies(arrays: list[np.ndarray]) -> None:
    found, expected = stored(arrays, 3)
    assert found.bounds.tolist() == [[0, 14], [14, 17], [17, 37]] and len(found) == 37
    for position, (source, row) in enumerate(zip(found.source, found.row, strict=True)):
        np.testing.assert_array_equal(arrays[source][row], expected[position])
    assert [found.rows_of(index).tolist() for index in (1, 2)] == [[0, 3, 6], list(range(0, 60, 3))]
    assert (found.width, found.row_bytes) == (3, 3)


@pytest.mark.parametrize("span", [1, 30, 10**9])
def test_reading_ahead_changes_nothing(arrays: list[np.ndarray], span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPAN_BYTES", span)
    found, expected = stored(arrays)
    order = np.random.default_rng(3).permutation(len(expected))
    minibatches = np.split(order, range(8, len(order), 8))
    for rows, at in zip(found.read(minibatches), minibatches, strict=True):
        np.testing.assert_array_equal(rows, expected[at])
    assert list(found.read([])) == []


class Kernel:
    """What it says of pages that had to be read, and that were waited for."""

    def __init__(self, cold: bool) -> None:
        self.ru_inblock, self.ru_majflt, self._cold = 0, 0, cold

    def __call__(self, who: int) -> Kernel:
        found = Kernel(self._cold)
        found.ru_inblock, found.ru_majflt = self.ru_inblock, self.ru_majflt
        self.ru_inblock += self._cold
        return found


def test_a_span_is_fetched_while_the_one_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPAN_BYTES", 30)  # ten rows
    monkeypatch.setattr(module, "getrusage", Kernel(cold=True))
    arrays = one_table(40)
    found, _ = stored(arrays)
    start, fetched = arrays[0].__array_interface__["data"][0], list[tuple[int, int, str]]()
    monkeypatch.setattr(
        module, "_will_need",
        lambda at, n: fetched.append(((at - start) // 3, n // 3, threading.current_thread().name)),
    )  # fmt: skip
    reading = found.read(np.split(np.arange(40), 8))
    next(reading)
    assert fetched[0][:2] == (0, 10), "before the first of its rows is read"
    assert len(list(reading)) == 7 and [run[:2] for run in fetched] == [(0, 10), (10, 10), (20, 10), (30, 10)]
    assert all(name.startswith("read-ahead") for *_, name in fetched)


def test_what_is_in_memory_is_not_asked_for_until_a_page_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, fetched = Kernel(cold=False), list[int]()
    monkeypatch.setattr(module, "getrusage", kernel)
    monkeypatch.setattr(module, "_will_need", lambda at, n: fetched.append(n))
    found, _ = stored(one_table(40))
    for _ in range(3):
        found._fetch([np.arange(10)])
    assert fetched == [30]
    kernel.ru_majflt += 1
    for _ in range(3):
        found._fetch([np.arange(20)])
    assert fetched == [30, 60]


def test_positions_are_taken_a_span_ahead_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPAN_BYTES", 30)
    taken = list[int]()

    def positions() -> Iterator[np.ndarray]:
        for start in range(0, 40, 5):
            taken.append(start)
            yield np.arange(start, start + 5)

    reading = stored(one_table(40))[0].read(positions())
    next(reading)
    assert len(taken) <= 5


def test_rows_that_lie_near_are_one_run_and_rows_alone_are_none() -> None:
    runs = module._runs
    assert runs(np.array([2, 3, 4, 9, 10, 30, 31, 32, 33]), 5).tolist() == [[2, 11], [30, 34]]
    assert runs(np.arange(0, 1000, 100), 5).tolist() == []
    assert runs(np.array([7]), 5).tolist() == [[7, 8]]


def test_what_is_asked_for_may_be_any_memory() -> None:
    """Advice is advice: memory that is not mapped, or not from a file, is no error."""
    array = np.ones(10_000)
    module._will_need(array.__array_interface__["data"][0] + 3, array.nbytes)
    module._will_need(0, 10)


def test_an_array_without_rows_among_others() -> None:
    arrays = [np.empty((0, 2), np.float32), np.ones((3, 2), np.float32), np.empty((0, 2), np.float32)]
    found, expected = stored(arrays)
    np.testing.assert_array_equal(found.gather(np.array([2, 0])), expected[[2, 0]])
    assert found.source.tolist() == [1, 1, 1]


def test_columns_first_are_read_too() -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    np.testing.assert_array_equal(Stored([array], [np.arange(4)]).gather(np.array([3, 1])), array[[3, 1]])


def test_a_failing_source_of_positions_is_told() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.arange(3)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(stored(one_table(9))[0].read(broken()))
