"""Outcomes: how a cycle ends that does not publish, and what is cleaned up behind workers.

Knows: release, supersession, failure with backoff, the pause of a model, reclaim of silent workers' cycles, the
orphan sweep. Must never know: what a cycle computes, torch, HTTP.

Laws:
    * A cycle is tried a bounded number of times, then its model is paused with the reason; other models go on.
    * What happened in a cycle before it failed stands in the log beside its failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from app.config import Settings
from app.domain import Actor, Claim, Cycle, Digest, Event, HeldLease, ModelState, Trip
from app.errors import LeaseLost
from app.service.guardrail_actions import try_again
from app.store.database import Store, Transaction

_LONGEST_RETRY = 3600.0
"""Seconds that the doubling wait before a retry never exceeds."""

_LONGEST_OUTAGE = 60.0
"""The same where nothing is wrong with the cycle: so soon after an outage it goes on."""


def reclaim(
    store: Store, settings: Settings, actor: Actor, silent: Callable[[Sequence[HeldLease]], Sequence[HeldLease]]
) -> list[Cycle]:
    """Put cycles whose worker fell silent back into the queue; they go on from their snapshot.

    One whose workers die again and again without leaving a new snapshot is a cycle that kills workers: it fails, and
    its model is paused.

    Args:
        silent: which of these leases are; a ``Vigil`` knows.
    """
    with store.reading() as tx:
        stalled = silent(tx.ledger.held_leases())
    if not stalled:
        return []
    with store.transaction(actor) as tx:
        cycles = tx.ledger.reclaim(stalled)
        for cycle in cycles:
            tx.audit.append(
                "cycle.reclaimed",
                model=cycle.model,
                reason="its worker fell silent",
                parameters={"cycle": cycle.number, "failures": cycle.failures},
            )
            if cycle.failures >= settings.max_failures:
                _give_up(tx, cycle, "its workers died again and again without getting further (out of memory?)")
    return cycles


def sweep(store: Store, settings: Settings, actor: Actor) -> int:
    """Remove bytes that no row has named for longer than the grace period. Returns how many blobs went."""

    def referenced(digests: Iterable[Digest]) -> set[Digest]:
        with store.reading() as tx:
            return tx.ledger.references(digests)

    swept = store.blobs.sweep(referenced, settings.orphan_grace_seconds, store.clock())
    if swept:
        with store.transaction(actor) as tx:
            tx.audit.append(
                "data.swept", model=None, reason="no row named them", parameters={"blobs": len(swept)}, outputs=swept
            )
    return len(swept)


def release(store: Store, actor: Actor, claim: Claim) -> None:
    """Put a cycle whose worker was asked to stop back into the queue, with its snapshot."""
    with store.transaction(actor) as tx:
        tx.ledger.lock_model(claim.model.name)
        tx.ledger.release_cycle(claim)
        tx.audit.append(
            "cycle.released",
            model=claim.model.name,
            reason="its worker was stopped",
            parameters={"cycle": claim.cycle.number},
        )


def supersede(store: Store, actor: Actor, claim: Claim, reason: str) -> None:
    """End a cycle that may not publish. Whoever took it away may have ended it already; then nothing is left to do."""
    try:
        with store.transaction(actor) as tx:
            tx.ledger.lock_model(claim.model.name)
            cycle = tx.ledger.supersede_claim(claim, reason)
            tx.audit.append("cycle.superseded", model=cycle.model, reason=reason, parameters={"cycle": cycle.number})
    except LeaseLost:
        return


def fail(
    store: Store,
    settings: Settings,
    actor: Actor,
    claim: Claim,
    reason: str,
    *,
    final: bool,
    events: Sequence[Event] = (),
    trip: Trip | None = None,
    held: bool = False,
    passing: bool = False,
) -> None:
    """Queue a failed cycle again after a wait that doubles; or, when it cannot or should not be tried again, pause
    its model.

    Args:
        reason: what failed, in words.
        final: trying again would fail alike.
        events: what happened before.
        trip: the guardrail that tripped with it: another attempt comes before the pause, if it asks for one.
        held: whether guardrails held the density in this cycle already.
        passing: it was no fault of the cycle, such as a full disk or a bucket that is away: no number of such failures
            pauses the model.
    """
    failures = claim.cycle.failures + 1
    given_up = final or (failures >= settings.max_failures and not passing)
    longest = _LONGEST_OUTAGE if passing else _LONGEST_RETRY
    wait = min(settings.retry_seconds * 2.0 ** min(failures - 1, 30), longest)
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(claim.model.name)
        retry_at = None if given_up else tx.now + timedelta(seconds=wait)
        cycle = tx.ledger.fail_cycle(claim, reason, retry_at)
        for event in events:
            tx.audit.append(event.kind, model=cycle.model, parameters={"cycle": cycle.number, **event.parameters})
        tx.audit.append(
            "cycle.failed",
            model=cycle.model,
            reason=reason,
            parameters={
                "cycle": cycle.number,
                "failures": failures,
                "retry_at": retry_at.isoformat() if retry_at else None,
            },
        )
        again = try_again(tx, model, claim, trip, held=held) if given_up and trip else None
        if given_up and again is None:
            _pause(tx, cycle, reason)


def _give_up(tx: Transaction, cycle: Cycle, reason: str) -> None:
    tx.ledger.lock_model(cycle.model)
    tx.ledger.abandon_cycle(cycle, reason)
    tx.audit.append(
        "cycle.failed", model=cycle.model, reason=reason, parameters={"cycle": cycle.number, "failures": cycle.failures}
    )
    _pause(tx, cycle, reason)


def _pause(tx: Transaction, cycle: Cycle, reason: str) -> None:
    why = f"cycle {cycle.number} failed for good: {reason}. Mend the cause, then resume the model"
    tx.ledger.set_state(tx.ledger.model(cycle.model), ModelState.PAUSED, why)
    tx.audit.append("model.paused", model=cycle.model, reason=why, parameters={"cycle": cycle.number})
