"""Schemas: the JSON of requests and answers.

Knows: how every noun looks on the wire, with a description and a working example of each; one module a noun. Must never
know: how a noun is found or changed. Times are RFC 3339 in UTC, digests ``sha256:<hex>``, shares and densities lie in
[0, 1].
"""

from __future__ import annotations

from app.api.schemas.aliases import Alias, AliasMove, AliasMoves, NewRollback, Promoted, RolledBack
from app.api.schemas.audit import AuditEntries, AuditEntry, AuditTrail, LogHead, VerifiedLog
from app.api.schemas.cycles import Cycle, Cycles, NewCycle, Progress
from app.api.schemas.evaluation import EvaluationSet
from app.api.schemas.health import Alive, Ready, WorkerHealth
from app.api.schemas.inputs import Input, NewInput, NewNormalisation, Normalisation
from app.api.schemas.megabatches import Megabatch, Megabatches, Prequential
from app.api.schemas.models import InitialWeights, Model, Models, NewModel, Tensor
from app.api.schemas.reports import ByClass, OnArrival, Report, Retained
from app.api.schemas.uploads import Refusal, Upload
from app.api.schemas.versions import (
    Checkpoint,
    Layer,
    Lineage,
    Moment,
    TimeLine,
    Verdict,
    Version,
    Versions,
    VersionSummary,
)
from app.api.schemas.wire import Fault, Page, Problem, Reason

__all__ = [
    "Alias",
    "AliasMove",
    "AliasMoves",
    "Alive",
    "AuditEntries",
    "AuditEntry",
    "AuditTrail",
    "ByClass",
    "Checkpoint",
    "Cycle",
    "Cycles",
    "EvaluationSet",
    "Fault",
    "InitialWeights",
    "Input",
    "Layer",
    "Lineage",
    "LogHead",
    "Megabatch",
    "Megabatches",
    "Model",
    "Models",
    "Moment",
    "NewCycle",
    "NewInput",
    "NewModel",
    "NewNormalisation",
    "NewRollback",
    "Normalisation",
    "OnArrival",
    "Page",
    "Prequential",
    "Problem",
    "Progress",
    "Promoted",
    "Ready",
    "Reason",
    "Refusal",
    "Report",
    "Retained",
    "RolledBack",
    "Tensor",
    "TimeLine",
    "Upload",
    "Verdict",
    "VerifiedLog",
    "Version",
    "VersionSummary",
    "Versions",
    "WorkerHealth",
]
