"""Density lies in (0, 1], never rises, and ends where the recipe says it does."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.learning.recipe import (
    App,
    AtStart,
    Auto,
    ByExamples,
    Constant,
    Cubic,
    Factor,
    Linear,
    OneShot,
    Ramp,
    Schedule,
    final_density,
)
from app.learning.schedules import Standing, advance, density_at, kept_at, pruning_steps

TARGETS = st.floats(1e-6, 1)

SCHEDULES = st.one_of(
    st.builds(App, tau=st.floats(1, 60), stages=st.integers(1, 200)),
    st.builds(OneShot, target=TARGETS),
    *(st.builds(kind, target=TARGETS, stages=st.integers(1, 200)) for kind in (Factor, Linear, Cubic)),
    st.builds(ByExamples, target=TARGETS, until=st.integers(1, 10**6)),
    st.builds(Auto, target=TARGETS, factor=st.floats(0.01, 0.999)),
    st.just(Constant()),
)


@given(SCHEDULES, st.integers(1, 10**9))
@settings(deadline=None)
def test_density_never_rises_and_stays_within_bounds(schedule: Schedule, total: int) -> None:
    densities = [density_at(schedule, stage, 500 * stage) for stage in range(250)]
    assert all(0 < density <= 1 for density in densities)
    assert all(later <= earlier for earlier, later in pairwise(densities))
    counts = [kept_at(density, total) for density in densities]
    assert all(1 <= later <= earlier <= total for earlier, later in pairwise(counts))


@given(SCHEDULES)
def test_density_starts_at_one_and_ends_at_the_final_one(schedule: Schedule) -> None:
    assert density_at(schedule, 0) == 1
    assert density_at(schedule, 100_000, 10**9) == final_density(schedule)


@given(st.floats(1, 60), st.integers(2, 200), st.data())
def test_app_moves_its_exponent_in_equal_steps(tau: float, stages: int, data: st.DataObject) -> None:
    stage = data.draw(st.integers(1, stages - 1))
    exponent = [math.log(density_at(App(tau=tau, stages=stages), s)) / math.log(0.8) for s in (stage, stage + 1)]
    assert exponent[1] - exponent[0] == pytest.approx((tau - 1) / (stages - 1), abs=1e-9)


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**9))
def test_counts_are_within_half_a_weight(density: float, total: int) -> None:
    kept = kept_at(density, total)
    assert abs(kept - density * total) <= 0.5 + 1e-6 or kept == 1


@given(SCHEDULES, st.integers(1, 10**6), st.lists(st.tuples(st.booleans(), st.sampled_from([1.0, 0.5, 0.25, 0.0]))))
@settings(deadline=None)
def test_a_lineage_never_grows_whatever_is_held_or_retried(
    schedule: Schedule, total: int, cycles: list[tuple[bool, float]]
) -> None:
    kept, stage, arrived = total, 0, 0
    for held, scale in cycles:
        arrived += 100
        step = advance(
            schedule, Standing(stage, kept, total, arrived), hold="held" if held else None, scale=scale
        )  # fmt: skip
        planned = min(kept, kept_at(step.density, total))
        assert final_density(schedule) * total - 0.5 <= planned + 1e-6 * total or planned == kept or planned == 1
        assert step.stage in (stage, stage + 1)
        kept, stage = planned, step.stage


@given(
    st.one_of(
        st.just(AtStart()),
        st.builds(Ramp, share=st.floats(0.01, 1), steps=st.integers(1, 60), shape=st.sampled_from(["cubic", "linear"])),
    ),
    st.integers(1, 2000), st.integers(1, 10**6), st.data(),
)  # fmt: skip
def test_pruning_steps_fall_to_the_planned_count_and_leave_training(
    pace: AtStart | Ramp, steps: int, before: int, data: st.DataObject
) -> None:
    planned = data.draw(st.integers(1, before))
    found = pruning_steps(pace, steps, before, planned, data.draw(st.integers(1, 100)))
    counts = [before, *(kept for _, kept in found)]
    assert all(later < earlier for earlier, later in pairwise(counts)) and counts[-1] == planned
    times = [when for when, _ in found]
    assert times == sorted(times) and all(0 <= when < steps for when in times)
    assert isinstance(pace, AtStart) or len(set(times)) == len(times)
