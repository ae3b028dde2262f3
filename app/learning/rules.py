"""Rules: what each guardrail looks at, and when that is a breach.

Knows: answers of champion and candidate on the same examples, losses, kept weights per layer, the lineage's history.
Must never know: networks, how many breaches trip a rule, or what is done then.

Laws:
    * A breach is told in words, with its figures, what they mean and what would mend it.
    * A rule that asks whether a difference is chance asks an exact test (``statistics``).
    * A rule without data passes, and says what was missing. Figures are plain JSON values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.domain import Layer
from app.learning.history import History
from app.learning.metrics import Measured
from app.learning.recipe import (
    AccuracyDrop,
    AccuracyFloor,
    ClassFloor,
    DensityFloor,
    Divergence,
    Forgetting,
    GeneralizationGap,
    LayerCollapse,
    MaskAgreement,
)
from app.learning.registry import Registry
from app.learning.statistics import fisher, mcnemar, upper_bound

_LISTED = 8
"""Layers, classes and megabatches that a reason names; the figures count them all."""

_ROUNDING = 1e-9
"""Share of a figure that rounding may move."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of a candidate when it is judged.

    Attributes:
        measured: its answers, and the champion's on the same examples.
        layers: kept weights per prunable tensor.
        history: of the lineage before it: best accuracies, breaches in a row, what holds pruning.
        first_loss, last_loss: mean training loss of the first and of the last epoch; None where there was no epoch.
        notes: what a reader of the verdict must know about the evidence.
    """

    measured: Measured
    layers: tuple[Layer, ...]
    history: History
    first_loss: float | None = None
    last_loss: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One rule's answer: passed or breached, its figures, and what to tell a reader (empty: nothing)."""

    passed: bool
    figures: dict[str, Any]
    reason: str = ""


class Rule(Protocol):
    """One guardrail; ``options`` is the recipe's value of the registered type."""

    def __call__(self, options: Any, evidence: Evidence) -> Finding:
        """Look at the evidence."""
        ...


RULES: Registry[Rule] = Registry("guardrail")

# -- accuracy ----------------------------------------------------------------------------------------------------------


@RULES.register(AccuracyDrop)
def accuracy_drop(options: AccuracyDrop, evidence: Evidence) -> Finding:
    """Accuracy lies more than ``at_most`` below the champion's on the same examples, and not by chance (McNemar)."""
    validation, champion = evidence.measured.validation, evidence.measured.champion
    if validation is None:
        return unjudged("there are no validation examples, so accuracy was not compared")
    n = len(validation)
    if champion is None:
        return Finding(True, {"examples": n})
    lost = int((champion.correct & ~validation.correct).sum())
    won = int((validation.correct & ~champion.correct).sum())
    drop, chance = (lost - won) / n, mcnemar(lost, won)
    figures = {"examples": n, "drop": drop, "only_champion_right": lost, "only_candidate_right": won, "p_value": chance}
    if drop <= options.at_most or not _unlikely(chance, options.confidence):
        return Finding(True, figures)
    reason = (
        f"accuracy {validation.accuracy:.4f} is {drop:.4f} below the champion's {champion.accuracy:.4f} "
        f"on the same {n} validation examples, more than the accepted {options.at_most:g} (p = {chance:.2g}): "
        "prune in smaller steps or train longer, or quarantine the new megabatch if its labels are wrong"
    )
    return Finding(False, figures, reason)


@RULES.register(AccuracyFloor)
def accuracy_floor(options: AccuracyFloor, evidence: Evidence) -> Finding:
    """The exact upper bound of the accuracy lies below ``at_least``."""
    validation = evidence.measured.validation
    if validation is None:
        return unjudged("there are no validation examples, so accuracy was not compared with the floor")
    right, n = int(validation.correct.sum()), len(validation)
    bound = upper_bound(right, n, options.confidence)
    figures = {"examples": n, "accuracy": right / n, "upper_bound": bound}
    if not _below(bound, options.at_least):
        return Finding(True, figures)
    reason = (
        f"accuracy {right / n:.4f} on {n} validation examples is below the floor {options.at_least:g}, and not by "
        f"chance: it is {bound:.4f} at most, with confidence {options.confidence:g}. Train longer, raise the target "
        "density, or look for wrong labels"
    )
    return Finding(False, figures, reason)


@RULES.register(ClassFloor)
def class_floor(options: ClassFloor, evidence: Evidence) -> Finding:
    """The exact upper bound of the accuracy on one class lies below ``at_least``; each class is asked by itself."""
    validation = evidence.measured.validation
    if validation is None:
        return unjudged("there are no validation examples, so no class was compared with the floor")
    right, examples = (counts.tolist() for counts in validation.by_class)
    asked = [index for index, n in enumerate(examples) if n]
    worst = min(asked, key=lambda index: (right[index] / examples[index], index))
    bounds = {i: upper_bound(right[i], examples[i], options.confidence) for i in asked}
    below = [index for index in asked if _below(bounds[index], options.at_least)]
    figures = {
        "classes": len(asked), "worst_class": worst, "worst_accuracy": right[worst] / examples[worst],
        "worst_examples": examples[worst], "worst_upper_bound": bounds[worst], "below": below,
    }  # fmt: skip
    if not below:
        return Finding(True, figures)
    told = [f"class {i} {right[i] / examples[i]:.4f} ({right[i]} of {examples[i]} right, {bounds[i]:.4f} at most)"
            for i in below]  # fmt: skip
    reason = (
        f"accuracy is below the floor {options.at_least:g}, and not by chance, in {len(below)} of {len(asked)} "
        f"classes: {listed(told)}. Upload more examples of them, or set training.class_weights to balanced"
    )
    return Finding(False, figures, reason)


@RULES.register(Forgetting)
def forgetting(options: Forgetting, evidence: Evidence) -> Finding:
    """Accuracy on a past megabatch lies more than ``at_most`` below its best, and not by chance (Fisher).

    The more megabatches are asked, the likelier one of them looks forgotten: each p-value is multiplied by their number
    (Bonferroni), so that ``confidence`` holds for the rule as a whole.
    """
    measured, best = evidence.measured, evidence.history.best
    past = {n: kept for n, kept in sorted(measured.retained.items()) if n in best and n not in measured.new}
    if not past:
        return unjudged("no validation examples of past megabatches were asked, so nothing was compared")
    before = {n: round(best[n] * kept.examples) for n, kept in past.items()}
    loss = {n: (before[n] - kept.right) / kept.examples for n, kept in past.items()}
    chance = {n: min(1.0, len(past) * fisher(kept.right, kept.examples, before[n], kept.examples))
              for n, kept in past.items()}  # fmt: skip
    forgotten = [n for n in past if loss[n] > options.at_most and _unlikely(chance[n], options.confidence)]
    worst = max(past, key=lambda n: (loss[n], -n))
    figures = {
        "megabatches": len(past), "worst_megabatch": worst, "loss": loss[worst], "p_value": chance[worst],
        "forgotten": forgotten,
    }  # fmt: skip
    if not forgotten:
        return Finding(True, figures)
    told = [f"megabatch {n} {past[n].accuracy:.4f}, {best[n]:.4f} at its best ({past[n].examples} examples, "
            f"p = {chance[n]:.2g})" for n in forgotten]  # fmt: skip
    reason = (
        f"{len(forgotten)} of {len(past)} past megabatches are answered more than {options.at_most:g} worse than at "
        f"their best: {listed(told)}. Replay more of them, or quarantine the new megabatch if it contradicts them"
    )
    return Finding(False, figures, reason)


@RULES.register(GeneralizationGap)
def generalization_gap(options: GeneralizationGap, evidence: Evidence) -> Finding:
    """Training accuracy minus validation accuracy exceeds ``at_most``."""
    training, validation = evidence.measured.training, evidence.measured.validation
    if validation is None:
        return unjudged("there are no validation examples, so there is no gap to look at")
    gap = training.accuracy - validation.accuracy
    figures = {"gap": gap, "train_accuracy": training.accuracy, "validation_accuracy": validation.accuracy,
               "examples": len(validation)}  # fmt: skip
    if not _below(options.at_most, gap):
        return Finding(True, figures)
    reason = (
        f"accuracy is {training.accuracy:.4f} on the training examples and {validation.accuracy:.4f} on "
        f"{len(validation)} validation examples, a gap of {gap:.4f}, more than the accepted {options.at_most:g}: the "
        "network learns its examples by heart. Raise weight_decay, augment, train fewer epochs, or upload more examples"
    )
    return Finding(False, figures, reason)


# -- training ----------------------------------------------------------------------------------------------------------


@RULES.register(Divergence)
def divergence(options: Divergence, evidence: Evidence) -> Finding:
    """The last epoch's training loss exceeds ``factor`` times the first's; infinities and NaN end a cycle before."""
    first, last = evidence.first_loss, evidence.last_loss
    if first is None or last is None:
        return unjudged("no whole epoch was trained, so its loss was not compared")
    figures = {"first_loss": first, "last_loss": last}
    if not _below(options.factor * first, last):
        return Finding(True, figures)
    times = f"{last / first:.3g} times the first epoch's {first:.4g}" if first else "and 0 in the first epoch"
    reason = (
        f"the training loss ended at {last:.4g}, {times}, more than the accepted {options.factor:g} times: lower "
        "training.learning_rate, or prune in smaller steps"
    )
    return Finding(False, figures, reason)


# -- masks -------------------------------------------------------------------------------------------------------------


@RULES.register(DensityFloor)
def density_floor(options: DensityFloor, evidence: Evidence) -> Finding:
    """The whole network keeps less than ``at_least``."""
    kept, total = (sum(counts) for counts in zip(*((y.kept, y.total) for y in evidence.layers), strict=True))
    figures = {"density": kept / total, "kept": kept, "total": total}
    if kept >= math.floor(options.at_least * total):  # a target is met to the nearest weight
        return Finding(True, figures)
    reason = (
        f"density {kept / total:.4g} is below the floor {options.at_least:g} ({kept} of {total} weights are kept): "
        "raise the schedule's target, or lower the floor"
    )
    return Finding(False, figures, reason)


@RULES.register(LayerCollapse)
def layer_collapse(options: LayerCollapse, evidence: Evidence) -> Finding:
    """A prunable layer keeps less than ``at_least``."""
    thinnest = min(evidence.layers, key=lambda layer: layer.density)
    below = [layer for layer in evidence.layers if layer.density < options.at_least]
    figures = {"thinnest_layer": thinnest.name, "thinnest_density": thinnest.density, "layers_below": len(below)}
    if not below:
        return Finding(True, figures)
    told = listed([f"{layer.name} keeps {layer.kept} of {layer.total}" for layer in below])
    reason = (
        f"{told}, below the floor {options.at_least:g}: little passes through so thin a layer. Raise "
        "distribution.floor or the schedule's target"
    )
    return Finding(False, figures, reason)


@RULES.register(MaskAgreement)
def mask_agreement(options: MaskAgreement, evidence: Evidence) -> Finding:
    """The masks of two disjoint samples agree less than ``at_least`` in one of the pruning steps."""
    agreement = evidence.measured.agreement
    if agreement is None:
        return unjudged("no pruning step of this cycle compared the masks of two samples")
    if agreement >= options.at_least:
        return Finding(True, {"agreement": agreement})
    reason = (
        f"of the weights that one of two disjoint samples would keep, both keep {agreement:.4f}, less than "
        f"{options.at_least:g}: what was pruned is largely chance. Score a larger sample (criterion.sample, "
        "criterion.stability), or prune in smaller steps"
    )
    return Finding(False, {"agreement": agreement}, reason)


# -- in common ---------------------------------------------------------------------------------------------------------


def unjudged(why: str) -> Finding:
    """Passed, for want of data."""
    return Finding(True, {}, why)


def _unlikely(chance: float, confidence: float) -> bool:
    """Whether a probability is ``1 - confidence`` at most."""
    return chance <= (1 - confidence) * (1 + _ROUNDING)


def _below(value: float, limit: float) -> bool:
    """Whether ``value`` lies below ``limit`` by more than rounding."""
    return value < limit - _ROUNDING * max(1.0, abs(limit))


def listed(told: Sequence[str]) -> str:
    """In one line, at most ``_LISTED`` of them."""
    more = [f"and {len(told) - _LISTED} more"] if len(told) > _LISTED else []
    return ", ".join([*told[:_LISTED], *more])
