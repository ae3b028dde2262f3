"""A version's page: verdict, metrics, family, layers, size, downloads.

Knows: which figures of a version have which unit. Must never know: HTTP, or how they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from app.api.web.drawing import Tree, tree
from app.api.web.estimates import Estimate
from app.api.web.recorded import heard
from app.api.web.speech import Speech
from app.api.web.telling import Told, tell_all
from app.api.web.verdicts import reasons_of
from app.domain import Layer, VersionStatus
from app.service.overview import VersionPage

_SHARES = (
    *("train_accuracy", "validation_accuracy", "champion_validation_accuracy", "balanced_accuracy"),
    *("evaluation_accuracy", "evaluation_balanced_accuracy", "anytime_accuracy", "prequential_accuracy"),
    *("unrounded_validation_accuracy", "mask_agreement", "validation_calibration_error"),
    "evaluation_calibration_error",
)
_POINTS = ("generalization_gap", "forgetting", "worst_forgetting")
_PLAIN = (
    *("train_loss", "validation_loss", "evaluation_loss", "prequential_loss"),
    *("dense_flops", "sparse_flops", "examples_seen", "epochs", "best_epoch", "cumulative_evaluation_errors"),
)
_LATENCIES = ("latency_ms", "dense_latency_ms")
_SECONDS = ("arrival_seconds", "prune_seconds", "train_seconds", "judge_seconds")


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure, with the same one of the version that it started from."""

    name: str
    value: str
    margin: str
    before: str


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer, and its density in the version before."""

    name: str
    shape: str
    kept: int
    total: int
    density: float
    before: float | None


@dataclass(frozen=True, slots=True)
class Relative:
    """A version in the drawn family."""

    number: int
    sign: str
    tone: str
    word: str
    here: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A version's page."""

    model: str
    number: int
    parent: int | None
    cycle: int
    stage: int
    recipe_revision: int
    created_at: datetime
    champion: bool
    champion_number: int | None
    sign: str
    tone: str
    status: str
    aliases: Sequence[str]
    passed: bool
    reasons: Sequence[Markup]
    restored: int | None
    metrics: Sequence[Metric]
    layers: Sequence[LayerRow]
    density: float
    target: float
    kept: int
    total: int
    bytes: int
    dense_bytes: int
    mask_digest: str
    checkpoint: str
    swept_at: datetime | None
    swept_reason: Markup
    may_promote: bool
    may_go_back: bool
    family: Tree
    relatives: Sequence[Relative]
    entries: Sequence[Told]
    previous: int | None
    next: int | None


def shown(page: VersionPage, t: Speech) -> Shown:
    """A version, ready for its template."""
    version = page.version
    champion = page.champion is not None and page.champion.number == version.number
    withheld = version.status is VersionStatus.WITHHELD
    sign, tone = ("champion", "good") if champion else ("withheld", "bad") if withheld else ("published", "mute")
    return Shown(
        model=page.model.name,
        number=version.number,
        parent=version.parent,
        cycle=version.cycle,
        stage=version.stage,
        recipe_revision=version.recipe_revision,
        created_at=version.created_at,
        champion=champion,
        champion_number=page.champion.number if page.champion else None,
        sign=sign,
        tone=tone,
        status=t(f"sign.{sign}"),
        aliases=[alias for alias in page.aliases if alias != "champion"],
        passed=version.verdict.passed,
        reasons=reasons_of(page.judged, page.model.input.classes or (), t),
        restored=version.verdict.restored,
        metrics=_metrics(page, t),
        layers=_layers(version.layers, page.before.layers if page.before else ()),
        density=version.density,
        target=version.target_density,
        kept=version.kept,
        total=version.total,
        bytes=version.checkpoint_bytes,
        dense_bytes=version.dense_bytes,
        mask_digest=version.mask_digest,
        checkpoint=version.checkpoint,
        swept_at=version.swept_at,
        swept_reason=heard(version.swept_reason or "", t),
        may_promote=not champion and version.swept_at is None,
        may_go_back=page.is_ancestor and version.swept_at is None,
        family=tree([(kin.number, kin.parent) for kin in page.family]),
        relatives=_relatives(page, t),
        entries=tell_all(reversed(page.entries), t),
        previous=version.number - 1 if version.number > page.oldest else None,
        next=version.number + 1 if version.number < page.newest else None,
    )


def _metrics(page: VersionPage, t: Speech) -> list[Metric]:
    counted = _counts(page)
    before = page.before.metrics if page.before else {}
    found = []
    for name in (*_SHARES, *_POINTS, *_PLAIN, *_LATENCIES, *_SECONDS):
        value = page.version.metrics.get(name)
        if value is not None:
            n = counted.get(name)
            margin = Estimate(value, n).margin if n else None
            told = t("estimate.margin", margin=t.points(margin), n=n, count=t.number(n)) if margin is not None else ""
            found.append(Metric(t(f"metric.{name}"), _figure(name, value, t), told, _figure(name, before.get(name), t)))
    return found


def _counts(page: VersionPage) -> dict[str, int]:
    """How many examples each estimate was counted on, where that is known."""
    report = page.version.report
    found: dict[str, int] = {}
    if "validation_by_class" in report:
        n = sum(report["validation_by_class"]["examples"])
        found |= dict.fromkeys(("validation_accuracy", "champion_validation_accuracy"), n)
    if "evaluation_by_class" in report:
        found["evaluation_accuracy"] = sum(report["evaluation_by_class"]["examples"])
    if report.get("prequential"):
        found["prequential_accuracy"] = sum(each["examples"] for each in report["prequential"].values())
    return found


def _figure(name: str, value: float | None, t: Speech) -> str:
    if name in _SHARES:
        return t.percent(value)
    if name in _POINTS:
        return t.points(value, signed=True)
    if name in _LATENCIES:
        return t.latency(value)
    if name in _SECONDS:
        return t("unit.lasting", seconds=t.number(value, 2))
    return t.number(value, 3 if name.endswith("loss") else 0)


def _layers(layers: Sequence[Layer], before: Sequence[Layer]) -> list[LayerRow]:
    inherited = {layer.name: layer.density for layer in before}
    return [
        LayerRow(
            layer.name,
            " × ".join(map(str, layer.shape)),
            layer.kept,
            layer.total,
            layer.density,
            inherited.get(layer.name),
        )
        for layer in layers
    ]


def _relatives(page: VersionPage, t: Speech) -> list[Relative]:
    champion = page.champion.number if page.champion else None
    found = []
    for kin in page.family:
        withheld = kin.status is VersionStatus.WITHHELD
        sign = "champion" if kin.number == champion else "withheld" if withheld else "published"
        tone = "good" if sign == "champion" else "bad" if withheld else "mute"
        found.append(Relative(kin.number, sign, tone, t(f"sign.{sign}"), kin.number == page.version.number))
    return found
