"""A model's page: strip, time line, running cycle, events, layers, classes, past megabatches.

Knows: which figures answer which question, and their uncertainty. Must never know: HTTP, or how they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from app.api.web.drawing import Spark, spark
from app.api.web.estimates import Estimate, estimate
from app.api.web.models_page import TONES
from app.api.web.recorded import heard
from app.api.web.speech import Speech
from app.api.web.telling import Told, tell_all
from app.api.web.verdicts import tripped
from app.domain import (
    HOLDING,
    Cycle,
    Megabatch,
    MegabatchStatus,
    Phase,
    Proposal,
    VersionStatus,
    VersionSummary,
)
from app.service.overview import ModelView
from app.store.overviews import Column

_PHASES = tuple(Phase)
_SHOWN = 12
_WIDEST = 16
"""Columns of the heat map whose figures are written into their cells."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What production saw of the newest megabatch that was tested on arrival."""

    megabatch: int
    seen: Estimate
    change: float | None


@dataclass(frozen=True, slots=True)
class Strip:
    """The figures that decide."""

    arrival: Arrival | None
    validation: Estimate | None
    change: float | None
    evaluation: Estimate | None
    gap: float | None
    train: float | None
    density: float
    target: float
    kept: int
    total: int
    bytes: int
    dense_bytes: int
    latency: float | None
    dense_latency: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """A phase of the running cycle: ``done``, ``now`` or ``next``."""

    phase: str
    state: str


@dataclass(frozen=True, slots=True)
class Running:
    """The running cycle, or the one that waits."""

    number: int
    state: str
    parent: int | None
    through: int
    steps: Sequence[Step]
    epoch: int
    epochs: int
    share: float | None
    loss: float | None
    curve: Spark | None
    density: float | None
    left: float | None
    since: datetime | None
    not_before: datetime | None
    reason: Markup
    queued: int
    heard_of: datetime | None


@dataclass(frozen=True, slots=True)
class Cell:
    """A layer's density in one version, and how dark it is, 0 to 10."""

    version: int
    density: float
    shade: int


@dataclass(frozen=True, slots=True)
class Heat:
    """Density of each layer over versions."""

    versions: Sequence[int]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]
    written: bool


@dataclass(frozen=True, slots=True)
class ByClass:
    """Accuracy on the examples of one class."""

    name: str
    seen: Estimate


@dataclass(frozen=True, slots=True)
class Past:
    """A megabatch, on arrival and as the champion knows it now.

    ``drifted``: what of it moved away from the past, in words; None where nothing was watched. ``drift``: the figures.
    """

    number: int
    status: str
    received_at: datetime
    examples: int
    arrival: Estimate | None
    now: Estimate | None
    forgotten: float | None
    drifted: Sequence[str] | None
    drift: str


@dataclass(frozen=True, slots=True)
class Line:
    """A version as a row of the table beneath the time line."""

    number: int
    champion: bool
    status: str
    sign: str
    tone: str
    validation: Estimate | None
    arrival: Estimate | None
    evaluation: float | None
    gap: float | None
    density: float
    bytes: int
    created_at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A model's page."""

    name: str
    pill: str
    tone: str
    why: Markup
    recipe: str
    paused: bool
    champion: int | None
    strip: Strip | None
    running: Running | None
    events: Sequence[Told]
    heat: Heat | None
    classes: Sequence[ByClass]
    past: Sequence[Past]
    more_past: int
    lines: Sequence[Line]
    figures: Mapping[str, Any] | None
    versions: int
    oldest: int | None
    older: bool
    megabatches: int
    proposals: Sequence[Proposal]
    evaluated: bool

    @property
    def stage(self) -> str:
        """How far the model has come; another stage has other sections, so parts cannot take the place of parts."""
        return "drawn" if self.lines else "waiting" if self.megabatches or self.running else "empty"


def shown(view: ModelView, t: Speech) -> Shown:
    """A model, ready for its template."""
    glance, model = view.glance, view.glance.model
    champion = view.champion
    marks = _marks(view)
    lines = [_line(view, column, marks, t) for column in view.columns]
    pill = t(f"health.{glance.health}")
    return Shown(
        name=model.name,
        pill=t("model.pill", health=pill, version=champion.number) if champion else pill,
        tone=TONES[glance.health],
        why=heard(glance.why or "", t),
        recipe=_recipe(view, t),
        paused=model.state == "paused",
        champion=champion.number if champion else None,
        strip=_strip(view) if champion else None,
        running=running_of(glance.running or view.waiting, glance.queued, view.heard_of, t),
        events=tell_all(view.events, t),
        heat=_heat(view),
        classes=_classes(view),
        past=_past(view, t)[:_SHOWN],
        more_past=max(0, glance.megabatches - _SHOWN),
        lines=list(reversed(lines)),
        figures=_figures(view, lines, marks, t) if lines else None,
        versions=view.columns[-1].version.number if view.columns else 0,
        oldest=view.columns[0].version.number if view.columns else None,
        older=view.older,
        megabatches=glance.megabatches,
        proposals=view.proposals,
        evaluated=any("evaluation_accuracy" in column.version.metrics for column in view.columns),
    )


# -- header and strip --------------------------------------------------------------------------------------------------


def _recipe(view: ModelView, t: Speech) -> str:
    document, spec = view.recipe.document, view.glance.model.input
    network = document.get("network", {})
    widths = "-".join(map(str, network.get("hidden", ())))
    parts = [
        t("recipe.revision", revision=view.recipe.revision),
        f"{network.get('name', '?')} {widths}".strip(),
        *([t("recipe.classes", n=len(spec.classes))] if spec.classes else []),
        t("recipe.target", target=t.density(view.target)),
    ]
    stages = document.get("schedule", {}).get("stages")
    if isinstance(stages, int):
        parts.append(t("recipe.stages", n=stages))
    return " · ".join(parts)


def _strip(view: ModelView) -> Strip:
    champion = view.champion
    assert champion is not None
    metrics = champion.metrics
    parent = next((c.version for c in view.columns if c.version.number == champion.parent), None)
    validation = metrics.get("validation_accuracy")
    evaluation = metrics.get("evaluation_accuracy")
    return Strip(
        arrival=_arrival(view.megabatches),
        validation=estimate(validation, _counted(champion.report, "validation_by_class")),
        change=_change(validation, parent, "validation_accuracy"),
        evaluation=estimate(evaluation, view.evaluation.examples if view.evaluation else None),
        gap=metrics.get("generalization_gap"),
        train=metrics.get("train_accuracy"),
        density=champion.density,
        target=view.target,
        kept=champion.kept,
        total=champion.total,
        bytes=champion.checkpoint_bytes,
        dense_bytes=champion.dense_bytes,
        latency=metrics.get("latency_ms"),
        dense_latency=metrics.get("dense_latency_ms"),
    )


def _arrival(megabatches: Sequence[Megabatch]) -> Arrival | None:
    tested = [each for each in megabatches if each.prequential is not None][:2]
    if not tested or tested[0].prequential is None:
        return None
    seen = tested[0].prequential
    before = tested[1].prequential if len(tested) > 1 else None
    change = seen.accuracy - before.accuracy if before else None
    return Arrival(tested[0].number, Estimate(seen.accuracy, seen.examples), change)


def _change(value: float | None, parent: VersionSummary | None, name: str) -> float | None:
    before = parent.metrics.get(name) if parent else None
    return None if value is None or before is None else value - before


def _counted(report: Mapping[str, Any], name: str) -> int | None:
    found = report.get(name)
    return sum(found["examples"]) if found else None


# -- running cycle -----------------------------------------------------------------------------------------------------


def running_of(cycle: Cycle | None, queued: int, heard_of: datetime | None, t: Speech) -> Running | None:
    """The cycle that runs, or the next that waits, ready for its template."""
    if cycle is None:
        return None
    progress, now = cycle.progress, datetime.now(UTC)
    at = _PHASES.index(progress.phase) if progress else 0
    steps = [
        Step(phase.value, "done" if place < at else "now" if place == at and cycle.state == "running" else "next")
        for place, phase in enumerate(_PHASES)
    ]
    share = progress.step / progress.steps if progress and progress.steps else None
    elapsed = (now - cycle.started_at).total_seconds() if cycle.started_at else None
    return Running(
        number=cycle.number,
        state=cycle.state.value,
        parent=cycle.parent,
        through=cycle.through,
        steps=steps,
        epoch=progress.epoch if progress else 0,
        epochs=progress.epochs if progress else 0,
        share=share,
        loss=progress.loss if progress else None,
        curve=spark(progress.losses, width=290, height=46) if progress and len(progress.losses) > 1 else None,
        density=progress.density if progress else None,
        left=elapsed * (1 - share) / share if elapsed and share and share > 0.02 else None,
        since=cycle.started_at,
        not_before=cycle.not_before if cycle.not_before and cycle.not_before > now else None,
        reason=heard(cycle.reason or "", t),
        queued=queued,
        heard_of=heard_of,
    )


# -- time line ---------------------------------------------------------------------------------------------------------


def _marks(view: ModelView) -> dict[int, tuple[str, str]]:
    """What happened to each version: a sign and its tone. A version that was rolled back from says so above all."""
    marks: dict[int, tuple[str, str]] = {}
    for column in view.columns:
        if column.version.status is VersionStatus.WITHHELD:
            marks[column.version.number] = ("withheld", "bad")
    for move in reversed(view.moves):
        if move.previous is not None and move.version < move.previous:
            marks[move.previous] = ("back", "blue")
        elif marks.get(move.version, ("", ""))[0] != "back":
            marks[move.version] = ("promoted", "good")
    return marks


def _line(view: ModelView, column: Column, marks: Mapping[int, tuple[str, str]], t: Speech) -> Line:
    version = column.version
    sign, tone = marks.get(version.number, ("kept", "mute"))
    champion = view.champion is not None and view.champion.number == version.number
    return Line(
        number=version.number,
        champion=champion,
        status=t(f"sign.{sign}"),
        sign=sign,
        tone=tone,
        validation=estimate(version.metrics.get("validation_accuracy"), None),
        arrival=estimate(version.metrics.get("prequential_accuracy"), None),
        evaluation=version.metrics.get("evaluation_accuracy"),
        gap=version.metrics.get("generalization_gap"),
        density=version.density,
        bytes=version.checkpoint_bytes,
        created_at=version.created_at,
        reason=tripped(column.verdict.reasons) if version.status is VersionStatus.WITHHELD else "",
    )


def _figures(
    view: ModelView, lines: Sequence[Line], marks: Mapping[int, tuple[str, str]], t: Speech
) -> Mapping[str, Any]:
    """What the browser draws the time line from: one list a series, one place a version."""
    versions = [column.version for column in view.columns]
    arrived = _arrived(view.columns)

    def series(name: str) -> list[float | None]:
        return [_short(version.metrics.get(name)) for version in versions]

    return {
        "version": [version.number for version in versions],
        "validation": series("validation_accuracy"),
        "arrival": series("prequential_accuracy"),
        "evaluation": series("evaluation_accuracy"),
        "gap": series("generalization_gap"),
        "density": [_short(version.density) for version in versions],
        "bytes": [version.checkpoint_bytes for version in versions],
        "target": view.target,
        "champion": view.champion.number if view.champion else None,
        "sign": [marks.get(version.number, ("kept", "mute"))[0] for version in versions],
        "tone": [marks.get(version.number, ("kept", "mute"))[1] for version in versions],
        "status": [line.status for line in lines],
        "reason": [line.reason[:300] for line in lines],
        "held": [column.verdict.action in HOLDING for column in view.columns],
        "megabatches": arrived,
        "words": {
            name: t(f"series.{name}")
            for name in ("validation", "arrival", "evaluation", "gap", "density", "bytes", "target", "megabatch")
        },
        "points": t("unit.points.short"),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _arrived(columns: Sequence[Column]) -> list[str]:
    """Which megabatches came before each version: those that its cycle might use and the one before might not."""
    if not columns:
        return []
    found = [str(columns[0].through) if columns[0].through else ""]
    for before, after in pairwise(columns):
        first, last = before.through + 1, after.through
        found.append("" if last < first else str(last) if last == first else f"{first}–{last}")
    return found


# -- below -------------------------------------------------------------------------------------------------------------


def _heat(view: ModelView) -> Heat | None:
    if not view.layers:
        return None
    numbers = sorted(view.layers)
    names = list(dict.fromkeys(layer.name for number in reversed(numbers) for layer in view.layers[number]))
    by_version = {number: {layer.name: layer.density for layer in view.layers[number]} for number in numbers}
    rows = [(name, [_cell(number, by_version[number].get(name)) for number in numbers]) for name in names]
    return Heat(numbers, rows, written=len(numbers) <= _WIDEST)


def _cell(number: int, density: float | None) -> Cell | None:
    return None if density is None else Cell(number, density, min(10, max(0, round(10 * density))))


def _classes(view: ModelView) -> list[ByClass]:
    """The champion's accuracy by class, the worst first."""
    if view.champion is None:
        return []
    found = view.champion.report.get("evaluation_by_class") or view.champion.report.get("validation_by_class")
    if not found:
        return []
    names = view.glance.model.input.classes or ()
    rows = [
        ByClass(names[place] if place < len(names) else str(place), Estimate(share, n))
        for place, (share, n) in enumerate(zip(found["accuracy"], found["examples"], strict=True))
        if share is not None
    ]
    return sorted(rows, key=lambda row: row.seen.share)


def _past(view: ModelView, t: Speech) -> list[Past]:
    now = view.champion.report.get("megabatches", {}) if view.champion else {}
    return [past_of(megabatch, now.get(str(megabatch.number)), t) for megabatch in view.megabatches]


def past_of(megabatch: Megabatch, now: Mapping[str, Any] | None, t: Speech) -> Past:
    """A megabatch in words.

    Args:
        megabatch: whose figures are told.
        now: what the champion's report says of it.
        t: the language.
    """
    seen, status = megabatch.prequential, megabatch.status
    watched = {name: shift for name, shift in ((seen.drift if seen else None) or {}).items() if shift}
    alarms = [t(f"drift.{name}") for name, shift in watched.items() if shift["alarm"]]
    return Past(
        number=megabatch.number,
        status="" if status is MegabatchStatus.ACCEPTED else status.value,
        received_at=megabatch.received_at,
        examples=megabatch.examples,
        arrival=estimate(seen.accuracy, seen.examples) if seen else None,
        now=estimate(now["accuracy"], now["examples"]) if now else None,
        forgotten=now["forgotten"] if now else None,
        drifted=alarms if watched else None,
        drift="; ".join(
            t(
                "drift.figure",
                of=t(f"drift.{name}"),
                effect=t.number(shift["effect"], 2),
                p=t.p_value(shift["p_value"]),
            )
            for name, shift in watched.items()
        ),
    )
