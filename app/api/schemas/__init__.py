"""Schemas: the JSON of requests and answers.

Knows: how every noun looks on the wire, with a description and a working example of each; one module a noun. Must never
know: how a noun is found or changed. Times are RFC 3339 in UTC, digests ``sha256:<hex>``, shares and densities lie in
[0, 1].
"""

from __future__ import annotations

from app.api.schemas.aliases import Alias, AliasMove, AliasMoves, Moved, NewRollback, NewTarget, Promotion, RolledBack
from app.api.schemas.audit import (
    AuditEntries,
    AuditEntry,
    AuditTrail,
    Consistency,
    Inclusion,
    LogHead,
    LogKeys,
    VerifiedLog,
)
from app.api.schemas.custody import (
    Change,
    Comparison,
    MegabatchUse,
    MegabatchVersions,
    Sample,
    SourceTally,
    VersionMegabatches,
    VersionSamples,
    VersionUse,
)
from app.api.schemas.cycles import Cycle, Cycles, NewCycle, Progress
from app.api.schemas.decisions import Decision, Decisions, NewDecision, NewDecisions, RecordedDecisions
from app.api.schemas.erasures import Erased, Gone, NewErasure, SortedMegabatch
from app.api.schemas.evaluation import EvaluationSet
from app.api.schemas.health import Alive, Ready, WorkerHealth
from app.api.schemas.inputs import Input, NewInput, NewNormalisation, Normalisation
from app.api.schemas.keys import CreatedKey, Key, Keys, NewKey, Session, SignIn
from app.api.schemas.megabatches import Megabatch, Megabatches, Prequential
from app.api.schemas.models import InitialWeights, Model, Models, NewModel, Tensor
from app.api.schemas.proposals import Approval, NewProtection, Proposal, Proposals, Protection
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
from app.api.schemas.webhooks import (
    Attempt,
    ChangedWebhook,
    CreatedWebhook,
    Deliveries,
    Delivery,
    Enabling,
    NewWebhook,
    Rotation,
    Webhook,
    Webhooks,
)
from app.api.schemas.wire import Fault, Page, Problem, Reason

__all__ = [
    "Alias",
    "AliasMove",
    "AliasMoves",
    "Alive",
    "Approval",
    "Attempt",
    "AuditEntries",
    "AuditEntry",
    "AuditTrail",
    "ByClass",
    "Change",
    "ChangedWebhook",
    "Checkpoint",
    "Comparison",
    "Consistency",
    "CreatedKey",
    "CreatedWebhook",
    "Cycle",
    "Cycles",
    "Decision",
    "Decisions",
    "Deliveries",
    "Delivery",
    "Enabling",
    "Erased",
    "EvaluationSet",
    "Fault",
    "Gone",
    "Inclusion",
    "InitialWeights",
    "Input",
    "Key",
    "Keys",
    "Layer",
    "Lineage",
    "LogHead",
    "LogKeys",
    "Megabatch",
    "MegabatchUse",
    "MegabatchVersions",
    "Megabatches",
    "Model",
    "Models",
    "Moment",
    "Moved",
    "NewCycle",
    "NewDecision",
    "NewDecisions",
    "NewErasure",
    "NewInput",
    "NewKey",
    "NewModel",
    "NewNormalisation",
    "NewProtection",
    "NewRollback",
    "NewTarget",
    "NewWebhook",
    "Normalisation",
    "OnArrival",
    "Page",
    "Prequential",
    "Problem",
    "Progress",
    "Promotion",
    "Proposal",
    "Proposals",
    "Protection",
    "Ready",
    "Reason",
    "RecordedDecisions",
    "Refusal",
    "Report",
    "Retained",
    "RolledBack",
    "Rotation",
    "Sample",
    "Session",
    "SignIn",
    "SortedMegabatch",
    "SourceTally",
    "Tensor",
    "TimeLine",
    "Upload",
    "Verdict",
    "VerifiedLog",
    "Version",
    "VersionMegabatches",
    "VersionSamples",
    "VersionSummary",
    "VersionUse",
    "Versions",
    "Webhook",
    "Webhooks",
    "WorkerHealth",
]
