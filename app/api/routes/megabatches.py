"""Megabatches: upload, list, look at, pin, put into quarantine and let out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import anyio
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from app import errors
from app.api import schemas
from app.api.bodies import MegabatchUpload, UploadMedia, prefers_async
from app.api.declared import JSON_BODY, UPLOAD_BODY, problems, with_headers
from app.api.dependencies import (
    ActorDep,
    CursorText,
    Limit,
    ModelName,
    Number,
    SettingsDep,
    StoreDep,
    decode_number,
)
from app.api.problems import MALFORMED_HEADER, TOO_SLOW, UNSUPPORTED_MEDIA
from app.api.strict_json import JsonRoute
from app.config import Settings
from app.domain import Actor, Cycle
from app.intake.arrays import Limits
from app.service import ingest, megabatches, uploads
from app.store.blobs import Staged
from app.store.database import Store

router = APIRouter(prefix="/v1/models/{model}/megabatches", tags=["megabatches"], route_class=JsonRoute)


@router.post(
    "",
    status_code=201,
    response_model=schemas.Megabatch,
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
        202: {
            "model": schemas.Upload,
            **with_headers("Received; it is being decoded.", {"Location": "Path of the upload, to poll."}),
        },
        **problems(
            errors.UnknownModel,
            errors.TooManyUploads,
            errors.InvalidMegabatch,
            errors.MegabatchQuarantined,
            errors.MegabatchErased,
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
    media: UploadMedia,
    request: Request,
    store: StoreDep,
    settings: SettingsDep,
    actor: ActorDep,
) -> Response:
    """Send a file of examples and labels as the raw body. It is accepted or refused whole; the same arrays again,
    however they are packed, are answered with 200 and the first megabatch. With `Prefer: respond-async`, or a large
    body, the answer is 202 and the path of an upload to poll.
    """
    if prefers_async(request) or staged.size > settings.respond_async_bytes:
        return await _apart(request, store, settings, actor, name, staged, media)
    limits = Limits(max_bytes=settings.max_megabatch_bytes, seconds=settings.decode_seconds)
    accept = partial(ingest.accept_megabatch, store, name, staged, limits=limits, actor=actor, media=media)
    accepted = await anyio.to_thread.run_sync(accept, limiter=request.app.state.decoding)
    return await _megabatch(request, store, name, accepted.megabatch.number, accepted.cycle, accepted.new, {})


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
    responses=problems(errors.UnknownModel, errors.UnknownMegabatch, errors.MegabatchErased, *JSON_BODY),
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


@router.post(
    "/{number}/quarantine",
    summary="Quarantine a megabatch",
    responses=problems(errors.UnknownModel, errors.UnknownMegabatch, errors.MegabatchErased, *JSON_BODY),
)
def quarantine_megabatch(
    name: ModelName, number: Number, body: schemas.Reason, store: StoreDep, actor: ActorDep
) -> schemas.SortedMegabatch:
    """Keep it out of all training until it is released. Open cycles are superseded; versions that saw it stay."""
    done = megabatches.quarantine_megabatch(store, name, number, reason=body.reason, actor=actor)
    return schemas.SortedMegabatch.from_domain(done)


@router.post(
    "/{number}/release",
    summary="Release a megabatch from quarantine",
    responses=problems(errors.UnknownModel, errors.UnknownMegabatch, errors.MegabatchErased, *JSON_BODY),
)
def release_megabatch(
    name: ModelName, number: Number, body: schemas.Reason, store: StoreDep, actor: ActorDep
) -> schemas.SortedMegabatch:
    """Let the next cycle train on it again. Open cycles are superseded, and one takes their place."""
    done = megabatches.release_megabatch(store, name, number, reason=body.reason, actor=actor)
    return schemas.SortedMegabatch.from_domain(done)


# -- inside ------------------------------------------------------------------------------------------------------------


async def accepted_megabatch(
    request: Request, store: Store, outcome: uploads.Outcome, headers: Mapping[str, str]
) -> Response:
    """The answer to the request that completed an upload: what one request with all of it would have been answered."""
    found = outcome.upload
    assert found.megabatch is not None
    return await _megabatch(request, store, found.model, found.megabatch, outcome.cycle, outcome.new, headers)


async def _megabatch(
    request: Request,
    store: Store,
    name: str,
    number: int,
    cycle: Cycle | None,
    new: bool,
    headers: Mapping[str, str],
) -> Response:
    megabatch, spec = await run_in_threadpool(ingest.get_megabatch, store, name, number)
    located = {"Location": f"{request.scope.get('root_path', '')}/v1/models/{name}/megabatches/{number}"}
    replayed = {} if new else {"Idempotency-Replayed": "true"}
    document = schemas.Megabatch.from_domain(megabatch, spec, cycle).model_dump(mode="json")
    return JSONResponse(document, 201 if new else 200, {**headers, **located, **replayed})


async def _apart(
    request: Request, store: Store, settings: Settings, actor: Actor, name: str, staged: Staged, media: str | None
) -> Response:
    """Answer at once; decode afterwards."""
    adopt = partial(uploads.adopt_upload, store, name, staged, media=media, settings=settings, actor=actor)
    upload = await run_in_threadpool(adopt)
    request.app.state.settling.begin(upload.id, actor)
    headers = {"Location": f"{request.scope.get('root_path', '')}/v1/uploads/{upload.id}"}
    if prefers_async(request):
        headers["Preference-Applied"] = "respond-async"
    return JSONResponse(schemas.Upload.from_domain(upload).model_dump(mode="json"), 202, headers)
