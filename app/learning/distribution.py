"""Distributions: how many weights each layer keeps, at least or exactly.

Knows: shapes, counts. Must never know: scores.

Laws:
    * No layer is promised more weights than the former mask keeps there, and all together no more than are planned.
    * The counts of a distribution per layer add up to the planned weights exactly: each is a budget.
    * A layer gets no less than its floor, unless the floors together exceed what is planned: then all of them shrink in
      proportion, to no less than one weight each while so many are planned.
    * Shares are exact fractions, rounded by largest remainder, ties to the earlier layer: no machine rounds otherwise.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol

from app.domain import Layer
from app.learning.mask import Mask
from app.learning.recipe import Distribution, ErdosRenyiKernel, Global, Uniform
from app.learning.registry import Registry


class Shares(Protocol):
    """One way to divide weights among layers; ``options`` is the recipe's value of the registered type."""

    def __call__(self, options: Any, layers: Sequence[Layer]) -> list[int] | None:
        """Positive numbers in proportion to which layers keep weights; None leaves it to the scores."""
        ...


DISTRIBUTIONS: Registry[Shares] = Registry("distribution")


def least_kept(options: Distribution, mask: Mask, planned: int) -> dict[str, int]:
    """The least number of weights that each layer keeps, by name; exact budgets where they add up to ``planned``.

    Where a layer's share exceeds what the former mask keeps there, the surplus goes to the other layers in proportion.

    Args:
        options: of the recipe.
        mask: so far.
        planned: weights kept over all layers, 1 <= planned <= ``mask.kept``.
    """
    layers = mask.layers
    least = _floors(options.floor, layers, planned)
    shares = DISTRIBUTIONS[options](options, layers)
    if shares is not None:
        least = _divide(planned, shares, least, [layer.kept for layer in layers])
    return {layer.name: count for layer, count in zip(layers, least, strict=True)}


@DISTRIBUTIONS.register(Global)
def by_scores(options: Global, layers: Sequence[Layer]) -> None:
    """One ranking of all weights; only the floors hold."""


@DISTRIBUTIONS.register(Uniform)
def uniform(options: Uniform, layers: Sequence[Layer]) -> list[int]:
    """The same density in every layer: shares in proportion to size."""
    return [layer.total for layer in layers]


@DISTRIBUTIONS.register(ErdosRenyiKernel)
def erdos_renyi_kernel(options: ErdosRenyiKernel, layers: Sequence[Layer]) -> list[int]:
    """Evci et al. 2020, arXiv 1911.11134: density of a layer = scale * (sum of its dimensions) / (product of them).

    So its weights are in proportion to the sum. What lies above density 1 goes to the others, as in the paper.
    """
    return [sum(layer.shape) for layer in layers]


def _floors(floor: float, layers: Sequence[Layer], planned: int) -> list[int]:
    share = Fraction(str(floor))  # as the recipe writes it: 0.07 of 100 weights are 7
    floors = [min(layer.kept, math.ceil(share * layer.total)) for layer in layers]
    if sum(floors) <= planned:
        return floors
    none, one = [0] * len(floors), [min(1, count) for count in floors]
    return _divide(planned, floors, one, floors) if sum(one) <= planned else _divide(planned, floors, none, one)


def _divide(amount: int, shares: Sequence[int], least: Sequence[int], most: Sequence[int]) -> list[int]:
    """Divide ``amount`` in proportion to ``shares``, each within its bounds: clip(level * share, least, most).

    Args:
        amount: sum(least) <= amount <= sum(most).
        shares: 0 only where ``most`` is 0.
        least, most: 0 <= least <= most.
    """
    bounded = list(zip(shares, least, most, strict=True))

    def at(level: Fraction) -> list[Fraction]:
        return [min(max(level * share, Fraction(low)), Fraction(high)) for share, low, high in bounded]

    # Between two levels at which some layer meets a bound the sum is linear.
    levels = sorted({Fraction(bound, share) for share, *bounds in bounded if share for bound in bounds})
    above = bisect_left(levels, Fraction(amount), key=lambda level: _sum(at(level)))
    lower, upper = at(levels[max(above - 1, 0)]), at(levels[above])
    gap = _sum(upper) - _sum(lower)
    part = (amount - _sum(lower)) / gap if gap else Fraction(1)
    return _rounded([low + part * (high - low) for low, high in zip(lower, upper, strict=True)])


def _rounded(shares: Sequence[Fraction]) -> list[int]:
    """Whole numbers of the same sum, by largest remainder; ties to the earlier one."""
    counts = [math.floor(share) for share in shares]
    left = int(_sum(shares)) - sum(counts)
    order = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])  # stable: the largest remainder first
    for i in order[:left]:
        counts[i] += 1
    return counts


def _sum(shares: Sequence[Fraction]) -> Fraction:
    return sum(shares, Fraction())
