"""State: what a version hands on to the cycle that starts from it, as one immutable blob.

Knows: which megabatches a lineage has seen, which of their rows are in its replay buffer, which are pinned, and its
history. Weights, masks and normalisation stand in the checkpoint itself. Must never know: torch, HTTP.

Law: a megabatch is eligible for a cycle while it is accepted and its parent's lineage has not seen it; so what a
withheld, failed, superseded or rolled-back cycle trained on becomes eligible again by itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain import CHAMPION, Cycle, CycleTrigger, Digest, Megabatch, Model, Version, VersionSummary
from app.errors import CorruptBlob, UnknownVersion
from app.store.blobs import Blobs
from app.store.database import Store, Transaction
from app.store.numbers import Numbers


@dataclass(frozen=True, slots=True)
class State:
    """What a version hands on.

    Attributes:
        seen: numbers of the megabatches that the lineage has taken in; stored as runs, since they grow with it.
        replay: rows of megabatches in the replay buffer, by number: (n,) bool.
        history: as ``app.learning.history`` wrote it; empty before the first cycle.
        pinned: numbers of megabatches that were replayed because they were pinned, whatever the buffer holds.
    """

    seen: Numbers = field(default_factory=Numbers)
    replay: Mapping[int, npt.NDArray[np.bool_]] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()

    def advanced(
        self,
        new: Iterable[int],
        replay: Mapping[int, npt.NDArray[np.bool_]],
        history: Mapping[str, Any],
        pinned: frozenset[int],
    ) -> State:
        """The state after a cycle that took in ``new``, and what it left in the buffer and in its history."""
        return State(self.seen | new, replay, history, pinned)


def encode_state(state: State) -> bytes:
    """A state as bytes; same state, same bytes."""
    document = {
        "format": "espalier-state-3",
        "seen": [list(run) for run in state.seen.runs],
        "replay": {str(number): _packed(rows) for number, rows in sorted(state.replay.items())},
        "history": dict(state.history),
        "pinned": sorted(state.pinned),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def state_of(blobs: Blobs, version: VersionSummary | None) -> State:
    """The state that a version hands on; of None, the empty one.

    Raises:
        MissingBlob, CorruptBlob: the state's bytes are not what was published.
    """
    return State() if version is None else read_state(blobs, version.state)


def read_state(blobs: Blobs, digest: Digest) -> State:
    """A state that was kept.

    Raises:
        MissingBlob, CorruptBlob: its bytes are gone, or changed.
    """
    document = json.loads(blobs.read(digest))
    replay = {int(number): _unpacked(rows) for number, rows in document["replay"].items()}
    seen = document["seen"]
    known = Numbers(seen) if document["format"] == "espalier-state-2" else Numbers.of_runs(seen)
    return State(known, replay, document["history"], frozenset(document["pinned"]))


def present_rows(mask: npt.NDArray[np.bool_], megabatch: Megabatch) -> npt.NDArray[np.bool_]:
    """A mask over the rows of a megabatch, over those rows that are there today.

    How long it is says how many erasures it has not seen: each one made the megabatch shorter.

    Args:
        mask: (n,) bool, n as it was when the mask was written.
        megabatch: as it is now.

    Returns:
        (megabatch.examples,) bool.

    Raises:
        CorruptBlob: the megabatch never had so many rows.
    """
    for erasure in megabatch.erasures:
        if erasure.before == len(mask):
            kept = np.ones(len(mask), dtype=np.bool_)
            for first, last in erasure.removed:
                kept[first : last + 1] = False
            mask = mask[kept]
    if len(mask) != megabatch.examples:
        raise CorruptBlob(
            f"a replay buffer holds a mask over {len(mask)} rows of megabatch {megabatch.number} of "
            f"{megabatch.model!r}, which never had so many: restore a backup, or start from another version"
        )
    return mask


def spread(numbers: Iterable[int], most: int) -> list[int]:
    """At most ``most`` of these numbers, evenly spread from the first to the last, both included; all, if they fit.

    Every second, fourth, eighth ... is taken, so that a list that grows at its end keeps asking the same ones for long.

    Args:
        numbers: in any order.
        most: at least 2.
    """
    ordered = sorted(set(numbers))
    stride = 1
    while len(chosen := {*ordered[::stride], *ordered[-1:]}) > most:
        stride *= 2
    return sorted(chosen)


def _packed(rows: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Eight rows a byte, the first in the highest bit, as base64."""
    return {"of": len(rows), "bits": base64.b64encode(np.packbits(rows).tobytes()).decode()}


def _unpacked(document: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    packed = np.frombuffer(base64.b64decode(document["bits"]), dtype=np.uint8)
    return np.unpackbits(packed, count=document["of"]).astype(np.bool_)


def champion_of(tx: Transaction, name: str) -> Version | None:
    """The champion, or None while a model has none."""
    try:
        return tx.ledger.version(name, CHAMPION)
    except UnknownVersion:
        return None


def enqueue_rest(
    store: Store, tx: Transaction, model: Model, trigger: CycleTrigger, *, through: int | None = None
) -> Cycle | None:
    """Enqueue one cycle for all that the version which it starts from, the champion as a rule, has not seen, up to
    ``through``, if there is any.
    """
    seen = state_of(store.blobs, tx.ledger.ground(model)).seen
    waiting = tx.buffer.eligible(model, seen=seen, through=through)
    if not waiting:
        return None
    return tx.ledger.enqueue_cycle(model, trigger, waiting[-1].number)
