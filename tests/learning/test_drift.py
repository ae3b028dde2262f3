"""Drift: known cases, exact laws, and an alarm only where a difference is neither chance nor small."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from app.learning.drift import LISTED, Drift, _distances, accuracy_shift, input_shift, label_shift

LIMITS = {"at_most": 0.1, "confidence": 0.999}


def samples(seed, n=300, m=900, features=5):
    random = np.random.default_rng(seed)
    return random.normal(size=(m, features)), random.normal(size=(n, features))


def test_the_distance_is_that_of_the_two_distribution_functions():
    reference = np.arange(10.0).reshape(10, 1)
    now = np.arange(5.0, 15.0).reshape(10, 1)
    found = input_shift(reference, now, of="features", **LIMITS)
    assert found.statistic == found.effect == 0.5  # half of each lies beyond the other
    assert found.p_value == pytest.approx(float(stats.kstwo.sf(0.5, 5)), rel=1e-12)
    assert (found.examples, found.reference, found.width) == (10, 10, 1)


def test_the_p_value_is_that_of_the_most_drifted_feature_times_their_number():
    reference, now = samples(0)
    now[:, 3] += 0.3
    found = input_shift(reference, now, of="features", **LIMITS)
    alone = stats.ks_2samp(now[:, 3], reference[:, 3], method="asymp")
    assert found.features[0].index == 3
    assert found.statistic == alone.statistic
    assert found.p_value == pytest.approx(5 * alone.pvalue, rel=1e-9)
    assert [f.effect for f in found.features] == sorted((f.effect for f in found.features), reverse=True)


def test_every_distance_is_scipys_ties_or_not():
    random = np.random.default_rng(5)
    for n, m, width in ((7, 19, 3), (50, 30, 130), (2, 3, 2)):
        reference, now = random.integers(0, 6, (m, width)) + 0.0, random.normal(2, 2, (n, width))
        now[:, ::2] = now[:, ::2].round()
        found = _distances(reference, now)
        expected = [stats.ks_2samp(now[:, i], reference[:, i], method="asymp").statistic for i in range(width)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_no_more_features_are_named_than_there_is_room_for():
    reference, now = samples(0, features=40)
    assert len(input_shift(reference, now, of="features", **LIMITS).features) == LISTED


def test_a_feature_that_never_changes_and_one_full_of_ties_do_not_disturb():
    reference, now = samples(1)
    for each in (reference, now):
        each[:, 0] = 7.0
        each[:, 1] = np.round(each[:, 1])
    found = input_shift(reference, now, of="features", **LIMITS)
    assert not found.alarm
    assert np.isfinite(found.p_value)


def test_a_difference_that_is_significant_and_small_raises_no_alarm():
    random = np.random.default_rng(2)
    reference, now = random.normal(size=(20_000, 1)), random.normal(0.15, 1, size=(20_000, 1))
    found = input_shift(reference, now, of="features", **LIMITS)
    assert found.p_value < 1e-9
    assert found.effect < 0.1
    assert not found.alarm
    assert input_shift(reference, now, of="features", at_most=0.02, confidence=0.999).alarm


def test_a_difference_that_is_large_and_may_be_chance_raises_no_alarm():
    found = input_shift(*samples(3, n=20, m=20), of="features", **LIMITS)
    assert found.effect > 0.1
    assert not found.alarm


@pytest.mark.parametrize("n", [25, 100, 400])
def test_of_streams_that_do_not_drift_no_more_raise_an_alarm_than_the_confidence_allows(n):
    """The distances of 300 pairs of samples: at a confidence of 0.95 at most 1 in 20 is a false alarm."""
    found = [input_shift(*samples(seed, n, 2 * n), of="features", at_most=0, confidence=0.95) for seed in range(300)]
    assert sum(each.alarm for each in found) <= 24  # 15 expected; 24 and fewer have probability 0.99


def test_the_labels_test_is_pearsons():
    reference, now = np.array([30, 20, 50]), np.array([20, 20, 10])
    found = label_shift(reference, now, **LIMITS)
    expected = np.outer([100, 50], [50, 40, 60]) / 150
    table = np.array([reference, now])
    assert found.statistic == pytest.approx(((table - expected) ** 2 / expected).sum(), rel=1e-12)
    assert found.p_value == pytest.approx(np.exp(-found.statistic / 2), rel=1e-12)  # chi-square with 2 degrees
    assert found.effect == pytest.approx(0.3)  # 0.5 - 0.2 of the last class
    assert (found.examples, found.reference) == (50, 100)


def test_labels_of_one_class_alone_have_not_shifted():
    found = label_shift(np.array([10, 0]), np.array([5, 0]), **LIMITS)
    assert (found.statistic, found.p_value, found.effect, found.alarm) == (0.0, 1.0, 0.0, False)


def test_a_class_that_never_was_is_a_shift():
    found = label_shift(np.array([100, 100, 0]), np.array([50, 0, 50]), **LIMITS)
    assert found.effect == 0.5
    assert found.alarm


def test_a_drop_is_tested_by_the_exact_hypergeometric_law():
    found = accuracy_shift(12, 20, 18, 20, at_most=0.05, confidence=0.95)
    assert found.p_value == pytest.approx(float(stats.hypergeom.cdf(12, 40, 30, 20)), rel=1e-9)
    assert (found.statistic, found.effect) == (0.6, pytest.approx(0.3))
    assert found.alarm
    assert not accuracy_shift(12, 20, 18, 20, at_most=0.05, confidence=0.999).alarm


def test_a_rise_is_no_drop():
    found = accuracy_shift(20, 20, 10, 20, at_most=0.0, confidence=0.5)
    assert (found.effect, found.alarm) == (0.0, False)


def test_a_drift_goes_through_json_and_back():
    reference, now = samples(4)
    whole = Drift(
        input_shift(reference, now, of="embedding", **LIMITS),
        label_shift(np.array([1, 2]), np.array([2, 1]), **LIMITS),
        accuracy_shift(1, 2, 3, 4, **LIMITS),
    )
    for drift in (whole, Drift()):
        assert Drift.from_document(json.loads(json.dumps(drift.document()))) == drift
        assert json.loads(json.dumps(drift.document())) == drift.document()
