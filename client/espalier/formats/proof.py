"""The audit log's arithmetic: Merkle hashing by RFC 6962, proofs by RFC 9162, and the check of a whole log.

Knows: leaf and node hashes, the root, the compact frontier that grows by one leaf in O(log n). Must never know: where
entries are stored, or what they mean.

Laws:
    * ``Frontier`` and ``merkle_root`` give the same root for the same leaf hashes, at every size.
    * Any changed bit in a document, a sequence number, a leaf hash, the size or the root is detected.
    * A proof that was made for another entry, size or root is refused.

A *leaf hash* is ``leaf_hash(canonical_json(document))``. ``merkle_root`` and ``Frontier`` take leaf hashes, never the
documents, so that a log can be checked from its stored leaves alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from espalier.errors import ProofRejected
from espalier.formats.canonical import canonical_json

EMPTY_ROOT = hashlib.sha256().digest()
"""Root of a log without entries (RFC 6962, section 2.1)."""

FIRST_SEQ = 1
"""Entries are numbered from one, without gaps, so the last entry's number is the log's size."""

_HASH = re.compile(r"[0-9a-f]{64}")
_COPIES = ("seq", "kind", "actor", "request_id", "model")


def leaf_hash(data: bytes) -> bytes:
    """``SHA-256(0x00 || data)``: the hash of one entry's canonical bytes."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """``SHA-256(0x01 || left || right)``: the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def read_hash(text: object) -> bytes:
    """The 32 bytes of a hash as proofs spell it.

    Raises:
        ValueError: it is not 64 hexadecimal digits in small letters.
    """
    if not isinstance(text, str) or not _HASH.fullmatch(text):
        raise ValueError(f"{text!r:.80} is no hash of 64 hexadecimal digits")
    return bytes.fromhex(text)


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The RFC 6962 root over leaf *hashes*, in order; ``EMPTY_ROOT`` for none."""
    return Frontier().extend(leaves).root()


@dataclass(frozen=True, slots=True)
class Frontier:
    """Everything that is needed to go on with a log: the roots of its perfect subtrees, the largest (oldest) first.

    A value: ``append`` returns the next one. Store ``size`` and ``hashes`` and rebuild with ``Frontier(size, hashes)``.

    Attributes:
        size: number of leaves.
        hashes: one 32-byte hash for each bit that is set in ``size``, from the most significant bit down.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.hashes) != self.size.bit_count() or any(len(item) != 32 for item in self.hashes):
            raise ValueError(
                f"a frontier of size {self.size} cannot have {len(self.hashes)} hashes, or one is not 32 bytes long"
            )

    def append(self, leaf: bytes) -> Frontier:
        """The frontier with one more leaf hash."""
        carries = self.carries(leaf)
        kept = self.hashes[: len(self.hashes) - len(carries) + 1]
        return Frontier(self.size + 1, (*kept, carries[-1]))

    def carries(self, leaf: bytes) -> list[bytes]:
        """The roots of every perfect subtree that one more leaf hash completes: of 1 leaf, of 2, of 4, and so on.

        Equal neighbours merge, as a carry runs in binary addition.
        """
        found, size = [leaf], self.size
        for left in reversed(self.hashes):
            if not size & 1:
                break
            found.append(node_hash(left, found[-1]))
            size >>= 1
        return found

    def extend(self, leaves: Iterable[bytes]) -> Frontier:
        """The frontier with these leaf hashes appended, in order."""
        frontier = self
        for leaf in leaves:
            frontier = frontier.append(leaf)
        return frontier

    def root(self) -> bytes:
        """The Merkle root over all leaves so far."""
        if not self.hashes:
            return EMPTY_ROOT
        *rest, root = self.hashes
        for left in reversed(rest):
            root = node_hash(left, root)
        return root


def verify_log(entries: Iterable[Mapping[str, Any]], size: int, root: str) -> int:
    """Check a whole log against a head.

    Args:
        entries: every entry as the API serves it (``seq, time, kind, actor, request_id, model, document, leaf``), the
            oldest first, from the first one on. What stands beside the document must agree with it.
        size: the head's number of entries.
        root: the head's Merkle root, 64 hexadecimal digits.

    Returns:
        How many entries were checked: ``size``.

    Raises:
        ProofRejected: naming the first entry whose document, sequence or leaf differs, or saying that the entries are
            not those of the head.
    """
    frontier = Frontier()
    for entry in entries:
        frontier = frontier.append(_checked_leaf(entry, frontier.size + FIRST_SEQ))
        if frontier.size > size:
            raise ProofRejected(f"the log goes on past its head, which says {size} entries", frontier.size)
    if frontier.size != size:
        raise ProofRejected(f"the log has {frontier.size} entries, but its head says {size}: the last are missing")
    if frontier.root().hex() != root:
        raise ProofRejected(
            f"the entries hash to the root {frontier.root().hex()}, but the head says {root}: "
            "entries were replaced as a whole, or the head belongs to another log"
        )
    return size


def verify_inclusion(leaf: bytes, seq: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that an entry is in a log (RFC 9162, section 2.1.3.2).

    Args:
        leaf: the entry's leaf hash.
        seq: its number, from 1.
        size: number of entries of the log.
        path: the proof, from the leaf's neighbour up.
        root: of the log at that size.

    Raises:
        ProofRejected: the proof does not lead from this entry to this root.
    """
    if not FIRST_SEQ <= seq <= size:
        raise ProofRejected(f"entry {seq} cannot be one of {size}", seq)
    index, last, found = seq - FIRST_SEQ, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise ProofRejected(f"the inclusion proof of entry {seq} is too long", seq)
        if index & 1 or index == last:
            found = node_hash(sibling, found)
            while not index & 1 and index:  # it has no right neighbour here: go up to where it has a left one
                index, last = index >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        index, last = index >> 1, last >> 1
    if last != 0 or found != root:
        raise ProofRejected(f"entry {seq} is not in the log of {size} entries whose root is {root.hex()}", seq)


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]) -> None:
    """Check that a log begins with what it was before (RFC 9162, section 2.1.4.2).

    Args:
        first, second: sizes, the smaller first.
        first_root, second_root: the roots at these sizes.
        path: the proof; empty between equal sizes, and from an empty log.

    Raises:
        ProofRejected: the later log is not a continuation of the earlier one, or the proof does not show it.
    """
    if not 0 <= first <= second:
        raise ProofRejected(f"a log of {second} entries cannot continue one of {first}: entries are missing")
    if first == second or first == 0:
        if path or (first == second and first_root != second_root) or (first == 0 and first_root != EMPTY_ROOT):
            raise ProofRejected(f"the log of {second} entries does not continue the one of {first}: it was rewritten")
        return
    if _consistent_roots(first, second, first_root, path) != (first_root, second_root):
        raise ProofRejected(
            f"the log of {second} entries does not continue the one that was seen at {first}: it was rewritten, or the "
            "proof is wrong"
        )


def _consistent_roots(first: int, second: int, first_root: bytes, path: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """Both roots, as a consistency proof gives them; None for one of the wrong length."""
    hashes = [first_root, *path] if first & (first - 1) == 0 else list(path)
    if not hashes:
        return None
    left, last = first - 1, second - 1
    while left & 1:
        left, last = left >> 1, last >> 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return None
        if left & 1 or left == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not left & 1 and left:
                left, last = left >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        left, last = left >> 1, last >> 1
    return (old, new) if last == 0 else None


def _checked_leaf(entry: Mapping[str, Any], seq: int) -> bytes:
    document = entry.get("document")
    if not isinstance(document, dict):
        raise ProofRejected(f"entry {seq} has no document", seq)
    if document.get("seq") != seq:
        raise ProofRejected(f"entry {seq} is missing: in its place stands {document.get('seq')!r}", seq)
    for key in _COPIES:
        if key in entry and entry[key] != document.get(key):
            raise ProofRejected(
                f"entry {seq}: {key} is {entry[key]!r} beside the document, which says {document.get(key)!r}", seq
            )
    if "time" in entry and not _same_time(entry["time"], document.get("time")):
        raise ProofRejected(
            f"entry {seq}: time is {entry['time']!r} beside the document, which says {document.get('time')!r}", seq
        )
    try:
        leaf = leaf_hash(canonical_json(document))
    except ValueError as error:
        raise ProofRejected(f"entry {seq}: its document has no canonical form: {error}", seq) from None
    if entry.get("leaf") != leaf.hex():
        raise ProofRejected(
            f"entry {seq}: its document hashes to {leaf.hex()}, but its leaf says {entry.get('leaf')!r}", seq
        )
    return leaf


def _same_time(left: Any, right: Any) -> bool:
    """Two spellings of one instant (``Z`` and ``+00:00``) are the same time."""
    if left == right:
        return True
    try:
        return datetime.fromisoformat(left) == datetime.fromisoformat(right)
    except (TypeError, ValueError):
        return False
