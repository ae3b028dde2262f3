"""Estimates: shares with the uncertainty that comes from how many examples they were counted on.

Knows: binomial intervals. Must never know: words, or what was counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

_Z = 1.959964
"""Standard deviations to either side that hold 95 %."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share of examples.

    Attributes:
        share: in [0, 1].
        n: examples that it was counted on; None: not known.
    """

    share: float
    n: int | None = None

    @property
    def margin(self) -> float | None:
        """Half the width of Wilson's 95 % interval; None where ``n`` is not known."""
        if not self.n:
            return None
        spread = _Z * sqrt(self.share * (1 - self.share) / self.n + _Z**2 / (4 * self.n**2))
        return spread / (1 + _Z**2 / self.n)


def estimate(share: float | None, n: int | None) -> Estimate | None:
    """An estimate, where there is a share."""
    return None if share is None else Estimate(share, n)
