"""Statistics: exact tests on counts, for the small validation sets that there are.

Knows: right answers among examples. Must never know: what a test decides.

Laws:
    * Every probability is a sum of terms, not an approximation; rounding moves it by about 1e-9 of itself at most.
    * A tail costs terms in proportion to the square root of the examples, not to their number.
"""

from __future__ import annotations

import math

_NEGLIGIBLE = 1e-17
"""Share of a sum below which the terms that follow, each smaller than the one before, cannot change it."""


def mcnemar(lost: int, won: int) -> float:
    """One-sided exact McNemar test: the probability of at least ``lost`` losses among ``lost + won`` fair coin flips.

    Args:
        lost: examples that only the champion gets right.
        won: examples that only the candidate gets right.

    Returns:
        P(X >= lost), X ~ Binomial(lost + won, 1/2).
    """
    n = lost + won
    if n <= 1000:  # to the last bit
        return sum(math.comb(n, i) for i in range(lost, n + 1)) / (1 << n)
    return binomial_at_most(won, n, 0.5)


def fisher(right: int, examples: int, right_before: int, examples_before: int) -> float:
    """One-sided exact Fisher test: the probability of so few right answers now, were both rates the same.

    Args:
        right, examples: right answers now, of so many.
        right_before, examples_before: right answers before, of so many.

    Returns:
        P(X <= right), X ~ Hypergeometric: ``examples`` drawn of all, ``right + right_before`` of which are right.
    """
    return hypergeometric_at_most(right, examples, right + right_before, examples + examples_before)


def upper_bound(right: int, examples: int, confidence: float) -> float:
    """Upper end of the one-sided exact interval (Clopper and Pearson 1934) of a rate.

    Args:
        right, examples: right answers, of so many; at least one example.
        confidence: in [0.5, 1).

    Returns:
        The rate at which so few right answers, or fewer, have probability ``1 - confidence``; 1 when all are right.
    """
    if right >= examples:
        return 1.0
    low, high = right / examples, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        if binomial_at_most(right, examples, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def binomial_at_most(k: int, n: int, p: float) -> float:
    """P(X <= k), X ~ Binomial(n, p)."""
    if k < 0 or k >= n:
        return float(k >= n)
    if not 0 < p < 1:
        return float(p <= 0)
    if k > n * p:
        return 1 - binomial_at_most(n - k - 1, n, 1 - p)
    total = term = math.exp(_log_comb(n, k) + k * math.log(p) + (n - k) * math.log1p(-p))
    odds = (1 - p) / p
    for i in range(k, 0, -1):  # below the mean the terms only fall
        term *= i / (n - i + 1) * odds
        total += term
        if term <= total * _NEGLIGIBLE:
            break
    return min(1.0, total)


def hypergeometric_at_most(k: int, drawn: int, marked: int, of: int) -> float:
    """P(X <= k), X the number of marked ones among ``drawn`` of ``of``, ``marked`` of which are marked."""
    least, most = max(0, drawn + marked - of), min(drawn, marked)
    if k < least or k >= most:
        return float(k >= most)
    if k * of > drawn * marked:
        return 1 - hypergeometric_at_most(drawn - k - 1, drawn, of - marked, of)
    ways = _log_comb(marked, k) + _log_comb(of - marked, drawn - k) - _log_comb(of, drawn)
    total = term = math.exp(ways)
    for i in range(k, least, -1):  # below the mean the terms only fall
        term *= i * (of - marked - drawn + i) / ((marked - i + 1) * (drawn - i + 1))
        total += term
        if term <= total * _NEGLIGIBLE:
            break
    return min(1.0, total)


def _log_comb(n: int, k: int) -> float:
    """Logarithm of the number of ways to choose ``k`` of ``n``."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
