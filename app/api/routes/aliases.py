"""Aliases: where one points, pointed at a time, and has pointed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import errors
from app.api import schemas
from app.api.declared import NOT_MODIFIED, problems, with_headers
from app.api.dependencies import AliasName, CursorText, Limit, ModelName, PollsDep, StoreDep, decode_number
from app.api.representations import Representation, strong
from app.api.schemas.wire import Instant
from app.api.strict_json import JsonRoute
from app.service import release

router = APIRouter(prefix="/v1/models/{model}/aliases/{alias}", tags=["aliases"], route_class=JsonRoute)

_UNKNOWN = (errors.UnknownModel, errors.UnknownAlias)
_HEADERS = {
    "ETag": "Revision of the alias, for `If-Match`.",
    "Cache-Control": "`no-cache`.",
    "Preference-Applied": "The wait that was granted to `Prefer: wait`.",
}


_At = Annotated[
    Instant | None,
    Query(description="Where it pointed at this time (RFC 3339, with a time zone).", examples=["2026-03-02T09:30:00Z"]),
]


@router.get(
    "",
    response_model=schemas.Alias,
    summary="See where an alias points",
    responses={200: with_headers("The alias.", _HEADERS), 304: NOT_MODIFIED, **problems(*_UNKNOWN)},
)
def get_alias(
    name: ModelName, alias: AliasName, request: Request, store: StoreDep, polls: PollsDep, at: _At = None
) -> Response:
    """The version that an alias points to, now or at a time, and the revision to send as `If-Match` to move it.

    With `If-None-Match` and `Prefer: wait=30` the answer comes as soon as the alias moves.
    """

    def load() -> Representation:
        if at is None:
            body = schemas.Alias.from_domain(release.get_alias(store, name, alias))
        else:
            body = schemas.Alias.from_move(release.alias_at(store, name, alias, at))
        return Representation.of(body, strong(body.revision), {"Cache-Control": "no-cache"})

    return polls.read(request, name, load, follows=True)


@router.get("/history", summary="List the moves of an alias", responses=problems(*_UNKNOWN, errors.InvalidCursor))
def alias_history(
    name: ModelName, alias: AliasName, store: StoreDep, limit: Limit = 50, cursor: CursorText = None
) -> schemas.AliasMoves:
    """Every move of an alias, newest first: who moved it, when, from where, and why."""
    page = release.alias_history(store, name, alias, after=decode_number("moves", cursor), limit=limit)
    return schemas.AliasMoves.from_domain("moves", page, schemas.AliasMove.from_domain)
