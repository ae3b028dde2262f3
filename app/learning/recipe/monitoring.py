"""Monitoring: what is watched of each megabatch and version, and from where on a figure is an alarm.

Knows: names, limits, sizes of samples. Must never know: how a figure is taken, or what follows from an alarm
(``guardrails``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.learning.recipe.options import Options

Share = Annotated[float, Field(ge=0, le=1)]
Confidence = Annotated[float, Field(ge=0.5, lt=1)]

_CONFIDENCE = "Confidence that what is more than that is not chance."


class InputMonitor(Options):
    """Drift of the inputs: each feature of a new megabatch against the past (Kolmogorov-Smirnov, Bonferroni)."""

    on: bool = Field(True, description="Whether it is watched.")
    of: Literal["auto", "features", "embedding"] = Field(
        "auto",
        description="What is compared: `features`, as they are stored; `embedding`, what the champion's last linear "
        "layer sees of them, with validation examples as the past; `auto`: features of examples of at most 1,024 "
        "values, else the embedding.",
    )
    at_most: Share = Field(
        0.1, description="Accepted distance of two distribution functions, 0 to 1, of the most drifted feature."
    )
    confidence: Confidence = Field(0.999, description=_CONFIDENCE)
    sample: Annotated[int, Field(ge=50, le=10_000)] = Field(
        1000, description="Examples that are drawn of the megabatch, and of the past, at most."
    )


class LabelMonitor(Options):
    """Shift of the labels: the class histogram of a new megabatch against the past's (chi-square)."""

    on: bool = Field(True, description="Whether it is watched.")
    at_most: Share = Field(
        0.1, description="Accepted total variation distance: the share of examples that would have to change class."
    )
    confidence: Confidence = Field(0.999, description=_CONFIDENCE)


class AccuracyMonitor(Options):
    """Drop of the accuracy on arrival below the champion's validation accuracy (exact one-sided Fisher test)."""

    on: bool = Field(True, description="Whether it is watched.")
    at_most: Share = Field(0.05, description="Accepted drop, as a share of 1.")
    confidence: Confidence = Field(0.999, description=_CONFIDENCE)


class GapMonitor(Options):
    """Rise of the generalization gap over the versions of a lineage (self-starting CUSUM)."""

    on: bool = Field(True, description="Whether it is watched.")
    slack: Annotated[float, Field(ge=0, le=5)] = Field(
        0.5, description="Rise, in standard deviations, that a version may show without adding to the sum."
    )
    limit: Annotated[float, Field(gt=0, le=50)] = Field(
        5.0, description="The sum, in standard deviations, above which there is an alarm."
    )


class Monitoring(Options):
    """What is watched. An alarm is told with the version and the megabatch; a guardrail may act on it."""

    past: Annotated[int, Field(ge=1, le=256)] = Field(
        8, description="Newest megabatches of the lineage that a new one is compared with, of those at hand."
    )
    inputs: InputMonitor = Field(InputMonitor(), description="Drift of the inputs.")
    labels: LabelMonitor = Field(LabelMonitor(), description="Shift of the labels.")
    accuracy: AccuracyMonitor = Field(AccuracyMonitor(), description="Drop of the accuracy on arrival.")
    gap: GapMonitor = Field(GapMonitor(), description="Rise of the generalization gap.")
