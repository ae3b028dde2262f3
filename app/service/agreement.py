"""Agreement: whether the rows are what the log says of them.

Knows: what entries state of rows, and which statement counts. Must never know: what a row means, HTTP, torch. It
changes nothing.

Laws:
    * Every row of an audited table is compared, whole; a row that the log does not know, and one that it knows and that
      is gone, is named as well as one that differs.
    * It may run beside a service that works: rows are read together with the log up to that very moment.
    * Rows of before the log stated any are compared from their next change on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from app.domain import AuditEntry
from app.store.database import Store, Transaction
from app.store.witness import KEYS, Key

_PAGE = 500
RESTORE = "restore the database from a backup"
CHANGED = f"it was changed behind the service's back: {RESTORE}"
_ADDED = f"it was put there behind the service's back: {RESTORE}"
_REMOVED = f"it was removed behind the service's back: {RESTORE}"


@dataclass(slots=True)
class _Said:
    """What the log says so far.

    Attributes:
        through: the last entry that was taken in.
        rows: the newest statement about each row: its digest, None where it is gone, and the entry.
        early: whether anything was done before the first statement: that was another version of the software.
    """

    through: int = 0
    rows: dict[Key, tuple[str | None, int]] = field(default_factory=dict)
    early: bool = False

    def catch_up(self, tx: Transaction) -> None:
        """Take in whatever a transaction sees of the log."""
        while page := tx.audit.entries(None, self.through or None, _PAGE).items:
            for entry in page:
                self._take(entry)
            self.through = page[-1].seq

    def _take(self, entry: AuditEntry) -> None:
        document = entry.document
        stated = document.get("rows", ())
        self.early = self.early or (not self.rows and not stated and entry.kind in ("model.created", "key.created"))
        for name, *key, digest in stated:
            self.rows[(name, *key)] = digest, entry.seq


def examine_rows(store: Store) -> Iterator[tuple[str, str]]:
    """Rows that are not what the log says: which one, and what is wrong.

    Raises:
        StoreBusy: the database cannot be read.
    """
    said = _Said()
    with store.reading() as tx:
        said.catch_up(tx)
    seen: set[Key] = set()
    for name in KEYS:
        after: Key | None = None
        while True:  # a transaction a page, so that no writer waits for long
            with store.reading() as tx:
                said.catch_up(tx)
                found = tx.witness.keys(name, after, _PAGE)
                faults = list(_faults(tx, said, name, found))
            yield from faults
            seen.update((name, *key) for key in found)
            if len(found) < _PAGE:
                break
            after = found[-1]
    yield from _missing(store, said, seen)


def _faults(tx: Transaction, said: _Said, name: str, found: list[Key]) -> Iterator[tuple[str, str]]:
    try:
        digests = tx.witness.digests(name, found)
    except ValueError:
        digests = {key: _alone(tx, (name, *key)) for key in found}
    for key, digest in digests.items():
        stated, seq = said.rows.get((name, *key), (None, 0))
        if seq == 0 and not said.early:
            yield _told((name, *key)), f"no audit entry tells of it: {_ADDED}"
        elif seq and stated is None:
            yield _told((name, *key)), f"audit entry {seq} says that it is gone: {_ADDED}"
        elif seq and digest != stated:
            yield _told((name, *key)), f"it is not what audit entry {seq} says: {CHANGED}"


def _alone(tx: Transaction, key: Key) -> str:
    try:
        return tx.witness.digest(key) or ""
    except ValueError:
        return "unreadable"


def _missing(store: Store, said: _Said, seen: set[Key]) -> Iterator[tuple[str, str]]:
    for key in [key for key, (digest, _) in said.rows.items() if digest is not None and key not in seen]:
        with store.reading() as tx:
            said.catch_up(tx)
            digest, seq = said.rows[key]
            if digest is not None and not _alone(tx, key):
                yield _told(key), f"audit entry {seq} tells of it, but there is no such row: {_REMOVED}"


def _told(key: Key) -> str:
    name, *values = key
    named = ", ".join(f"{column} {value!r}" for column, value in zip(KEYS[str(name)], values, strict=True))
    return f"row of {name} ({named})"
