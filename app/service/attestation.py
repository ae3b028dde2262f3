"""Attestation: whether one entry of the log is what was hashed, and is in what was signed.

Knows: an entry's own hash, its way to the root, and the signature over that. Must never know: HTTP, or what entries
mean.

Laws:
    * Nothing is taken from the row but the bytes that were hashed: the leaf is computed anew, the proof is checked as a
      reader elsewhere would check it, and the root is the one that a key of the log has signed.
    * It looks at one entry. That all of them hold is what ``history.verify_log`` finds out.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import Fault, LogBehind
from app.service.history import prove_inclusion
from app.service.notary import Notary
from app.store.database import Store
from espalier.errors import ProofRejected
from espalier.formats.note import LogCheckpoint, opened
from espalier.formats.proof import leaf_hash, verify_inclusion


@dataclass(frozen=True, slots=True)
class Attested:
    """What could be shown of an entry.

    Attributes:
        checkpoint: what was signed; None: nothing can be.
        steps: hashes between the entry's leaf and the root.
        fault: why it does not hold, or why nobody can tell; None: it holds.
        waits: it is younger than what was signed last; it will be in the next checkpoint.
    """

    checkpoint: LogCheckpoint | None
    steps: int = 0
    fault: str | None = None
    waits: bool = False


def attest(store: Store, notary: Notary, seq: int) -> Attested:
    """Prove an entry against the log's signed checkpoint.

    Raises:
        UnknownEntry: the log has no such entry.
    """
    signed: LogCheckpoint | None = None
    try:
        leaf = _leaf_of(store, seq)
        signed = opened(notary.checkpoint(), notary.verifier_keys())
        if seq > signed.size:
            return Attested(signed, waits=True)
        path = prove_inclusion(store, seq, signed.size).path
        verify_inclusion(leaf, seq, signed.size, path, signed.root)
    except (ProofRejected, Fault, LogBehind) as error:
        return Attested(signed, fault=str(error))
    return Attested(signed, len(path))


def _leaf_of(store: Store, seq: int) -> bytes:
    with store.reading() as tx:
        tx.audit.entry(seq)
        ((_, spelled, _),) = tx.audit.spelled([seq])
    return leaf_hash(spelled)
