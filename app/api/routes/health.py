"""Health: is the process there, and is the service ready."""

from __future__ import annotations

from fastapi import APIRouter

from app import errors
from app.api import schemas
from app.api.declared import OPEN, problems
from app.api.dependencies import StoreDep
from app.service import history

router = APIRouter(tags=["health"])


@router.get("/livez", summary="Ask whether the process is there", openapi_extra=OPEN)
async def livez() -> schemas.Alive:
    """Answers while the process does; nothing else is looked at."""
    return schemas.Alive()


@router.get(
    "/readyz",
    summary="Ask whether the service is ready",
    openapi_extra=OPEN,
    responses=problems(errors.SchemaMismatch, errors.StoreBusy, always=()),
)
def readyz(store: StoreDep) -> schemas.Ready:
    """Answers 200 when the database is there and at this version's schema; says when a worker was last heard of."""
    return schemas.Ready.from_domain(history.health(store))
