"""Drift: whether two samples differ by more than chance, and by more than matters.

Knows: two-sample tests on inputs, class counts and right answers. Must never know: where a sample comes from, or what
an alarm does.

Laws:
    * An alarm needs both: a p-value of ``1 - confidence`` at most, and an effect above ``at_most``. With many examples
      any difference is significant, with few any looks large.
    * The p-value of many features is that of the most drifted one times their number (Bonferroni), so ``confidence``
      holds for the megabatch as a whole.
    * Distributions are scipy's, or exact (``statistics``). Figures are plain JSON values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from app.learning.statistics import fisher

_AT_ONCE = 64
"""Features whose values are sorted at a time."""

LISTED = 8
"""Features that a figure names, the most drifted first."""

FloatArray = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shift:
    """How far one sample lies from another.

    Attributes:
        statistic: of the test.
        p_value: probability of such a statistic, or a larger one, if both came from one source.
        effect: how large the difference is, in [0, 1], whatever the number of examples.
        alarm: whether it is neither chance nor small.
        examples, reference: how many were compared with how many.
    """

    statistic: float
    p_value: float
    effect: float
    alarm: bool
    examples: int
    reference: int

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Feature:
    """One feature: its place in the flattened input or embedding, its Kolmogorov-Smirnov distance and p-value."""

    index: int
    effect: float
    p_value: float


@dataclass(frozen=True)
class InputShift(Shift):
    """How far inputs lie from those of the past.

    Attributes:
        of: ``features``, as they are stored, or ``embedding``: what the network's last layer sees.
        features: the most drifted ones, first of all the one that the figures are of.
        width: how many features there are.
    """

    of: str
    features: tuple[Feature, ...]
    width: int


def input_shift(reference: FloatArray, now: FloatArray, *, of: str, at_most: float, confidence: float) -> InputShift:
    """Two-sample Kolmogorov-Smirnov test of each feature (two-sided, asymptotic p-values; ties make them larger).

    Args:
        reference, now: (m, features) and (n, features), both with at least two rows and one column.
        of: what the features are.
        at_most: accepted distance between two distribution functions, in [0, 1].
        confidence: that a larger one is not chance.
    """
    distance, width = _distances(reference, now), now.shape[1]
    first = np.lexsort((np.arange(width), -distance))[:LISTED]
    rows = round(len(now) * len(reference) / (len(now) + len(reference)))
    chance = np.minimum(1.0, stats.kstwo.sf(distance[first], rows) * width)
    most = tuple(Feature(int(i), float(distance[i]), float(p)) for i, p in zip(first, chance, strict=True))
    effect, p_value = most[0].effect, most[0].p_value
    return InputShift(
        statistic=effect, p_value=p_value, effect=effect, alarm=_alarm(effect, p_value, at_most, confidence),
        examples=len(now), reference=len(reference), of=of, features=most, width=width,
    )  # fmt: skip


def label_shift(reference: Counts, now: Counts, *, at_most: float, confidence: float) -> Shift:
    """Pearson's chi-square test of two class histograms; the effect is their total variation distance.

    Args:
        reference, now: (classes,) examples of each class, at least one in each of them.
        at_most: accepted distance: the share of examples that would have to change their class.
        confidence: that a larger one is not chance.
    """
    both = np.stack([reference, now])
    there = both[:, both.sum(axis=0) > 0]
    effect = float(np.abs(reference / reference.sum() - now / now.sum()).sum() / 2)
    statistic, p_value = 0.0, 1.0
    if there.shape[1] > 1:
        found = stats.chi2_contingency(there, correction=False)
        statistic, p_value = float(found.statistic), float(found.pvalue)
    alarm = _alarm(effect, p_value, at_most, confidence)
    return Shift(statistic, p_value, effect, alarm, int(now.sum()), int(reference.sum()))


def accuracy_shift(
    right: int, examples: int, right_before: int, examples_before: int, *, at_most: float, confidence: float
) -> Shift:
    """One-sided exact test (Fisher) of fewer right answers than before; the effect is the drop of the accuracy.

    Args:
        right, examples: right answers now, of so many.
        right_before, examples_before: right answers before, of so many.
        at_most: accepted drop.
        confidence: that a larger one is not chance.
    """
    effect = max(0.0, right_before / examples_before - right / examples)
    p_value = fisher(right, examples, right_before, examples_before)
    alarm = _alarm(effect, p_value, at_most, confidence)
    return Shift(right / examples, p_value, effect, alarm, examples, examples_before)


def _distances(reference: FloatArray, now: FloatArray) -> npt.NDArray[np.float64]:
    """Kolmogorov-Smirnov distance of each feature: (features,); what ``scipy.stats.ks_2samp`` gives for one of them."""
    n, m, width = len(now), len(reference), now.shape[1]
    found = np.empty(width)
    for start in range(0, width, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        both = np.concatenate([now[:, part], reference[:, part]])
        order = both.argsort(axis=0, kind="stable")
        values = np.take_along_axis(both, order, axis=0)
        ahead = np.where(order < n, m, -n).cumsum(axis=0)  # n * m times the difference of the distribution functions
        tied = np.concatenate([values[1:] == values[:-1], np.zeros((1, values.shape[1]), dtype=np.bool_)])
        found[part] = np.where(tied, 0, np.abs(ahead)).max(axis=0) / (n * m)
    return found


def _alarm(effect: float, p_value: float, at_most: float, confidence: float) -> bool:
    return effect > at_most and p_value <= 1 - confidence


@dataclass(frozen=True)
class Drift:
    """How far one megabatch lies from the past; what is not watched, or could not be compared, is None.

    Attributes:
        inputs: of its examples.
        labels: of its classes.
        accuracy: of the champion on it, before anything was learned from it, below its validation accuracy.
    """

    inputs: InputShift | None = None
    labels: Shift | None = None
    accuracy: Shift | None = None

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        document = asdict(self)
        if self.inputs is not None:
            document["inputs"]["features"] = list(document["inputs"]["features"])
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Drift:
        """What ``document`` gave, or what JSON made of it."""
        inputs, labels, accuracy = (document[name] for name in ("inputs", "labels", "accuracy"))
        if inputs is not None:
            inputs = InputShift(**inputs | {"features": tuple(Feature(**each) for each in inputs["features"])})
        return cls(inputs, *(None if each is None else Shift(**each) for each in (labels, accuracy)))
