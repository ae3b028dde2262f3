"""Rows to domain objects, and back where a column holds JSON.

Knows: how a value of ``app.domain`` is spread over columns. Must never know: how rows are found or changed.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.domain import (
    Cycle,
    CycleState,
    CycleTrigger,
    Erasure,
    EvaluationSet,
    InputSpec,
    Layer,
    Megabatch,
    MegabatchStatus,
    Model,
    ModelState,
    Normalisation,
    Phase,
    Prequential,
    Progress,
    RecipeRevision,
    Verdict,
    Version,
    VersionDraft,
    VersionStatus,
    VersionSummary,
)

Row = sa.Row[Any]

_AS_STORED = tuple(field.name for field in fields(VersionSummary) if field.name not in ("model", "status"))
SUMMARISED = ("status", *_AS_STORED)
"""Columns of ``versions`` that a summary tells of."""


def model_of(row: Row) -> Model:
    """A row of ``models``."""
    return Model(
        id=row.id,
        name=row.name,
        state=ModelState(row.state),
        paused_reason=row.paused_reason,
        recipe_revision=row.recipe_revision,
        recipe_digest=row.recipe_digest,
        input=input_of(row.input),
        generation=row.generation,
        created_at=row.created_at,
    )


def recipe_of(row: Row, model: str) -> RecipeRevision:
    """A row of ``recipes``."""
    return RecipeRevision(model, row.revision, row.digest, row.document, row.created_at)


def megabatch_of(row: Row) -> Megabatch:
    """A row of ``megabatches`` with ``model``, its model's name."""
    return Megabatch(
        model=row.model,
        number=row.number,
        status=MegabatchStatus(row.status),
        pinned=row.pinned,
        digest=row.digest,
        x=row.x,
        y=row.y,
        ids=row.ids,
        examples=row.examples,
        bytes=row.bytes,
        histogram=tuple(row.histogram),
        prequential=Prequential(**row.prequential) if row.prequential else None,
        evaluation_overlap=row.evaluation_overlap,
        received_at=row.received_at,
        erased_at=row.erased_at,
        erasures=tuple(map(_erasure_of, row.erasures or ())),
    )


def evaluation_set_of(row: Row, model: str) -> EvaluationSet:
    """A row of ``evaluation_sets``."""
    return EvaluationSet(
        model=model,
        revision=row.revision,
        digest=row.digest,
        x=row.x,
        y=row.y,
        ids=row.ids,
        examples=row.examples,
        bytes=row.bytes,
        histogram=tuple(row.histogram),
        set_at=row.set_at,
    )


def cycle_of(row: Row) -> Cycle:
    """A row of ``cycles`` with ``model``, its model's name, and ``progress``, its lease's."""
    return Cycle(
        model=row.model,
        number=row.number,
        state=CycleState(row.state),
        trigger=CycleTrigger(row.trigger),
        through=row.through,
        recipe_revision=row.recipe_revision,
        evaluation_revision=row.evaluation_revision,
        parent=row.parent,
        version=row.version,
        attempt=row.attempt,
        failures=row.failures,
        not_before=row.not_before,
        reason=row.reason,
        progress=_progress_of(row.progress),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def summary_of(row: Row, model: str) -> VersionSummary:
    """A row of ``versions``, as far as a summary tells of it."""
    return VersionSummary(**_summarised(row, model))


def version_of(row: Row, model: str) -> Version:
    """A row of ``versions``."""
    return Version(
        **_summarised(row, model),
        cycle=row.cycle,
        depth=row.depth,
        recipe_revision=row.recipe_revision,
        recipe_digest=row.recipe_digest,
        layers=tuple(Layer(y["name"], tuple(y["shape"]), y["kept"], y["total"]) for y in row.layers),
        verdict=verdict_of(row.verdict),
        dense=row.dense,
        mask_digest=row.mask_digest,
        report=row.report or {},
        inputs=row.inputs,
        samples=row.samples,
        answers=row.answers,
        falls=row.falls,
    )


def _summarised(row: Row, model: str) -> dict[str, Any]:
    same = {name: getattr(row, name) for name in _AS_STORED}
    return {"model": model, "status": VersionStatus(row.status), **same}


def version_values(draft: VersionDraft) -> dict[str, Any]:
    """What a draft says, column by column."""
    return {
        "status": draft.status.value,
        "stage": draft.stage,
        "depth": draft.depth,
        "target_density": draft.target_density,
        "kept": draft.kept,
        "total": draft.total,
        "layers": [{"name": y.name, "shape": list(y.shape), "kept": y.kept, "total": y.total} for y in draft.layers],
        "metrics": dict(draft.metrics),
        "verdict": {
            "passed": draft.verdict.passed,
            "reasons": list(draft.verdict.reasons),
            "action": draft.verdict.action,
            "restored": draft.verdict.restored,
        },
        "checkpoint": draft.checkpoint,
        "checkpoint_bytes": draft.checkpoint_bytes,
        "dense": draft.dense,
        "dense_bytes": draft.dense_bytes,
        "mask_digest": draft.mask_digest,
        "state": draft.state,
        "megabatches": draft.megabatches,
        "manifest": dict(draft.manifest),
        "report": dict(draft.report),
        "inputs": draft.inputs,
        "samples": draft.samples,
        "answers": draft.answers,
        "falls": draft.falls,
    }


def input_document(spec: InputSpec) -> dict[str, Any]:
    """An input spec as JSON."""
    scaling = spec.normalisation
    return {
        "shape": None if spec.shape is None else list(spec.shape),
        "dtype": spec.dtype,
        "classes": None if spec.classes is None else list(spec.classes),
        "normalisation": None
        if scaling is None
        else {
            "name": scaling.name,
            "signed_log": scaling.signed_log,
            "clip": scaling.clip,
            "mean": list(scaling.mean),
            "std": list(scaling.std),
        },
        "unseen_classes": spec.unseen_classes,
        "label": spec.label,
        "features": None if spec.features is None else list(spec.features),
        "resize": spec.resize,
    }


def progress_document(progress: Progress) -> dict[str, Any]:
    """Progress as JSON."""
    return {
        "phase": progress.phase.value,
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "step": progress.step,
        "steps": progress.steps,
        "loss": progress.loss,
        "density": progress.density,
        "losses": list(progress.losses),
    }


def input_of(document: dict[str, Any]) -> InputSpec:
    """What ``input_document`` gave; one of before late classes or columns, too."""
    scaling, features = document["normalisation"], document.get("features")
    return InputSpec(
        shape=None if document["shape"] is None else tuple(document["shape"]),
        dtype=document["dtype"],
        classes=None if document["classes"] is None else tuple(document["classes"]),
        normalisation=None
        if scaling is None
        else Normalisation(**{**scaling, "mean": tuple(scaling["mean"]), "std": tuple(scaling["std"])}),
        unseen_classes=document.get("unseen_classes", "reject"),
        label=document.get("label"),
        features=None if features is None else tuple(features),
        resize=document.get("resize", "reject"),
    )


def erasure_document(erasure: Erasure) -> dict[str, Any]:
    """An erasure as JSON."""
    return {"at": erasure.at.isoformat(), "before": erasure.before, "removed": [list(run) for run in erasure.removed]}


def _erasure_of(document: dict[str, Any]) -> Erasure:
    removed = tuple((first, last) for first, last in document["removed"])
    return Erasure(datetime.fromisoformat(document["at"]), document["before"], removed)


def verdict_of(document: dict[str, Any]) -> Verdict:
    """A verdict; one of before actions, too."""
    reasons = tuple(document["reasons"])
    return Verdict(document["passed"], reasons, document.get("action", ""), document.get("restored"))


def _progress_of(document: dict[str, Any] | None) -> Progress | None:
    """Progress; one of before curves, too."""
    if document is None:
        return None
    losses = tuple(document.get("losses", ()))
    return Progress(**{**document, "phase": Phase(document["phase"]), "losses": losses})
