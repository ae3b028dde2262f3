"""Guardrail actions: what becomes of a model whose guardrail tripped, in the transaction that ends the cycle.

Knows: withhold, retry, hold, restore; how often a cycle is tried again. Must never know: how a rule is judged, torch,
HTTP.

Laws:
    * What an action does (the next attempt, the champion's move, the entries) is part of the transaction that ends the
      cycle, or does not happen.
    * Every sequence of attempts ends: one that held the density is not held again, and ``RETRIES`` bounds the others.
    * The megabatches of a withheld version stay eligible, whatever the action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from app.domain import CHAMPION, Claim, Cycle, CycleTrigger, Digest, Model, Trip, Verdict, Version
from app.errors import CorruptBlob, MissingBlob
from app.service.release import replace_open_cycles
from app.store.database import Store, Transaction

RETRIES = 2
"""Further attempts, each with half the pruning step of the one before, until a version is withheld for good."""


def scale_of(attempt: int) -> float:
    """Share of the planned pruning step that an attempt takes."""
    return 0.5**attempt


def settled(store: Store, claim: Claim, verdict: Verdict, trips: Sequence[Trip]) -> Verdict:
    """The verdict, with what becomes of the champion where a rule asks to restore one.

    The champion goes back to the newest ancestor before the breaches whose bytes are whole. It stays where it breached
    none of the rules that ask, or where no such ancestor is left.

    Args:
        trips: the guardrails that tripped on the version that is judged.
    """
    breaches = max((trip.breaches for trip in trips if trip.action == "restore"), default=0)
    if claim.parent is None or breaches < 2:  # the candidate alone
        return verdict
    with store.reading() as tx:
        before = islice(tx.ledger.ancestors(claim.model, claim.parent.number), breaches - 1, None)
        there = (v for v in before if v.swept_at is None)
        to = next((v.number for v in there if all(_whole(store, d) for d in (v.checkpoint, v.state))), None)
    if to is None:
        told = f"champion {claim.parent.number} stays: no version before the breaches is left to restore"
    else:
        told = f"champion goes back from {claim.parent.number} to {to}, the newest version before the breaches"
    return replace(verdict, reasons=(*verdict.reasons, told), restored=to)


def carry_out(
    store: Store, tx: Transaction, model: Model, claim: Claim, version: Version, trips: Sequence[Trip], *, held: bool
) -> None:
    """Do what the verdict of a withheld version asks for.

    Args:
        trips: the guardrails that tripped on it.
        held: whether guardrails held the density in this cycle already.
    """
    verdict = version.verdict
    why = f"{', '.join(trip.rule for trip in trips)} tripped on version {version.number}"
    again = _again(tx, model, claim, verdict.action, held=held)
    for trip in trips:
        _audit(tx, claim, trip, version.number, again)
    if verdict.restored is not None:
        _restore(store, tx, model, claim, verdict.restored, why)
    if again is not None:
        _audit_request(tx, claim, verdict.action, why, again)


def tell_trips(tx: Transaction, claim: Claim, version: Version, trips: Sequence[Trip]) -> None:
    """Say which guardrails tripped on a version that passes: those that hold pruning from now on, and do no more."""
    for trip in trips:
        _audit(tx, claim, trip, version.number, None)


def try_again(tx: Transaction, model: Model, claim: Claim, trip: Trip, *, held: bool) -> Cycle | None:
    """Do what a guardrail asks for that tripped without leaving a version; the next attempt, unless there is none."""
    again = _again(tx, model, claim, trip.action, held=held)
    _audit(tx, claim, trip, None, again)
    if again is not None:
        _audit_request(tx, claim, trip.action, f"{trip.rule} tripped in cycle {claim.cycle.number}", again)
    return again


def _again(tx: Transaction, model: Model, claim: Claim, action: str, *, held: bool) -> Cycle | None:
    """Enqueue the next attempt for the same megabatches, if the action asks for one and this one was not the last."""
    attempt = claim.cycle.attempt + 1
    if (action == "hold" and not held) or (action == "retry" and attempt <= RETRIES):
        return tx.ledger.enqueue_cycle(model, CycleTrigger.GUARDRAIL, claim.cycle.through, attempt=attempt)
    return None


def _restore(store: Store, tx: Transaction, model: Model, claim: Claim, to: int, why: str) -> None:
    """Move the champion back. Open cycles are replaced as in a rollback; nothing else is enqueued."""
    assert claim.parent is not None
    alias = tx.ledger.move_alias(model, CHAMPION, to, expected_revision=None, reason=why)
    replace_open_cycles(store, tx, model, CycleTrigger.GUARDRAIL, f"restored version {to}")
    moved = {"alias": alias.name, "revision": alias.revision, "from": claim.parent.number, "to": to}
    tx.audit.append("alias.moved", model=model.name, reason=why, parameters=moved)


def _audit(tx: Transaction, claim: Claim, trip: Trip, version: int | None, again: Cycle | None) -> None:
    tx.audit.append(
        "guardrail.tripped",
        model=claim.model.name,
        reason=trip.reason,
        parameters={
            "cycle": claim.cycle.number,
            "attempt": claim.cycle.attempt,
            "version": version,
            "rule": trip.rule,
            "action": trip.action,
            "breaches": trip.breaches,
            "recover_after": trip.recover_after,
            "figures": dict(trip.figures),
            "next_cycle": again.number if again else None,
        },
    )


def _audit_request(tx: Transaction, claim: Claim, action: str, why: str, again: Cycle) -> None:
    smaller = f"{why}: {scale_of(again.attempt):g} of the pruning step is taken"
    tx.audit.append(
        "cycle.requested",
        model=claim.model.name,
        reason=f"{why}: density is held" if action == "hold" else smaller,
        parameters={
            "cycle": again.number,
            "trigger": again.trigger,
            "through": again.through,
            "attempt": again.attempt,
            "after": claim.cycle.number,
        },
    )


def _whole(store: Store, digest: Digest) -> bool:
    try:
        store.blobs.verified(digest)
    except (MissingBlob, CorruptBlob):
        return False
    return True
