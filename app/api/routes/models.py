"""Models: register, look at, pause, resume; initial weights; the time line."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app import errors
from app.api import schemas
from app.api.bodies import WeightsUpload
from app.api.declared import JSON_BODY, UPLOAD_BODY, problems, with_headers
from app.api.dependencies import (
    ActorDep,
    CallerDep,
    CursorText,
    Limit,
    ModelName,
    SettingsDep,
    StoreDep,
    decode_cursor,
    decode_number,
)
from app.api.problems import MALFORMED_HEADER, TOO_SLOW, UNSUPPORTED_MEDIA
from app.api.strict_json import JsonRoute
from app.domain import InputSpec
from app.service import history, models

router = APIRouter(tags=["models"], route_class=JsonRoute)

_CREATED = with_headers("Registered.", {"Location": "Path of the model."})


@router.post(
    "/v1/models",
    status_code=201,
    summary="Register a model",
    responses={
        201: _CREATED,
        200: {"model": schemas.Model, "description": "Registered before, with the same recipe and input."},
        **problems(errors.InvalidName, errors.InvalidRecipe, errors.InvalidInputSpec, errors.ModelExists, *JSON_BODY),
    },
)
def create_model(
    body: schemas.NewModel,
    request: Request,
    response: Response,
    store: StoreDep,
    settings: SettingsDep,
    actor: ActorDep,
) -> schemas.Model:
    """Register a name, a recipe, and what is known of the input. The same again is answered with 200."""
    spec = InputSpec() if body.input is None else body.input.to_domain()
    known = settings.architectures
    model, new = models.create_model(
        store, name=body.name, recipe=body.recipe, input=spec, architectures=known, actor=actor
    )
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"{request.scope.get('root_path', '')}/v1/models/{model.name}"
    return schemas.Model.from_domain(models.describe_model(store, model.name))


@router.get("/v1/models", summary="List models", responses=problems(errors.InvalidCursor))
def list_models(store: StoreDep, caller: CallerDep, limit: Limit = 50, cursor: CursorText = None) -> schemas.Models:
    """Models by name, each with its champion and its queue; with a key for some models, those."""
    page = models.list_models(store, after=decode_cursor("models", cursor), limit=limit, only=caller.models)
    return schemas.Models.from_domain("models", page, schemas.Model.from_domain)


@router.get("/v1/models/{model}", summary="Look at a model", responses=problems(errors.UnknownModel))
def get_model(name: ModelName, store: StoreDep) -> schemas.Model:
    """A model with recipe, input, champion and queue."""
    return schemas.Model.from_domain(models.describe_model(store, name))


@router.post("/v1/models/{model}/pause", summary="Pause a model", responses=problems(errors.UnknownModel, *JSON_BODY))
def pause_model(name: ModelName, body: schemas.Reason, store: StoreDep, actor: ActorDep) -> schemas.Model:
    """Start no more cycles; uploads are still taken in, and a cycle that runs ends by itself."""
    models.pause_model(store, name, reason=body.reason, actor=actor)
    return schemas.Model.from_domain(models.describe_model(store, name))


@router.post("/v1/models/{model}/resume", summary="Resume a model", responses=problems(errors.UnknownModel, *JSON_BODY))
def resume_model(name: ModelName, body: schemas.Reason, store: StoreDep, actor: ActorDep) -> schemas.Model:
    """Start cycles again; what waits and has no cycle gets one."""
    models.resume_model(store, name, reason=body.reason, actor=actor)
    return schemas.Model.from_domain(models.describe_model(store, name))


@router.get(
    "/v1/models/{model}/metrics",
    summary="Draw a model's time line",
    responses=problems(errors.UnknownModel, errors.InvalidCursor),
)
def time_line(name: ModelName, store: StoreDep, limit: Limit = 50, cursor: CursorText = None) -> schemas.TimeLine:
    """Density, accuracies, gap and bytes of every version, oldest first."""
    page, champion = history.time_line(store, name, after=decode_number("metrics", cursor), limit=limit)
    return schemas.TimeLine.from_domain("metrics", page, lambda version: schemas.Moment.from_domain(version, champion))


@router.post(
    "/v1/initial-weights",
    status_code=201,
    summary="Upload initial weights",
    openapi_extra=UPLOAD_BODY,
    responses=problems(
        errors.InvalidWeights,
        errors.UploadTooLarge,
        errors.DigestMismatch,
        errors.LengthMismatch,
        errors.StorageFull,
        UNSUPPORTED_MEDIA,
        MALFORMED_HEADER,
        TOO_SLOW,
    ),
)
def keep_initial_weights(staged: WeightsUpload, store: StoreDep) -> schemas.InitialWeights:
    """Keep a safetensors file, whose digest a recipe can then name as `initial_weights`."""
    return schemas.InitialWeights.from_domain(models.keep_initial_weights(store, staged))
