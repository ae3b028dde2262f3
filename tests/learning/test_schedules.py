from __future__ import annotations

import numpy as np
import pytest

from app.learning.recipe import App, Dense, OneShot
from app.learning.schedules import advances, density_at, kept_at


def test_app_is_as_published() -> None:
    published = 0.8 ** np.linspace(1, 4.5, 8)
    np.testing.assert_allclose([density_at(App(), stage) for stage in range(1, 9)], published, rtol=1e-15)


def test_app_is_constant_after_the_last_stage() -> None:
    assert density_at(App(), 8) == density_at(App(), 9) == density_at(App(), 10_000) == 0.8**4.5


def test_app_with_one_stage_goes_straight_to_the_end() -> None:
    assert density_at(App(tau=3, stages=1), 1) == 0.8**3


def test_one_shot_and_dense() -> None:
    assert [density_at(OneShot(target=0.2), stage) for stage in (0, 1, 2)] == [1, 0.2, 0.2]
    assert [density_at(Dense(), stage) for stage in (0, 1, 2)] == [1, 1, 1]


def test_only_pruning_schedules_advance_the_stage() -> None:
    assert advances(App()) and advances(OneShot()) and not advances(Dense())


@pytest.mark.parametrize(
    ("density", "total", "kept"), [(0.5, 10, 5), (0.25, 10, 3), (0.24, 10, 2), (1e-9, 10, 1), (1, 10, 10)]
)
def test_counts_are_rounded_to_the_nearest_and_never_none(density: float, total: int, kept: int) -> None:
    assert kept_at(density, total) == kept
