"""Erasures: values that go for good, whole megabatches or single examples."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app import errors
from app.api import schemas
from app.api.declared import JSON_BODY, problems
from app.api.dependencies import ActorDep, ModelName, Number, StoreDep
from app.api.strict_json import JsonRoute
from app.domain import Actor
from app.service import erasure
from app.store.database import Store

router = APIRouter(prefix="/v1/models/{model}", tags=["megabatches"], route_class=JsonRoute)

_PROBLEMS = (
    *(errors.UnknownModel, errors.UnknownMegabatch, errors.EvaluationEmptied, errors.CorruptBlob, errors.MissingBlob),
    *(errors.StorageFull, errors.StorageUnreachable, errors.StorageRefused),
)


@router.post("/erasures", summary="Erase megabatches and examples", responses=problems(*_PROBLEMS, *JSON_BODY))
def erase(name: ModelName, body: schemas.NewErasure, store: StoreDep, actor: ActorDep) -> schemas.Erased:
    """Remove values for good, leave tombstones, and say which versions had taken them in. What is erased already stays
    so. With `retrain`, production goes on from the last clean ancestor.
    """
    return _erased(store, name, body.asked(), reason=body.reason, preview=body.preview, actor=actor)


@router.delete("/megabatches/{number}", summary="Erase a megabatch", responses=problems(*_PROBLEMS))
def erase_megabatch(
    name: ModelName,
    number: Number,
    reason: Annotated[str, Query(min_length=1, max_length=2000, description="In words, for the audit log.")],
    store: StoreDep,
    actor: ActorDep,
    retrain: Annotated[bool, Query(description="Also go on from the last clean ancestor, as `erasures` does.")] = False,
    preview: Annotated[bool, Query(description="Only say what it would do; nothing is changed.")] = False,
) -> schemas.Erased:
    """Remove one megabatch's values for good; its number, digest, size and time stay as a tombstone."""
    asked = erasure.Asked(megabatches=(number,), retrain=retrain)
    return _erased(store, name, asked, reason=reason, preview=preview, actor=actor)


def _erased(
    store: Store, name: str, asked: erasure.Asked, *, reason: str, preview: bool, actor: Actor
) -> schemas.Erased:
    if preview:
        done = erasure.preview(store, name, asked)
    else:
        done = erasure.erase(store, name, asked, reason=reason, actor=actor)
    return schemas.Erased.from_domain(name, done, preview=preview)
