"""Proposals: moves of protected aliases that wait for other people, and what protects an alias.

Knows: how they look on the wire. Must never know: when a proposal is carried out.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field

from app import domain
from app.api.schemas.wire import TIME, Asked, Page, Time, example
from app.service.promotion import MOST_APPROVALS

_PROTECTION = {"alias": "champion", "approvals": 1, "automatic": True, "set_at": TIME}

_APPROVALS = "How many other people must approve a promotion; 0: none."
_AUTOMATIC = (
    "Whether the service makes a version the champion by itself when it passes its guardrails. "
    "False: it proposes that, and one approval at least is needed."
)


class NewProtection(Asked):
    """What shall stand between an alias and a promotion."""

    model_config = example({"approvals": 1, "reason": "two people release to line 3"})

    approvals: Annotated[int, Field(ge=0, le=MOST_APPROVALS)] = Field(0, description=_APPROVALS)
    automatic: bool = Field(True, description=_AUTOMATIC)
    reason: str = Field(description="In words, for the audit log.", min_length=1, max_length=2000)


class Protection(BaseModel):
    """What stands between an alias and a promotion. Rollbacks are never held up."""

    model_config = example(_PROTECTION)

    alias: str = Field(description="Name of the alias.")
    approvals: int = Field(description=_APPROVALS)
    automatic: bool = Field(description=_AUTOMATIC)
    set_at: Time | None = Field(description="When this was decided; null where nobody did.")

    @classmethod
    def from_domain(cls, protection: domain.Protection) -> Self:
        """From the domain's value."""
        return cls(
            alias=protection.alias,
            approvals=protection.approvals,
            automatic=protection.automatic,
            set_at=protection.set_at,
        )


class Approval(BaseModel):
    """One person's consent."""

    actor: str = Field(description="Who approved.")
    reason: str = Field(description="Why.")
    at: Time = Field(description="When.")


class Proposal(BaseModel):
    """A move of a protected alias that waits for other people, or did."""

    model_config = example(
        {
            "number": 2,
            "alias": "champion",
            "version": 5,
            "override": False,
            "state": "open",
            "reason": "seen to work on line 3",
            "proposed_by": "mei",
            "proposed_at": TIME,
            "expires_at": "2026-03-09T09:30:00Z",
            "approvals": [],
            "decided_by": None,
            "decided_at": None,
        }
    )

    number: int = Field(description="Number, counted per model.")
    alias: str = Field(description="What would move.")
    version: int = Field(description="The version that it would point to.")
    override: bool = Field(description="Whether it may be a version that its guardrails withheld.")
    state: domain.ProposalState = Field(
        description="`open`; `carried-out`; `rejected`; `expired`; `overtaken`: the alias was moved meanwhile."
    )
    reason: str = Field(description="Why it was proposed.")
    proposed_by: str = Field(description="Who proposed it; somebody else must approve.")
    proposed_at: Time = Field(description="When.")
    expires_at: Time = Field(description="Until when it can be approved.")
    approvals: list[Approval] = Field(description="Given so far.")
    decided_by: str | None = Field(description="Who approved last, or rejected it; null while it is undecided.")
    decided_at: Time | None = Field(description="When.")

    @classmethod
    def from_domain(cls, proposal: domain.Proposal) -> Self:
        """From the domain's value."""
        return cls(
            number=proposal.number,
            alias=proposal.alias,
            version=proposal.version,
            override=proposal.override,
            state=proposal.state,
            reason=proposal.reason,
            proposed_by=proposal.proposed_by,
            proposed_at=proposal.proposed_at,
            expires_at=proposal.expires_at,
            approvals=[Approval(actor=one.actor, reason=one.reason, at=one.at) for one in proposal.approvals],
            decided_by=proposal.decided_by,
            decided_at=proposal.decided_at,
        )


class Proposals(Page[Proposal]):
    """Proposals, newest first."""
