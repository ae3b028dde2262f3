"""Watches: guardrails on what arrives and on what wanders, rather than on one candidate.

Knows: the alarms of monitors. Must never know: how they are raised (``drift``, ``changes``), or what is done then.

Law: what a watch finds on arrival it finds again in the verdict; training cannot change it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.learning.drift import Drift
from app.learning.recipe import GapChange, InputDrift, LabelShift, PrequentialDrop
from app.learning.rules import RULES, Evidence, Finding, listed, unjudged


def _told_inputs(shift: Any) -> str:
    part = "embedding unit" if shift.of == "embedding" else "feature"
    return f"differs most in {part} {shift.features[0].index}, its distribution by {shift.effect:.3f}"


def _told_labels(shift: Any) -> str:
    return f"would have to change the class of {shift.effect:.3f} of its {shift.examples} examples"


def _told_accuracy(shift: Any) -> str:
    return f"{shift.statistic:.4f} on {shift.examples} examples, {shift.effect:.4f} below the validation examples"


@dataclass(frozen=True)
class _Watch:
    """Which of a megabatch's shifts a guardrail looks at, and how its alarm is told."""

    kind: str
    what: str
    told: Callable[[Any], str]
    remedy: str


_WATCHES: dict[type, _Watch] = {
    InputDrift: _Watch(
        "inputs", "new inputs are unlike those of the past", _told_inputs,
        "Check the source of the data if that is not meant, or let the network learn them before it is pruned",
    ),
    LabelShift: _Watch(
        "labels", "the classes are mixed unlike in the past", _told_labels,
        "Check the labels if that is not meant, or keep the rare classes by class-balanced replay",
    ),
    PrequentialDrop: _Watch(
        "accuracy", "the champion answers new examples worse than those that it was validated on", _told_accuracy,
        "The data has changed, or its labels are wrong: quarantine the megabatch in that case",
    ),
}  # fmt: skip

ON_ARRIVAL = tuple(_WATCHES)
"""Watches whose answer is known before anything is pruned."""


def on_arrival(options: Any, drift: Mapping[int, Drift]) -> Finding:
    """What a watch finds in new megabatches: a breach where one of them raises its alarm.

    Args:
        options: of a type in ``ON_ARRIVAL``.
        drift: how far each new megabatch lies from the past, by number.
    """
    watch = _WATCHES[type(options)]
    shifts = {number: shift for number, each in sorted(drift.items()) if (shift := getattr(each, watch.kind))}
    if not shifts:
        return unjudged(f"there was nothing to compare the {watch.kind} of new megabatches with")
    worst = max(shifts, key=lambda number: (shifts[number].effect, -number))
    alarms = [number for number, shift in shifts.items() if shift.alarm]
    figures = {
        "megabatches": len(shifts), "worst_megabatch": worst, "statistic": shifts[worst].statistic,
        "p_value": shifts[worst].p_value, "effect": shifts[worst].effect, "alarms": alarms,
    }  # fmt: skip
    if not alarms:
        return Finding(True, figures)
    told = [f"megabatch {n} {watch.told(shifts[n])} (p = {shifts[n].p_value:.2g})" for n in alarms]
    return Finding(False, figures, f"{watch.what}: {listed(told)}. {watch.remedy}")


@RULES.register(InputDrift)
@RULES.register(LabelShift)
@RULES.register(PrequentialDrop)
def arrivals(options: Any, evidence: Evidence) -> Finding:
    """What a watch found on arrival."""
    return on_arrival(options, evidence.measured.drift)


@RULES.register(GapChange)
def gap_change(options: GapChange, evidence: Evidence) -> Finding:
    """The generalization gap has risen over the versions of the lineage."""
    gap = evidence.measured.gap
    if gap is None:
        return unjudged("there are no validation examples, so there is no gap to watch")
    if not gap.alarm:
        return Finding(True, gap.document())
    reason = (
        f"the generalization gap has risen: over {gap.length} versions its rises add up to {gap.statistic:.3g} "
        f"standard deviations, more than the accepted {gap.limit:g}. Upload more examples, raise "
        "weight_decay, or train fewer epochs"
    )
    return Finding(False, gap.document(), reason)
