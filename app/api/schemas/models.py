"""Models: how one is registered and shown, and the weights that it may start from.

Knows: how a model, its recipe in force and uploaded weights look. Must never know: which options a recipe has.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, WithJsonSchema

from app import domain
from app.api.dependencies import NAME_PATTERN
from app.api.schemas.inputs import INPUT, Input, NewInput
from app.api.schemas.versions import SUMMARY, VersionSummary
from app.api.schemas.wire import DIGEST, OTHER_DIGEST, TIME, Asked, Digest, Page, Time, example
from app.service import models

RecipeDocument = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "allOf": [{"$ref": "#/components/schemas/Recipe"}]})
]
"""A whole resolved recipe, shown as it was stored, even by a service that has learnt other options since."""


class NewModel(Asked):
    """A model to register."""

    model_config = example(
        {"name": "gas-sensors"},
        {
            "name": "gas-sensors",
            "recipe": {
                "preset": "app-paper",
                "network": {"name": "mlp", "hidden": [128, 64]},
                "schedule": {"name": "app", "stages": 8},
            },
            "input": {"classes": ["ethanol", "ethylene"]},
        },
    )

    name: str = Field(
        description="1 to 63 lower-case letters, digits and hyphens, starting with a letter or digit.",
        max_length=200,
        json_schema_extra={"pattern": NAME_PATTERN},
    )
    recipe: dict[str, Any] | None = Field(
        None,
        description="A preset plus what differs from it: keys of the schema `Recipe`, and `preset`. "
        "Null takes the default preset.",
    )
    input: NewInput | None = Field(None, description="What is known of the input.")


class Model(BaseModel):
    """A registered, long-running learning problem."""

    model_config = example(
        {
            "name": "gas-sensors",
            "state": "active",
            "paused_reason": None,
            "recipe_revision": 1,
            "recipe_digest": OTHER_DIGEST,
            "recipe": {"seed": 0, "network": {"name": "mlp", "hidden": [128, 128]}},
            "input": INPUT,
            "generation": 5,
            "champion": SUMMARY,
            "champion_revision": 5,
            "megabatches": 5,
            "queued_cycles": 0,
            "running_cycle": None,
            "last_failure": None,
            "created_at": TIME,
        }
    )

    name: str = Field(description="Its name.")
    state: domain.ModelState = Field(description="`active`; `paused`: no cycle starts until it is resumed.")
    paused_reason: str | None = Field(description="Why it is paused.")
    recipe_revision: int = Field(description="Revision of the recipe in force.")
    recipe_digest: Digest = Field(description="Digest of the recipe in force.")
    recipe: RecipeDocument = Field(description="The whole resolved recipe in force.")
    input: Input = Field(description="What it is fed.")
    generation: int = Field(
        description="Counts what invalidates running cycles: alias moves, quarantines, recipe revisions."
    )
    champion: VersionSummary | None = Field(description="The version that clients get; null before the first one.")
    champion_revision: int | None = Field(description="Revision of the alias `champion`, for If-Match.")
    megabatches: int = Field(description="Megabatches that it has taken in.")
    queued_cycles: int = Field(description="Cycles that wait.")
    running_cycle: int | None = Field(description="The cycle that runs.")
    last_failure: str | None = Field(description="Why its newest cycle failed, if it did.")
    created_at: Time = Field(description="When it was registered.")

    @classmethod
    def from_domain(cls, summary: models.ModelSummary) -> Self:
        """From the service's summary."""
        model = summary.model
        return cls(
            name=model.name,
            state=model.state,
            paused_reason=model.paused_reason,
            recipe_revision=model.recipe_revision,
            recipe_digest=model.recipe_digest,
            recipe=dict(summary.recipe.document),
            input=Input.from_domain(model.input),
            generation=model.generation,
            champion=None if summary.champion is None else VersionSummary.from_domain(summary.champion),
            champion_revision=None if summary.champion_alias is None else summary.champion_alias.revision,
            megabatches=summary.megabatches,
            queued_cycles=summary.queued,
            running_cycle=None if summary.running is None else summary.running.number,
            last_failure=summary.last_failure,
            created_at=model.created_at,
        )


class Models(Page[Model]):
    """Models by name."""


class Tensor(BaseModel):
    """One tensor of uploaded weights."""

    name: str = Field(description="Name of the parameter or buffer.")
    shape: list[int] = Field(description="Its shape.")
    dtype: str = Field(description="Type of its values, as safetensors calls it.")


class InitialWeights(BaseModel):
    """Uploaded weights, ready to be named by a recipe."""

    model_config = example(
        {"digest": DIGEST, "bytes": 101_376, "tensors": [{"name": "0.weight", "shape": [128, 128], "dtype": "F32"}]}
    )

    digest: Digest = Field(description="Name it as `recipe.initial_weights`.")
    bytes: int = Field(description="Size of the file.")
    tensors: list[Tensor] = Field(description="What is in it.")

    @classmethod
    def from_domain(cls, kept: models.InitialWeights) -> Self:
        """From the service's answer."""
        return cls(
            digest=kept.digest, bytes=kept.bytes, tensors=[Tensor.model_validate(tensor) for tensor in kept.tensors]
        )
