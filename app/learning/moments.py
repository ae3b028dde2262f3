"""Moments: count, mean and spread of every feature, merged as data comes.

Knows: how the moments of two sets make those of both. Must never know: what the values are of, or what they scale.

Laws:
    * Merging is exact but for float64 rounding: whatever a stream is cut into, in whichever order, the moments are
      those of all values together.
    * ``Moments.from_document(moments.document())`` is the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of some values of each feature.

    Attributes:
        count: values of a feature.
        mean: (features,) float64.
        squares: (features,) float64: sum of squared deviations from the mean.
    """

    count: int
    mean: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, columns: Callable[[], Iterable[FloatArray]]) -> Moments:
        """Of all chunks together, in two passes.

        Args:
            columns: gives them, (m, features) each, at least one value in all; each call starts anew.
        """
        total: Any = 0.0
        squares: Any = 0.0
        count = 0
        for chunk in columns():
            total, count = total + chunk.sum(axis=0), count + len(chunk)
        mean = total / count
        for chunk in columns():
            squares = squares + np.square(chunk - mean).sum(axis=0)
        return cls(count, mean, squares)

    def merged(self, other: Moments) -> Moments:
        """Of both sets together (Chan, Golub and LeVeque 1979, equations 2.1)."""
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        between = np.square(apart) * (self.count / count * other.count)
        return Moments(count, mean, self.squares + other.squares + between)

    @property
    def std(self) -> FloatArray:
        """Population standard deviation of each feature."""
        return np.sqrt(self.squares / self.count)

    def document(self) -> dict[str, Any]:
        """As plain JSON values; floats keep all their bits."""
        return {"count": self.count, "mean": self.mean.tolist(), "squares": self.squares.tolist()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Moments:
        """What ``document`` gave."""
        return cls(document["count"], np.array(document["mean"]), np.array(document["squares"]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moments) and self.document() == other.document()

    __hash__ = None  # type: ignore[assignment]  # arrays have none
