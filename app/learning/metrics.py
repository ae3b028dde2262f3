"""Metrics: everything that is measured of a version, kept for good.

Knows: answers, counts, history, and the names of figures. Must never know: how answers came about, or what is judged by
them.

Laws:
    * A figure without data is absent, never zero.
    * Every accuracy is of the weights that are published, evaluated after training; none is a running average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from app.learning.changes import Change
from app.learning.drift import Drift
from app.learning.evaluation import Evaluation
from app.learning.flops import Flops
from app.learning.history import History


class Arrival(NamedTuple):
    """The champion on a megabatch before it trained on it.

    Attributes:
        accuracy: share of right answers; examples of classes that it does not know are wrong.
        loss: mean cross entropy over examples of classes that it knows; None when there are none.
        examples: of the megabatch.
        unknown: those of classes that the champion does not know.
    """

    accuracy: float
    loss: float | None
    examples: int
    unknown: int = 0

    @classmethod
    def of(cls, answers: Evaluation) -> Arrival:
        """From the champion's answers."""
        loss = answers.loss if answers.unknown < len(answers) else None
        return cls(answers.accuracy, loss, len(answers), answers.unknown)


class Retained(NamedTuple):
    """What a version knows of one megabatch: right answers among its validation examples."""

    right: int
    examples: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.examples


@dataclass(frozen=True, eq=False)
class Measured:
    """How a candidate answers, and what it was measured against.

    Attributes:
        training: on the rows that it trained on.
        validation: on the validation rows of the verdict; None when there are none.
        champion: the champion's answers on the same rows; None without one.
        retained: on the validation rows of each megabatch, by number; those without any are absent.
        new: numbers of the megabatches that no ancestor trained on.
        evaluation: on the model's evaluation set, if it has one.
        tested: the champion on each new megabatch before anything was learned, by number.
        flops: of one example.
        agreement: least agreement of two samples' masks over the pruning steps, if any was measured.
        unrounded: accuracy on the verdict's rows before the weights were rounded; None where they are not.
        asked: on the validation rows of all megabatches; None when there are none.
        drift: how far each new megabatch lies from the past, by number.
        gap: how far the generalization gap has risen over the lineage; None where it is not watched, or there is none.
    """

    training: Evaluation
    validation: Evaluation | None
    champion: Evaluation | None
    retained: Mapping[int, Retained]
    new: frozenset[int]
    evaluation: Evaluation | None
    tested: Mapping[int, Arrival]
    flops: Flops
    agreement: float | None = None
    unrounded: float | None = None
    asked: Evaluation | None = None
    drift: Mapping[int, Drift] = field(default_factory=dict)
    gap: Change | None = None


def figures(measured: Measured, history: History) -> dict[str, float]:
    """The metrics that are one number each.

    Args:
        measured: of the candidate.
        history: of the candidate, its own figures included.
    """
    found = {"train_accuracy": measured.training.accuracy, "train_loss": measured.training.loss}
    if measured.validation is not None:
        found |= _answers("validation", measured.validation)
        found["balanced_accuracy"] = measured.validation.balanced_accuracy
        found["generalization_gap"] = measured.training.accuracy - measured.validation.accuracy
    if measured.champion is not None:
        found["champion_validation_accuracy"] = measured.champion.accuracy
    if measured.tested:
        examples = sum(tested.examples for tested in measured.tested.values())
        found["prequential_accuracy"] = sum(t.accuracy * t.examples for t in measured.tested.values()) / examples
        known = [(t.loss, t.examples - t.unknown) for t in measured.tested.values() if t.loss is not None]
        if known:
            found["prequential_loss"] = sum(loss * n for loss, n in known) / sum(n for _, n in known)
    if measured.evaluation is not None:
        found |= _answers("evaluation", measured.evaluation)
        found["evaluation_balanced_accuracy"] = measured.evaluation.balanced_accuracy
        found["cumulative_evaluation_errors"] = float(history.evaluation_errors)
        found["anytime_accuracy"] = 1 - history.evaluation_errors / history.evaluation_examples
    if lost := forgetting(measured, history):
        found["forgetting"] = sum(lost.values()) / len(lost)
        found["worst_forgetting"] = max(lost.values())
    found |= _watched(measured)
    if measured.agreement is not None:
        found["mask_agreement"] = measured.agreement
    if measured.unrounded is not None:
        found["unrounded_validation_accuracy"] = measured.unrounded
    return found | {"dense_flops": float(measured.flops.dense), "sparse_flops": float(measured.flops.sparse)}


def forgetting(measured: Measured, history: History) -> dict[int, float]:
    """Best accuracy ever minus the present one on each past megabatch's validation examples, by number; >= 0."""
    return {
        number: max(0.0, history.best[number] - retained.accuracy)
        for number, retained in sorted(measured.retained.items())
        if number not in measured.new and number in history.best
    }


def report(measured: Measured, history: History) -> dict[str, Any]:
    """The metrics that are many numbers each, as plain JSON values: by class, by megabatch."""
    found: dict[str, Any] = {"prequential": {str(n): tested._asdict() for n, tested in sorted(measured.tested.items())}}
    for name, answers in (("validation", measured.validation), ("evaluation", measured.evaluation)):
        if answers is not None:
            found[f"{name}_by_class"] = _by_class(answers)
    lost = forgetting(measured, history)
    found["megabatches"] = {
        str(number): {"accuracy": retained.accuracy, "examples": retained.examples, "forgotten": lost.get(number)}
        for number, retained in sorted(measured.retained.items())
    }
    found["drift"] = {str(number): drift.document() for number, drift in sorted(measured.drift.items())}
    found["gap"] = measured.gap.document() if measured.gap else None
    return found


def _watched(measured: Measured) -> dict[str, float]:
    """The largest effect of each kind over the new megabatches, how far the gap has risen, and how many alarms."""
    kinds = {"input_drift": "inputs", "label_shift": "labels", "prequential_drop": "accuracy"}
    shifts = {name: [s for drift in measured.drift.values() if (s := getattr(drift, kind))]
              for name, kind in kinds.items()}  # fmt: skip
    found = {name: max(shift.effect for shift in every) for name, every in shifts.items() if every}
    alarms = [shift.alarm for every in shifts.values() for shift in every]
    if measured.gap is not None:
        found["gap_change"] = measured.gap.statistic
        alarms.append(measured.gap.alarm)
    return found | ({"alarms": float(sum(alarms))} if alarms else {})


def _answers(name: str, answers: Evaluation) -> dict[str, float]:
    return {
        f"{name}_accuracy": answers.accuracy,
        f"{name}_loss": answers.loss,
        f"{name}_calibration_error": answers.calibration_error,
    }


def _by_class(answers: Evaluation) -> dict[str, list[Any]]:
    """Examples and accuracy of each class in label order; None where a class has no examples."""
    right, examples = answers.by_class
    share = np.divide(right, examples, out=np.zeros(len(right)), where=examples > 0)
    accuracy = [round(float(s), 6) if n else None for s, n in zip(share, examples, strict=True)]
    return {"examples": examples.tolist(), "accuracy": accuracy}
