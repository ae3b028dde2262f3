"""Density lies in (0, 1], never rises, and ends where the recipe says it does."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.learning.recipe import App, Dense, OneShot, final_density
from app.learning.schedules import density_at, kept_at

SCHEDULES = st.one_of(
    st.builds(App, tau=st.floats(1, 60), stages=st.integers(1, 200)),
    st.builds(OneShot, target=st.floats(1e-6, 1)),
    st.just(Dense()),
)


@given(SCHEDULES, st.integers(1, 10**9))
@settings(deadline=None)
def test_density_never_rises_and_stays_within_bounds(schedule: App | OneShot | Dense, total: int) -> None:
    densities = [density_at(schedule, stage) for stage in range(250)]
    assert all(0 < density <= 1 for density in densities)
    assert all(later <= earlier for earlier, later in pairwise(densities))
    counts = [kept_at(density, total) for density in densities]
    assert all(1 <= later <= earlier <= total for earlier, later in pairwise(counts))


@given(SCHEDULES)
def test_density_starts_at_one_and_ends_at_the_final_one(schedule: App | OneShot | Dense) -> None:
    assert density_at(schedule, 0) == 1
    assert density_at(schedule, 100_000) == final_density(schedule)


@given(st.floats(1, 60), st.integers(2, 200), st.data())
def test_app_moves_its_exponent_in_equal_steps(tau: float, stages: int, data: st.DataObject) -> None:
    stage = data.draw(st.integers(1, stages - 1))
    exponent = [math.log(density_at(App(tau=tau, stages=stages), s)) / math.log(0.8) for s in (stage, stage + 1)]
    assert exponent[1] - exponent[0] == pytest.approx((tau - 1) / (stages - 1), abs=1e-9)


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**9))
def test_counts_are_within_half_a_weight(density: float, total: int) -> None:
    kept = kept_at(density, total)
    assert abs(kept - density * total) <= 0.5 + 1e-6 or kept == 1
