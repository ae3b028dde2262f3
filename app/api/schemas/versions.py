"""Versions: the numbered, immutable results of cycles.

Knows: how a version looks in short, in full, among its ancestors and on its model's time line. Must never know: how a
guardrail judges, or where a checkpoint's bytes are kept. Densities lie in [0, 1].
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from app import domain
from app.api.schemas.reports import REPORT, Report
from app.api.schemas.wire import DIGEST, OTHER_DIGEST, TIME, Digest, Page, Time, example

_CHECKPOINT = {"digest": DIGEST, "bytes": 29_184, "dense_bytes": 101_376}
_METRICS = {"validation_accuracy": 0.981, "prequential_accuracy": 0.672, "generalization_gap": 0.012}
_LAYER = {"name": "0.weight", "shape": [128, 128], "kept": 4096, "total": 16384, "density": 0.25}
SUMMARY = {
    "number": 5,
    "status": "published",
    "stage": 5,
    "density": 0.25,
    "target_density": 0.25,
    "metrics": _METRICS,
    "checkpoint": _CHECKPOINT,
    "created_at": TIME,
    "swept_at": None,
    "swept_reason": None,
}
VERSION = {
    **SUMMARY,
    "model": "gas-sensors",
    "parent": 4,
    "cycle": 5,
    "depth": 5,
    "recipe_revision": 1,
    "recipe_digest": OTHER_DIGEST,
    "kept": 4096,
    "total": 16384,
    "layers": [_LAYER],
    "verdict": {"passed": True, "reasons": [], "action": ""},
    "mask_digest": OTHER_DIGEST,
    "report": REPORT,
    "megabatches": 5,
}


class Checkpoint(BaseModel):
    """A version's bytes, without the bytes."""

    model_config = example(_CHECKPOINT)

    digest: Digest = Field(description="Of the sparse checkpoint.")
    bytes: int = Field(description="Size of the sparse checkpoint.")
    dense_bytes: int = Field(description="What the same tensors take without sparsity.")


class VersionSummary(BaseModel):
    """A version in short."""

    model_config = example(SUMMARY)

    number: int = Field(description="Number, counted per model, never issued again.")
    status: domain.VersionStatus = Field(description="`published`, or `withheld` by a guardrail.")
    stage: int = Field(description="Pruning cycles in its ancestry, its own included.")
    density: float = Field(description="Share of prunable weights that are kept, as counted.")
    target_density: float = Field(description="The share that the schedule asked for.")
    metrics: dict[str, float] = Field(description="Accuracies, losses and gap by name; one without data is absent.")
    checkpoint: Checkpoint = Field(description="Its bytes.")
    created_at: Time = Field(description="When it was published or withheld.")
    swept_at: Time | None = Field(description="When retention removed its bytes; null while they are there.")
    swept_reason: str | None = Field(description="Why: the policy in words; null while they are there.")

    @classmethod
    def from_domain(cls, version: domain.VersionSummary) -> Self:
        """From the domain's value."""
        return cls(**_version_head(version))


class Layer(BaseModel):
    """One prunable tensor."""

    model_config = example(_LAYER)

    name: str = Field(description="Name of the parameter in the network.")
    shape: list[int] = Field(description="Its shape.")
    kept: int = Field(description="Weights that are kept.")
    total: int = Field(description="All its weights.")
    density: float = Field(description="`kept / total`.")

    @classmethod
    def from_domain(cls, layer: domain.Layer) -> Self:
        """From the domain's value."""
        return cls(name=layer.name, shape=list(layer.shape), kept=layer.kept, total=layer.total, density=layer.density)


class Verdict(BaseModel):
    """The guardrails' answer."""

    passed: bool = Field(description="Whether the version could become champion by itself.")
    reasons: list[str] = Field(description="Guardrails that tripped; breaches that have not tripped yet; notes.")
    action: domain.Action | Literal[""] = Field(description="What guardrails that tripped ask for; empty on a pass.")


class Version(VersionSummary):
    """A numbered, immutable result."""

    model_config = example(VERSION)

    model: str = Field(description="Name of the model.")
    parent: int | None = Field(description="The version that its cycle started from; null for a fresh network.")
    cycle: int = Field(description="The cycle that made it.")
    depth: int = Field(description="Cycles in its ancestry, pruning or not.")
    recipe_revision: int = Field(description="Which revision of the recipe it was made by.")
    recipe_digest: Digest = Field(description="Digest of that recipe.")
    kept: int = Field(description="Prunable weights that are kept.")
    total: int = Field(description="All prunable weights.")
    layers: list[Layer] = Field(description="The prunable tensors, one by one.")
    verdict: Verdict = Field(description="What the guardrails said.")
    mask_digest: Digest = Field(description="Digest of all masks together.")
    report: Report = Field(description="Figures by class and by megabatch.")
    megabatches: int = Field(description="Megabatches that it was trained on.")

    @classmethod
    def from_domain(cls, version: domain.Version) -> Self:  # type: ignore[override]  # a summary does not tell enough
        """From the domain's value."""
        return cls(
            **_version_head(version),
            model=version.model,
            parent=version.parent,
            cycle=version.cycle,
            depth=version.depth,
            recipe_revision=version.recipe_revision,
            recipe_digest=version.recipe_digest,
            kept=version.kept,
            total=version.total,
            layers=[Layer.from_domain(layer) for layer in version.layers],
            verdict=Verdict(
                passed=version.verdict.passed, reasons=list(version.verdict.reasons), action=version.verdict.action
            ),
            mask_digest=version.mask_digest,
            report=Report.model_validate(version.report),
            megabatches=version.megabatches,
        )


def _version_head(version: domain.VersionSummary) -> dict[str, Any]:
    return {
        "number": version.number,
        "status": version.status,
        "stage": version.stage,
        "density": version.density,
        "target_density": version.target_density,
        "metrics": dict(version.metrics),
        "checkpoint": Checkpoint(
            digest=version.checkpoint, bytes=version.checkpoint_bytes, dense_bytes=version.dense_bytes
        ),
        "created_at": version.created_at,
        "swept_at": version.swept_at,
        "swept_reason": version.swept_reason,
    }


class Versions(Page[Version]):
    """Versions, newest first."""


class Lineage(Page[Version]):
    """A version and its ancestors: itself first, then its parent, up to the first of all."""


class Moment(BaseModel):
    """One version on a model's time line."""

    model_config = example(
        {
            "version": 5,
            "parent": 4,
            "status": "published",
            "champion_now": True,
            "created_at": TIME,
            "stage": 5,
            "density": 0.25,
            "target_density": 0.25,
            "metrics": _METRICS,
            "checkpoint_bytes": 29_184,
            "dense_bytes": 101_376,
            "megabatches": 5,
        }
    )

    version: int = Field(description="Number of the version.")
    parent: int | None = Field(description="The version that it came from.")
    status: domain.VersionStatus = Field(description="`published` or `withheld`.")
    champion_now: bool = Field(description="Whether it is the champion at this moment.")
    created_at: Time = Field(description="When it was made.")
    stage: int = Field(description="Pruning cycles in its ancestry.")
    density: float = Field(description="Density as counted.")
    target_density: float = Field(description="Density that the schedule asked for.")
    metrics: dict[str, float] = Field(description="Accuracies, losses and gap by name; one without data is absent.")
    checkpoint_bytes: int = Field(description="Size of the sparse checkpoint.")
    dense_bytes: int = Field(description="Size without sparsity.")
    megabatches: int = Field(description="Megabatches that it was trained on.")

    @classmethod
    def from_domain(cls, version: domain.VersionSummary, champion: int | None) -> Self:
        """From a version and the number of the present champion."""
        return cls(
            version=version.number,
            parent=version.parent,
            status=version.status,
            champion_now=version.number == champion,
            created_at=version.created_at,
            stage=version.stage,
            density=version.density,
            target_density=version.target_density,
            metrics=dict(version.metrics),
            checkpoint_bytes=version.checkpoint_bytes,
            dense_bytes=version.dense_bytes,
            megabatches=version.megabatches,
        )


class TimeLine(Page[Moment]):
    """Versions, oldest first, as one draws them."""
