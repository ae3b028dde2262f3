from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.learning.moments import Moments

X = np.random.default_rng(0).normal(size=(500, 4)) * np.logspace(-3, 6, 4) + [0, 5, -3, 1e9]


def of(*chunks: np.ndarray) -> Moments:
    return Moments.of(lambda: chunks)


def test_they_are_those_of_numpy() -> None:
    moments = of(X)
    assert moments.count == 500
    np.testing.assert_allclose(moments.mean, X.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.std, X.std(axis=0), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 499), max_size=8, unique=True), st.randoms(use_true_random=False))
def test_however_a_stream_is_cut_and_in_whichever_order_it_comes(cuts: list[int], random: object) -> None:
    parts = np.split(X, sorted(cuts))
    random.shuffle(parts)  # type: ignore[attr-defined]
    found = of(parts[0])
    for part in parts[1:]:
        found = found.merged(of(part[: len(part) // 2], part[len(part) // 2 :]))
    assert found.count == 500
    np.testing.assert_allclose(found.mean, X.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, X.std(axis=0), rtol=1e-10)


def test_a_small_spread_far_from_zero_keeps_its_digits() -> None:
    """Where a sum of squares minus a squared sum would have none left."""
    far = 1e9 + np.random.default_rng(1).normal(size=(10_000, 1))
    found = of(far[:1])
    for part in np.split(far[1:], 7 * np.arange(1, 1400)):
        if len(part):
            found = found.merged(of(part))
    np.testing.assert_allclose(found.std, far.std(axis=0), rtol=1e-6)


def test_a_document_keeps_every_bit() -> None:
    moments = of(X).merged(of(X[:3] / 3))
    again = Moments.from_document(json.loads(json.dumps(moments.document())))
    assert again == moments and again.mean.tobytes() == moments.mean.tobytes()
    assert again != of(X) and moments != 3


def test_one_value_has_no_spread() -> None:
    assert of(np.array([[2.0]])).std.tolist() == [0.0]
    with pytest.raises(ZeroDivisionError):
        of()
