"""Evaluation set: put it in force, look at it."""

from __future__ import annotations

from functools import partial

import anyio
from fastapi import APIRouter, Request, Response

from app import errors
from app.api import schemas
from app.api.bodies import EvaluationUpload, UploadMedia
from app.api.declared import UPLOAD_BODY, problems, with_headers
from app.api.dependencies import ActorDep, ModelName, SettingsDep, StoreDep
from app.api.problems import MALFORMED_HEADER, TOO_SLOW, UNSUPPORTED_MEDIA
from app.api.strict_json import JsonRoute
from app.intake.arrays import Limits
from app.service import evaluation

router = APIRouter(prefix="/v1/models/{model}/evaluation-set", tags=["megabatches"], route_class=JsonRoute)


@router.put(
    "",
    summary="Set the evaluation set",
    openapi_extra=UPLOAD_BODY,
    responses={
        200: with_headers(
            "In force instead of the one before; or in force already.",
            {"Idempotency-Replayed": "`true` when the same arrays were in force already."},
        ),
        201: {"model": schemas.EvaluationSet, **with_headers("In force; the model had none.", {})},
        **problems(
            errors.UnknownModel,
            errors.InputUnknown,
            errors.InvalidMegabatch,
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
async def set_evaluation_set(
    name: ModelName,
    staged: EvaluationUpload,
    media: UploadMedia,
    request: Request,
    response: Response,
    store: StoreDep,
    settings: SettingsDep,
    actor: ActorDep,
) -> schemas.EvaluationSet:
    """Send a fixed labelled set that is never trained on, as an upload of a megabatch is sent. It is a new revision, in
    force for cycles that are claimed from now on; examples of megabatches that are in it are left out of training.
    """
    limits = Limits(max_bytes=settings.max_megabatch_bytes, seconds=settings.decode_seconds)
    put = partial(evaluation.set_evaluation, store, name, staged, limits=limits, actor=actor, media=media)
    view, new = await anyio.to_thread.run_sync(put, limiter=request.app.state.decoding)
    if not new:
        response.headers["Idempotency-Replayed"] = "true"
    elif view.found.revision == 1:
        response.status_code = 201
    return schemas.EvaluationSet.from_domain(view)


@router.get(
    "",
    summary="Look at the evaluation set",
    responses=problems(errors.UnknownModel, errors.UnknownEvaluationSet),
)
def get_evaluation_set(name: ModelName, store: StoreDep) -> schemas.EvaluationSet:
    """Counts, class histogram, digest, since when it is in force, and how many training examples are in it too."""
    return schemas.EvaluationSet.from_domain(evaluation.get_evaluation(store, name))
