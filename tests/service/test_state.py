"""What a version hands on, and which past megabatches are still asked."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from app.service.state import State, encode_state, spread, state_of
from app.store.blobs import Blobs
from app.store.numbers import Numbers


@dataclass
class Handing:
    """The one thing of a version that is asked for."""

    state: str


def test_a_state_comes_back_as_it_was_kept(blobs: Blobs) -> None:
    state = State(Numbers({1, 2, 9}), {2: np.array([True, False, True])}, {"arrived": 3}, frozenset({9}))
    found = state_of(blobs, Handing(blobs.put(encode_state(state))))  # type: ignore[arg-type]
    assert (found.seen, dict(found.history), found.pinned) == ({1, 2, 9}, {"arrived": 3}, {9})
    assert np.array_equal(found.replay[2], state.replay[2])
    assert state_of(blobs, None) == State()


def test_what_was_seen_takes_as_much_room_after_a_year_as_after_a_day(blobs: Blobs) -> None:
    sizes = [len(encode_state(State(Numbers(range(1, seen + 1))))) for seen in (100, 10_000)]
    assert sizes[1] - sizes[0] == 2


def test_the_state_of_an_older_version_is_read(blobs: Blobs) -> None:
    old = {"format": "espalier-state-2", "seen": [1, 2, 4], "replay": {}, "history": {}, "pinned": []}
    found = state_of(blobs, Handing(blobs.put(json.dumps(old).encode())))  # type: ignore[arg-type]
    assert found == State(Numbers([1, 2, 4]))
    assert found.seen.runs == ((1, 2), (4, 4))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 63, 64, 65, 66, 127, 128, 129, 1000, 4097])
def test_so_many_are_asked_evenly_spread_and_the_newest_among_them(count: int) -> None:
    numbers = [3 * n + 1 for n in range(count)]
    chosen = spread(reversed(numbers), 64)
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(numbers)
    if count <= 64:
        assert chosen == numbers
        return
    assert 32 <= len(chosen) <= 64
    assert (chosen[0], chosen[-1]) == (numbers[0], numbers[-1])
    gaps = np.diff(chosen)[:-1]  # before the newest one
    assert len(set(gaps.tolist())) == 1
    assert chosen[-1] - chosen[-2] <= gaps[0]


def test_a_list_that_grows_goes_on_asking_the_same_ones() -> None:
    before = set(spread(range(100), 64))
    for count in range(101, 127):
        assert before - {99} <= set(spread(range(count), 64))


def test_the_least_that_can_be_asked() -> None:
    assert spread(range(10), 2) == [0, 9]
    assert spread([5, 5, 5], 2) == [5]
