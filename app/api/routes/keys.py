"""Keys: made, looked at, revoked."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app import errors
from app.api import schemas
from app.api.declared import JSON_BODY, problems, with_headers
from app.api.dependencies import NAME_PATTERN, ActorDep, CallerDep, CursorText, Limit, StoreDep, decode_cursor
from app.api.idempotency import TOLD_ONCE
from app.api.strict_json import JsonRoute
from app.service import access

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=JsonRoute)

KeyName = Annotated[str, Path(alias="key", pattern=NAME_PATTERN, description="Name of a key.", examples=["line-3"])]


@router.post(
    "",
    status_code=201,
    summary="Make a key",
    responses={
        201: with_headers("Made; the only answer that holds its text.", {"Location": "Path of the key."}),
        **problems(errors.InvalidName, errors.BadInput, errors.UnknownModel, errors.KeyNameTaken, *JSON_BODY),
    },
)
def create_key(
    body: schemas.NewKey, request: Request, response: Response, store: StoreDep, caller: CallerDep, actor: ActorDep
) -> schemas.CreatedKey:
    """Make a key that allows no more than your own. Its text is told this once, and no repeated request is told it."""
    wanted = access.Wanted(
        name=body.name,
        scopes=frozenset(body.scopes),
        models=None if body.models is None else frozenset(body.models),
        requests_per_minute=body.requests_per_minute,
        expires_at=body.expires_at,
    )
    made = access.create_key(store, wanted, caller=caller, actor=actor)
    request.scope[TOLD_ONCE] = True
    response.headers["Location"] = f"/v1/keys/{made.key.name}"
    response.headers["Cache-Control"] = "no-store"
    return schemas.CreatedKey.made(made.key, made.text)


@router.get("", summary="List keys", responses=problems(errors.InvalidCursor))
def list_keys(store: StoreDep, limit: Limit = 50, cursor: CursorText = None) -> schemas.Keys:
    """Keys by name, those that expired or were revoked too; never their text."""
    page = access.list_keys(store, after=decode_cursor("keys", cursor), limit=limit)
    return schemas.Keys.from_domain("keys", page, schemas.Key.from_domain)


@router.get("/{key}", summary="Look at a key", responses=problems(errors.UnknownKey))
def get_key(name: KeyName, store: StoreDep) -> schemas.Key:
    """What it allows, who made it, and when it was last used; never its text."""
    return schemas.Key.from_domain(access.get_key(store, name))


@router.post("/{key}/revoke", summary="Revoke a key", responses=problems(errors.UnknownKey, *JSON_BODY))
def revoke_key(name: KeyName, body: schemas.Reason, store: StoreDep, actor: ActorDep) -> schemas.Key:
    """End a key and every session with it, at once and for good. One that is revoked already stays as it is."""
    return schemas.Key.from_domain(access.revoke_key(store, name, reason=body.reason, actor=actor))
