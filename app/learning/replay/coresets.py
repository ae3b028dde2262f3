"""Replay policies that compare features: herding and k-centre.

Knows: features, class quotas, how much work is bearable. Must never know: how features are taken.

Laws:
    * ``herd`` and ``spread`` are the greedy algorithms to the letter, in float64, ties to the lower position.
    * The work is bounded. To choose q of n examples takes q * n distances, too many when both are large. So a large
      choice is dealt to groups by the fixed random keys, each of which chooses its equal share for itself, and no group
      looks at more than the ``CONSIDERED`` smallest keys dealt to it, or at more than ``VALUES`` features in all: q *
      ``VALUES`` multiplications at most, in the memory of one group. Up to 512 of 4,096 examples with up to 256
      features are chosen by the definition itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.learning.recipe import Herding, KCentre
from app.learning.replay.policies import POLICIES, Candidates, Positions, in_turn, keys, marked, room

CONSIDERED = 4096
"""Candidates that one group looks at, at most."""

VALUES = 2**20
"""Features of all candidates of one group together, at most: 8 MiB as float64."""

SHARE = 8
"""A group chooses one in so many of the candidates that it may look at, at most."""


@POLICIES.register(Herding)
def herding(options: Herding, candidates: Candidates) -> npt.NDArray[np.bool_]:
    """Per class, the examples whose mean stays nearest to the class mean; the cap is split as by class-balanced."""
    space, random = room(options, candidates), keys(candidates)
    kept = marked(len(candidates), in_turn(candidates.labels, random)[:space])
    if space in (0, len(candidates)):
        return kept
    limit, by_class = _limit(candidates), np.argsort(candidates.labels, kind="stable")
    for members in np.split(by_class, np.flatnonzero(np.diff(candidates.labels[by_class])) + 1):
        quota = int(kept[members].sum())
        if 0 < quota < len(members):
            kept[members] = False
            for group, share in dealt(members, random, quota, limit):
                kept[group[herd(_features(candidates, group), share)]] = True
    return kept


@POLICIES.register(KCentre)
def k_centre(options: KCentre, candidates: Candidates) -> npt.NDArray[np.bool_]:
    """The examples that leave no other far away, whatever their classes."""
    everyone, space = np.arange(len(candidates)), room(options, candidates)
    if space in (0, len(candidates)):
        return marked(len(candidates), everyone[:space])
    kept = marked(len(candidates), everyone[:0])
    for group, share in dealt(everyone, keys(candidates), space, _limit(candidates)):
        kept[group[spread(_features(candidates, group), share)]] = True
    return kept


def herd(features: Tensor, count: int) -> list[int]:
    """Herding (Welling 2009; Rebuffi et al. 2017, iCaRL, algorithm 4): positions, in the order of choice.

    p_k = argmin over x of || mu - (x + p_1 + ... + p_(k-1)) / k ||, each x once, where mu is the mean of all.

    Args:
        features: (n, d) float64.
        count: how many to choose, at most n.
    """
    apart = features * len(features) - features.sum(0)  # n (x - mu): without a rounded mean
    squares, total, chosen = apart.square().sum(1), torch.zeros_like(apart[0]), []
    for _ in range(count):
        chosen.append(int(torch.argmin(squares + 2 * (apart @ total))))  # || total + apart ||^2 - || total ||^2
        squares[chosen[-1]] = torch.inf
        total += apart[chosen[-1]]
    return chosen


def spread(features: Tensor, count: int) -> list[int]:
    """Greedy k-centre (Gonzalez 1985; Sener and Savarese 2018, algorithm 1): positions, in the order of choice.

    The first is the one nearest to the mean; each next one is the farthest from its nearest chosen one.

    Args:
        features: (n, d) float64.
        count: how many to choose, at most n.
    """
    squares, chosen = features.square().sum(1), list[int]()
    farness = 2 * (features @ features.sum(0)) - len(features) * squares  # the mean's distance, turned round
    nearest = torch.full_like(squares, torch.inf)
    for _ in range(count):
        chosen.append(int(torch.argmax(farness)))
        centre = features[chosen[-1]]
        nearest = torch.minimum(nearest, squares - 2 * (features @ centre) + centre @ centre)
        nearest[chosen[-1]] = -torch.inf
        farness = nearest
    return chosen


def dealt(
    members: Positions, random: npt.NDArray[np.uint64], count: int, limit: int
) -> Iterator[tuple[Positions, int]]:
    """Groups of ``members``, each ascending, and how many of the ``count`` each is to choose.

    Args:
        members: positions.
        random: (n,) the keys of all candidates.
        count: how many to choose, at most as many as there are members.
        limit: members of a group, at most.
    """
    groups = -(-count * SHARE // limit)
    order = members[np.argsort(random[members], kind="stable")]
    for first in range(groups):
        yield np.sort(order[first::groups][:limit]), count // groups + (first < count % groups)


def _limit(candidates: Candidates) -> int:
    width: int = candidates.features(np.zeros(1, dtype=np.int64)).shape[1]
    return min(CONSIDERED, max(SHARE, VALUES // max(1, width)))


def _features(candidates: Candidates, positions: Positions) -> Tensor:
    """As float64 on the CPU; what is not finite becomes so, so that a choice is always defined."""
    return torch.nan_to_num(torch.from_numpy(candidates.features(positions))).double()
