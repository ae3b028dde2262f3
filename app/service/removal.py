"""Removal: the bytes of values that were erased leave, at once, and stay away.

Knows: what the log says was erased, what it says was removed since, and that nobody may begin to rely on bytes while
they go. Must never know: why anything was erased, HTTP, torch.

Laws:
    * What an erasure gave up is removed right after it was committed, however young it is. Killed in between, the next
      sweep of any worker goes on, and ``espalier doctor`` names what is left.
    * Bytes that any row names stay. Removing, and beginning to name what is there already, exclude each other by the
      lock of the log: a removal looks for names, and whoever begins to name bytes looks for removals, while they hold
      it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from app.domain import Actor, AuditEntry, Digest
from app.errors import BytesErased, MegabatchErased, StoreBusy, Unavailable
from app.store.database import Store, Transaction

ERASING = ("megabatch.erased", "samples.erased", "evaluation.erased")
"""Kinds of entries whose inputs are what was given up."""

REMOVED = "data.erased"
"""The kind of entry whose inputs are what was removed after that."""

_PAGE = 500
_AT_ONCE = 16
"""Blobs that are removed while the log is locked, at most."""


def remove(store: Store, digests: Iterable[Digest], actor: Actor) -> list[Digest]:
    """Remove the blobs among these that no row names, and copies of them on this machine.

    Returns:
        Those that are there still, since some row names them.

    Raises:
        StoreBusy, StorageUnreachable, StorageRefused: the others went; the next sweep goes on.
    """
    left = sorted(set(digests))
    named: list[Digest] = []
    for start in range(0, len(left), _AT_ONCE):
        named += _remove(store, left[start : start + _AT_ONCE], actor)
    return named


def _remove(store: Store, digests: Sequence[Digest], actor: Actor) -> list[Digest]:
    with store.reading() as tx:
        named = tx.ledger.references(digests)
    if not (doomed := [digest for digest in digests if digest not in named]):
        return sorted(named)
    with store.transaction(actor) as tx:
        tx.audit.append(REMOVED, model=None, parameters={"blobs": len(doomed)}, inputs=doomed)

        def unlink() -> None:
            if again := tx.ledger.references(doomed):
                raise StoreBusy(f"{len(again)} blobs that were to be erased are named again: the next sweep goes on")
            for digest in doomed:
                store.blobs.erase(digest)

        tx.last.append(unlink)
    return sorted(named)


def sweep_erased(store: Store, actor: Actor) -> int:
    """Remove what an erasure gave up and nobody has removed yet, and every copy on this machine of what was ever
    erased. Returns how many blobs went.
    """
    given_up, removed = _history(store)
    with store.reading() as tx:
        named = tx.ledger.references({*given_up, *removed})
    for digest in removed.keys() - named:
        store.blobs.drop_copy(digest)
    due = [digest for digest in _due(given_up, removed) if digest not in named]
    return len(due) - len(remove(store, due, actor))


def leftovers(store: Store) -> Iterator[Digest]:
    """Blobs that an erasure gave up, that no row names, and that are there still."""
    due = _due(*_history(store))
    with store.reading() as tx:
        named = tx.ledger.references(due)
    return (digest for digest in due if digest not in named and store.blobs.has(digest))


def expect_kept(tx: Transaction, since: int, digests: Sequence[Digest]) -> None:
    """Let this transaction fail, at its very end, if any of these blobs was removed after they were kept.

    Args:
        since: the size of the log before they were kept.
        digests: what its rows name from now on.

    Raises, at the end of the transaction:
        BytesErased: one was; nothing was changed.
    """

    def check() -> None:
        for entry in _of_kind(tx, REMOVED, since):
            if not set(digests).isdisjoint(_inputs(entry)):
                raise BytesErased("the same bytes were erased elsewhere while they were kept: send them again")

    tx.last.append(check)


@contextmanager
def kept(store: Store, digests: Sequence[Digest], actor: Actor) -> Iterator[None]:
    """Around a transaction whose rows are to name bytes that were just kept: where an erasure comes in between, nothing
    of them is left behind.
    """
    try:
        yield
    except (BytesErased, MegabatchErased):
        with suppress(Unavailable, OSError):  # the sweep takes them when they are older than the grace period
            remove(store, digests, actor)
        raise


def _history(store: Store) -> tuple[dict[Digest, int], dict[Digest, int]]:
    """By digest: the last entry by which an erasure gave it up, and the last one by which it was removed."""
    given_up: dict[Digest, int] = {}
    removed: dict[Digest, int] = {}
    with store.reading() as tx:
        for kind in (*ERASING, REMOVED):
            found = removed if kind == REMOVED else given_up
            for entry in _of_kind(tx, kind, None):
                found |= {digest: max(entry.seq, found.get(digest, 0)) for digest in _inputs(entry)}
    return given_up, removed


def _due(given_up: dict[Digest, int], removed: dict[Digest, int]) -> list[Digest]:
    return sorted(digest for digest, seq in given_up.items() if removed.get(digest, 0) < seq)


def _of_kind(tx: Transaction, kind: str, after: int | None) -> Iterator[AuditEntry]:
    while True:
        page = tx.audit.entries(None, after, _PAGE, kind)
        yield from page.items
        if page.next is None:
            return
        after = int(page.next)


def _inputs(entry: AuditEntry) -> list[Digest]:
    return list(entry.document["inputs"])
