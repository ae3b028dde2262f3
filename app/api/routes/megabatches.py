"""Megabatches: upload, list, look at, pin."""

from __future__ import annotations

from functools import partial

import anyio
from fastapi import APIRouter, Request, Response

from app import errors
from app.api import schemas
from app.api.declared import JSON_BODY, UPLOAD_BODY, problems, with_headers
from app.api.dependencies import (
    ActorDep,
    CursorText,
    Limit,
    MegabatchUpload,
    ModelName,
    Number,
    SettingsDep,
    StoreDep,
    decode_number,
)
from app.api.problems import MALFORMED_HEADER, TOO_SLOW, UNSUPPORTED_MEDIA
from app.api.strict_json import JsonRoute
from app.intake.decoders import Limits
from app.service import ingest, megabatches

router = APIRouter(prefix="/v1/models/{model}/megabatches", tags=["megabatches"], route_class=JsonRoute)


@router.post(
    "",
    status_code=201,
    summary="Upload a megabatch",
    openapi_extra=UPLOAD_BODY,
    responses={
        201: with_headers("Accepted.", {"Location": "Path of the megabatch."}),
        200: {
            "model": schemas.Megabatch,
            **with_headers(
                "The same arrays were accepted before.",
                {"Idempotency-Replayed": "`true`", "Location": "Path of the first."},
            ),
        },
        **problems(
            errors.UnknownModel,
            errors.InvalidMegabatch,
            errors.MegabatchQuarantined,
            errors.UploadTooLarge,
            errors.DigestMismatch,
            errors.LengthMismatch,
            errors.StorageFull,
            UNSUPPORTED_MEDIA,
            MALFORMED_HEADER,
            TOO_SLOW,
        ),
    },
)
async def upload_megabatch(
    name: ModelName,
    staged: MegabatchUpload,
    request: Request,
    response: Response,
    store: StoreDep,
    settings: SettingsDep,
    actor: ActorDep,
) -> schemas.Megabatch:
    """Send an npz file with the members `x` and `y` as the raw body. It is accepted or refused whole; the same arrays
    again, however they are packed, are answered with 200 and the first megabatch.
    """
    limits = Limits(max_bytes=settings.max_megabatch_bytes, seconds=settings.decode_seconds)
    accept = partial(ingest.accept_megabatch, store, name, staged, limits=limits, actor=actor)
    accepted = await anyio.to_thread.run_sync(accept, limiter=request.app.state.decoding)
    megabatch, spec = await anyio.to_thread.run_sync(ingest.get_megabatch, store, name, accepted.megabatch.number)
    response.headers["Location"] = (
        f"{request.scope.get('root_path', '')}/v1/models/{name}/megabatches/{megabatch.number}"
    )
    if not accepted.new:
        response.status_code = 200
        response.headers["Idempotency-Replayed"] = "true"
    return schemas.Megabatch.from_domain(megabatch, spec, accepted.cycle)


@router.get("", summary="List megabatches", responses=problems(errors.UnknownModel, errors.InvalidCursor))
def list_megabatches(
    name: ModelName, store: StoreDep, limit: Limit = 50, cursor: CursorText = None
) -> schemas.Megabatches:
    """Megabatches in order of arrival."""
    page, spec = ingest.list_megabatches(store, name, after=decode_number("megabatches", cursor), limit=limit)
    return schemas.Megabatches.from_domain(
        "megabatches", page, lambda found: schemas.Megabatch.from_domain(found, spec)
    )


@router.get(
    "/{number}", summary="Look at a megabatch", responses=problems(errors.UnknownModel, errors.UnknownMegabatch)
)
def get_megabatch(name: ModelName, number: Number, store: StoreDep) -> schemas.Megabatch:
    """Counts, class histogram, digest, status, and how the champion did on it on arrival."""
    megabatch, spec = ingest.get_megabatch(store, name, number)
    return schemas.Megabatch.from_domain(megabatch, spec)


@router.post(
    "/{number}/pin",
    summary="Pin a megabatch",
    responses=problems(errors.UnknownModel, errors.UnknownMegabatch, *JSON_BODY),
)
def pin_megabatch(
    name: ModelName, number: Number, body: schemas.Reason, store: StoreDep, actor: ActorDep
) -> schemas.Megabatch:
    """Replay it whole in every cycle from now on, whatever the replay policy keeps, while it is not quarantined."""
    pinned, spec = megabatches.pin_megabatch(store, name, number, pinned=True, reason=body.reason, actor=actor)
    return schemas.Megabatch.from_domain(pinned, spec)


@router.post(
    "/{number}/unpin",
    summary="Unpin a megabatch",
    responses=problems(errors.UnknownModel, errors.UnknownMegabatch, *JSON_BODY),
)
def unpin_megabatch(
    name: ModelName, number: Number, body: schemas.Reason, store: StoreDep, actor: ActorDep
) -> schemas.Megabatch:
    """Leave it to the replay policy again, which may choose among all of its examples."""
    unpinned, spec = megabatches.pin_megabatch(store, name, number, pinned=False, reason=body.reason, actor=actor)
    return schemas.Megabatch.from_domain(unpinned, spec)
