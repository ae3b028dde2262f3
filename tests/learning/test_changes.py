"""Changes: the published run lengths of the CUSUM, and alarms that end a series."""

from __future__ import annotations

import numpy as np
import pytest

from app.learning.changes import Change, rise, rises


def run(series, noise=0.0, slack=0.5, limit=5.0):
    return list(rises(list(series), [noise] * len(series), slack=slack, limit=limit))


def first_alarm(series, **options):
    return next((at for at, change in enumerate(run(series, **options), 1) if change.alarm), None)


def test_an_empty_series_has_not_risen():
    assert rise([], [], slack=0.5, limit=5) is None


def test_the_first_two_values_say_nothing():
    assert [change.statistic for change in run([0.0, 100.0])] == [0.0, 0.0]


def test_a_series_that_stands_still_never_raises_an_alarm():
    assert first_alarm([0.1] * 200) is None
    assert first_alarm(np.linspace(1, 0, 200)) is None  # falling is no rise


def test_the_first_score_is_that_of_students_t():
    """After 0 and 2: mean 1, spread sqrt(2); 4.5 lies 3.5 / sqrt(2 * 1.5) = 2.0207 above, t with 1 degree of freedom:
    P = 1/2 - arctan(2.0207) / pi = 0.14628, a normal score of 1.0526."""
    assert run([0.0, 2.0, 4.5])[-1].statistic == pytest.approx(1.0526 - 0.5, abs=2e-4)


def test_chance_alone_moves_no_alarm():
    """Values that differ by far less than the noise of each are no rise, however steady those before them."""
    series = [0.10, 0.1001] * 10 + [0.13] * 3
    assert first_alarm(series, noise=0.03) is None
    assert first_alarm(series) == 21


def test_false_alarms_are_as_rare_as_published():
    """One-sided, slack 0.5, limit 3: a mean run of 118.6 values by Siegmund's approximation, (e^b - b - 1) / 0.5 with
    b = 3 + 1.166, so 67 alarms in 8,000."""
    alarms = 0
    for seed in range(8):
        alarms += sum(change.alarm for change in run(np.random.default_rng(seed).normal(size=1000), limit=3.0))
    assert 43 <= alarms <= 92


@pytest.mark.slow
@pytest.mark.parametrize(("size", "published"), [(1.0, 10.4), (2.0, 4.0), (3.0, 2.6)])
def test_a_rise_is_found_about_as_soon_as_published(size, published):
    """Montgomery, Introduction to Statistical Quality Control, table 9.3: slack 0.5, limit 5. The mean and spread are
    those of 150 values here, known there."""
    found = []
    for seed in range(60):
        series = np.random.default_rng(seed).normal(size=210)
        series[150:] += size
        changes = run(series)
        found += [at for at, change in enumerate(changes[150:], 1) if change.alarm][:1]
    assert len(found) >= 58
    assert np.mean(found) == pytest.approx(published, rel=0.35)


def test_after_an_alarm_a_new_series_begins_with_the_value_that_raised_it():
    random = np.random.default_rng(1)
    series = [*random.normal(0, 1, 60), *random.normal(20, 1, 60)]
    changes = run(series)
    alarms = [at for at, change in enumerate(changes) if change.alarm]
    assert alarms == [60]
    assert changes[60].length == 61
    assert changes[61] == Change(0.0, 5.0, False, 2)


def test_the_last_change_is_that_of_the_series():
    series = list(np.random.default_rng(3).normal(size=30))
    assert rise(series, [0.0] * 30, slack=0.5, limit=5.0) == run(series)[-1]
