from __future__ import annotations

from app.learning.recipe import FullReplay, NoReplay
from app.learning.replay import assign


def test_full_replay_keeps_all_in_order() -> None:
    assert assign(FullReplay(), {3, 1}, {7, 5}) == (1, 3, 5, 7)


def test_no_replay_keeps_the_new_ones() -> None:
    assert assign(NoReplay(), {3, 1}, {7, 5}) == (5, 7)
