"""State: what a version hands on to the cycle that starts from it, as one immutable blob.

Knows: which megabatches a lineage has seen, and which of them are in its replay buffer. Weights, masks and
normalisation stand in the checkpoint itself. Must never know: torch, HTTP.

Law: a megabatch is eligible for a cycle while it is accepted and its parent's lineage has not seen it; so what a
withheld, failed, superseded or rolled-back cycle trained on becomes eligible again by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from app.domain import CHAMPION, Cycle, CycleTrigger, Digest, Model, Version
from app.errors import UnknownVersion
from app.store.blobs import Blobs
from app.store.database import Store, Transaction
from espalier.formats.canonical import canonical_json


@dataclass(frozen=True, slots=True)
class State:
    """Megabatch numbers: ``seen`` by the lineage, and ``replay``, the ones whose examples are still trained on."""

    seen: frozenset[int] = frozenset()
    replay: frozenset[int] = frozenset()

    def advanced(self, new: Iterable[int], replay: Iterable[int]) -> State:
        """The state after a cycle that took in ``new`` and kept ``replay``."""
        return State(self.seen | frozenset(new), frozenset(replay))


def keep_state(blobs: Blobs, state: State) -> Digest:
    """Store a state; same state, same digest."""
    document = {"format": "espalier-state-1", "seen": sorted(state.seen), "replay": sorted(state.replay)}
    return blobs.put(canonical_json(document))


def state_of(blobs: Blobs, version: Version | None) -> State:
    """The state that a version hands on; of None, the empty one.

    Raises:
        MissingBlob, CorruptBlob: the state's bytes are not what was published.
    """
    if version is None:
        return State()
    document = json.loads(blobs.read(version.state))
    return State(frozenset(document["seen"]), frozenset(document["replay"]))


def champion_of(tx: Transaction, name: str) -> Version | None:
    """The champion, or None while a model has none."""
    try:
        return tx.ledger.version(name, CHAMPION)
    except UnknownVersion:
        return None


def enqueue_rest(
    store: Store, tx: Transaction, model: Model, trigger: CycleTrigger, *, through: int | None = None
) -> Cycle | None:
    """Enqueue one cycle for all that the champion has not seen, up to ``through``, if there is any."""
    seen = state_of(store.blobs, champion_of(tx, model.name)).seen
    waiting = tx.buffer.eligible(model, seen=seen, through=through)
    if not waiting:
        return None
    return tx.ledger.enqueue_cycle(model, trigger, waiting[-1].number)
