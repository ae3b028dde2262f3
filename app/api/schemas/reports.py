"""Reports: a version's figures that are no single number.

Knows: how figures by class and by megabatch look. Must never know: how they are measured.

Law: what has no data is absent or null, never 0.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from app.api.schemas.wire import example

REPORT = {
    "prequential": {"5": {"accuracy": 0.672, "loss": 1.02, "examples": 600, "unknown": 0}},
    "validation_by_class": {"examples": [40, 38], "accuracy": [0.975, 0.947]},
    "evaluation_by_class": None,
    "megabatches": {"4": {"accuracy": 0.95, "examples": 60, "forgotten": 0.0167}},
}


class ByClass(BaseModel):
    """One figure a class, in label order."""

    model_config = example({"examples": [40, 38, 0], "accuracy": [0.975, 0.947, None]})

    examples: list[int] = Field(description="Examples of each class.")
    accuracy: list[float | None] = Field(description="Share of right answers; null where a class has no examples.")


class Retained(BaseModel):
    """What a version knows of one megabatch."""

    model_config = example({"accuracy": 0.95, "examples": 60, "forgotten": 0.0167})

    accuracy: float = Field(description="Share of right answers among its validation examples.")
    examples: int = Field(description="Its validation examples.")
    forgotten: float | None = Field(
        description="Best accuracy of the lineage on them, ever, minus the present one; null where unknown."
    )


class OnArrival(BaseModel):
    """The champion on one megabatch before it was trained on it."""

    model_config = example({"accuracy": 0.672, "loss": 1.02, "examples": 600, "unknown": 0})

    accuracy: float = Field(description="Share of right answers.")
    loss: float | None = Field(description="Mean cross entropy in nats, over examples of classes that it knew.")
    examples: int = Field(description="Examples of the megabatch.")
    unknown: int = Field(0, description="Those of classes that the champion did not know: counted as wrong.")


class Report(BaseModel):
    """Figures of a version that are no single number; what has no data is absent."""

    model_config = example(REPORT)

    prequential: dict[str, OnArrival] = Field(default_factory=dict, description="By number of a new megabatch.")
    validation_by_class: ByClass | None = Field(None, description="On the validation examples of the verdict.")
    evaluation_by_class: ByClass | None = Field(None, description="On the evaluation set.")
    megabatches: dict[str, Retained] = Field(default_factory=dict, description="By number of a megabatch.")
