"""Audit: the log's entries and head."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app import errors
from app.api import schemas
from app.api.declared import problems
from app.api.dependencies import MAX_NUMBER, NAME_PATTERN, CursorText, Limit, StoreDep, decode_number
from app.api.strict_json import JsonRoute
from app.service import history

router = APIRouter(prefix="/v1/audit", tags=["audit"], route_class=JsonRoute)

_Model = Annotated[
    str | None, Query(pattern=NAME_PATTERN, description="Entries of this model only.", examples=["gas-sensors"])
]
_Kind = Annotated[
    str | None,
    Query(
        pattern=r"^[a-z]+([.-][a-z]+)*$",
        max_length=100,
        description="Entries of this kind only.",
        examples=["mask.pruned"],
    ),
]


@router.get("", summary="List audit entries", responses=problems(errors.InvalidCursor))
def list_entries(
    store: StoreDep, model: _Model = None, kind: _Kind = None, limit: Limit = 50, cursor: CursorText = None
) -> schemas.AuditEntries:
    """Entries, oldest first."""
    page = history.audit_entries(store, model=model, after=decode_number("audit", cursor), limit=limit, kind=kind)
    return schemas.AuditEntries.from_domain("audit", page, schemas.AuditEntry.from_domain)


@router.get("/head", summary="Read the log's head", responses=problems())
def log_head(store: StoreDep) -> schemas.LogHead:
    """How many entries the log has, and their Merkle root."""
    return schemas.LogHead.from_domain(history.log_head(store))


@router.get("/verify", summary="Verify the log", responses=problems(errors.Fault))
def verify_log(store: StoreDep) -> schemas.VerifiedLog:
    """Recompute every leaf and the root. A log that does not hold is a problem that names the first faulty entry."""
    head = history.verify_log(store)
    return schemas.VerifiedLog(size=head.size, root=head.root)


@router.get("/{seq}", summary="Read one audit entry", responses=problems(errors.UnknownEntry))
def get_entry(
    seq: Annotated[int, Path(ge=0, le=MAX_NUMBER, description="Place of the entry in the log.", examples=[12])],
    store: StoreDep,
) -> schemas.AuditEntry:
    """One immutable fact."""
    return schemas.AuditEntry.from_domain(history.audit_entry(store, seq))
