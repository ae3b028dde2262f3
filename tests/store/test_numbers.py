"""Sets of numbers as runs: the same as Python's own sets, in every respect that is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.store.numbers import Numbers

NUMBERS = st.frozensets(st.integers(1, 60))


@given(NUMBERS, NUMBERS)
def test_it_is_a_set(one: frozenset[int], other: frozenset[int]) -> None:
    found = Numbers(one)
    assert found == one and len(found) == len(one) and list(found) == sorted(one)
    assert [number for number in range(-1, 63) if number in found] == sorted(one)
    assert found | other == one | other and other | found == one | other
    assert found & other == one & other
    assert hash(found) == hash(Numbers(sorted(one)))
    assert Numbers.of_runs(found.runs) == found


@given(NUMBERS)
def test_gaps_and_runs_are_everything_once(one: frozenset[int]) -> None:
    found = Numbers(one)
    *between, (rest, end) = found.gaps()
    assert end is None and all(number < rest for number in one)
    missing = [number for first, last in between if last is not None for number in range(first, last + 1)]
    assert sorted([*missing, *one]) == list(range(1, rest))


def test_a_stream_is_one_run() -> None:
    assert Numbers(range(1, 10**9)).runs == ((1, 10**9 - 1),)
    assert (Numbers(range(1, 10**9)) | [10**9]).runs == ((1, 10**9),)
    assert Numbers(range(5, 5)).runs == () and list(Numbers().gaps()) == [(1, None)]
    assert "x" not in Numbers([1])


@pytest.mark.parametrize("runs", [[(2, 1)], [(1, 2), (3, 4)], [(5, 6), (1, 2)]])
def test_what_are_no_runs_is_refused(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="not runs"):
        Numbers.of_runs(runs)
