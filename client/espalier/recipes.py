"""Recipes: the revisions of a model's recipe, how two differ, and what the next one would do.

Knows: how they are looked at, compared, tried and put in force. Must never know: which options a recipe has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from espalier.records import Record
from espalier.resources import every, made, one
from espalier.transport import Transport, path_of


@dataclass(frozen=True)
class RecipeChange(Record):
    """One choice that differs: JSON pointer, and its values; None also where one recipe has no such key."""

    pointer: str
    before: Any
    after: Any


@dataclass(frozen=True)
class RecipeRevision(Record):
    """One immutable revision of a model's recipe; ``recipe`` is the whole resolved document.

    Attributes:
        changes: what differs from the revision before, on the answer to ``revise``.
        superseded_cycles, queued_cycle: what became of open cycles, on the answer to ``revise``.
    """

    model: str
    revision: int
    digest: str
    recipe: Mapping[str, Any]
    created_at: datetime | None = None
    changes: tuple[RecipeChange, ...] = ()
    superseded_cycles: tuple[int, ...] = ()
    queued_cycle: int | None = None


@dataclass(frozen=True)
class RecipeComparison(Record):
    """What differs between two revisions."""

    before: int
    after: int
    changes: tuple[RecipeChange, ...]


@dataclass(frozen=True)
class PlannedDensity(Record):
    """The density that a schedule plans for after so many more cycles, if no guardrail holds it."""

    cycle: int
    stage: int
    density: float


@dataclass(frozen=True)
class CycleEstimate(Record):
    """What the next cycle may take, scaled from version ``basis``; ``seconds`` is None where nothing is known."""

    seconds: float | None
    checkpoint_bytes: int
    basis: int


@dataclass(frozen=True)
class RecipePreview(Record):
    """What a revision would do: what differs, the densities that it plans, what the next cycle may take.

    Attributes:
        stage, density: where the champion stands.
        target: the schedule's final density.
        planned: from the next cycle on, as far as densities fall.
        estimate: None before the first version.
        superseded_cycles: that would end.
    """

    revision: int
    digest: str
    recipe: Mapping[str, Any]
    changes: tuple[RecipeChange, ...]
    stage: int
    density: float
    target: float
    planned: tuple[PlannedDensity, ...]
    estimate: CycleEstimate | None
    superseded_cycles: tuple[int, ...]


class Recipes:
    """``client.recipes``."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def get(self, name: str, revision: int | None = None) -> RecipeRevision:
        """A revision of a model's recipe; without a number, the one in force."""
        return one(self._http, RecipeRevision, path_of("models", name, "recipe"), revision=revision)

    def list(self, name: str) -> Iterator[RecipeRevision]:
        """Every revision, newest first."""
        return every(self._http, RecipeRevision, path_of("models", name, "recipes"))

    def compare(self, name: str, before: int, after: int) -> RecipeComparison:
        """What differs between two revisions."""
        return one(self._http, RecipeComparison, path_of("models", name, "recipes", before, "diff", after))

    def preview(self, name: str, recipe: Mapping[str, Any]) -> RecipePreview:
        """What a revision would do; changes nothing.

        Args:
            name: of the model.
            recipe: what differs from the recipe in force, or a ``preset`` plus what differs from that.

        Raises:
            ApiProblem: with status 422 for a recipe that cannot work.
        """
        return made(self._http, RecipePreview, path_of("models", name, "recipe", "preview"), {"recipe": dict(recipe)})

    def revise(self, name: str, recipe: Mapping[str, Any], reason: str) -> RecipeRevision:
        """Put the next revision in force; weights, mask and stage stay.

        Raises:
            ApiProblem: with status 422 for a recipe that cannot work, 409 for one that says what is in force.
        """
        body = {"recipe": dict(recipe), "reason": reason}
        return made(self._http, RecipeRevision, path_of("models", name, "recipe"), body)
