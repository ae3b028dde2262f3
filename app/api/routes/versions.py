"""Versions: list, poll, download, roll back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from app import errors
from app.api import schemas
from app.api.declared import JSON_BODY, NOT_MODIFIED, problems, with_headers
from app.api.dependencies import (
    TOLD,
    ActorDep,
    AliasRevision,
    CursorText,
    Limit,
    ModelName,
    NotaryDep,
    PollsDep,
    SettingsDep,
    StoreDep,
    UntilSent,
    VersionRef,
    decode_number,
)
from app.api.problems import MALFORMED_HEADER, RANGE
from app.api.representations import CheckpointFile, Representation, caching, is_current, strong
from app.api.strict_json import JsonRoute
from app.service import history, release
from app.service.bundle import OpenBundle, open_bundle

router = APIRouter(prefix="/v1/models/{model}", tags=["versions"], route_class=JsonRoute, dependencies=[TOLD])

_UNKNOWN = (errors.UnknownModel, errors.UnknownVersion)
_BYTES = (errors.VersionSwept, errors.CorruptBlob, errors.StorageUnreachable, errors.StorageRefused)
_SIGNED = (errors.LogBehind, errors.Fault, errors.StorageFull)
_MOVES = (errors.AliasMoved, errors.PreconditionMissing, *_BYTES, MALFORMED_HEADER, *JSON_BODY)
_HEADERS = {
    "ETag": "Digest of the checkpoint.",
    "Cache-Control": "Immutable for a number; `no-cache` for an alias.",
    "Espalier-Alias-Revision": "Revision of the alias, when asked for by one.",
}
_POLL = {**_HEADERS, "Preference-Applied": "The wait that was granted to `Prefer: wait`."}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILE = {"application/octet-stream": _BINARY, "application/zip": _BINARY}
_DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: {
        **with_headers("The whole checkpoint.", {**_HEADERS, "Content-Digest": "RFC 9530", "Repr-Digest": "RFC 9530"}),
        "content": _FILE,
    },
    206: {
        **with_headers("One range of it.", {**_HEADERS, "Content-Range": "Which.", "Repr-Digest": "RFC 9530"}),
        "content": _FILE,
    },
    304: NOT_MODIFIED,
}


@router.get("/versions", summary="List versions", responses=problems(errors.UnknownModel, errors.InvalidCursor))
def list_versions(name: ModelName, store: StoreDep, limit: Limit = 50, cursor: CursorText = None) -> schemas.Versions:
    """Versions, newest first, withheld ones included."""
    page = release.list_versions(store, name, after=decode_number("versions", cursor), limit=limit)
    return schemas.Versions.from_domain("versions", page, schemas.Version.from_domain)


@router.get(
    "/versions/{ref}",
    response_model=schemas.Version,
    summary="Look at a version, or poll an alias",
    responses={200: with_headers("The version.", _POLL), 304: NOT_MODIFIED, **problems(*_UNKNOWN)},
)
def get_version(name: ModelName, ref: VersionRef, request: Request, store: StoreDep, polls: PollsDep) -> Response:
    """A version by number or alias. Poll an alias with `If-None-Match`: 304 while it points to the same version.

    With `Prefer: wait=30` the 304 comes after 30 seconds, and the new version as soon as the alias moves.
    """

    def load() -> Representation:
        view = release.get_version(store, name, ref)
        body = schemas.Version.from_domain(view.version)
        swept = "" if view.version.swept_at is None else "-swept"  # the one thing that ever changes about a version
        return Representation.of(body, strong(view.version.checkpoint + swept), caching(ref, view.alias))

    return polls.read(request, name, load, follows=not ref.isdecimal())


@router.get(
    "/versions/{ref}/checkpoint",
    response_class=Response,
    summary="Download a checkpoint",
    responses={**_DOWNLOAD, **problems(*_UNKNOWN, errors.MissingBlob, *_BYTES, *_SIGNED, RANGE)},
)
def download_checkpoint(
    name: ModelName,
    ref: VersionRef,
    request: Request,
    store: StoreDep,
    settings: SettingsDep,
    notary: NotaryDep,
    until_sent: UntilSent,
    form: Annotated[
        Literal["sparse", "dense", "bundle"],
        Query(
            alias="format",
            description="`sparse`: mask bits and kept values; `dense`: every value; `bundle`: a zip of the sparse "
            "checkpoint with what shows where it comes from, signed.",
        ),
    ] = "sparse",
) -> Response:
    """The checkpoint's bytes (safetensors), or its bundle; whole or one range of them. The entity tag is their digest.

    A bundle is made anew for each request. While the log stands still, its bytes are the same.
    """
    if form == "bundle":
        return _bundle(request, until_sent.enter_context(open_bundle(store, notary, name, ref)))
    found = release.open_checkpoint(store, name, ref, form)
    headers = caching(ref, found.alias)
    if is_current(request, strong(found.digest)):
        return Response(status_code=304, headers={"ETag": strong(found.digest), **headers})
    offload = settings.accel_redirect and f"{settings.accel_redirect}{found.path.relative_to(store.blobs.root)}"
    filename = f"{name}-{found.version.number}.safetensors"
    return CheckpointFile(found.path, found.digest, found.size, filename, headers, offload)


def _bundle(request: Request, found: OpenBundle) -> Response:
    revision = {} if found.alias is None else {"Espalier-Alias-Revision": str(found.alias.revision)}
    headers = {"Cache-Control": "no-cache", **revision}  # the log grows, and each bundle is proved against it as it is
    if is_current(request, strong(found.digest)):
        return Response(status_code=304, headers={"ETag": strong(found.digest), **headers})
    filename = f"{found.version.model}-{found.version.number}.zip"
    return CheckpointFile(found.path, found.digest, found.size, filename, headers, media="application/zip")


@router.get(
    "/versions/{ref}/manifest",
    response_model=dict[str, Any],
    summary="Look at a version's manifest",
    responses={200: with_headers("The manifest.", _HEADERS), 304: NOT_MODIFIED, **problems(*_UNKNOWN)},
)
def get_manifest(name: ModelName, ref: VersionRef, request: Request, store: StoreDep) -> Response:
    """The manifest that stands in the checkpoint: recipe, input, layers, seed, environment."""
    view, manifest = release.get_manifest(store, name, ref)
    headers = {"ETag": strong(view.version.checkpoint), **caching(ref, view.alias)}
    if is_current(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return JSONResponse(dict(manifest), headers=headers)


@router.get("/versions/{ref}/audit", summary="Read what the log says about a version", responses=problems(*_UNKNOWN))
def version_audit(name: ModelName, ref: VersionRef, store: StoreDep) -> schemas.AuditTrail:
    """Every entry of the cycle that made the version, pruning steps included, and of what happened to it since."""
    return schemas.AuditTrail.from_domain(history.version_audit(store, name, ref))


@router.get(
    "/versions/{ref}/lineage",
    summary="Trace a version's ancestry",
    responses=problems(*_UNKNOWN, errors.InvalidCursor),
)
def lineage(
    name: ModelName, ref: VersionRef, store: StoreDep, limit: Limit = 50, cursor: CursorText = None
) -> schemas.Lineage:
    """The version and its ancestors, page by page, up to the first."""
    page = release.lineage(store, name, ref, start=decode_number("lineage", cursor), limit=limit)
    return schemas.Lineage.from_domain("lineage", page, schemas.Version.from_domain)


@router.post(
    "/rollback",
    summary="Roll back",
    responses=problems(*_UNKNOWN, errors.UnknownAlias, errors.UnknownMegabatch, errors.NotAnAncestor, *_MOVES),
)
def roll_back(
    name: ModelName, revision: AliasRevision, body: schemas.NewRollback, store: StoreDep, actor: ActorDep
) -> schemas.RolledBack:
    """Move the champion back to an ancestor: weights, mask, stage, replay and normalisation together."""
    to = None if body.to is None else str(body.to)
    quarantine = sorted(set(body.quarantine))
    done = release.roll_back(
        store, name, to=to, reason=body.reason, quarantine=quarantine, expected_revision=revision, actor=actor
    )
    return schemas.RolledBack.from_domain(done)
