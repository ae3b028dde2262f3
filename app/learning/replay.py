"""Replay policies: which megabatches a cycle trains on.

Knows: numbers of megabatches, old and new. Must never know: how their examples are stored.

Laws:
    * What is assigned was given; every new megabatch is assigned.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from app.learning.recipe import FullReplay, NoReplay
from app.learning.registry import Registry


class ReplayPolicy(Protocol):
    """One way to choose what is replayed; ``options`` is the recipe's value of the registered type."""

    def __call__(self, options: Any, old: Collection[int], new: Collection[int]) -> Collection[int]:
        """Numbers of the megabatches in the replay buffer after this cycle."""
        ...


POLICIES: Registry[ReplayPolicy] = Registry("replay policy")


def assign(options: object, old: Collection[int], new: Collection[int]) -> tuple[int, ...]:
    """The megabatches in the replay buffer after this cycle, in order of arrival.

    Args:
        options: a replay policy of the recipe.
        old: numbers that earlier cycles of this lineage trained on.
        new: numbers that this cycle is the first to train on.
    """
    return tuple(sorted(POLICIES[options](options, old, new)))


@POLICIES.register(FullReplay)
def full(options: FullReplay, old: Collection[int], new: Collection[int]) -> Collection[int]:
    """M_1 + ... + M_t."""
    return {*old, *new}


@POLICIES.register(NoReplay)
def none(options: NoReplay, old: Collection[int], new: Collection[int]) -> Collection[int]:
    """The new ones alone."""
    return set(new)
