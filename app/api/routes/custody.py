"""Custody: which data went into which version, and which answers differ between two."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from app import errors
from app.api import schemas
from app.api.declared import NOT_MODIFIED, problems, with_headers
from app.api.dependencies import (
    MAX_NUMBER,
    CursorText,
    Limit,
    ModelName,
    Number,
    StoreDep,
    VersionRef,
    decode_cursor,
    decode_number,
)
from app.api.problems import RANGE
from app.api.representations import CheckpointFile, caching, is_current, strong
from app.api.schemas.custody import KindName, SourceName, UseName, use_of
from app.api.strict_json import JsonRoute
from app.errors import InvalidCursor
from app.service import comparison, custody
from app.service.comparison import Kind, Sought

router = APIRouter(prefix="/v1/models/{model}", tags=["custody"], route_class=JsonRoute)

_UNKNOWN = (errors.UnknownModel, errors.UnknownVersion)
_BYTES = (errors.MissingBlob, errors.CorruptBlob, errors.StorageUnreachable, errors.StorageRefused)
_BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

_REF = r"^([0-9]{1,9}|[a-z][a-z0-9-]{0,62})$"
_Before = Annotated[str, Path(alias="before", pattern=_REF, description="Number or alias of the first version.")]
_Now = Annotated[str, Path(alias="now", pattern=_REF, description="Number or alias of the second version.")]
_Lineage = Annotated[bool, Query(description="Also what its ancestors' cycles used, from the youngest to the oldest.")]


@router.get(
    "/megabatches/{number}/versions",
    summary="List the versions that a megabatch went into",
    responses=problems(errors.UnknownModel, errors.UnknownMegabatch, errors.InvalidCursor),
)
def megabatch_versions(
    name: ModelName,
    number: Number,
    store: StoreDep,
    inherited: Annotated[
        bool, Query(description="Also versions that only descend from one whose cycle used the megabatch.")
    ] = False,
    limit: Limit = 50,
    cursor: CursorText = None,
) -> schemas.MegabatchVersions:
    """Every version whose cycle used samples of the megabatch, oldest first, with what it did with them."""
    after = decode_number("uses", cursor)
    megabatch, page = custody.versions_of(store, name, number, after=after, limit=limit, inherited=inherited)
    return schemas.MegabatchVersions.of("uses", megabatch, page)


@router.get(
    "/versions/{ref}/megabatches",
    summary="List the megabatches that went into a version",
    responses=problems(*_UNKNOWN, *_BYTES, errors.InvalidCursor),
)
def version_megabatches(
    name: ModelName,
    ref: VersionRef,
    store: StoreDep,
    lineage: _Lineage = False,
    limit: Limit = 50,
    cursor: CursorText = None,
) -> schemas.VersionMegabatches:
    """Every megabatch of which the version's cycle used samples, and how many of them for what."""
    after = _place("seen", cursor)
    page = custody.megabatches_of(store, name, ref, lineage=lineage, after=after, limit=limit)
    return schemas.VersionMegabatches.of("seen", page)


@router.get(
    "/versions/{ref}/samples",
    summary="List the samples that went into a version",
    responses=problems(*_UNKNOWN, errors.NotRecorded, *_BYTES, errors.InvalidCursor),
)
def version_samples(
    name: ModelName,
    ref: VersionRef,
    store: StoreDep,
    megabatch: Annotated[
        int | None, Query(ge=1, le=MAX_NUMBER, description="Samples of this megabatch only.", examples=[3])
    ] = None,
    use: Annotated[
        UseName | None, Query(description="Samples that were put to this use only.", examples=["trained"])
    ] = None,
    lineage: _Lineage = False,
    limit: Limit = 50,
    cursor: CursorText = None,
) -> schemas.VersionSamples:
    """The id of every sample that the version's cycle used, and for what: split, replay buffer, scores."""
    after = _place("samples", cursor)
    page = custody.samples_of(
        store, name, ref, lineage=lineage, megabatch=megabatch, use=use_of(use), after=after, limit=limit
    )
    return schemas.VersionSamples.of("samples", page)


@router.get(
    "/versions/{ref}/records/{part}",
    response_class=Response,
    summary="Download what was written down about a version",
    responses={
        200: {**with_headers("The file.", {"ETag": "Its digest.", "Repr-Digest": "RFC 9530"}), "content": _BINARY},
        206: {"description": "One range of it.", "content": _BINARY},
        304: NOT_MODIFIED,
        **problems(*_UNKNOWN, errors.NotRecorded, *_BYTES, RANGE),
    },
)
def download_record(
    name: ModelName,
    ref: VersionRef,
    part: Annotated[
        Literal["inputs", "samples", "answers", "falls"],
        Path(
            description="`inputs`: what its cycle was given, by digest (JSON); `samples`: the samples that it used; "
            "`answers`: what it answered when it was judged; `falls`: at which pruning step each weight fell."
        ),
    ],
    request: Request,
    store: StoreDep,
) -> Response:
    """The whole file, as it was written when the version was made; `espalier.formats.custody` reads it."""
    found = custody.open_record(store, name, ref, part)
    headers = caching(ref)
    if is_current(request, strong(found.digest)):
        return Response(status_code=304, headers={"ETag": strong(found.digest), **headers})
    filename = f"{name}-{found.version.number}-{part}.{_SUFFIXES[part]}"
    return CheckpointFile(found.path, found.digest, found.size, filename, headers)


_SUFFIXES = {"inputs": "json", "samples": "safetensors", "answers": "safetensors", "falls": "safetensors.zst"}


@router.get(
    "/versions/{before}/diff/{now}",
    summary="Compare the answers of two versions",
    responses=problems(*_UNKNOWN, errors.NotRecorded, *_BYTES, errors.InvalidCursor),
)
def compare_versions(
    name: ModelName,
    before: _Before,
    now: _Now,
    store: StoreDep,
    kind: Annotated[
        list[KindName] | None,
        Query(description="Examples of these kinds; without: `fixed`, `broken` and `changed`.", max_length=4),
    ] = None,
    label: Annotated[
        str | None, Query(alias="class", max_length=255, description="Examples of this true class only.")
    ] = None,
    source: Annotated[SourceName | None, Query(description="Examples from here only.")] = None,
    limit: Limit = 50,
    cursor: CursorText = None,
) -> schemas.Comparison:
    """Which examples changed their answer from one version to another: counts, by class, and one by one."""
    kinds = [Kind[chosen.upper()] for chosen in kind] if kind else comparison.CHANGES
    after = decode_number("diff", cursor)
    found = comparison.compare(store, name, before, now, sought=Sought(kinds, label, source), after=after, limit=limit)
    return schemas.Comparison.of("diff", found)


def _place(listing: str, cursor: str | None) -> custody.Place | None:
    """The place in a lineage that a cursor names.

    Raises:
        InvalidCursor: not made by this listing.
    """
    key = decode_cursor(listing, cursor)
    if key is None:
        return None
    version, _, place = key.partition("-")
    if not (version.isdecimal() and place.isdecimal() and int(version) <= MAX_NUMBER and len(place) < 16):
        raise InvalidCursor("the cursor was not made by this listing: leave it out to begin with the first page")
    return int(version), int(place)
