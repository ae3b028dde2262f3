"""``tx.approvals``: which aliases are protected, and the moves that wait for other people.

Knows: protections, proposals, and whether one is still open. Must never know: what a move does, or who may ask for one.

Laws:
    * A proposal is written once; after that it gathers approvals, and is decided once.
    * Whether it is expired or overtaken is computed, from the time and the alias's revision: no clock has to write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.domain import Approval, Model, Page, Proposal, ProposalState, Protection, Version
from app.errors import ProposalClosed, UnknownProposal
from app.store.tables import LARGEST, aliases, proposals, protections


class Approvals:
    """Protections and proposals, as one transaction sees them."""

    def __init__(self, connection: sa.Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now

    # -- protections ---------------------------------------------------------------------------------------------------

    def protection(self, model: Model, alias: str) -> Protection:
        """What protects an alias; the default, which is nothing, where nobody decided."""
        here = protections.c.model_id == model.id, protections.c.alias == alias
        row = self._connection.execute(sa.select(protections).where(*here)).one_or_none()
        if row is None:
            return Protection(model.name, alias)
        return Protection(model.name, alias, row.approvals, row.automatic, row.set_at)

    def protect(self, model: Model, alias: str, *, approvals: int, automatic: bool) -> Protection:
        """Decide what protects an alias, whether or not it exists yet."""
        here = protections.c.model_id == model.id, protections.c.alias == alias
        self._connection.execute(sa.delete(protections).where(*here))
        values = {"approvals": approvals, "automatic": automatic, "set_at": self._now}
        self._connection.execute(sa.insert(protections).values(model_id=model.id, alias=alias, **values))
        return Protection(model.name, alias, approvals, automatic, self._now)

    # -- proposals -----------------------------------------------------------------------------------------------------

    def propose(
        self,
        model: Model,
        alias: str,
        version: Version,
        *,
        revision: int,
        override: bool,
        reason: str,
        actor: str,
        seconds: float,
    ) -> Proposal:
        """Write down a move that waits for approval.

        Args:
            model: whose alias it is; its row is locked.
            alias: what would move.
            version: where to.
            revision: of the alias now; 0 for one that does not exist.
            override: whether its proposer says that it may be a withheld version.
            reason: why, in words.
            actor: who proposes it.
            seconds: how long it stays open.
        """
        newest = sa.select(sa.func.max(proposals.c.number)).where(proposals.c.model_id == model.id)
        number = int(self._connection.execute(newest).scalar_one() or 0) + 1
        self._connection.execute(
            sa.insert(proposals).values(
                model_id=model.id,
                number=number,
                alias=alias,
                version=version.number,
                revision=revision,
                override=override,
                state=ProposalState.OPEN.value,
                reason=reason,
                proposed_by=actor,
                proposed_at=self._now,
                expires_at=self._now + timedelta(seconds=seconds),
                approved_by=[],
            )
        )
        return self.proposal(model, number)

    def proposal(self, model: Model, number: int) -> Proposal:
        """One proposal.

        Raises:
            UnknownProposal: with the remedy.
        """
        row = None
        if 0 < number <= LARGEST:
            row = self._connection.execute(self._of(model).where(proposals.c.number == number)).one_or_none()
        if row is None:
            raise UnknownProposal(f"model {model.name!r} has no proposal {number}: list its proposals")
        return _proposal(row, model.name, self._now)

    def proposals(self, model: Model, after: int | None, limit: int) -> Page[Proposal]:
        """Proposals, newest first.

        Args:
            model: whose they are.
            after: go on below this number.
            limit: at most this many.
        """
        wanted = self._of(model).order_by(proposals.c.number.desc()).limit(limit + 1)
        if after is not None:
            wanted = wanted.where(proposals.c.number < min(after, LARGEST))
        items = tuple(_proposal(row, model.name, self._now) for row in self._connection.execute(wanted))
        return Page(items[:limit], str(items[limit - 1].number) if len(items) > limit else None)

    def expect_open(self, model: Model, number: int) -> Proposal:
        """A proposal that can still be decided.

        Raises:
            UnknownProposal, ProposalClosed: with what became of it.
        """
        found = self.proposal(model, number)
        if found.state is not ProposalState.OPEN:
            raise ProposalClosed(_closed(found))
        return found

    def approve(self, model: Model, proposal: Proposal, approval: Approval) -> Proposal:
        """Add one person's approval."""
        given = [*proposal.approvals, approval]
        document = [{"actor": one.actor, "reason": one.reason, "at": one.at.isoformat()} for one in given]
        self._change(model, proposal, {"approved_by": document})
        return self.proposal(model, proposal.number)

    def decide(self, model: Model, proposal: Proposal, state: ProposalState, actor: str) -> Proposal:
        """Close a proposal: it was carried out, or rejected."""
        self._change(model, proposal, {"state": state.value, "decided_by": actor, "decided_at": self._now})
        return self.proposal(model, proposal.number)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _change(self, model: Model, proposal: Proposal, values: Mapping[str, Any]) -> None:
        here = proposals.c.model_id == model.id, proposals.c.number == proposal.number
        self._connection.execute(sa.update(proposals).where(*here).values(dict(values)))

    def _of(self, model: Model) -> sa.Select[Any]:
        """Proposals with the present revision of their alias; none for one that does not exist."""
        same = sa.and_(aliases.c.model_id == proposals.c.model_id, aliases.c.name == proposals.c.alias)
        found = proposals.outerjoin(aliases, same)
        present = aliases.c.revision.label("present")
        return sa.select(proposals, present).select_from(found).where(proposals.c.model_id == model.id)


def _closed(p: Proposal) -> str:
    """What became of a proposal that is not open any more."""
    match p.state:
        case ProposalState.CARRIED_OUT:
            return f"proposal {p.number} was carried out on {p.decided_at:%Y-%m-%d} by {p.decided_by!r}"
        case ProposalState.REJECTED:
            return (
                f"proposal {p.number} was rejected on {p.decided_at:%Y-%m-%d} by {p.decided_by!r}: "
                "propose the move anew"
            )
        case ProposalState.EXPIRED:
            return f"proposal {p.number} expired on {p.expires_at:%Y-%m-%d}: propose the move anew"
        case _:
            return f"{p.alias!r} was moved since proposal {p.number} was made: look at it, then propose anew"


def _proposal(row: sa.Row[Any], model: str, now: datetime) -> Proposal:
    return Proposal(
        model=model,
        number=row.number,
        alias=row.alias,
        version=row.version,
        revision=row.revision,
        override=row.override,
        state=_state(row, now),
        reason=row.reason,
        proposed_by=row.proposed_by,
        proposed_at=row.proposed_at,
        expires_at=row.expires_at,
        approvals=tuple(
            Approval(one["actor"], one["reason"], datetime.fromisoformat(one["at"])) for one in row.approved_by
        ),
        decided_by=row.decided_by,
        decided_at=row.decided_at,
    )


def _state(row: sa.Row[Any], now: datetime) -> ProposalState:
    if row.state != ProposalState.OPEN:
        return ProposalState(row.state)
    if (row.present or 0) != row.revision:
        return ProposalState.OVERTAKEN
    return ProposalState.EXPIRED if row.expires_at <= now else ProposalState.OPEN
