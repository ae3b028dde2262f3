"""Megabatches: what becomes of them after they were accepted.

Knows: what a pin and a quarantine mean. Must never know: HTTP, torch.

Laws:
    * A quarantine, and its end, change what cycles may train on: they raise the model's generation and supersede its
      open cycles, so no version is published that was made by the rules of before.
    * Neither moves the champion, nor starts a cycle where none was open: versions that saw a megabatch stay, and a
      rollback or an erasure is how to leave them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain import Actor, Cycle, CycleTrigger, InputSpec, Megabatch, Model
from app.service.release import audit_quarantine, replace_open_cycles
from app.store.buffer import expect_values
from app.store.database import Store, Transaction


@dataclass(frozen=True, slots=True)
class Sorted:
    """A megabatch that was put into quarantine or let out of it, and what came of that.

    Attributes:
        megabatch: as it is now, its values read by ``input``.
        superseded, queued: cycles that ended, and the one that takes their place.
    """

    megabatch: Megabatch
    input: InputSpec
    superseded: tuple[Cycle, ...] = ()
    queued: Cycle | None = None


def pin_megabatch(
    store: Store, name: str, number: int, *, pinned: bool, reason: str, actor: Actor
) -> tuple[Megabatch, InputSpec]:
    """Replay a megabatch in every cycle from now on, whatever the replay policy keeps; or leave it to the policy again.

    A quarantined megabatch can be pinned, and is not replayed while it is in quarantine. A cycle that runs goes on with
    what it pinned when it was claimed. What is so already stays so, and is not audited again.

    Args:
        pinned: whether to pin it, or to unpin it.
        reason: for the audit log.

    Returns:
        The megabatch, and the input spec that its values follow.

    Raises:
        UnknownModel, UnknownMegabatch, MegabatchErased: nothing was changed.
    """
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        megabatch, changed = tx.buffer.pin(model, number, pinned=pinned)
        if changed:
            about = {"megabatch": number, "digest": megabatch.digest}
            if pinned:
                tx.audit.append("megabatch.pinned", model=name, reason=reason, parameters=about)
            else:
                tx.audit.append("megabatch.unpinned", model=name, reason=reason, parameters=about)
    return megabatch, model.input


def quarantine_megabatch(store: Store, name: str, number: int, *, reason: str, actor: Actor) -> Sorted:
    """Keep a megabatch out of all training from now on, until it is released. One that is in quarantine stays there,
    and is not audited again.

    Args:
        reason: for the audit log.

    Raises:
        UnknownModel, UnknownMegabatch, MegabatchErased: nothing was changed.
    """
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        expect_values(tx.buffer.megabatch(name, number))
        audit_quarantine(tx, done := tx.buffer.quarantine(model, [number]), reason)
        return _sorted(store, tx, model, number, done, f"megabatch {number} was quarantined")


def release_megabatch(store: Store, name: str, number: int, *, reason: str, actor: Actor) -> Sorted:
    """Let a megabatch out of quarantine: the next cycle may train on it, whether its lineage has seen it before or not.
    One that is in no quarantine stays as it is, and nothing is audited.

    Args:
        reason: for the audit log.

    Raises:
        UnknownModel, UnknownMegabatch, MegabatchErased: nothing was changed.
    """
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        expect_values(tx.buffer.megabatch(name, number))
        done = tx.buffer.release(model, [number])
        if done:
            tx.ledger.bump_generation(model)
            about = {"megabatch": number, "digest": tx.buffer.megabatch(name, number).digest}
            tx.audit.append("megabatch.released", model=name, reason=reason, parameters=about)
        return _sorted(store, tx, model, number, done, f"megabatch {number} was released from quarantine")


def _sorted(store: Store, tx: Transaction, model: Model, number: int, changed: Sequence[object], reason: str) -> Sorted:
    superseded: tuple[Cycle, ...] = ()
    queued = None
    if changed:
        superseded, queued = replace_open_cycles(store, tx, model, CycleTrigger.QUARANTINE, reason)
    return Sorted(tx.buffer.megabatch(model.name, number), model.input, superseded, queued)
