"""Promotion: aliases are pointed at versions, protected, and moved by several people together."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app import domain, errors
from app.api import schemas
from app.api.declared import JSON_BODY, Responses, problems, with_headers
from app.api.dependencies import (
    TOLD,
    ActorDep,
    AliasName,
    AliasRevision,
    CursorText,
    Limit,
    ModelName,
    Number,
    StoreDep,
    decode_number,
)
from app.api.problems import MALFORMED_HEADER
from app.api.strict_json import JsonRoute
from app.service import promotion

router = APIRouter(prefix="/v1/models/{model}", tags=["aliases"], route_class=JsonRoute, dependencies=[TOLD])

_UNKNOWN = (errors.UnknownModel, errors.UnknownVersion)
_BYTES = (errors.VersionSwept, errors.CorruptBlob, errors.StorageUnreachable, errors.StorageRefused)
_MOVES = (
    *(errors.AliasMoved, errors.PreconditionMissing, errors.VerdictStands, errors.Conflict, *_BYTES),
    *(MALFORMED_HEADER, *JSON_BODY),
)
_PROPOSED: Responses = {
    202: {
        "model": schemas.Proposal,
        **with_headers(
            "Proposed: the alias is protected, and moves when others have approved.",
            {"Location": "Path of the proposal."},
        ),
    }
}
_UNKNOWN_PROPOSAL = (errors.UnknownModel, errors.UnknownProposal)
_DECIDED = (*_UNKNOWN_PROPOSAL, errors.ProposalClosed, *JSON_BODY)


@router.post(
    "/versions/{number}/promote",
    response_model=schemas.Moved,
    summary="Promote a version",
    responses={**_PROPOSED, **problems(*_UNKNOWN, *_MOVES)},
)
def promote(
    name: ModelName, number: Number, revision: AliasRevision, body: schemas.Promotion, store: StoreDep, actor: ActorDep
) -> Response:
    """Make a version the champion. One that its guardrails withheld needs `override`, which is audited as such."""
    done = promotion.promote(
        store, name, number, reason=body.reason, override=body.override, expected_revision=revision, actor=actor
    )
    return _answer(done)


@router.put(
    "/aliases/{alias}",
    response_model=schemas.Moved,
    summary="Point an alias at a version",
    responses={**_PROPOSED, **problems(*_UNKNOWN, errors.InvalidName, *_MOVES)},
)
def point_alias(
    name: ModelName,
    alias: AliasName,
    revision: AliasRevision,
    body: schemas.NewTarget,
    store: StoreDep,
    actor: ActorDep,
) -> Response:
    """Make or move an alias of your own; `If-Match: "0"` makes a new one. The champion is moved by promotions and
    rollbacks.
    """
    done = promotion.point(
        store,
        name,
        alias,
        body.version,
        reason=body.reason,
        override=body.override,
        expected_revision=revision,
        actor=actor,
    )
    return _answer(done)


@router.get(
    "/aliases/{alias}/protection",
    summary="See what protects an alias",
    responses=problems(errors.UnknownModel, errors.InvalidName),
)
def get_protection(name: ModelName, alias: AliasName, store: StoreDep) -> schemas.Protection:
    """How many people must agree to a promotion, and whether the service promotes by itself."""
    return schemas.Protection.from_domain(promotion.protection_of(store, name, alias))


@router.put(
    "/aliases/{alias}/protection",
    summary="Protect an alias",
    responses=problems(errors.UnknownModel, errors.InvalidName, *JSON_BODY),
)
def protect_alias(
    name: ModelName, alias: AliasName, body: schemas.NewProtection, store: StoreDep, actor: ActorDep
) -> schemas.Protection:
    """Decide how many other people must approve a promotion, and whether the service may promote by itself.

    Rollbacks stay one person's to do: going back to what was champion before must never wait.
    """
    done = promotion.protect(
        store, name, alias, approvals=body.approvals, automatic=body.automatic, reason=body.reason, actor=actor
    )
    return schemas.Protection.from_domain(done)


@router.get("/proposals", summary="List proposals", responses=problems(errors.UnknownModel, errors.InvalidCursor))
def list_proposals(name: ModelName, store: StoreDep, limit: Limit = 50, cursor: CursorText = None) -> schemas.Proposals:
    """Moves of protected aliases that wait for approval, or did; newest first."""
    page = promotion.list_proposals(store, name, after=decode_number("proposals", cursor), limit=limit)
    return schemas.Proposals.from_domain("proposals", page, schemas.Proposal.from_domain)


@router.get("/proposals/{number}", summary="Look at a proposal", responses=problems(*_UNKNOWN_PROPOSAL))
def get_proposal(name: ModelName, number: Number, store: StoreDep) -> schemas.Proposal:
    """Who proposed what and why, and who has approved so far."""
    return schemas.Proposal.from_domain(promotion.get_proposal(store, name, number))


@router.post(
    "/proposals/{number}/approve",
    summary="Approve a proposal",
    responses=problems(*_DECIDED, errors.SelfApproval, errors.VerdictStands, *_BYTES),
)
def approve_proposal(
    name: ModelName, number: Number, body: schemas.Reason, store: StoreDep, actor: ActorDep
) -> schemas.Proposal:
    """Consent to a move that somebody else proposed. The last approval that is needed carries it out."""
    done = promotion.approve(store, name, number, reason=body.reason, actor=actor)
    return schemas.Proposal.from_domain(done)


@router.post("/proposals/{number}/reject", summary="Reject a proposal", responses=problems(*_DECIDED))
def reject_proposal(
    name: ModelName, number: Number, body: schemas.Reason, store: StoreDep, actor: ActorDep
) -> schemas.Proposal:
    """Close a proposal without moving anything; its proposer withdraws it so."""
    return schemas.Proposal.from_domain(promotion.reject(store, name, number, reason=body.reason, actor=actor))


def _answer(done: promotion.Moved | domain.Proposal) -> Response:
    if isinstance(done, promotion.Moved):
        return _json(schemas.Moved.from_domain(done), 200, {"ETag": f'"{done.alias.revision}"'})
    headers = {"Location": f"/v1/models/{done.model}/proposals/{done.number}"}
    return _json(schemas.Proposal.from_domain(done), 202, headers)


def _json(body: BaseModel, status: int, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse(body.model_dump(mode="json"), status, headers)
