"""Recipes: revisions, how two differ, and what one would do.

Knows: how they look on the wire. Must never know: which options a recipe has.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, Field

from app import domain
from app.api.schemas.models import RecipeDocument
from app.api.schemas.wire import OTHER_DIGEST, TIME, Asked, Digest, Page, Time, example
from app.service import recipes

_RECIPE = {"seed": 0, "network": {"name": "mlp", "hidden": [128, 128]}}
_REVISION = {"model": "gas-sensors", "revision": 2, "digest": OTHER_DIGEST, "recipe": _RECIPE, "created_at": TIME}
_CHANGE = {"pointer": "/schedule/target", "before": 0.1, "after": 0.2}
_WHAT = (
    "What differs from the recipe in force, or a `preset` plus what differs from that. `network`, `initial_weights` "
    "and `validation_share` stay."
)


class RecipePreviewed(Asked):
    """A revision to look at before it is put in force."""

    model_config = example({"recipe": {"schedule": {"target": 0.2}}})

    recipe: dict[str, Any] = Field(description=_WHAT)


class NewRecipe(Asked):
    """A revision to put in force, and why."""

    model_config = example({"recipe": {"schedule": {"target": 0.2}}, "reason": "10 % costs too much on class 3"})

    recipe: dict[str, Any] = Field(description=_WHAT)
    reason: str = Field(description="In words, for the audit log.", min_length=1, max_length=2000)


class RecipeChange(BaseModel):
    """One choice that differs."""

    model_config = example(_CHANGE)

    pointer: str = Field(description="JSON pointer into the recipe.")
    before: Any = Field(description="Its value before; null also where it was not there.")
    after: Any = Field(description="Its value after; null also where it is not there.")

    @classmethod
    def from_domain(cls, change: recipes.Change) -> Self:
        """From the service's value."""
        return cls(pointer=change.pointer, before=change.before, after=change.after)


class RecipeRevision(BaseModel):
    """One immutable revision of a model's recipe."""

    model_config = example(_REVISION)

    model: str = Field(description="Name of the model.")
    revision: int = Field(description="Counted from 1; the newest is in force.")
    digest: Digest = Field(description="Digest of the recipe; it stands in every version made by it.")
    recipe: RecipeDocument = Field(description="The whole resolved recipe.")
    created_at: Time = Field(description="When it was put in force.")

    @classmethod
    def from_domain(cls, found: domain.RecipeRevision) -> Self:
        """From the domain's value."""
        return cls(
            model=found.model,
            revision=found.revision,
            digest=found.digest,
            recipe=dict(found.document),
            created_at=found.created_at,
        )


class RecipeRevisions(Page[RecipeRevision]):
    """Revisions, newest first."""


class RecipeComparison(BaseModel):
    """What differs between two revisions."""

    model_config = example({"before": 1, "after": 2, "changes": [_CHANGE]})

    before: int = Field(description="A revision.")
    after: int = Field(description="The other one.")
    changes: list[RecipeChange] = Field(description="Every choice that differs; lists are compared whole.")


class PlannedDensity(BaseModel):
    """The density that the schedule plans for after so many more cycles."""

    model_config = example({"cycle": 1, "stage": 6, "density": 0.225})

    cycle: int = Field(description="How many cycles from now.")
    stage: int = Field(description="Pruning cycles in the version's ancestry by then.")
    density: float = Field(description="Share of prunable weights kept, if no guardrail holds it.")


class CycleEstimate(BaseModel):
    """What the next cycle may take, scaled from the version that it starts from. An estimate, no promise."""

    model_config = example({"seconds": 9.5, "checkpoint_bytes": 26112, "basis": 5})

    seconds: float | None = Field(description="Of pruning and training; null where nothing is known.")
    checkpoint_bytes: int = Field(description="Of the next version's sparse checkpoint.")
    basis: int = Field(description="The version that was measured.")


class RecipePreview(BaseModel):
    """What a revision would do."""

    model_config = example(
        {
            "revision": 2,
            "digest": OTHER_DIGEST,
            "recipe": _RECIPE,
            "changes": [_CHANGE],
            "stage": 5,
            "density": 0.25,
            "target": 0.2,
            "planned": [{"cycle": 1, "stage": 6, "density": 0.225}],
            "estimate": {"seconds": 9.5, "checkpoint_bytes": 26112, "basis": 5},
            "superseded_cycles": [8],
        }
    )

    revision: int = Field(description="The number that it would have.")
    digest: Digest = Field(description="The digest that it would have.")
    recipe: RecipeDocument = Field(description="The whole resolved recipe.")
    changes: list[RecipeChange] = Field(description="What differs from the recipe in force; empty: nothing.")
    stage: int = Field(description="Where the champion stands; 0 before the first version.")
    density: float = Field(description="Of the champion; 1 before the first version.")
    target: float = Field(description="The schedule's final density.")
    planned: list[PlannedDensity] = Field(
        description="Densities from the next cycle on, as far as they fall; 200 at most."
    )
    estimate: CycleEstimate | None = Field(description="Null before the first version.")
    superseded_cycles: list[int] = Field(description="Cycles that wait or run, and would end.")

    @classmethod
    def from_domain(cls, found: recipes.Preview) -> Self:
        """From the service's value."""
        estimate = found.estimate
        return cls(
            revision=found.revision,
            digest=found.recipe.digest,
            recipe=found.recipe.document(),
            changes=[RecipeChange.from_domain(change) for change in found.changes],
            stage=found.stage,
            density=found.density,
            target=found.target,
            planned=[PlannedDensity(cycle=p.cycle, stage=p.stage, density=p.density) for p in found.points],
            estimate=None
            if estimate is None
            else CycleEstimate(
                seconds=estimate.seconds, checkpoint_bytes=estimate.checkpoint_bytes, basis=estimate.basis
            ),
            superseded_cycles=list(found.superseded),
        )


class RevisedRecipe(RecipeRevision):
    """A revision that was put in force, and what became of open cycles."""

    model_config = example({**_REVISION, "changes": [_CHANGE], "superseded_cycles": [8], "queued_cycle": 9})

    changes: list[RecipeChange] = Field(description="What differs from the revision before.")
    superseded_cycles: list[int] = Field(description="Cycles that waited or ran, and ended.")
    queued_cycle: int | None = Field(description="The cycle that takes their place, for all that waits.")

    @classmethod
    def from_revised(cls, done: recipes.Revised) -> Self:
        """From the service's value."""
        shown = RecipeRevision.from_domain(done.revision)
        return cls(
            **dict(shown),
            changes=[RecipeChange.from_domain(change) for change in done.changes],
            superseded_cycles=[cycle.number for cycle in done.superseded],
            queued_cycle=None if done.queued is None else done.queued.number,
        )
