"""Cycles: ask for one, list, look at."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app import errors
from app.api import schemas
from app.api.declared import JSON_BODY, problems, with_headers
from app.api.dependencies import TOLD, ActorDep, CursorText, Limit, ModelName, Number, StoreDep, decode_number
from app.api.strict_json import JsonRoute
from app.service import cycles

router = APIRouter(prefix="/v1/models/{model}/cycles", tags=["cycles"], route_class=JsonRoute, dependencies=[TOLD])


@router.post(
    "",
    status_code=202,
    summary="Train now",
    responses={
        202: with_headers("Queued.", {"Location": "Path of the cycle."}),
        **problems(errors.UnknownModel, errors.ModelPaused, errors.NothingToTrain, *JSON_BODY),
    },
)
def request_cycle(
    name: ModelName,
    request: Request,
    response: Response,
    store: StoreDep,
    actor: ActorDep,
    body: schemas.NewCycle | None = None,
) -> schemas.Cycle:
    """Enqueue a cycle over every eligible megabatch. One that waits already and covers them is answered as it is."""
    cycle = cycles.request_cycle(store, name, reason=None if body is None else body.reason, actor=actor)
    response.headers["Location"] = f"{request.scope.get('root_path', '')}/v1/models/{name}/cycles/{cycle.number}"
    return schemas.Cycle.from_domain(cycle)


@router.get("", summary="List cycles", responses=problems(errors.UnknownModel, errors.InvalidCursor))
def list_cycles(name: ModelName, store: StoreDep, limit: Limit = 50, cursor: CursorText = None) -> schemas.Cycles:
    """Cycles, newest first."""
    page = cycles.list_cycles(store, name, after=decode_number("cycles", cursor), limit=limit)
    return schemas.Cycles.from_domain("cycles", page, schemas.Cycle.from_domain)


@router.get("/{number}", summary="Look at a cycle", responses=problems(errors.UnknownModel, errors.UnknownCycle))
def get_cycle(name: ModelName, number: Number, store: StoreDep) -> schemas.Cycle:
    """State, progress and outcome of a cycle."""
    return schemas.Cycle.from_domain(cycles.get_cycle(store, name, number))
