"""Reports: a version's figures that are no single number.

Knows: how figures by class and by megabatch look. Must never know: how they are measured.

Law: what has no data is absent or null, never 0.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from app.api.schemas.wire import example

_LABELS = {"statistic": 402.1, "p_value": 1.2e-80, "effect": 0.31, "alarm": True, "examples": 600, "reference": 2100}
_INPUTS = {
    "statistic": 0.62,
    "p_value": 3.1e-90,
    "effect": 0.62,
    "alarm": True,
    "examples": 600,
    "reference": 1000,
    "of": "features",
    "features": [{"index": 41, "effect": 0.62, "p_value": 3.1e-90}],
    "width": 128,
}
_ACCURACY = {"statistic": 0.672, "p_value": 2e-9, "effect": 0.26, "alarm": True, "examples": 600, "reference": 210}
DRIFT = {"inputs": _INPUTS, "labels": _LABELS, "accuracy": _ACCURACY}
_GAP = {"statistic": 0.8, "limit": 5.0, "alarm": False, "length": 5}
REPORT = {
    "prequential": {"5": {"accuracy": 0.672, "loss": 1.02, "examples": 600, "unknown": 0}},
    "validation_by_class": {"examples": [40, 38], "accuracy": [0.975, 0.947]},
    "evaluation_by_class": None,
    "megabatches": {"4": {"accuracy": 0.95, "examples": 60, "forgotten": 0.0167}},
    "drift": {"5": DRIFT},
    "gap": _GAP,
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


class Shift(BaseModel):
    """How far one sample lies from another."""

    model_config = example(_LABELS)

    statistic: float = Field(
        description="Of the test: Kolmogorov-Smirnov distance of inputs, chi-square of labels, accuracy on arrival."
    )
    p_value: float = Field(description="Probability of such a difference, or a larger one, by chance.")
    effect: float = Field(
        description="How large it is, 0 to 1: distance of two distribution functions, share of examples in another "
        "class, drop of the accuracy."
    )
    alarm: bool = Field(description="Whether it is more than chance and more than the recipe accepts.")
    examples: int = Field(description="Examples of the megabatch that were compared.")
    reference: int = Field(description="Examples that they were compared with.")


class Feature(BaseModel):
    """One feature whose distribution differs."""

    model_config = example({"index": 41, "effect": 0.62, "p_value": 3.1e-90})

    index: int = Field(description="Its place in the flattened example, or in the embedding, from 0.")
    effect: float = Field(description="Kolmogorov-Smirnov distance, 0 to 1.")
    p_value: float = Field(description="Times the number of features (Bonferroni).")


class InputShift(Shift):
    """How far inputs lie from those of the past."""

    model_config = example(_INPUTS)

    of: str = Field(description="`features`, as they are stored, or `embedding`: as the champion sees them.")
    features: list[Feature] = Field(description="The most drifted ones, first of all the one that the figures are of.")
    width: int = Field(description="How many features there are.")


class Drift(BaseModel):
    """How far a new megabatch lies from the past; what is not watched, or could not be compared, is null."""

    model_config = example(DRIFT)

    inputs: InputShift | None = Field(None, description="Its examples against those of the newest past megabatches.")
    labels: Shift | None = Field(None, description="Its class histogram against theirs.")
    accuracy: Shift | None = Field(None, description="The champion's accuracy on it against its validation accuracy.")


class GapRise(BaseModel):
    """How far a figure has risen over the versions of a lineage."""

    model_config = example(_GAP)

    statistic: float = Field(description="Sum of the rises, in standard deviations (self-starting CUSUM).")
    limit: float = Field(description="Above it there is an alarm.")
    alarm: bool = Field(description="Whether there is one.")
    length: int = Field(description="Versions since the first one, or since the alarm before.")


class Report(BaseModel):
    """Figures of a version that are no single number; what has no data is absent."""

    model_config = example(REPORT)

    prequential: dict[str, OnArrival] = Field(default_factory=dict, description="By number of a new megabatch.")
    validation_by_class: ByClass | None = Field(None, description="On the validation examples of the verdict.")
    evaluation_by_class: ByClass | None = Field(None, description="On the evaluation set.")
    megabatches: dict[str, Retained] = Field(default_factory=dict, description="By number of a megabatch.")
    drift: dict[str, Drift] = Field(default_factory=dict, description="By number of a new megabatch.")
    gap: GapRise | None = Field(None, description="The generalization gap; null where it is not watched.")
