"""The page of models: what each row shows.

Knows: glances, in words and drawings. Must never know: HTTP, or how a glance is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from app.api.web.drawing import Spark, spark
from app.api.web.recorded import heard
from app.api.web.speech import Speech
from app.api.web.telling import Told, tell
from app.domain import VersionSummary
from app.service.overview import Glance, Health

TONES = {
    Health.PAUSED: "warn",
    Health.FAILING: "bad",
    Health.NO_WORKER: "bad",
    Health.WITHHELD: "warn",
    Health.WAITING: "mute",
    Health.EMPTY: "mute",
    Health.HEALTHY: "good",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A model in one row of the table."""

    name: str
    champion: int | None
    accuracy: float | None
    spark: Spark | None
    spark_range: str
    density: float | None
    gap: float | None
    queued: int
    running: int | None
    last: Told | None
    health: str
    tone: str
    why: Markup


def row_of(glance: Glance, t: Speech) -> Row:
    """A glance as a row."""
    champion = glance.champion
    accuracies = [accuracy_of(version) for version in glance.recent]
    return Row(
        name=glance.model.name,
        champion=champion.number if champion else None,
        accuracy=accuracy_of(champion) if champion else None,
        spark=spark(accuracies),
        spark_range=_range(accuracies, t),
        density=champion.density if champion else None,
        gap=champion.metrics.get("generalization_gap") if champion else None,
        queued=glance.queued,
        running=glance.running.number if glance.running else None,
        last=tell(glance.last, t) if glance.last else None,
        health=t(f"health.{glance.health}"),
        tone=TONES[glance.health],
        why=heard(glance.why or "", t),
    )


def accuracy_of(version: VersionSummary) -> float | None:
    """The accuracy that a version is known by: on the evaluation set if there is one, else on its validation rows."""
    return version.metrics.get("evaluation_accuracy", version.metrics.get("validation_accuracy"))


def _range(values: Sequence[float | None], t: Speech) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return t("models.spark", n=len(known), low=t.percent(min(known)), high=t.percent(max(known)))
