"""Changes: when a series that wanders has risen for good.

Knows: a series of numbers and how far chance may move each of them. Must never know: what they measure.

Laws:
    * The scores of a series of independent normal values are independent standard normal ones from the third value on,
      whatever their mean and spread (Hawkins 1987), so that published run lengths of the CUSUM hold without a warm-up.
    * An alarm is the end of a series: the next one begins with the value that raised it.
    * The same series gives the same answer; nothing else is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

_LARGEST = 8.0
"""Standard deviations that one value counts for at most."""


@dataclass(frozen=True)
class Change:
    """How far a series has risen.

    Attributes:
        statistic: the sum of what each value lies above what came before it, in standard deviations.
        limit: above it there is an alarm.
        alarm: whether there is one.
        length: values since the series began, or since the alarm before this one.
    """

    statistic: float
    limit: float
    alarm: bool
    length: int

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def rises(series: Sequence[float], noise: Sequence[float], *, slack: float, limit: float) -> Iterator[Change]:
    """Self-starting CUSUM (Hawkins 1987): after each value, how far the series has risen.

    S = max(0, S + z - slack), z the normal score of the value among those before it, as a t statistic.

    Args:
        series: oldest first.
        noise: standard deviation of each value by chance alone; the spread of those before it counts for no less.
        slack, limit: in standard deviations. 0.5 and 5 give one false alarm in 930 values, and find a rise by one
            standard deviation after 10.4, by three after 2.6 (Montgomery, Introduction to Statistical Quality Control).
    """
    begins, total = 0, 0.0
    for at, value in enumerate(series):
        total = max(0.0, total + _score(series[begins:at], value, noise[at]) - slack)
        change = Change(total, limit, total > limit, at + 1 - begins)
        yield change
        if change.alarm:
            begins, total = at, 0.0


def rise(series: Sequence[float], noise: Sequence[float], *, slack: float, limit: float) -> Change | None:
    """How far the series has risen at its end; None of an empty one."""
    return next(reversed([*rises(series, noise, slack=slack, limit=limit)]), None)


def _score(before: Sequence[float], value: float, noise: float) -> float:
    """The normal score of a value among those before it; 0 while there are fewer than two."""
    n = len(before)
    if n < 2:
        return 0.0
    mean = math.fsum(before) / n
    spread = max(noise, math.sqrt(math.fsum((x - mean) ** 2 for x in before) / (n - 1)))
    if not spread:
        return 0.0 if value == mean else math.copysign(_LARGEST, value - mean)
    chance = float(stats.t.sf(abs(value - mean) / (spread * math.sqrt(1 + 1 / n)), n - 1))
    return math.copysign(min(_LARGEST, float(stats.norm.isf(chance))), value - mean)
