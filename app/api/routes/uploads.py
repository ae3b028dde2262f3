"""Uploads that may take several requests: begin, go on, look at, give up. Two protocols, one implementation."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from fastapi.responses import JSONResponse

from app import errors
from app.api import resumable, schemas
from app.api.bodies import APPEND_STALL_SECONDS, CONTENT, content_length, pour, prefers_async, too_large
from app.api.declared import problems, with_headers
from app.api.dependencies import ActorDep, ModelName, SettingsDep, StoreDep
from app.api.problems import (
    COMPLETED_UPLOAD,
    MALFORMED_HEADER,
    REQUEST_ID,
    TOO_SLOW,
    TUS_VERSION,
    UNSUPPORTED_MEDIA,
    HttpProblem,
    problem_response,
)
from app.api.resumable import Part, ResumableRoute, is_tus, standing
from app.api.routes.megabatches import accepted_megabatch
from app.api.settling import Settling
from app.config import Settings
from app.domain import Actor, Upload, UploadState
from app.errors import EspalierError, LengthMismatch, UploadBusy
from app.service import uploads
from app.store.database import Store

router = APIRouter(tags=["megabatches"], route_class=ResumableRoute)

UploadId = Annotated[
    str,
    Path(alias="upload", max_length=64, description="Id of an upload.", examples=["5c1f0f0e3d7a4f8e9b1d2c3a4b5c6d7e"]),
]
_ONE = "/v1/uploads/{upload}"
_LONGEST_HEAD = 20.0
"""A HEAD stays this long, in seconds, for an upload that is being decoded: its answer says what became of it."""

_STANDS = {
    "Upload-Offset": "Bytes that are durable.",
    "Upload-Length": "Bytes of the whole, where that is known.",
    "Upload-Complete": "IETF draft: `?1` once all bytes are there.",
    "Upload-Expires": "tus: when it is given up.",
    "Espalier-Megabatch": "Number of the megabatch that it became.",
}
_PART = {
    "requestBody": {
        "required": True,
        "content": {
            media: {"schema": {"type": "string", "format": "binary"}}
            for media in (resumable.TUS_PART, resumable.PARTIAL)
        },
    }
}
_MAY_FAIL = (
    errors.InvalidMegabatch,
    errors.MegabatchQuarantined,
    errors.MegabatchErased,
    errors.UploadTooLarge,
    errors.DigestMismatch,
    errors.ChecksumMismatch,
    errors.LengthMismatch,
    errors.StorageFull,
    TUS_VERSION,
    UNSUPPORTED_MEDIA,
    MALFORMED_HEADER,
    TOO_SLOW,
)


def _path_parameter(name: str, told: str) -> dict[str, Any]:
    """A parameter that the document names, though no answer depends on it."""
    schema = {"type": "string", "minLength": 1}
    return {"parameters": [{"name": name, "in": "path", "required": True, "description": told, "schema": schema}]}


@router.options(
    "/v1/models/{model}/uploads",
    status_code=204,
    summary="Ask what uploads may be",
    openapi_extra=_path_parameter("model", "Name of a model; whether there is one does not matter."),
    responses=problems(),
)
async def uploads_offered(settings: SettingsDep) -> Response:
    """Versions, extensions and limits, in the headers of tus 1.0.0 and of the IETF draft on resumable uploads."""
    return Response(status_code=204, headers=resumable.offers(settings))


@router.options(
    _ONE,
    status_code=204,
    summary="Ask what an upload may be",
    openapi_extra=_path_parameter("upload", "Id of an upload; whether there is one does not matter."),
    responses=problems(),
)
async def upload_offered(settings: SettingsDep) -> Response:
    """The same, of one upload."""
    return Response(status_code=204, headers=resumable.offers(settings))


@router.post(
    "/v1/models/{model}/uploads",
    status_code=201,
    response_class=Response,
    summary="Begin an upload",
    openapi_extra={"requestBody": {"required": False, "content": _PART["requestBody"]["content"]}},
    responses={
        201: with_headers("Begun.", {"Location": "Path of the upload.", **_STANDS}),
        **problems(errors.UnknownModel, errors.TooManyUploads, *_MAY_FAIL),
    },
)
async def create_upload(
    name: ModelName, request: Request, store: StoreDep, settings: SettingsDep, actor: ActorDep
) -> Response:
    """Begin an upload that may take several requests: with `Tus-Resumable: 1.0.0`, as tus says; or with
    `Upload-Complete: ?0`, as the IETF draft says. The first bytes may come with it.
    """
    told, part = resumable.creation(request, settings)
    upload = await run_in_threadpool(partial(uploads.create_upload, store, name, told, settings=settings, actor=actor))
    if part is not None or told.length == 0:
        upload = await _received(request, store, settings, upload.id, part or Part(0, None, None, None, True))
    return await _answer(request, store, settings, actor, upload, created=True)


@router.head(
    _ONE,
    status_code=200,
    summary="Ask where an upload goes on",
    responses={200: with_headers("Where it stands.", _STANDS), **problems(errors.UnknownUpload, errors.UploadExpired)},
)
async def look_up_offset(
    upload_id: UploadId, request: Request, store: StoreDep, settings: SettingsDep, actor: ActorDep
) -> Response:
    """The offset, in headers. An upload that is complete is decoded first, and a refused one is answered as it was
    refused.
    """
    tus = is_tus(request.headers)
    found = (await _settling(request).settled(upload_id, actor, seconds=_LONGEST_HEAD)).upload
    if found.state is UploadState.REFUSED:
        return _refused(request, found, settings)
    if found.state is UploadState.COMPLETE and tus:
        raise UploadBusy(f"upload {found.id} is complete and being decoded: ask again")
    return Response(status_code=200 if tus else 204, headers=standing(found, request, settings))


@router.patch(
    _ONE,
    status_code=204,
    response_class=Response,
    summary="Go on with an upload",
    openapi_extra=_PART,
    responses={
        204: with_headers("Appended; with `Espalier-Megabatch`, accepted too.", _STANDS),
        201: {
            "model": schemas.Megabatch,
            **with_headers("IETF draft: complete, and accepted.", _STANDS),
        },
        200: {"model": schemas.Megabatch, **with_headers("The same arrays were accepted before.", _STANDS)},
        202: {"model": schemas.Upload, **with_headers("Complete; it is being decoded.", {"Location": "Its path."})},
        **problems(
            errors.UnknownUpload,
            errors.UploadExpired,
            errors.OffsetMismatch,
            errors.UploadBusy,
            COMPLETED_UPLOAD,
            *_MAY_FAIL,
        ),
    },
)
async def append_to_upload(
    upload_id: UploadId, request: Request, store: StoreDep, settings: SettingsDep, actor: ActorDep
) -> Response:
    """Append bytes at the upload's offset. What arrived stays when the connection breaks off; the last part is answered
    with the megabatch, or with why it was refused.
    """
    part = resumable.append(request)
    found = await run_in_threadpool(uploads.get_upload, store, upload_id)
    if found.state is UploadState.OPEN or not _asks_again(request, part, found):
        found = await _received(request, store, settings, upload_id, part)
    return await _answer(request, store, settings, actor, found)


@router.get(_ONE, summary="Look at an upload", responses=problems(errors.UnknownUpload, errors.UploadExpired))
async def get_upload(upload_id: UploadId, request: Request, actor: ActorDep) -> schemas.Upload:
    """State, offset, and what became of it. Poll this after a 202."""
    outcome = await _settling(request).settled(upload_id, actor, seconds=0)
    return schemas.Upload.from_domain(outcome.upload)


@router.delete(
    _ONE, status_code=204, summary="Give an upload up", responses={204: {}, **problems(errors.UnknownUpload)}
)
async def delete_upload(upload_id: UploadId, request: Request, store: StoreDep, actor: ActorDep) -> Response:
    """Its bytes go, and its outcome is forgotten; its megabatch, if it became one, stays."""
    is_tus(request.headers)
    await run_in_threadpool(partial(uploads.remove_upload, store, upload_id, actor=actor))
    return Response(status_code=204)


@router.post(
    _ONE,
    status_code=204,
    response_class=Response,
    summary="Go on with an upload, through a proxy that knows only POST",
    openapi_extra=_PART,
    responses=problems(errors.UnknownUpload, errors.UploadExpired, errors.OffsetMismatch, *_MAY_FAIL),
)
async def override_method(
    upload_id: UploadId,
    request: Request,
    store: StoreDep,
    settings: SettingsDep,
    actor: ActorDep,
    x_http_method_override: Annotated[str | None, Header(description="tus: `PATCH`, `HEAD` or `DELETE`.")] = None,
) -> Response:
    """What the method in `X-HTTP-Method-Override` would do."""
    match (x_http_method_override or "").upper():
        case "PATCH":
            return await append_to_upload(upload_id, request, store, settings, actor)
        case "HEAD":
            return await look_up_offset(upload_id, request, store, settings, actor)
        case "DELETE":
            return await delete_upload(upload_id, request, store, actor)
    raise HttpProblem(MALFORMED_HEADER, "X-HTTP-Method-Override must be PATCH, HEAD or DELETE here")


# -- inside ------------------------------------------------------------------------------------------------------------


def _settling(request: Request) -> Settling:
    settling: Settling = request.app.state.settling
    return settling


def _asks_again(request: Request, part: Part, found: Upload) -> bool:
    """Whether a part for a complete upload may be one whose answer was lost: it is told the outcome then, and appends
    nothing. Anything else is refused.
    """
    if found.state is UploadState.REFUSED:
        return True
    return part.offset <= found.offset if is_tus(request.headers) else part.empty and part.last is True


async def _received(request: Request, store: Store, settings: Settings, upload_id: str, part: Part) -> Upload:
    """Append a request's body, record what came of it whatever happens, and complete the upload if that was all."""
    steps = part.checksum is None
    held = uploads.appending(store, upload_id, part.offset, length=part.length, settings=settings, steps=steps)
    async with contextmanager_in_threadpool(held) as appending:
        size, most = content_length(request), appending.most - part.offset
        whole = appending.upload.length

        def over() -> EspalierError:
            if whole is None:
                return too_large(settings)
            return LengthMismatch(f"the part goes beyond the upload's {whole} bytes: send {most} bytes at most")

        if size is not None and size > most:
            raise over()
        try:
            came = await pour(
                request, appending.write, most=most, over=over, settings=settings, stall=APPEND_STALL_SECONDS
            )
        except BaseException as error:
            if steps and not isinstance(error, errors.UnknownUpload):
                with anyio.CancelScope(shield=True):
                    await run_in_threadpool(appending.record)
            raise
        request.scope[CONTENT] = appending.content
        if part.checksum is not None:
            await run_in_threadpool(appending.check, part.checksum)
        complete = came == most if part.last is None and whole is not None else part.last is True
        if complete and whole is not None and came != most:
            await run_in_threadpool(appending.record)
            raise LengthMismatch(f"the last part ends at byte {part.offset + came}, but the upload has {whole}")
        return await run_in_threadpool(partial(appending.record, complete=complete))


async def _answer(
    request: Request, store: Store, settings: Settings, actor: Actor, upload: Upload, *, created: bool = False
) -> Response:
    """Where the upload stands after a part; once it is complete, what became of it."""
    here = f"{request.scope.get('root_path', '')}/v1/uploads/{upload.id}"
    located = {"Location": here} if created else {}
    if upload.state is UploadState.OPEN:
        return Response(status_code=201 if created else 204, headers=located | standing(upload, request, settings))
    apart = prefers_async(request)
    outcome = await _settling(request).settled(upload.id, actor, seconds=0 if apart else None)
    headers = standing(outcome.upload, request, settings)
    if outcome.upload.state is UploadState.REFUSED:
        return _refused(request, outcome.upload, settings, located)
    if is_tus(request.headers):
        return Response(status_code=201 if created else 204, headers=headers | (located or _located(request, outcome)))
    if outcome.upload.state is UploadState.COMPLETE:
        view = schemas.Upload.from_domain(outcome.upload)
        return JSONResponse(view.model_dump(mode="json"), 202, headers | {"Location": here})
    return await accepted_megabatch(request, store, outcome, headers)


def _located(request: Request, outcome: uploads.Outcome) -> dict[str, str]:
    found = outcome.upload
    if found.megabatch is None:
        return {}
    root = request.scope.get("root_path", "")
    return {"Location": f"{root}/v1/models/{found.model}/megabatches/{found.megabatch}"}


def _refused(request: Request, upload: Upload, settings: Settings, headers: dict[str, str] | None = None) -> Response:
    response = problem_response(uploads.refusal(upload), request.scope[REQUEST_ID])
    response.headers.update(standing(upload, request, settings) | (headers or {}))
    return response
