"""Promotion: an alias is pointed at a version, by one person, by several, or by the service itself.

Knows: who may move a protected alias, and that verdicts hold until somebody says otherwise. Must never know: HTTP,
torch, or which keys there are (``access``).

Laws:
    * A version that its guardrails withheld becomes no alias's version unless that is asked for in so many words; the
      log then says ``guardrail.overridden`` beside the move.
    * A move of an alias compares the revision that its caller saw.
    * What is proposed moves nothing until as many other people have approved as its alias asks for. The last approval
      carries the move out, in one transaction.
    * Protection stands between an alias and promotions. A rollback is one person's to do at any time, and so is a
      guardrail's: going back to what was champion before must never wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain import (
    CHAMPION,
    LATEST,
    Actor,
    Alias,
    Approval,
    CycleTrigger,
    Model,
    Page,
    Proposal,
    ProposalState,
    Protection,
    Version,
    VersionStatus,
)
from app.errors import Conflict, InvalidName, SelfApproval, VerdictStands
from app.service.release import alias_or_none, fetch_ahead, move_parameters, replace_open_cycles, required_revision
from app.store.database import Store, Transaction
from app.store.releases import expect_bytes

MOST_APPROVALS = 5

_OPEN_SECONDS = 7 * 24 * 3600.0
"""How long a proposal waits."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move of an alias did: where it points now, and where it did before."""

    alias: Alias
    previous: int | None
    version: Version


@dataclass(frozen=True, slots=True)
class _Move:
    """A move that is asked for."""

    alias: str
    version: Version
    reason: str
    override: bool


def promote(
    store: Store,
    name: str,
    number: int,
    *,
    reason: str,
    override: bool = False,
    expected_revision: int | None,
    actor: Actor,
) -> Moved | Proposal:
    """Make a version the champion; where the champion is protected, propose to.

    Args:
        override: make a champion of a version that its guardrails withheld, too.

    Raises:
        PreconditionMissing, AliasMoved: the champion's revision was not given, or is another one.
        VerdictStands: the version was withheld, and ``override`` was not given.
        UnknownVersion, VersionSwept, CorruptBlob, Conflict: nothing was changed.
    """
    return _ask(store, name, CHAMPION, number, reason, override, expected_revision, actor)


def point(
    store: Store,
    name: str,
    alias: str,
    number: int,
    *,
    reason: str,
    override: bool = False,
    expected_revision: int | None,
    actor: Actor,
) -> Moved | Proposal:
    """Point an alias other than the champion at a version, and make it if need be; where it is protected, propose to.

    Raises:
        InvalidName: the champion is moved by promotions and rollbacks, and ``latest`` is computed.
        PreconditionMissing, AliasMoved: the alias's revision (0 for a new one) was not given, or is another one.
        VerdictStands: the version was withheld, and ``override`` was not given.
        UnknownVersion, VersionSwept, CorruptBlob, Conflict: nothing was changed.
    """
    if alias == CHAMPION:
        raise InvalidName("the champion is moved by a promotion or a rollback: use those")
    return _ask(store, name, alias, number, reason, override, expected_revision, actor)


def _ask(
    store: Store,
    name: str,
    alias: str,
    number: int,
    reason: str,
    override: bool,
    expected_revision: int | None,
    actor: Actor,
) -> Moved | Proposal:
    revision = required_revision(expected_revision)
    fetch_ahead(store, name, str(number))
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        tx.ledger.expect_revision(model, alias, revision)
        move = _Move(alias, tx.ledger.version(name, number), reason, override)
        _expect_allowed(tx, model, move)
        protection = tx.approvals.protection(model, alias)
        if protection.approvals:
            return _propose(tx, model, move, protection, revision)
        return _carry_out(store, tx, model, move)


def promote_passed(tx: Transaction, model: Model, version: Version) -> None:
    """Make a version the champion that has just passed its guardrails; where that is not automatic, propose to.

    Args:
        tx: the transaction that publishes the version.
    """
    move = _Move(CHAMPION, version, "passed its guardrails", override=False)
    protection = tx.approvals.protection(model, CHAMPION)
    before = alias_or_none(tx, model.name, CHAMPION)
    if not protection.automatic:
        _propose(tx, model, move, protection, before.revision if before else 0)
        return
    alias = tx.ledger.move_alias(model, CHAMPION, version.number, expected_revision=None, reason=move.reason)
    parameters = move_parameters(alias, before.version if before else None)
    tx.audit.append("alias.moved", model=model.name, reason=move.reason, parameters=parameters)


# -- protection --------------------------------------------------------------------------------------------------------


def protection_of(store: Store, name: str, alias: str) -> Protection:
    """What protects an alias."""
    _expect_name(alias)
    with store.reading() as tx:
        return tx.approvals.protection(tx.ledger.model(name), alias)


def protect(
    store: Store, name: str, alias: str, *, approvals: int, automatic: bool, reason: str, actor: Actor
) -> Protection:
    """Decide what protects an alias. Proposals that are open keep to what is decided now.

    Args:
        approvals: how many other people must approve a promotion, 0 to ``MOST_APPROVALS``.
        automatic: whether the service moves it by itself; only the champion is ever moved so.

    Raises:
        InvalidName: not the name of an alias that can be moved.
    """
    _expect_name(alias)
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        before = tx.approvals.protection(model, alias)
        after = tx.approvals.protect(model, alias, approvals=approvals, automatic=automatic)
        tx.audit.append(
            "alias.protected",
            model=name,
            reason=reason,
            parameters={"alias": alias, "before": _terms(before), "after": _terms(after)},
        )
    return after


def _terms(protection: Protection) -> dict[str, object]:
    return {"approvals": protection.approvals, "automatic": protection.automatic}


# -- proposals ---------------------------------------------------------------------------------------------------------


def get_proposal(store: Store, name: str, number: int) -> Proposal:
    """One proposal."""
    with store.reading() as tx:
        return tx.approvals.proposal(tx.ledger.model(name), number)


def list_proposals(store: Store, name: str, *, after: int | None, limit: int) -> Page[Proposal]:
    """Proposals, newest first."""
    with store.reading() as tx:
        return tx.approvals.proposals(tx.ledger.model(name), after, limit)


def approve(store: Store, name: str, number: int, *, reason: str, actor: Actor) -> Proposal:
    """Consent to a proposed move. The last approval that is needed carries it out.

    Raises:
        UnknownProposal, ProposalClosed: there is none, or it was decided, expired or overtaken.
        SelfApproval: its proposer, or somebody who approved already.
        VersionSwept, CorruptBlob: the version's bytes are gone or changed by now.
    """
    fetch_ahead(store, name, str(get_proposal(store, name, number).version))
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        proposal = tx.approvals.expect_open(model, number)
        _expect_another(proposal, actor)
        proposal = tx.approvals.approve(model, proposal, Approval(actor.name, reason, tx.now))
        needed = tx.approvals.protection(model, proposal.alias).needed
        _audit(tx, "promotion.approved", proposal, reason, given=len(proposal.approvals), needed=needed)
        if len(proposal.approvals) < needed:
            return proposal
        version = tx.ledger.version(name, proposal.version)
        move = _Move(proposal.alias, version, proposal.reason, proposal.override)
        _expect_allowed(tx, model, move)
        decided = tx.approvals.decide(model, proposal, ProposalState.CARRIED_OUT, actor.name)
        _carry_out(store, tx, model, move, proposal)
        return decided


def reject(store: Store, name: str, number: int, *, reason: str, actor: Actor) -> Proposal:
    """Close a proposal for good, whoever made it: its proposer withdraws it.

    Raises:
        UnknownProposal, ProposalClosed: there is none, or it was decided, expired or overtaken.
    """
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        proposal = tx.approvals.expect_open(model, number)
        _audit(tx, "promotion.rejected", proposal, reason)
        return tx.approvals.decide(model, proposal, ProposalState.REJECTED, actor.name)


def _expect_another(proposal: Proposal, actor: Actor) -> None:
    if actor.name == proposal.proposed_by:
        raise SelfApproval(f"{actor.name!r} proposed this: somebody with another key must approve it")
    if actor.name in {approval.actor for approval in proposal.approvals}:
        raise SelfApproval(f"{actor.name!r} has approved this already: somebody with another key must, too")


# -- inside ------------------------------------------------------------------------------------------------------------


def _expect_allowed(tx: Transaction, model: Model, move: _Move) -> None:
    """Raises:
    Conflict, VerdictStands, VersionSwept: the move makes no sense, or its verdict forbids it.
    """
    version = move.version
    before = alias_or_none(tx, model.name, move.alias)
    if before is not None and before.version == version.number:
        raise Conflict(f"{move.alias!r} of {model.name!r} points to version {version.number} already")
    expect_bytes(version)
    if version.status is VersionStatus.WITHHELD and not move.override:
        raise VerdictStands(
            f"version {version.number} was withheld ({'; '.join(version.verdict.reasons)}): to use it all the same, "
            'send "override": true; the log will say so'
        )


def _propose(tx: Transaction, model: Model, move: _Move, protection: Protection, revision: int) -> Proposal:
    proposal = tx.approvals.propose(
        model,
        move.alias,
        move.version,
        revision=revision,
        override=move.override,
        reason=move.reason,
        actor=tx.actor.name,
        seconds=_OPEN_SECONDS,
    )
    _audit(tx, "promotion.proposed", proposal, move.reason, override=move.override, needed=protection.needed)
    return proposal


def _carry_out(store: Store, tx: Transaction, model: Model, move: _Move, proposal: Proposal | None = None) -> Moved:
    version = move.version
    for digest in (version.checkpoint, version.state):
        store.blobs.verified(digest)
    before = alias_or_none(tx, model.name, move.alias)
    alias = tx.ledger.move_alias(model, move.alias, version.number, expected_revision=None, reason=move.reason)
    if move.alias == CHAMPION:
        replace_open_cycles(store, tx, model, CycleTrigger.MANUAL, f"version {version.number} was promoted")
    if version.status is VersionStatus.WITHHELD:
        overridden = {"version": version.number, "alias": move.alias, "reasons": list(version.verdict.reasons)}
        tx.audit.append("guardrail.overridden", model=model.name, reason=move.reason, parameters=overridden)
    previous = before.version if before else None
    tx.audit.append(
        "alias.moved",
        model=model.name,
        reason=move.reason,
        parameters={**move_parameters(alias, previous), **_consent(proposal)},
        outputs=[version.checkpoint],
    )
    return Moved(alias, previous, version)


def _consent(proposal: Proposal | None) -> dict[str, object]:
    """Whose move it was, where several people made it."""
    if proposal is None:
        return {}
    approved: Sequence[str] = [approval.actor for approval in proposal.approvals]
    return {"proposal": proposal.number, "proposed_by": proposal.proposed_by, "approved_by": approved}


def _audit(tx: Transaction, kind: str, proposal: Proposal, reason: str, **more: object) -> None:
    about = {"proposal": proposal.number, "alias": proposal.alias, "version": proposal.version}
    tx.audit.append(kind, model=proposal.model, reason=reason, parameters={**about, **more})


def _expect_name(alias: str) -> None:
    if alias == LATEST or alias.isdigit():
        raise InvalidName(f"{alias!r} cannot be protected: it is computed, or a number")
