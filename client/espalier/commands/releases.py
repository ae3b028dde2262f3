"""``espalier promote``, ``rollback``, ``alias`` and ``proposal``: which version a name means, and who decides that."""

from __future__ import annotations

import itertools
from datetime import datetime
from typing import Annotated

import typer

from espalier.console import NONE, plural, share, when
from espalier.records import CHAMPION, Moved, Proposal
from espalier.session import Limit, ModelName, Reason, Session, command, group

Alias = Annotated[str, typer.Argument(metavar="[ALIAS]", help="Name of the alias.")]
Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Number of the proposal.")]
Override = Annotated[
    bool, typer.Option("--override", help="Use a version that its guardrails withheld, too; the log says so.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "promote")(promote)
    command(app, "rollback")(rollback)
    alias = group(app, "alias", "Aliases: show, history, set, protect.")
    command(alias, "show")(alias_show)
    command(alias, "history")(alias_history)
    command(alias, "set")(alias_set)
    command(alias, "protect")(alias_protect)
    proposal = group(app, "proposal", "Moves of protected aliases that wait for approval: list, show, approve, reject.")
    command(proposal, "list")(proposals)
    command(proposal, "show")(proposal_show)
    command(proposal, "approve")(approve)
    command(proposal, "reject")(reject)


def promote(
    session: Session,
    name: ModelName,
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=0, help="Number of the version.")],
    reason: Reason,
    override: Override = False,
) -> None:
    """Make a version the champion; where the champion is protected, propose to."""
    _told(session, name, session.client.promote(name, number, reason, override=override))


def _told(session: Session, name: str, done: Moved | Proposal) -> None:
    if isinstance(done, Proposal):
        how = f"proposal {done.number}: {done.alias} -> version {done.version}, open until {when(done.expires_at)}"
        session.result(done, f"{how}; somebody else approves it with `espalier proposal approve {name} {done.number}`")
        return
    before = "none" if done.previous is None else done.previous
    session.result(done, f"{done.alias.name} {before} -> {done.alias.version} (revision {done.alias.revision})")


def rollback(
    session: Session,
    name: ModelName,
    reason: Reason,
    to: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Version to go back to.",
            show_default="the nearest ancestor that was champion and holds no quarantined megabatch",
        ),
    ] = None,
    quarantine: Annotated[
        list[str] | None,
        typer.Option(
            "--quarantine",
            "-Q",
            metavar="N",
            help="Megabatch never to train on again, repeatable: -Q 5 -Q 6, or -Q 5,6.",
        ),
    ] = None,
) -> None:
    """Move the champion back; weights, mask, stage and replay go back with it. Nothing is deleted."""
    done = session.client.rollback(name, to, reason=reason, quarantine=_numbers(quarantine or []))
    parts = [
        f"champion {done.previous} -> {done.alias.version}, "
        f"density {share(done.density_before)} -> {share(done.density_after)}"
    ]
    if done.quarantined:
        word = "megabatch" if len(done.quarantined) == 1 else "megabatches"
        parts.append(f"{word} {', '.join(map(str, done.quarantined))} quarantined")
    if done.superseded_cycles:
        parts.append(f"{plural(len(done.superseded_cycles), 'open cycle')} superseded")
    if done.queued_cycle is not None:
        parts.append(f"cycle {done.queued_cycle} queued for what the version has not seen")
    session.result(done, "; ".join(parts))


def alias_show(
    session: Session,
    name: ModelName,
    alias: Alias = CHAMPION,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="What it named then: 2026-03-02T09:30:00Z; local time without a zone."),
    ] = None,
) -> None:
    """Show which version an alias names, now or at a time."""
    if at is None:
        found = session.client.alias(name, alias)
        moved = f"since {when(found.moved_at)} (revision {found.revision})"
        session.result(found, f"{name}@{alias} is version {found.version} {moved}")
        return
    time = _time(at)
    number = session.client.alias_at(name, time, alias)
    session.result(
        {"model": name, "name": alias, "version": number, "at": time.isoformat()},
        f"{name}@{alias} was version {number} at {when(time)}",
    )


def alias_history(
    session: Session,
    name: ModelName,
    alias: Alias = CHAMPION,
) -> None:
    """List every move of an alias: when, from where, by whom, and why."""
    moves = list(session.client.alias_history(name, alias))
    rows = [
        (
            move.revision,
            NONE if move.previous is None else move.previous,
            move.version,
            when(move.moved_at),
            move.actor,
            move.reason,
        )
        for move in moves
    ]
    columns = ("revision", "from", "to", "moved", "by", "reason")
    session.table(moves, columns, rows, f"{name}@{alias} has never been moved")


def alias_set(
    session: Session,
    name: ModelName,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Name of the alias; a new one is made.")],
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=0, help="Number of the version.")],
    reason: Reason,
    override: Override = False,
) -> None:
    """Point an alias of your own at a version. The champion is moved by promote and rollback."""
    _told(session, name, session.client.point(name, alias, number, reason, override=override))


def alias_protect(
    session: Session,
    name: ModelName,
    reason: Reason,
    alias: Alias = CHAMPION,
    approvals: Annotated[
        int, typer.Option(min=0, max=5, help="How many other people must approve a promotion; 0: none.")
    ] = 0,
    automatic: Annotated[
        bool,
        typer.Option(
            "--automatic/--no-automatic",
            help="Whether the service makes a version the champion by itself when it passes its guardrails.",
        ),
    ] = True,
) -> None:
    """Decide what stands between an alias and a promotion. Rollbacks stay one person's to do."""
    done = session.client.protect(name, alias, approvals=approvals, automatic=automatic, reason=reason)
    asked = f"{plural(done.approvals, 'approval')} of others" if done.approvals else "nobody else's approval"
    itself = "the service promotes what passes" if done.automatic else "the service only proposes what passes"
    session.result(done, f"{name}@{done.alias}: a promotion needs {asked}; {itself}")


def proposals(session: Session, name: ModelName, limit: Limit = 20) -> None:
    """List moves that wait for approval, or did; newest first."""
    found = list(itertools.islice(session.client.proposals.list(name), limit))
    rows = [(p.number, p.state, p.alias, p.version, p.proposed_by, len(p.approvals), p.reason) for p in found]
    columns = ("number", "state", "alias", "version", "by", "approvals", "reason")
    session.table(found, columns, rows, f"nothing was ever proposed for {name}")


def proposal_show(session: Session, name: ModelName, number: Number) -> None:
    """Show a proposal, and who has approved it."""
    found = session.client.proposals.get(name, number)
    rows: dict[str, object] = {
        "proposal": found.number,
        "state": found.state,
        "move": f"{found.alias} -> version {found.version}" + (", overriding its verdict" if found.override else ""),
        "reason": found.reason,
        "proposed": f"{when(found.proposed_at)} by {found.proposed_by}",
        "open until": when(found.expires_at),
    }
    rows |= {f"approved by {one.actor}": f"{when(one.at)}: {one.reason}" for one in found.approvals}
    if found.decided_at is not None:
        rows["decided"] = f"{when(found.decided_at)} by {found.decided_by}"
    session.pairs(found, rows)


def approve(session: Session, name: ModelName, number: Number, reason: Reason) -> None:
    """Approve a move that somebody else proposed; the last approval that is needed carries it out."""
    done = session.client.proposals.approve(name, number, reason)
    if done.state == "open":
        session.result(done, f"proposal {number}: {plural(len(done.approvals), 'approval')}; it waits for more")
    else:
        session.result(done, f"proposal {number} is carried out: {name}@{done.alias} is version {done.version}")


def reject(session: Session, name: ModelName, number: Number, reason: Reason) -> None:
    """Close a proposal without moving anything; its proposer withdraws it so."""
    done = session.client.proposals.reject(name, number, reason)
    session.result(done, f"proposal {number} is rejected: {done.alias} stays")


def _numbers(texts: list[str]) -> list[int]:
    try:
        return [int(part) for text in texts for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter("--quarantine takes numbers of megabatches: -Q 5 -Q 6, or -Q 5,6") from error


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"--at {text}: write a time like 2026-03-02T09:30:00Z") from error
    return time.astimezone()
