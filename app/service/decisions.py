"""Decisions: what clients decided with which version, kept here because they want it kept.

Knows: that a decision is stamped with a version and its checkpoint's digest. Must never know: HTTP, torch, or whether a
decision was right.

Laws:
    * A batch is kept whole or not at all, with one audit entry that has its digest: a row that is changed later, added
      or removed behind the service's back is found.
    * A stamp that is not this model's is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain import Actor, AuditEntry, Decision, DecisionDraft, Digest, Model, Page
from app.errors import InvalidStamp, UnknownVersion
from app.service.agreement import RESTORE
from app.store.database import Store, Transaction
from app.store.decisions import Sought
from espalier.formats.stamp import batch_digest

RECORDED = "decisions.recorded"

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Recorded:
    """A batch that was kept: how many, their digest, and the numbers of the first and the last."""

    count: int
    digest: Digest
    first: int
    last: int


def record_decisions(store: Store, name: str, drafts: Sequence[DecisionDraft], *, actor: Actor) -> Recorded:
    """Keep a batch of decisions.

    Args:
        drafts: at least one.

    Raises:
        UnknownModel: there is no such model.
        InvalidStamp: a decision names a version that the model does not have, or another checkpoint than its.
    """
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        _check_stamps(tx, model, drafts)
        first, last = tx.decisions.record(model, drafts)
        kept = Recorded(len(drafts), batch_digest(map(document, drafts)), first, last)
        tx.audit.append(
            RECORDED,
            model=name,
            parameters={
                "count": kept.count,
                "versions": sorted({draft.version for draft in drafts}),
                "digest": kept.digest,
                "first": first,
                "last": last,
            },
            inputs=sorted({draft.checkpoint for draft in drafts}),
        )
    return kept


def list_decisions(store: Store, name: str, sought: Sought, *, after: int | None, limit: int) -> Page[Decision]:
    """Decisions, those made last first.

    Raises:
        UnknownModel, InvalidCursor: there is no such model, or no such place to go on from.
    """
    with store.reading() as tx:
        return tx.decisions.decisions(tx.ledger.model(name), sought, after, limit)


def document(decision: DecisionDraft) -> dict[str, Any]:
    """A decision as its batch's digest is taken of it."""
    return {
        "version": decision.version,
        "checkpoint": decision.checkpoint,
        "example": decision.example,
        "answer": decision.answer,
        "confidence": decision.confidence,
        "made_at": decision.made_at,
    }


def examine_decisions(store: Store) -> Iterator[tuple[str, str]]:
    """Decisions whose rows are not those that the log recorded: whose, and what is wrong."""
    after: int | None = None
    counted = 0
    while True:  # a transaction a page, so that no writer waits for long
        with store.reading() as tx:
            page = tx.audit.entries(None, after, _PAGE, RECORDED)
            faults = [
                (f"decisions of {entry.model}", f"{why}: {RESTORE}")
                for entry in page.items
                for why in _faults(tx, entry)
            ]
            counted += sum(entry.document["parameters"]["count"] for entry in page.items)
            kept = tx.decisions.count()
        yield from faults
        if page.next is None:
            break
        after = int(page.next)
    if kept > counted:
        yield "decisions", f"{kept} are kept, but the audit log recorded {counted}: others were put there: {RESTORE}"


def _faults(tx: Transaction, entry: AuditEntry) -> Iterator[str]:
    said = entry.document["parameters"]
    rows = tx.decisions.between(tx.ledger.model(str(entry.model)), said["first"], said["last"])
    if len(rows) != said["count"]:
        yield f"{len(rows)} decisions are kept of the {said['count']} that audit entry {entry.seq} recorded"
    elif (found := batch_digest(map(document, rows))) != said["digest"]:
        yield f"decisions {said['first']} to {said['last']} hash to {found}, but audit entry {entry.seq} says otherwise"
    elif any((row.actor, row.received_at) != (entry.actor, entry.time) for row in rows):
        yield f"decisions {said['first']} to {said['last']} have another reporter or time than audit entry {entry.seq}"


def _check_stamps(tx: Transaction, model: Model, drafts: Iterable[DecisionDraft]) -> None:
    for version, checkpoint in sorted({(draft.version, draft.checkpoint) for draft in drafts}):
        try:
            found = tx.ledger.summary(model, version).checkpoint
        except UnknownVersion as error:
            raise InvalidStamp(f"decisions are stamped with version {version}: {error}") from None
        if found != checkpoint:
            raise InvalidStamp(
                f"decisions are stamped with version {version} and {checkpoint}, but the checkpoint of version "
                f"{version} of {model.name!r} is {found}: stamp them by the file that they were made with"
            )
