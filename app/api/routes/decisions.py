"""Decisions: what clients decided with which version, kept where they want it kept."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app import errors
from app.api import schemas
from app.api.declared import JSON_BODY, problems
from app.api.dependencies import MAX_NUMBER, ActorDep, CursorText, Limit, ModelName, StoreDep, decode_cursor
from app.api.schemas.wire import Instant
from app.api.strict_json import JsonRoute
from app.errors import InvalidCursor
from app.service import decisions
from app.store.decisions import Sought

router = APIRouter(prefix="/v1/models/{model}/decisions", tags=["decisions"], route_class=JsonRoute)

_TIMES = ["2026-03-02T09:30:00Z"]


@router.post(
    "",
    status_code=201,
    summary="Keep a batch of decisions",
    responses=problems(errors.UnknownModel, errors.InvalidStamp, *JSON_BODY),
)
def log_decisions(
    name: ModelName, body: schemas.NewDecisions, store: StoreDep, actor: ActorDep
) -> schemas.RecordedDecisions:
    """Keep up to 10,000 decisions, in a body of up to 1 MiB, whole or not at all, with one audit entry.

    Send an `Idempotency-Key`: the same batch again is then kept once.
    """
    drafts = body.drafts(store.clock())
    return schemas.RecordedDecisions.from_domain(decisions.record_decisions(store, name, drafts, actor=actor))


@router.get("", summary="List decisions", responses=problems(errors.UnknownModel, errors.InvalidCursor))
def list_decisions(
    name: ModelName,
    store: StoreDep,
    version: Annotated[
        int | None, Query(ge=0, le=MAX_NUMBER, description="Made with this version only.", examples=[5])
    ] = None,
    example: Annotated[
        str | None, Query(max_length=255, description="About this example only.", examples=["line-3/000123"])
    ] = None,
    since: Annotated[Instant | None, Query(description="Made at this time or later.", examples=_TIMES)] = None,
    until: Annotated[Instant | None, Query(description="Made before this time.", examples=_TIMES)] = None,
    limit: Limit = 50,
    cursor: CursorText = None,
) -> schemas.Decisions:
    """Decisions as they were reported, those made last first."""
    sought = Sought(version, example, since, until)
    page = decisions.list_decisions(store, name, sought, after=_number(cursor), limit=limit)
    return schemas.Decisions.from_domain("decisions", page, schemas.Decision.from_domain)


def _number(cursor: str | None) -> int | None:
    key = decode_cursor("decisions", cursor)
    if key is not None and not (key.isdecimal() and len(key) <= 18):
        raise InvalidCursor("the cursor was not made by this listing: leave it out to begin with the first page")
    return None if key is None else int(key)
