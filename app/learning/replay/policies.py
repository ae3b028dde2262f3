"""Replay policies that look at numbers, labels, keys and losses.

Knows: what a policy chooses from. Must never know: networks, or how features are taken.

Every example has a **key**: a random number that follows from the recipe's seed, the megabatch's number and the row
alone, so it is the same in all cycles. To keep the smallest keys is to keep a uniform sample without any counter
(bottom-k sampling; Cohen and Kaplan 2007): what was dropped once would never have come back, so a cycle need not know
it.

Laws:
    * ``reservoir``: after every cycle the kept are uniform among all that ever arrived (pinned ones aside). Cap after
      each megabatch or once at the end: the same rows.
    * ``class-balanced``: two classes' counts differ by at most one, unless the smaller one is kept whole; within a
      class the kept are uniform. Cap after each megabatch or once at the end: the same rows.
    * Both hold while the seed stays, the cap is not raised, and no megabatch that has arrived is quarantined or pinned:
      rows once dropped are not fetched back, so newer ones take the places that become free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from app.learning.recipe import (
    ClassBalanced,
    FullReplay,
    HardestFirst,
    Herding,
    KCentre,
    LastReplay,
    NoReplay,
    PinnedReplay,
    Reservoir,
)
from app.learning.registry import Registry
from app.learning.seeds import seed_for

Positions = npt.NDArray[np.int64]
Capped = Reservoir | ClassBalanced | Herding | KCentre | HardestFirst


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a policy chooses from: every row that the cycle trained on, pinned megabatches aside.

    Attributes:
        megabatch: (n,) int64: number of the megabatch of each row; rows are in order of arrival.
        row: (n,) int64: its row in that megabatch.
        labels: (n,) int64.
        ids: (n,) uint64: example ids.
        row_bytes: bytes of one row as stored.
        seed: the recipe's: the same in all cycles.
        depth: of the cycle, for policies that draw anew in each.
        features: gives (m, d) float32 for the candidates at m positions: what the last linear layer of the network just
            trained sees.
        losses: gives (n,) float32: cross entropy of the network just trained.
    """

    megabatch: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint64]
    row_bytes: int
    seed: int
    depth: int
    features: Callable[[Positions], npt.NDArray[np.float32]]
    losses: Callable[[], npt.NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.labels)


class ReplayPolicy(Protocol):
    """One way to choose what is replayed; ``options`` is the recipe's value of the registered type."""

    def __call__(self, options: Any, candidates: Candidates) -> npt.NDArray[np.bool_]:
        """Which candidates are replayed in the next cycle: (n,) bool."""
        ...


POLICIES: Registry[ReplayPolicy] = Registry("replay policy")

# -- what policies share -----------------------------------------------------------------------------------------------


def keys(candidates: Candidates) -> npt.NDArray[np.uint64]:
    """A random number for each candidate, the same in all cycles: (n,) uint64.

    Row r of a megabatch has the r-th number of the generator SplitMix64 (Steele, Lea and Flood 2014), started at the
    megabatch's own seed: rows of one megabatch never share a key.
    """
    numbers, which = np.unique(candidates.megabatch, return_inverse=True)
    starts = [seed_for(candidates.seed, 0, 0, f"replay-{number}") for number in numbers]
    bits: npt.NDArray[np.uint64] = np.array(starts, dtype=np.uint64)[which]
    bits += (candidates.row.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    return bits


def room(options: Capped, candidates: Candidates) -> int:
    """How many candidates may be kept: the tighter of both caps."""
    caps = [len(candidates)]
    if options.examples is not None:
        caps.append(options.examples)
    if options.bytes is not None:
        caps.append(options.bytes // max(1, candidates.row_bytes))
    return min(caps)


def marked(n: int, positions: Positions) -> npt.NDArray[np.bool_]:
    """(n,) bool, true at ``positions``."""
    kept = np.zeros(n, dtype=np.bool_)
    kept[positions] = True
    return kept


def in_turn(labels: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]) -> Positions:
    """Positions, one of each class in turn: (n,) int64.

    First every class's smallest key, then every class's second, and so on; within a turn, smaller keys first. So the
    first k positions are k examples split over the classes as evenly as they can be.
    """
    by_class = np.lexsort((keys, labels))
    ordered = labels[by_class]
    turn = np.empty(len(labels), dtype=np.int64)
    turn[by_class] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return np.lexsort((keys, turn))


# -- the policies ------------------------------------------------------------------------------------------------------


@POLICIES.register(FullReplay)
def full(options: FullReplay, candidates: Candidates) -> npt.NDArray[np.bool_]:
    """M_1 + ... + M_t."""
    return np.ones(len(candidates), dtype=np.bool_)


@POLICIES.register(NoReplay)
@POLICIES.register(PinnedReplay)
def none(options: NoReplay | PinnedReplay, candidates: Candidates) -> npt.NDArray[np.bool_]:
    """Nothing (pinned megabatches are no candidates)."""
    return np.zeros(len(candidates), dtype=np.bool_)


@POLICIES.register(LastReplay)
def last(options: LastReplay, candidates: Candidates) -> npt.NDArray[np.bool_]:
    """The newest megabatches."""
    return np.isin(candidates.megabatch, np.unique(candidates.megabatch)[-options.megabatches :])


@POLICIES.register(Reservoir)
def reservoir(options: Reservoir, candidates: Candidates) -> npt.NDArray[np.bool_]:
    """The smallest keys: a uniform sample of all that has arrived."""
    chosen = np.argsort(keys(candidates), kind="stable")[: room(options, candidates)]
    return marked(len(candidates), chosen)


@POLICIES.register(ClassBalanced)
def class_balanced(options: ClassBalanced, candidates: Candidates) -> npt.NDArray[np.bool_]:
    """As many of each class as the cap allows; within a class the smallest keys."""
    chosen = in_turn(candidates.labels, keys(candidates))[: room(options, candidates)]
    return marked(len(candidates), chosen)


@POLICIES.register(HardestFirst)
def hardest_first(options: HardestFirst, candidates: Candidates) -> npt.NDArray[np.bool_]:
    """The highest losses; ties to the lower row."""
    space = room(options, candidates)
    if space == len(candidates):
        return np.ones(space, dtype=np.bool_)
    return marked(len(candidates), np.argsort(-candidates.losses(), kind="stable")[:space])
