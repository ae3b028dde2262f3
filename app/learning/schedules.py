"""Schedules: density as a function of stage.

Knows: how much to keep. Must never know: which weights.

Laws:
    * ``density_at`` lies in (0, 1], never increases with the stage, and ends at ``recipe.final_density``.
    * The count of kept weights follows from density and total alone, to the weight.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from app.learning.recipe import App, Dense, OneShot, final_density
from app.learning.registry import Registry


class Schedule(Protocol):
    """One way to move density; ``options`` is the recipe's value of the registered type."""

    def __call__(self, options: Any, stage: int) -> float:
        """Density after the ``stage``-th pruning cycle, stage >= 1."""
        ...


SCHEDULES: Registry[Schedule] = Registry("schedule")


def density_at(options: object, stage: int) -> float:
    """Target density after ``stage`` pruning cycles; 1 before the first.

    Args:
        options: a schedule of the recipe.
        stage: pruning cycles in the ancestry, this one included; >= 0.
    """
    return 1.0 if stage < 1 else SCHEDULES[options](options, stage)


def advances(options: object) -> bool:
    """Whether a cycle under this schedule is a pruning cycle: one that advances the stage."""
    return not isinstance(options, Dense)


def kept_at(density: float, total: int) -> int:
    """How many of ``total`` weights a density keeps: the nearest count, halves upwards, at least one."""
    return max(1, math.floor(density * total + 0.5))


@SCHEDULES.register(App)
def app(options: App, stage: int) -> float:
    """Anytime Progressive Pruning: 0.8 ** delta, delta = linspace(1, tau, stages)[stage - 1] (arXiv 2204.01640).

    With one stage it goes straight to 0.8 ** tau.
    """
    if stage >= options.stages:
        return final_density(options)
    delta = 1 + (options.tau - 1) * ((stage - 1) / (options.stages - 1))
    return float(0.8**delta)


@SCHEDULES.register(OneShot)
def one_shot(options: OneShot, stage: int) -> float:
    """Straight to the final density (Anytime-OSP)."""
    return options.target


@SCHEDULES.register(Dense)
def dense(options: Dense, stage: int) -> float:
    """No pruning."""
    return 1.0
