"""Guardrails: rules that a version must pass before promotion, and what is done when one trips.

Knows: names, limits, actions. Must never know: how a rule is judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union

from pydantic import Field

from app.learning.recipe.options import Options

Ratio = Annotated[float, Field(ge=0, le=1)]
Confidence = Annotated[float, Field(ge=0.5, lt=1)]


class _Rule(Options):
    then: Literal["withhold", "hold", "retry", "restore"] = Field(
        "withhold",
        description="When it trips: `withhold` the version; `hold` the density and retrain; `retry` with half the "
        "pruning step; `restore` the last good version and hold the density until recovery.",
    )
    trip_after: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="Breaches in a row, version after version, before it trips."
    )
    recover_after: Annotated[int, Field(ge=1, le=100)] = Field(
        2, description="Versions in a row that must pass before density falls again, after `hold` or `restore`."
    )


class AccuracyDrop(_Rule):
    """Validation accuracy lies below the champion's, on the same examples.

    Both must hold: the drop exceeds `at_most`, and a one-sided exact McNemar test on the paired answers rejects chance.
    """

    name: Literal["accuracy-drop"] = "accuracy-drop"
    at_most: Annotated[float, Field(ge=0, lt=1)] = Field(0.02, description="Accepted drop, as a share of 1.")
    confidence: Confidence = Field(
        0.95, description="Confidence that the drop is not chance; 0.5 ignores all but the drop itself."
    )


class AccuracyFloor(_Rule):
    """Validation accuracy lies below a limit, and not by chance (exact binomial bound)."""

    name: Literal["accuracy-floor"] = "accuracy-floor"
    at_least: Ratio = Field(description="Least accuracy.")
    confidence: Confidence = Field(0.95, description="Confidence of the upper bound that must reach the limit.")


class ClassFloor(_Rule):
    """Accuracy on the validation examples of one class lies below a limit, and not by chance (exact binomial bound)."""

    name: Literal["class-floor"] = "class-floor"
    at_least: Ratio = Field(description="Least accuracy of each class that has validation examples.")
    confidence: Confidence = Field(0.95, description="Confidence of the upper bound that must reach the limit.")


class Forgetting(_Rule):
    """Accuracy on the validation examples of a past megabatch lies below the best it ever was, and not by chance."""

    name: Literal["forgetting"] = "forgetting"
    at_most: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="Accepted loss, as a share of 1.")
    confidence: Confidence = Field(0.95, description="Confidence that the loss is not chance.")


class GeneralizationGap(_Rule):
    """Training accuracy minus validation accuracy exceeds a limit."""

    name: Literal["generalization-gap"] = "generalization-gap"
    at_most: Annotated[float, Field(ge=0, lt=1)] = Field(description="Largest accepted gap, as a share of 1.")


class LayerCollapse(_Rule):
    """A prunable layer keeps too few of its weights."""

    name: Literal["layer-collapse"] = "layer-collapse"
    at_least: Ratio = Field(0.001, description="Least density of each prunable layer.")


class Divergence(_Rule):
    """The training loss became infinite or NaN, or ended above a multiple of where the cycle began."""

    name: Literal["divergence"] = "divergence"
    factor: Annotated[float, Field(ge=1, le=1000)] = Field(
        2.0, description="Largest accepted ratio of the last epoch's training loss to the first epoch's."
    )


class DensityFloor(_Rule):
    """The density of the whole network lies below a limit."""

    name: Literal["density-floor"] = "density-floor"
    at_least: Ratio = Field(description="Least density of the network.")


class MaskAgreement(_Rule):
    """The masks of two disjoint samples agree too little for the pruning to mean much."""

    name: Literal["mask-agreement"] = "mask-agreement"
    at_least: Ratio = Field(
        0.5, description="Least share of weights that both keep, of those that one keeps, in every pruning step."
    )


class _Watch(_Rule):
    then: Literal["hold", "withhold"] = Field(
        "hold",
        description="When it trips: `hold` the density, in this very cycle where the alarm comes before pruning, and "
        "publish what is retrained; or `withhold` the version.",
    )


class InputDrift(_Watch):
    """`monitoring.inputs` raises an alarm: the inputs of a new megabatch differ from the past's."""

    name: Literal["input-drift"] = "input-drift"


class LabelShift(_Watch):
    """`monitoring.labels` raises an alarm: the classes of a new megabatch are mixed unlike the past's."""

    name: Literal["label-shift"] = "label-shift"


class PrequentialDrop(_Watch):
    """`monitoring.accuracy` raises an alarm: the champion answers a new megabatch worse than it was validated."""

    name: Literal["prequential-drop"] = "prequential-drop"


class GapChange(_Watch):
    """`monitoring.gap` raises an alarm: the generalization gap has risen over the versions. Known after training."""

    name: Literal["gap-change"] = "gap-change"


Guardrail = Annotated[
    Union[
        AccuracyDrop,
        AccuracyFloor,
        ClassFloor,
        Forgetting,
        GeneralizationGap,
        LayerCollapse,
        Divergence,
        DensityFloor,
        MaskAgreement,
        InputDrift,
        LabelShift,
        PrequentialDrop,
        GapChange,
    ],
    Field(discriminator="name"),
]


def named_rules(guardrails: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each rule's options with its name; the second of a name is ``accuracy-floor#2``, and so on."""
    seen = Counter[str]()
    for options in guardrails:
        seen[options.name] += 1
        count = seen[options.name]
        yield (options.name if count == 1 else f"{options.name}#{count}"), options


def limits_of(guardrails: Sequence[Any]) -> dict[str, float]:
    """What each rule accepts, by name: the most, the least or the factor; rules without a figure of their own are
    absent.
    """
    return {
        rule: float(getattr(options, name))
        for rule, options in named_rules(guardrails)
        for name in ("at_most", "at_least", "factor")
        if hasattr(options, name)
    }
