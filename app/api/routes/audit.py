"""Audit: the log's entries and head."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse

from app import errors
from app.api import schemas
from app.api.declared import NOT_MODIFIED, problems, with_headers
from app.api.dependencies import MAX_NUMBER, NAME_PATTERN, CursorText, Limit, NotaryDep, StoreDep, decode_number
from app.api.representations import is_current, strong
from app.api.schemas.wire import Instant
from app.api.strict_json import JsonRoute
from app.errors import UnknownEntry
from app.service import history
from app.service.notary import Notary
from app.store.merkle import WIDTH
from app.store.search import Sought
from espalier.formats.canonical import sha256_digest

router = APIRouter(prefix="/v1/audit", tags=["audit"], route_class=JsonRoute)

_PROOFS = (errors.UnknownEntry, errors.LogBehind, errors.Fault)
_NOTE: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
_TILE: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_FOR_EVER = "private, max-age=31536000, immutable"
_LARGEST = 2**53 - 1

_Model = Annotated[
    str | None, Query(pattern=NAME_PATTERN, description="Entries of this model only.", examples=["gas-sensors"])
]
_Kind = Annotated[
    str | None,
    Query(
        pattern=r"^[a-z]+([._-][a-z]+)*$",
        max_length=100,
        description="Entries of this kind only.",
        examples=["mask.pruned"],
    ),
]


_Who = Annotated[
    str | None,
    Query(pattern=r"^[^\x00-\x1f]{1,200}$", description="Entries that this actor caused only.", examples=["anna"]),
]
_Text = Annotated[
    str,
    Query(
        max_length=100,
        description="Entries with this text in kind, model, actor, reason or parameters only.",
        examples=["line 3"],
    ),
]
_TIMES = ["2026-03-02T09:30:00Z"]
_After = Annotated[
    int | None, Query(ge=0, le=_LARGEST, description="Number of an entry to go on after.", examples=[500])
]
_Seq = Annotated[int, Query(ge=1, le=_LARGEST, description="Number of the entry.", examples=[12])]
_First = Annotated[int, Query(ge=0, le=_LARGEST, description="Size of the older log.", examples=[13])]
_Size = Annotated[
    int | None,
    Query(ge=0, le=_LARGEST, description="Size of the log; absent: that of the signed checkpoint.", examples=[40]),
]
_Level = Annotated[int, Path(ge=0, le=7, description="0: leaves; then roots of 256 of the level below.", examples=[0])]
_Place = Annotated[
    str, Path(max_length=60, description="Number of the tile, as C2SP tlog-tiles spells it.", examples=["000.p/13"])
]


@router.get("", summary="List audit entries", responses=problems(errors.InvalidCursor))
def list_entries(
    store: StoreDep,
    model: _Model = None,
    kind: _Kind = None,
    actor: _Who = None,
    since: Annotated[Instant | None, Query(description="Made at this time or later.", examples=_TIMES)] = None,
    until: Annotated[Instant | None, Query(description="Made before this time.", examples=_TIMES)] = None,
    text: _Text = "",
    after: _After = None,
    limit: Limit = 50,
    cursor: CursorText = None,
) -> schemas.AuditEntries:
    """Entries, oldest first; with `after`, those that follow an entry; with `since` or `until`, in order of time.

    What no index answers is looked for among 2,000 entries at a time: a page may then hold few entries, or none, and
    still have a `next_cursor`. It is the last one only without.
    """
    start = after if cursor is None else decode_number("audit", cursor)
    sought = Sought(model, kind, actor, since, until, text.strip())
    page = history.find_entries(store, sought, start=start, limit=limit)
    return schemas.AuditEntries.from_domain("audit", page, schemas.AuditEntry.from_domain)


@router.get("/head", summary="Read the log's head", responses=problems())
def log_head(store: StoreDep) -> schemas.LogHead:
    """How many entries the log has, and their Merkle root."""
    return schemas.LogHead.from_domain(history.log_head(store))


@router.get(
    "/checkpoint",
    response_class=PlainTextResponse,
    summary="Read the log's signed checkpoint",
    responses={
        200: {**with_headers("The note.", {"ETag": "Digest of the note."}), "content": _NOTE},
        304: NOT_MODIFIED,
        **problems(errors.LogBehind, errors.Fault),
    },
)
def log_checkpoint(request: Request, notary: NotaryDep) -> Response:
    """The log's size and root, signed: a C2SP checkpoint. Keep it where nobody who runs the service can change it."""
    note = notary.checkpoint()
    headers = {"ETag": strong(sha256_digest(note.encode())), "Cache-Control": "no-cache"}
    if is_current(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return PlainTextResponse(note, headers=headers)


@router.get("/keys", summary="Read the log's public keys", responses=problems(errors.Fault))
def log_keys(notary: NotaryDep) -> schemas.LogKeys:
    """The keys that sign checkpoints. Trust them only after they have come to you by another way, too."""
    return schemas.LogKeys(keys=[key.text for key in notary.verifier_keys()])


@router.get("/proofs/inclusion", summary="Prove that an entry is in the log", responses=problems(*_PROOFS))
def prove_inclusion(store: StoreDep, notary: NotaryDep, seq: _Seq, size: _Size = None) -> schemas.Inclusion:
    """The hashes that lead from an entry to the root (RFC 9162)."""
    proof = history.prove_inclusion(store, seq, _signed_size(notary) if size is None else size)
    return schemas.Inclusion.from_domain(proof)


@router.get("/proofs/consistency", summary="Prove that the log continues an older one", responses=problems(*_PROOFS))
def prove_consistency(store: StoreDep, notary: NotaryDep, first: _First, second: _Size = None) -> schemas.Consistency:
    """The hashes that show that the log of `second` entries begins with that of `first` (RFC 9162)."""
    proof = history.prove_consistency(store, first, _signed_size(notary) if second is None else second)
    return schemas.Consistency.from_domain(proof)


@router.get(
    "/tile/{level}/{place:path}",
    response_class=Response,
    summary="Read a tile of the tree",
    responses={200: {"description": "The tile.", "content": _TILE}, **problems(errors.UnknownEntry)},
)
def log_tile(level: _Level, place: _Place, store: StoreDep) -> Response:
    """Up to 256 hashes of the tree, 32 bytes each (C2SP tlog-tiles): `0/x001/234`, `0/005.p/17` for the first 17."""
    index, width = _tile_of(place)
    data = history.tile(store, level, index, width)
    return Response(data, media_type="application/octet-stream", headers={"Cache-Control": _FOR_EVER})


def _signed_size(notary: Notary) -> int:
    """The size that the present checkpoint signs, so that proof and checkpoint fit together."""
    return int(notary.checkpoint().split("\n", 2)[1])


def _tile_of(place: str) -> tuple[int, int]:
    """A tile's index and width, from its path."""
    *groups, last = place.split("/")
    number, _, width = last.partition(".p/") if ".p/" in last else (last, "", "")
    if groups and groups[-1].endswith(".p"):
        width, number = last, groups.pop().removesuffix(".p")
    if not all(re.fullmatch(r"x[0-9]{3}", group) for group in groups) or not re.fullmatch(r"[0-9]{3}", number):
        raise UnknownEntry("a tile's place is its number in groups of three digits, all but the last with an x before")
    if width and not re.fullmatch(r"[1-9][0-9]{0,2}", width):
        raise UnknownEntry("the width of a partial tile is 1 to 255")
    index = int("".join(group[1:] for group in groups) + number)
    return index, int(width or WIDTH)


@router.get("/verify", summary="Verify the log", responses=problems(errors.Fault))
def verify_log(store: StoreDep) -> schemas.VerifiedLog:
    """Recompute every leaf and the root. A log that does not hold is a problem that names the first faulty entry."""
    head = history.verify_log(store)
    return schemas.VerifiedLog(size=head.size, root=head.root)


@router.get("/{seq}", summary="Read one audit entry", responses=problems(errors.UnknownEntry))
def get_entry(
    seq: Annotated[int, Path(ge=0, le=MAX_NUMBER, description="Place of the entry in the log.", examples=[12])],
    store: StoreDep,
) -> schemas.AuditEntry:
    """One immutable fact."""
    return schemas.AuditEntry.from_domain(history.audit_entry(store, seq))
