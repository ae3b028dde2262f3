"""Scoring: from a criterion to the next mask, and how far two disjoint samples agree on it.

Knows: criteria, samples, distributions, selection. Must never know: schedules, training, or where a sample comes from.

Laws:
    * The scores are taken on the weights as they are in the network that is trained.
    * The counted weights are the planned ones, and the new mask is a subset of the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from app.errors import LearningFailed
from app.learning import criteria
from app.learning.criteria import Tally
from app.learning.distribution import least_kept
from app.learning.mask import Mask, Selection, top_k
from app.learning.recipe import Criterion, Distribution, Stability
from app.learning.running import RunningScores
from app.learning.sensitivity import Minibatches


@dataclass(frozen=True)
class Agreement:
    """How far the masks of two disjoint samples agree: weights that both keep, of those that one keeps.

    Attributes:
        whole: over all layers, in [0, 1].
        layers: by name.
    """

    whole: float
    layers: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The next mask and how it was found.

    Attributes:
        selection: the mask, its threshold, quantiles of the scores.
        agreement: of two disjoint samples; None where the criterion looks at none, or the sample cannot be halved.
        positions: training rows that were scored on, in random order; None where the scores come from training itself.
        remedies: what was done because the halves disagreed, in words.
    """

    selection: Selection
    agreement: Agreement | None
    positions: Tensor | None
    remedies: tuple[str, ...] = field(default=())


@dataclass(frozen=True, eq=False)
class Sample:
    """Training rows to score on.

    Attributes:
        size: how many the recipe asks for.
        order: all training rows, in random order; a sample is its beginning.
        minibatches: positions -> minibatches of (input, labels).
    """

    size: int
    order: Tensor
    minibatches: Callable[[Tensor], Minibatches]

    def __len__(self) -> int:
        """Rows that there are."""
        return len(self.order)


def rank(
    criterion: Criterion,
    distribution: Distribution,
    network: nn.Module,
    prunable: Mapping[str, nn.Parameter],
    mask: Mask,
    planned: int,
    sample: Sample,
    seed: int,
) -> Ranking:
    """Score the network's weights by a criterion and select those to keep.

    A sample is scored in disjoint parts, so that the agreement of its halves is known; what the parts say adds up, so
    each example is gone through once. What is done when the halves disagree is told by ``Stability`` of the recipe.

    Args:
        criterion: of the recipe; not ``taylor``, see ``rank_running``.
        distribution: of the recipe.
        network: on its device; left as it is.
        prunable: its prunable parameters, by name, in the mask's order.
        mask: so far.
        planned: weights to keep.
        sample: rows to score on, for criteria that look at them.
        seed: for criteria that draw.

    Raises:
        TrainingDiverged: when scores are not finite.
        LearningFailed: when the criterion cannot score a sample.
    """

    def scored(positions: Tensor) -> _Scored:
        again = _Again(sample.minibatches, positions)
        return _Scored(criteria.tally(criterion, network, prunable, again, seed), keep, len(positions))

    def keep(scores: Mapping[str, Tensor]) -> Selection:
        return select(scores, distribution, mask, planned)

    stability: Stability | None = getattr(criterion, "stability", None)
    if stability is None:  # the weights alone decide; a row tells the shape of the input
        return Ranking(scored(sample.order[:1]).selection, None, sample.order[:0])
    by_median = stability.remedy == "median" and stability.at_least > 0
    positions = sample.order[: sample.size]
    parts = [scored(part) for part in _parts(positions, stability.parts if by_median else 2)]
    halves = _Halves.of(parts)
    if not _disagree(halves.agreement, stability):
        return Ranking(halves.selection, halves.agreement, positions)
    return _median(parts, halves, positions) if by_median else _grown(halves, stability, sample, scored)


def rank_running(running: RunningScores, distribution: Distribution, mask: Mask, planned: int) -> Ranking:
    """Select the weights to keep by the running scores of training.

    Raises:
        LearningFailed: when no optimizer step was made yet.
    """
    if not running.updates:
        raise LearningFailed("running scores need an optimizer step before the first pruning step: raise epochs")
    selection = select(running.scores(), distribution, mask, planned)
    if running.updates < 2:
        return Ranking(selection, None, None)
    first, second = (select(half, distribution, mask, planned).mask for half in running.halves())
    return Ranking(selection, agreement(first, second), None)


def select(scores: Mapping[str, Tensor], distribution: Distribution, mask: Mask, planned: int) -> Selection:
    """The ``planned`` highest-scoring weights, under the distribution's floors."""
    return top_k(scores, mask, planned, least=least_kept(distribution, mask, planned))


def agreement(first: Mask, second: Mask) -> Agreement:
    """Weights that both masks keep, of those that one keeps (Jaccard); 1 where both keep none."""
    both = {name: int(torch.count_nonzero(kept & second[name])) for name, kept in first.items()}
    kept = zip(first.layers, second.layers, strict=True)
    either = {ours.name: ours.kept + theirs.kept - both[ours.name] for ours, theirs in kept}
    layers = {name: both[name] / either[name] if either[name] else 1.0 for name in both}
    return Agreement(sum(both.values()) / sum(either.values()), layers)


def figures(found: Agreement | None) -> dict[str, Any]:
    """For the audit log."""
    return {} if found is None else {"mask_agreement": found.whole, "mask_agreement_by_layer": dict(found.layers)}


# -- a sample in parts, and what is done when they disagree ------------------------------------------------------------


class _Again:
    """Minibatches of some rows, which can be gone through more than once."""

    def __init__(self, minibatches: Callable[[Tensor], Minibatches], positions: Tensor) -> None:
        self._minibatches, self._positions = minibatches, positions

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._minibatches(self._positions))


class _Scored:
    """What some rows say together, and the weights that they would keep."""

    def __init__(self, tally: Tally, keep: Callable[[Mapping[str, Tensor]], Selection], rows: int) -> None:
        self.tally, self.keep, self.rows = tally, keep, rows

    def __add__(self, other: _Scored) -> _Scored:
        return _Scored(self.tally + other.tally, self.keep, self.rows + other.rows)

    @cached_property
    def selection(self) -> Selection:
        return self.keep(self.tally.scores())


class _Halves:
    """A sample in two halves; the second is None where there is one row alone."""

    def __init__(self, first: _Scored, second: _Scored | None) -> None:
        self.first, self.second = first, second

    @classmethod
    def of(cls, parts: Sequence[_Scored]) -> _Halves:
        middle = (len(parts) + 1) // 2
        first, second = parts[:middle], parts[middle:]
        return cls(reduce(add, first), reduce(add, second) if second else None)

    @cached_property
    def whole(self) -> _Scored:
        return self.first if self.second is None else self.first + self.second

    @cached_property
    def agreement(self) -> Agreement | None:
        if self.second is None:
            return None
        return agreement(self.first.selection.mask, self.second.selection.mask)

    @property
    def selection(self) -> Selection:
        return self.whole.selection

    def with_more(self, new: _Scored) -> _Halves:
        """The new rows are one half and all former ones the other, or they join the second: what is more even."""
        if self.second is None or 2 * new.rows >= self.whole.rows:
            return _Halves(self.whole, new)
        return _Halves(self.first, self.second + new)


def _parts(positions: Tensor, count: int) -> Sequence[Tensor]:
    return positions.tensor_split(max(1, min(count, len(positions))))


def _disagree(found: Agreement | None, stability: Stability) -> bool:
    if found is None or stability.at_least == 1:
        return stability.at_least > 0
    return found.whole < stability.at_least


def _grown(halves: _Halves, stability: Stability, sample: Sample, scored: Callable[[Tensor], _Scored]) -> Ranking:
    """Double the sample until its halves agree or every row is scored; former rows are not scored again."""
    before, size, was = halves.whole.rows, halves.whole.rows, halves.agreement
    while size < len(sample) and _disagree(halves.agreement, stability):
        halves = halves.with_more(scored(sample.order[size : 2 * size]))
        size = halves.whole.rows
    if size == before:
        done = f"the sample holds all {size} training examples and cannot grow: agreement {_said(was)}"
    else:
        done = f"the sample grew from {before} to {size} examples: agreement {_said(was)} -> {_said(halves.agreement)}"
    return Ranking(halves.selection, halves.agreement, sample.order[:size], (done,))


def _median(parts: Sequence[_Scored], halves: _Halves, positions: Tensor) -> Ranking:
    """Rank by the median of the parts' scores; the agreement is that of the medians of two disjoint groups of parts."""
    scores, keep, middle = [part.tally.scores() for part in parts], parts[0].keep, (len(parts) + 1) // 2
    found = None
    if len(parts) > 1:
        found = agreement(*(keep(median(group)).mask for group in (scores[:middle], scores[middle:])))
    done = f"the median of {len(parts)} parts of the sample was taken: agreement {_said(halves.agreement)}"
    return Ranking(keep(median(scores)), found, positions, (f"{done} -> {_said(found)}",))


def median(scores: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Median of each weight's scores; of an even number of them the mean of the middle two."""
    low, high = (len(scores) - 1) // 2, len(scores) // 2
    ranked = {name: torch.stack([each[name] for each in scores]).sort(dim=0).values for name in scores[0]}
    return {name: (values[low] + values[high]) / 2 for name, values in ranked.items()}


def _said(found: Agreement | None) -> str:
    return "unknown" if found is None else f"{found.whole:.2f}"
