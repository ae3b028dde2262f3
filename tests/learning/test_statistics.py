from __future__ import annotations

from fractions import Fraction
from math import comb, sqrt

import pytest

from app.learning.statistics import binomial_at_most, fisher, hypergeometric_at_most, mcnemar, upper_bound


def exact_binomial(k: int, n: int, p: Fraction) -> float:
    return float(sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)))


def exact_hypergeometric(k: int, drawn: int, marked: int, of: int) -> float:
    ways = sum(comb(marked, i) * comb(of - marked, drawn - i) for i in range(min(k, drawn, marked) + 1) if drawn >= i)
    return float(Fraction(ways, comb(of, drawn)))


def test_mcnemar_is_a_binomial_tail() -> None:
    assert mcnemar(0, 0) == mcnemar(0, 5) == 1
    assert mcnemar(5, 0) == 1 / 32
    assert mcnemar(8, 2) == sum(comb(10, i) for i in (8, 9, 10)) / 1024
    assert mcnemar(3, 2) == 0.5


@pytest.mark.parametrize(("lost", "won"), [(560, 450), (505, 506), (450, 560), (0, 1001), (1001, 0), (2600, 2500)])
def test_mcnemar_beyond_a_thousand_is_the_same_tail(lost: int, won: int) -> None:
    n = lost + won
    exact = sum(comb(n, i) for i in range(lost, n + 1)) / (1 << n)
    assert mcnemar(lost, won) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("n", [1, 2, 7, 20])
@pytest.mark.parametrize("p", [Fraction(1, 100), Fraction(1, 3), Fraction(1, 2), Fraction(9, 10)])
def test_every_binomial_tail_of_small_samples(n: int, p: Fraction) -> None:
    for k in range(-1, n + 2):
        assert binomial_at_most(k, n, float(p)) == pytest.approx(exact_binomial(k, n, p), rel=1e-11)


@pytest.mark.parametrize("k", [0, 1, 870, 960, 985, 999, 1000])
def test_binomial_tails_far_out(k: int) -> None:
    assert binomial_at_most(k, 1000, 0.96875) == pytest.approx(exact_binomial(k, 1000, Fraction(31, 32)), rel=1e-9)


def test_binomials_of_certain_and_impossible_answers() -> None:
    assert (binomial_at_most(3, 4, 1.0), binomial_at_most(4, 4, 1.0), binomial_at_most(0, 4, 0.0)) == (0, 1, 1)


@pytest.mark.parametrize(("drawn", "marked", "of"), [(5, 5, 10), (3, 8, 10), (8, 3, 10), (10, 4, 10), (6, 0, 9)])
def test_every_hypergeometric_tail_of_small_samples(drawn: int, marked: int, of: int) -> None:
    for k in range(-1, drawn + 2):
        expected = exact_hypergeometric(k, drawn, marked, of)
        assert hypergeometric_at_most(k, drawn, marked, of) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("k", [40, 250, 480, 500, 520, 700])
def test_hypergeometric_tails_far_out(k: int) -> None:
    expected = exact_hypergeometric(k, 1000, 1500, 3000)
    assert hypergeometric_at_most(k, 1000, 1500, 3000) == pytest.approx(expected, rel=1e-8)


def test_fisher_on_the_lady_who_tastes_tea() -> None:
    """Fisher 1935: four cups of each kind; all right has probability 1/70, at most one wrong pair 17/70."""
    assert fisher(0, 4, 4, 4) == pytest.approx(1 / 70)
    assert fisher(1, 4, 3, 4) == pytest.approx(17 / 70)
    assert fisher(4, 4, 4, 4) == fisher(4, 4, 0, 4) == 1


def test_upper_bounds_in_closed_form() -> None:
    assert upper_bound(5, 5, 0.95) == 1
    assert upper_bound(0, 1, 0.95) == pytest.approx(0.95)
    assert upper_bound(0, 10, 0.95) == pytest.approx(1 - 0.05**0.1), "no right answer: (1 - p)^n = 1 - confidence"
    assert upper_bound(1, 2, 0.95) == pytest.approx(sqrt(0.95)), "one of two: 1 - p^2 = 1 - confidence"
    assert upper_bound(9, 10, 0.95) == pytest.approx(0.95**0.1)


@pytest.mark.parametrize(("right", "examples"), [(3, 10), (180, 200), (1, 5000), (99_000, 100_000)])
def test_an_upper_bound_is_where_the_tail_is_what_is_left(right: int, examples: int) -> None:
    bound = upper_bound(right, examples, 0.9)
    assert right / examples < bound < 1
    assert binomial_at_most(right, examples, bound) == pytest.approx(0.1, rel=1e-6)
