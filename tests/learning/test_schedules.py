from __future__ import annotations

import numpy as np
import pytest

from app.learning.history import Ancestor, History
from app.learning.recipe import App, AtStart, Auto, ByExamples, Constant, Cubic, Factor, Linear, OneShot, Ramp
from app.learning.schedules import Standing, Step, advance, density_at, kept_at, pruning_steps


def test_app_is_as_published() -> None:
    published = 0.8 ** np.linspace(1, 4.5, 8)
    np.testing.assert_allclose([density_at(App(), stage) for stage in range(1, 9)], published, rtol=1e-15)


def test_app_is_constant_after_the_last_stage() -> None:
    assert density_at(App(), 8) == density_at(App(), 9) == density_at(App(), 10_000) == 0.8**4.5


def test_app_with_one_stage_goes_straight_to_the_end() -> None:
    assert density_at(App(tau=3, stages=1), 1) == 0.8**3


def test_one_shot_and_dense() -> None:
    assert [density_at(OneShot(target=0.2), stage) for stage in (0, 1, 2)] == [1, 0.2, 0.2]
    assert [density_at(Constant(), stage) for stage in (0, 1, 2)] == [1, 1, 1]


def test_the_open_ended_schedules_are_as_documented() -> None:
    assert [density_at(Factor(target=0.1, stages=4), s) for s in (1, 2, 4, 9)] == [0.1**0.25, 0.1**0.5, 0.1, 0.1]
    assert [density_at(Linear(target=0.2, stages=4), s) for s in (1, 2, 4, 9)] == pytest.approx([0.8, 0.6, 0.2, 0.2])
    cubic = [density_at(Cubic(target=0.2, stages=4), s) for s in (1, 2, 4, 9)]
    assert cubic == pytest.approx([0.2 + 0.8 * 0.75**3, 0.2 + 0.8 * 0.5**3, 0.2, 0.2])
    by_examples = [density_at(ByExamples(target=0.25, until=1000), 1, n) for n in (0, 500, 1000, 5000)]
    assert by_examples == [1, 0.5, 0.25, 0.25]
    assert [density_at(Auto(target=0.5, factor=0.8), s) for s in (1, 2, 3, 4, 99)] == [0.8, 0.8**2, 0.8**3, 0.5, 0.5]


def test_a_pruning_cycle_advances_the_stage() -> None:
    assert advance(Factor(target=0.25, stages=2), Standing(0, 100, 100)) == Step(1, 0.5)
    assert advance(Constant(), Standing(3, 40, 100)) == Step(3, 0.4)


def test_a_held_cycle_stays_where_it_is_and_says_why() -> None:
    assert advance(Factor(), Standing(3, 40, 100), hold="accuracy fell") == Step(3, 0.4, "accuracy fell")


def test_half_a_step_goes_half_the_way_and_does_not_advance() -> None:
    assert advance(OneShot(target=0.2), Standing(0, 100, 100), scale=0.5) == Step(0, pytest.approx(0.6))


def test_nothing_grows_back_where_the_schedule_asks_for_more() -> None:
    assert advance(OneShot(target=0.5), Standing(2, 30, 100)) == Step(3, 0.3)


def test_auto_goes_a_rung_down_only_within_the_noise_of_the_best() -> None:
    def after(*accuracies: float) -> Step:
        ancestors = tuple(Ancestor(i, 0.9, a, 400) for i, a in enumerate(accuracies))
        return advance(Auto(factor=0.8), Standing(1, 80, 100, history=History(ancestors=ancestors)))

    assert after() == after(0.9) == after(0.9, 0.89) == Step(2, 0.8**2)
    assert after(0.9, 0.85).held is not None and after(0.9, 0.85).stage == 1
    assert "0.0500 below the best" in after(0.9, 0.85).held
    assert after(0.9, 0.85, 0.9).held is None


def test_a_ramp_spreads_the_pruning_steps_and_leaves_a_step_to_train() -> None:
    steps = pruning_steps(Ramp(share=0.5, steps=4, shape="linear"), 80, 1000, 600, 1)
    assert steps == [(10, 900), (20, 800), (30, 700), (40, 600)]
    cubic = pruning_steps(Ramp(share=0.5, steps=4), 80, 1000, 600, 1)
    assert cubic == [(10, 1000 - 231), (20, 650), (30, 1000 - 394), (40, 600)]
    assert pruning_steps(Ramp(share=1, steps=4), 3, 1000, 600, 1) == [(1, 650), (2, 600)]


def test_at_the_start_iterations_fall_geometrically() -> None:
    assert pruning_steps(AtStart(), 80, 1000, 600, 1) == [(0, 600)]
    assert pruning_steps(AtStart(), 80, 1000, 250, 2) == [(0, 500), (0, 250)]


def test_there_are_no_pruning_steps_without_pruning() -> None:
    assert pruning_steps(Ramp(), 80, 1000, 1000, 1) == pruning_steps(AtStart(), 80, 7, 7, 100) == []


@pytest.mark.parametrize(
    ("density", "total", "kept"), [(0.5, 10, 5), (0.25, 10, 3), (0.24, 10, 2), (1e-9, 10, 1), (1, 10, 10)]
)
def test_counts_are_rounded_to_the_nearest_and_never_none(density: float, total: int, kept: int) -> None:
    assert kept_at(density, total) == kept
