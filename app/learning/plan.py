"""The plan of a cycle: what it pins, and all that follows from that alone.

Knows: the input of a cycle; stage, seeds, split, normalisation and rows that follow from it. Must never know: how far a
cycle has come, or anything that training changed.

Laws:
    * The same input gives the same plan, on every resume.
    * Training and validation rows are disjoint by example id, so duplicates fall on one side. Where an epoch is
      selected on validation, the verdict uses the half that was not selected on.
    * No example of the evaluation set is trained on, selected on or counted into the normalisation, whichever megabatch
      holds it.
    * A parent that knows fewer classes than there are is grown; the champion answers with the classes that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.domain import Digest, InputSpec
from app.errors import InvalidInputSpec, InvalidWeights, NothingToTrain
from app.learning import replay
from app.learning.architectures import Factory, build, load_strictly
from app.learning.evaluation import Evaluation, evaluate
from app.learning.features import check_features, features_of, losses_of
from app.learning.history import History, Hold
from app.learning.late_classes import grown
from app.learning.mask import Mask
from app.learning.metrics import Retained
from app.learning.moments import Moments
from app.learning.normalisation import (
    NormalisationState,
    Preparation,
    initial_state,
    is_running,
    moments_of,
    network_shape,
    state_of,
)
from app.learning.recipe import Recipe
from app.learning.replay import Buffer
from app.learning.rows import Examples, Rows
from app.learning.schedules import Standing, Step, advance
from app.learning.seeds import permutation, seed_for
from espalier.formats.canonical import sha256_digest
from espalier.formats.megabatch import is_validation

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Parent:
    """The version that a cycle starts from.

    Attributes:
        arrays: every tensor of its network's ``state_dict``.
        masks: boolean, of its prunable tensors.
        stage, depth: pruning cycles, and cycles, in its ancestry.
        normalisation: its statistics, if any.
        history: what its lineage remembers.
        classes: how many it knows, the first ones of the input's; None: all of them.
    """

    arrays: Arrays
    masks: Mapping[str, npt.NDArray[np.bool_]]
    stage: int
    depth: int
    normalisation: NormalisationState | None
    history: History = field(default_factory=History)
    classes: int | None = None


@dataclass(frozen=True, eq=False)
class CycleInput:
    """Everything that a cycle pins when it is claimed.

    Attributes:
        recipe: every choice that changes the numbers.
        input: complete input specification.
        parent: the champion; None in the first cycle of a fresh network.
        attempt: retries with changed options; resumes do not count.
        megabatches: new ones, and old ones that are replayed or whose validation examples are still asked.
        new: numbers of those that no ancestor trained on.
        untested: numbers of new ones that no champion has been tested on.
        replay: rows of old megabatches that are in the parent's replay buffer, by number: (n,) bool.
        pinned: numbers of megabatches that policies replay whatever else they choose.
        evaluation: a fixed labelled set that is never trained on, if the model has one.
        holds: guardrails that hold pruning since they tripped on a version that was withheld; they stand for those in
            the parent's history.
        hold: why density is to be held in this cycle alone, if it is.
        scale: share of the planned pruning step to take, in [0, 1].
        initial: weights to start from when there is no parent, strictly loaded.
        architecture: the user's factory, for the network ``custom``.
    """

    recipe: Recipe
    input: InputSpec
    parent: Parent | None
    attempt: int
    megabatches: Sequence[Examples]
    new: frozenset[int]
    untested: frozenset[int]
    replay: Buffer = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()
    evaluation: Examples | None = None
    holds: tuple[Hold, ...] = ()
    hold: str | None = None
    scale: float = 1.0
    initial: Arrays | None = None
    architecture: Factory | None = None

    @property
    def history(self) -> History:
        """What the lineage remembers before this cycle, and what holds pruning in it."""
        before = self.parent.history if self.parent else History()
        return replace(before, holds=self.holds) if self.holds else before


class Plan:
    """What follows from the input alone: stage, seeds, split, rows. The same on every resume."""

    def __init__(self, given: CycleInput, device: torch.device) -> None:
        if not given.input.complete:
            raise InvalidInputSpec("the input is not complete: shape, dtype, classes and normalisation must be known")
        self.device, self.recipe = device, given.recipe
        self.depth = given.parent.depth + 1 if given.parent else 1
        self._attempt, self._champion = given.attempt, given.parent
        self.given = with_late_classes(given, self.seed("initial-weights"))
        self._by_number = {examples.number: examples for examples in given.megabatches}
        self.buffer = replay.pool(given.replay, given.pinned, given.new, {e.number: len(e) for e in given.megabatches})
        self.trained = tuple(sorted(self.buffer))
        self._replayed = [self._by_number[number] for number in self.trained]
        self._free = [~_within(examples, given.evaluation) for examples in self._replayed]
        self._held_out = [
            self.held_out(examples) & free for examples, free in zip(self._replayed, self._free, strict=True)
        ]
        self.moments = self._moments()
        self.normalisation = self._statistics()
        chosen = [self.buffer[number] & rows for number, rows in zip(self.trained, self._trainable, strict=True)]
        self.training = self._rows(self._replayed, chosen, self.normalisation)
        if not len(self.training):
            raise NothingToTrain("no training examples are left: upload more, or lower validation_share")
        self.selection, self._verdict_half, self.notes = self._halves()

    def step(self, mask: Mask, hold: str | None = None) -> Step:
        """What this cycle does to the density of ``mask``, the one that it starts under.

        Args:
            mask: as the parent left it.
            hold: why density is to be held by what has arrived, if it is.
        """
        parent, history = self.given.parent, self.given.history
        arrived = history.arrived + sum(len(self._by_number[number]) for number in self.given.new)
        standing = Standing(parent.stage if parent else 0, mask.kept, mask.total, arrived, history)
        return advance(
            self.recipe.schedule, standing, hold=self.given.hold or history.held or hold, scale=self.given.scale
        )

    def order(self, epoch: int) -> Tensor:
        """Positions of the training rows in the order in which an epoch shows them."""
        rows, reading = self.training, self.recipe.training.reading
        new = np.repeat([number in self.given.new for number in self.trained], np.diff(rows.bounds)[:, 0])
        share, seed = self.recipe.replay.new_share, self.seed(f"epoch-{epoch}")
        return replay.epoch_order(new, share, seed, reading, rows.bounds, rows.row_bytes)

    @property
    def subject(self) -> dict[str, Any]:
        """What a snapshot of this cycle must agree with."""
        return {
            "recipe": self.recipe.digest,
            "depth": self.depth,
            "attempt": self.given.attempt,
            "megabatches": sorted(self._by_number),
            "new": sorted(self.given.new),
            "pinned": sorted(self.given.pinned),
            "evaluation": len(self.given.evaluation) if self.given.evaluation is not None else None,
            "classes": len(self.given.input.classes or ()),
            "holds": [asdict(hold) for hold in self.given.history.holds],
            "hold": self.given.hold,
            "scale": self.given.scale,
        }

    def seed(self, purpose: str) -> int:
        """The seed for one random choice of this cycle."""
        return seed_for(self.recipe.seed, self.depth, self._attempt, purpose)

    def network(self) -> nn.Module:
        """The network that this cycle starts from: the parent's, the initial weights', or a fresh one."""
        return starting_network(self.given, self.seed("initial-weights"), self.device)

    def champion(self, start: nn.Module | None = None) -> nn.Module:
        """The parent's network as its clients have it, with the classes that it knows.

        Args:
            start: the network that this cycle starts from, not trained yet: the very same, unless classes came late.
        """
        assert self._champion is not None and self.given.input.classes is not None
        classes = self.given.input.classes[: self._champion.classes]
        if start is not None and classes == self.given.input.classes:
            return start
        given = replace(self.given, parent=self._champion, input=replace(self.given.input, classes=classes))
        return starting_network(given, self.seed("initial-weights"), self.device)

    @property
    def left_out(self) -> int:
        """Examples of the megabatches that are trained on which are left out, since the evaluation set holds them."""
        return sum(int(rows.sum()) for rows in self.unused.values())

    def megabatch(self, number: int) -> Rows:
        """All rows of one megabatch, as the parent's clients normalise them."""
        examples = self._by_number[number]
        everything = np.ones(len(examples), dtype=np.bool_)
        return self._rows([examples], [everything], self._parents_normalisation, hold=False)

    def sample(self, size: int, purpose: str) -> Tensor:
        """Positions of ``size`` random training rows, in random order."""
        return permutation(len(self.training), self.seed(purpose))[:size]

    @cached_property
    def every_digest(self) -> Digest:
        """``ids_digest`` of all training rows."""
        return ids_digest(self.training.ids)

    @property
    def sample_size(self) -> int:
        """How many training rows the criterion's sample holds: a share of the newest megabatch's size; 0 for none."""
        share = getattr(self.recipe.criterion, "sample", 0.0)
        return max(1, round(share * len(self._replayed[-1]))) if share else 0

    def examples(self, number: int) -> Examples:
        """One megabatch."""
        return self._by_number[number]

    def past(self, newest: int) -> list[Examples]:
        """The newest megabatches at hand that an ancestor took in, oldest first."""
        old = (examples for examples in self.given.megabatches if examples.number not in self.given.new)
        return sorted(old, key=lambda examples: examples.number)[-newest:]

    def held_out(self, examples: Examples) -> npt.NDArray[np.bool_]:
        """Which examples of a megabatch are never trained on: (n,) bool."""
        return is_validation(np.asarray(examples.ids), self.recipe.validation_share)

    def drawn(
        self, megabatches: Sequence[Examples], eligible: Sequence[npt.NDArray[np.bool_]], size: int, purpose: str
    ) -> Rows:
        """At most ``size`` random rows of those that are ``eligible``, as the parent's clients normalise them."""
        every = np.concatenate(eligible)
        there = np.flatnonzero(every)
        chosen = np.zeros(len(every), dtype=np.bool_)
        chosen[there[permutation(len(there), self.seed(purpose))[:size].numpy()]] = True
        parts = np.split(chosen, np.cumsum([len(mask) for mask in eligible])[:-1])
        return self._rows(megabatches, parts, self._parents_normalisation, hold=False)

    def next_buffer(self, network: nn.Module, pulse: Callable[[], None]) -> dict[int, npt.NDArray[np.bool_]]:
        """What is replayed after this cycle, as the policy chooses with the trained ``network``."""
        rows = self.training
        numbers = np.asarray(self.trained)[rows.source]
        free = np.flatnonzero(~np.isin(numbers, sorted(self.given.pinned)))
        candidates = replay.Candidates(
            megabatch=numbers[free], row=rows.row[free], labels=rows.labels[free], ids=rows.ids[free],
            row_bytes=rows.row_bytes, seed=self.recipe.seed, depth=self.depth,
            features=lambda chosen: features_of(network, self.recipe.network, rows, free[chosen], pulse),
            losses=lambda: losses_of(network, rows, free, pulse),
        )  # fmt: skip
        kept = np.zeros(len(rows), dtype=np.bool_)
        kept[free] = replay.POLICIES[self.recipe.replay](self.recipe.replay, candidates)
        return rows.by_megabatch(kept, self.trained)

    def composition(self, buffer: Buffer) -> dict[str, Any]:
        """What ``next_buffer`` is made of, as plain JSON values."""
        labels = {number: np.asarray(self._by_number[number].y) for number in buffer}
        rows = self.training
        return replay.composition(self.recipe.replay, buffer, labels, rows.classes, rows.row_bytes)

    def answers(self, network: nn.Module, rows: Rows, pulse: Callable[[], None]) -> Evaluation | None:
        """How a network answers some rows; None when there are none."""
        return evaluate(network, rows, pulse) if len(rows) else None

    def champion_answers(self, pulse: Callable[[], None]) -> Evaluation | None:
        """How the champion, normalised its own way, answers the verdict's rows; None without rows or champion."""
        if self.given.parent is None:
            return None
        rows = self._validation(self._verdict_half, self._parents_normalisation)
        return self.answers(self.champion(), rows, pulse)

    @property
    def verdict(self) -> Rows:
        """Validation rows that no epoch was selected on."""
        return self._validation(self._verdict_half, self.normalisation)

    @property
    def evaluation(self) -> Rows:
        """The evaluation set, whole; empty when the model has none."""
        given = [self.given.evaluation] if self.given.evaluation is not None else []
        return self._rows(given, [np.ones(len(e), dtype=np.bool_) for e in given], self.normalisation, hold=False)

    @cached_property
    def asked(self) -> Rows:
        """The validation rows of every megabatch that is there, those that an epoch was selected on too."""
        held = [self.held_out(examples) for examples in self.megabatches]
        return self._rows(self.megabatches, held, self.normalisation, hold=False)

    def retained(self, answers: Evaluation | None) -> dict[int, Retained]:
        """What a network knows of each megabatch by its answers to ``asked``, by number; those without are absent."""
        if answers is None:
            return {}
        right, source = answers.correct, self.asked.source
        sources = [(examples.number, source == index) for index, examples in enumerate(self.megabatches)]
        return {n: Retained(int(right[here].sum()), int(here.sum())) for n, here in sources if here.any()}

    @property
    def megabatches(self) -> list[Examples]:
        """All that are there, by number."""
        return sorted(self.given.megabatches, key=lambda examples: examples.number)

    @property
    def unused(self) -> dict[int, npt.NDArray[np.bool_]]:
        """Rows that would be trained on if the evaluation set did not hold them, by number: (n,) bool."""
        return {number: self.buffer[number] & ~free for number, free in zip(self.trained, self._free, strict=True)}

    @property
    def _trainable(self) -> list[npt.NDArray[np.bool_]]:
        """Rows of each megabatch that are neither held out nor in the evaluation set."""
        return [~held & free for held, free in zip(self._held_out, self._free, strict=True)]

    @property
    def _parents_normalisation(self) -> NormalisationState | None:
        return self.given.parent.normalisation if self.given.parent else None

    def _halves(self) -> tuple[Rows | None, int | None, tuple[str, ...]]:
        """Rows to choose the epoch on (None: keep the last), which half the verdict uses (None: all), and notes."""
        both = self._validation(None, self.normalisation)
        if not len(both):
            return None, None, ("there are no validation examples: nothing was compared, and the last epoch was kept",)
        if self.recipe.training.select == "last":
            return None, None, ()
        odd = int((both.ids & np.uint64(1)).sum())
        if 0 < odd < len(both):
            return self._validation(0, self.normalisation), 1, ()
        note = f"the {len(both)} validation examples are too few to halve: the epoch was selected on the verdict's own"
        return both, None, (note,)

    def _validation(self, half: int | None, state: NormalisationState | None) -> Rows:
        """Validation rows; of a half, by the lowest bit of the example's id (the split itself goes by the highest)."""
        chosen = [
            held if half is None else held & ((np.asarray(examples.ids) & np.uint64(1)) == half)
            for examples, held in zip(self._replayed, self._held_out, strict=True)
        ]
        return self._rows(self._replayed, chosen, state)

    def _rows(
        self, megabatches: Sequence[Examples], chosen: Sequence[npt.NDArray[np.bool_]],
        state: NormalisationState | None, hold: bool = True,
    ) -> Rows:  # fmt: skip
        prepare = Preparation(self.given.input, state, self.recipe.network, self.device)
        classes = len(self.given.input.classes or ())
        return Rows(megabatches, chosen, prepare, device=self.device, classes=classes, hold=hold)

    def _moments(self) -> Moments | None:
        """Of all training rows that the lineage has taken in, this cycle's new ones included; None unless running."""
        if not is_running(self.given.input):
            return None
        before, found = self.given.history.moments, self._of_training(self.given.new)
        now = moments_of(self.given.input, found.stored) if len(found) else None
        return before.merged(now) if before and now else before or now

    def _statistics(self) -> NormalisationState | None:
        """Running ones; else the parent's; before there are any, those of the first megabatch's training rows."""
        if self.moments is not None:
            return state_of(self.moments)
        if self._parents_normalisation is not None:
            return self._parents_normalisation
        for number in self.trained:
            if len(rows := self._of_training({number})):
                return initial_state(self.given.input, rows.stored)
        raise NothingToTrain("no training examples are left: upload more, or lower validation_share")

    def _of_training(self, numbers: Container[int]) -> Rows:
        """All training rows of some of the megabatches that are trained on."""
        everything = zip(self.trained, self._replayed, self._trainable, strict=True)
        found = [(examples, rows) for number, examples, rows in everything if number in numbers]
        return self._rows([each for each, _ in found], [rows for _, rows in found], None, hold=False)


def with_late_classes(given: CycleInput, seed: int) -> CycleInput:
    """The same input; a parent that knows fewer classes than there are is given rows for the others.

    Args:
        seed: of the fresh network that new rows are taken from.
    """
    parent, now = given.parent, len(given.input.classes or ())
    if parent is None or parent.classes in (None, now):
        return given
    fresh = starting_network(replace(given, parent=None, initial=None), seed, torch.device("cpu"))
    rows = {name: tensor.numpy() for name, tensor in fresh.state_dict().items()}
    kept = {name: np.ones(array.shape, dtype=np.bool_) for name, array in rows.items()}
    arrays, masks = (grown(old, new, parent.classes, now) for old, new in ((parent.arrays, rows), (parent.masks, kept)))
    return replace(given, parent=replace(parent, arrays=arrays, masks=masks, classes=now))


def starting_network(given: CycleInput, seed: int, device: torch.device) -> nn.Module:
    """The network that a cycle starts from.

    Raises:
        InvalidRecipe: when ``network.features`` names no module of the network.
        InvalidWeights: when the parent's arrays, or the initial weights, are not exactly the network's tensors.
    """
    assert given.input.shape is not None
    shape = network_shape(given.input.shape, given.recipe.network)
    classes = len(given.input.classes or ())
    network = build(given.recipe.network, shape, classes, seed=seed, device=device, factory=given.architecture)
    check_features(network, given.recipe.network, shape)
    whose, arrays = ("the parent's", given.parent.arrays) if given.parent else ("the initial", given.initial)
    if arrays is not None:
        faults = load_strictly(network, arrays)
        faults += [f"{name} is not finite" for name, value in arrays.items() if not faults and not is_finite(value)]
        if faults:
            more = f", and {len(faults) - 8} more" if len(faults) > 8 else ""
            name = given.recipe.network.name
            raise InvalidWeights(f"{whose} weights do not fit the network {name}: {', '.join(faults[:8])}{more}")
    return network


def _within(examples: Examples, evaluation: Examples | None) -> npt.NDArray[np.bool_]:
    """Which of these examples the evaluation set holds too: (n,) bool."""
    if evaluation is None:
        return np.zeros(len(examples), dtype=np.bool_)
    return np.asarray(np.isin(np.asarray(examples.ids), np.asarray(evaluation.ids)))


def ids_digest(ids: npt.NDArray[np.uint64]) -> Digest:
    """One digest for a set of examples, whatever their order: over their ids, ascending, big-endian."""
    return sha256_digest(np.sort(ids).astype(">u8").tobytes())


def is_finite(values: npt.NDArray[Any]) -> bool:
    """Whether no value is infinite or NaN."""
    return bool(np.isfinite(values).all()) if np.issubdtype(np.asarray(values).dtype, np.floating) else True
