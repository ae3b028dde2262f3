"""Megabatches: what becomes of them after they were accepted.

Knows: what a pin means. Must never know: HTTP, torch.
"""

from __future__ import annotations

from app.domain import Actor, InputSpec, Megabatch
from app.store.database import Store


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
        UnknownModel, UnknownMegabatch: nothing was changed.
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
