"""The plan of a cycle: what it pins, and all that follows from that alone.

Knows: the input of a cycle; stage, seeds, split, normalisation and rows that follow from it. Must never know: how far a
cycle has come, or anything that training changed.

Laws:
    * The same input gives the same plan, on every resume.
    * Training and validation rows are disjoint by example id, so duplicates fall on one side. Where an epoch is
      selected on validation, the verdict uses the half that was not selected on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.domain import InputSpec
from app.errors import InvalidInputSpec, InvalidWeights, NothingToTrain
from app.learning.architectures import Factory, build, load_strictly
from app.learning.normalisation import NormalisationState, Preparation, initial_state, network_shape
from app.learning.recipe import Recipe, Snip
from app.learning.replay import assign
from app.learning.rows import Examples, Rows
from app.learning.schedules import advances, density_at
from app.learning.seeds import permutation, seed_for
from app.learning.training import Evaluation, evaluate
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
    """

    arrays: Arrays
    masks: Mapping[str, npt.NDArray[np.bool_]]
    stage: int
    depth: int
    normalisation: NormalisationState | None


@dataclass(frozen=True, eq=False)
class CycleInput:
    """Everything that a cycle pins when it is claimed.

    Attributes:
        recipe: every choice that changes the numbers.
        input: complete input specification.
        parent: the champion; None in the first cycle of a fresh network.
        attempt: retries with changed options; resumes do not count.
        megabatches: old and new ones.
        new: numbers of those that no ancestor trained on.
        untested: numbers of new ones that no champion has been tested on.
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
    initial: Arrays | None = None
    architecture: Factory | None = None


class Plan:
    """What follows from the input alone: stage, seeds, split, rows. The same on every resume."""

    def __init__(self, given: CycleInput, device: torch.device) -> None:
        if not given.input.complete:
            raise InvalidInputSpec("the input is not complete: shape, dtype, classes and normalisation must be known")
        self.given, self.device, self.recipe = given, device, given.recipe
        parent = given.parent
        self.depth = parent.depth + 1 if parent else 1
        self.stage = (parent.stage if parent else 0) + advances(self.recipe.schedule)
        self.target_density = density_at(self.recipe.schedule, self.stage)
        numbers = {examples.number for examples in given.megabatches}
        self.assignments = assign(self.recipe.replay, numbers - given.new, given.new)
        self._by_number = {examples.number: examples for examples in given.megabatches}
        self._replayed = [self._by_number[number] for number in self.assignments]
        self._held_out = [is_validation(examples.ids, self.recipe.validation_share) for examples in self._replayed]
        self.normalisation = self._statistics()
        self.training = self._rows(self._replayed, [~held for held in self._held_out], self.normalisation)
        if not len(self.training):
            raise NothingToTrain("no training examples are left: upload more, or lower validation_share")
        self.selection, self._verdict_half, self.notes = self._halves()

    @property
    def subject(self) -> dict[str, Any]:
        """What a snapshot of this cycle must agree with."""
        return {
            "recipe": self.recipe.digest,
            "depth": self.depth,
            "attempt": self.given.attempt,
            "megabatches": sorted(self._by_number),
            "new": sorted(self.given.new),
        }

    def seed(self, purpose: str) -> int:
        """The seed for one random choice of this cycle."""
        return seed_for(self.recipe.seed, self.depth, self.given.attempt, purpose)

    def network(self) -> nn.Module:
        """The network that this cycle starts from: the parent's, the initial weights', or a fresh one."""
        return starting_network(self.given, self.seed("initial-weights"), self.device)

    def megabatch(self, number: int) -> Rows:
        """All rows of one megabatch, as the parent's clients normalise them."""
        examples = self._by_number[number]
        everything = np.ones(len(examples), dtype=np.bool_)
        return self._rows([examples], [everything], self._parents_normalisation, hold=False)

    def sample(self) -> Tensor:
        """Positions of the training rows to score on, in order: a random share of the newest megabatch's size."""
        if not isinstance(self.recipe.criterion, Snip):
            return torch.empty(0, dtype=torch.int64)
        size = max(1, round(self.recipe.criterion.sample * len(self._replayed[-1])))
        return permutation(len(self.training), self.seed("scores"))[:size].sort().values

    def candidate_answers(self, network: nn.Module, pulse: Callable[[], None]) -> Evaluation | None:
        """How the trained network answers the validation rows of the verdict; None when there are none."""
        held_out = self._validation(self._verdict_half, self.normalisation)
        return evaluate(network, held_out, pulse) if len(held_out) else None

    def champion_answers(self, pulse: Callable[[], None]) -> Evaluation | None:
        """How the champion, normalised its own way, answers the same rows; None when there are none, or no champion."""
        if self.given.parent is None:
            return None
        held_out = self._validation(self._verdict_half, self._parents_normalisation)
        return evaluate(self.network(), held_out, pulse) if len(held_out) else None

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
            held if half is None else held & ((examples.ids & np.uint64(1)) == half)
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

    def _statistics(self) -> NormalisationState | None:
        """The parent's statistics; before there are any, those of the first megabatch's training rows."""
        if self._parents_normalisation is not None:
            return self._parents_normalisation
        for examples, held in zip(self._replayed, self._held_out, strict=True):
            if not held.all():
                return initial_state(self.given.input, self._rows([examples], [~held], None, hold=False).stored)
        raise NothingToTrain("no training examples are left: upload more, or lower validation_share")


def starting_network(given: CycleInput, seed: int, device: torch.device) -> nn.Module:
    """The network that a cycle starts from.

    Raises:
        InvalidWeights: when the parent's arrays, or the initial weights, are not exactly the network's tensors.
    """
    assert given.input.shape is not None
    shape = network_shape(given.input.shape, given.recipe.network)
    classes = len(given.input.classes or ())
    network = build(given.recipe.network, shape, classes, seed=seed, device=device, factory=given.architecture)
    whose, arrays = ("the parent's", given.parent.arrays) if given.parent else ("the initial", given.initial)
    if arrays is not None:
        faults = load_strictly(network, arrays)
        faults += [f"{name} is not finite" for name, value in arrays.items() if not faults and not is_finite(value)]
        if faults:
            more = f", and {len(faults) - 8} more" if len(faults) > 8 else ""
            name = given.recipe.network.name
            raise InvalidWeights(f"{whose} weights do not fit the network {name}: {', '.join(faults[:8])}{more}")
    return network


def is_finite(values: npt.NDArray[Any]) -> bool:
    """Whether no value is infinite or NaN."""
    return bool(np.isfinite(values).all()) if np.issubdtype(np.asarray(values).dtype, np.floating) else True
