"""Schedules: density as a function of progress.

Knows: how much to keep. Must never know: which weights.

Laws:
    * Density lies in (0, 1], never rises along a lineage, and never falls below ``recipe.final_density``.
    * The count of kept weights follows from density and total alone, to the weight.
    * A cycle that is held, or that takes less than its whole step, does not advance the stage: the next one aims at the
      same density again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Protocol

from app.learning.history import History
from app.learning.recipe import (
    App,
    Auto,
    ByExamples,
    Constant,
    Cubic,
    Factor,
    Linear,
    OneShot,
    Pace,
    Ramp,
    final_density,
)
from app.learning.registry import Registry


class Schedule(Protocol):
    """One way to move density; ``options`` is the recipe's value of the registered type."""

    def __call__(self, options: Any, stage: int, arrived: int) -> float:
        """Density after the ``stage``-th pruning cycle, stage >= 1, with ``arrived`` examples so far."""
        ...


SCHEDULES: Registry[Schedule] = Registry("schedule")


@dataclass(frozen=True)
class Standing:
    """Where a lineage stands before a cycle.

    Attributes:
        stage: pruning cycles in its ancestry.
        kept, total: prunable weights that are kept, and all of them.
        arrived: examples of all megabatches so far, the new ones included.
        history: of the parent.
    """

    stage: int = 0
    kept: int = 1
    total: int = 1
    arrived: int = 0
    history: History = field(default_factory=History)

    @property
    def density(self) -> float:
        """Counted density."""
        return self.kept / self.total


@dataclass(frozen=True)
class Step:
    """What a cycle does to density: the stage that it reaches, its target density, and why it is held, if it is."""

    stage: int
    density: float
    held: str | None = None


def advance(options: object, standing: Standing, *, hold: str | None = None, scale: float = 1.0) -> Step:
    """The step of one cycle.

    Args:
        options: a schedule of the recipe.
        standing: where the lineage stands.
        hold: why density is to be held, if it is.
        scale: share of the planned step to take, in [0, 1].
    """
    if isinstance(options, Constant):
        return Step(standing.stage, standing.density)
    held = hold or _within_noise(options, standing.history)
    if held or not scale:
        return Step(standing.stage, standing.density, held or "the pruning step is zero")
    aim = density_at(options, standing.stage + 1, standing.arrived)
    if kept_at(aim, standing.total) > standing.kept:  # nothing grows back
        aim = standing.density
    if scale < 1:
        return Step(standing.stage, standing.density - scale * (standing.density - aim))
    return Step(standing.stage + 1, aim)


def density_at(options: object, stage: int, arrived: int = 0) -> float:
    """Density that a schedule plans for after ``stage`` pruning cycles; 1 before the first.

    Args:
        options: a schedule of the recipe.
        stage: pruning cycles in the ancestry, this one included; >= 0.
        arrived: examples of all megabatches so far.
    """
    return 1.0 if stage < 1 else SCHEDULES[options](options, stage, arrived)


def kept_at(density: float, total: int) -> int:
    """How many of ``total`` weights a density keeps: the nearest count, halves upwards, at least one."""
    return max(1, math.floor(density * total + 0.5))


def pruning_steps(pace: Pace, steps: int, before: int, planned: int, iterations: int) -> list[tuple[int, int]]:
    """When a cycle prunes and to how many weights: (optimizer steps done before it, weights kept after it).

    Args:
        pace: of the recipe.
        steps: optimizer steps of the cycle, at least one.
        before: weights kept so far.
        planned: weights kept at the end of the cycle, <= ``before``.
        iterations: pruning steps where all come before training.

    Returns:
        In order; counts fall strictly and end at ``planned``. Empty when there is nothing to prune. At least one
        optimizer step follows the last.
    """
    if planned >= before:
        return []
    if isinstance(pace, Ramp):
        last = max(1, min(steps - 1, math.ceil(pace.share * steps)))
        found = [
            (min(math.ceil(i * last / pace.steps), steps - 1), _between(before, planned, _shape(pace, i / pace.steps)))
            for i in range(1, pace.steps + 1)
        ]
    else:
        ratio = planned / before
        found = [(0, math.floor(before * ratio ** (i / iterations) + 0.5)) for i in range(1, iterations + 1)]
    found[-1] = (found[-1][0], planned)
    if isinstance(pace, Ramp):  # of several at the same optimizer step, the last
        found = list(dict(found).items())
    falling: list[tuple[int, int]] = []
    for when, kept in found:
        if kept < (falling[-1][1] if falling else before):
            falling.append((when, kept))
    return falling


def _shape(pace: Ramp, progress: float) -> float:
    """Share of a cycle's pruning that is done."""
    return 1 - (1 - progress) ** 3 if pace.shape == "cubic" else progress


def _between(before: int, planned: int, done: float) -> int:
    return before - math.floor((before - planned) * done + 0.5)


def _within_noise(options: object, history: History) -> str | None:
    """For ``auto``: why the density is held, or None while the newest accuracy lies within the noise of the best."""
    if not isinstance(options, Auto) or not history.ancestors:
        return None
    newest, best = history.ancestors[-1], max(history.ancestors, key=lambda ancestor: ancestor.accuracy)
    drop = best.accuracy - newest.accuracy
    noise = math.sqrt(sum(a.accuracy * (1 - a.accuracy) / a.examples for a in (best, newest)))
    if drop <= NormalDist().inv_cdf(options.confidence) * noise:
        return None
    return (
        f"validation accuracy {newest.accuracy:.4f} lies {drop:.4f} below the best of the lineage, more than its noise "
        f"({noise:.4f}) explains at confidence {options.confidence:g}"
    )


@SCHEDULES.register(App)
def app(options: App, stage: int, arrived: int) -> float:
    """Anytime Progressive Pruning: 0.8 ** delta, delta = linspace(1, tau, stages)[stage - 1] (arXiv 2204.01640).

    With one stage it goes straight to 0.8 ** tau.
    """
    if stage >= options.stages:
        return final_density(options)
    delta = 1 + (options.tau - 1) * ((stage - 1) / (options.stages - 1))
    return float(0.8**delta)


@SCHEDULES.register(Factor)
def factor(options: Factor, stage: int, arrived: int) -> float:
    """Target ** (stage / stages): every stage keeps the same share of what the one before kept."""
    return float(options.target ** min(1.0, stage / options.stages))


@SCHEDULES.register(OneShot)
def one_shot(options: OneShot, stage: int, arrived: int) -> float:
    """Straight to the final density (Anytime-OSP)."""
    return options.target


@SCHEDULES.register(Linear)
def linear(options: Linear, stage: int, arrived: int) -> float:
    """Target + (1 - target) * (1 - stage / stages)."""
    return options.target + (1 - options.target) * (1 - min(1.0, stage / options.stages))


@SCHEDULES.register(Cubic)
def cubic(options: Cubic, stage: int, arrived: int) -> float:
    """Target + (1 - target) * (1 - stage / stages) ** 3 (Zhu and Gupta, arXiv 1710.01878)."""
    return options.target + (1 - options.target) * (1 - min(1.0, stage / options.stages)) ** 3


@SCHEDULES.register(ByExamples)
def by_examples(options: ByExamples, stage: int, arrived: int) -> float:
    """Target ** (arrived / until)."""
    return float(options.target ** min(1.0, arrived / options.until))


@SCHEDULES.register(Auto)
def auto(options: Auto, stage: int, arrived: int) -> float:
    """Factor ** stage, not below the target; ``advance`` holds the stage while accuracy lies below the noise."""
    return max(options.target, float(options.factor**stage))


@SCHEDULES.register(Constant)
def constant(options: Constant, stage: int, arrived: int) -> float:
    """No pruning."""
    return 1.0
