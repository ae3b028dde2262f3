"""History: what was done, whether it still holds, and how it is now.

Knows: the audit log, the time line, the fsck. Must never know: HTTP, torch. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TypeVar

from app.domain import CHAMPION, AuditEntry, Digest, LogHead, MegabatchStatus, Page, VersionSummary
from app.errors import CorruptBlob, Fault, MissingBlob, UnknownAlias, UnknownEntry
from app.service.access import examine_keys
from app.service.decisions import examine_decisions
from app.service.removal import leftovers
from app.store.audit import subjects_of
from app.store.database import Store
from app.store.merkle import HEIGHT, WIDTH
from espalier.formats.proof import Frontier

T = TypeVar("T")

_PAGE = 500
_LEFT = "erased values are there still: start a worker, whose next sweep removes them"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as the laws say: what kind, about what, and how."""

    kind: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class Unnamed:
    """Blobs that are there though no row names them, and the bytes that they take. Nothing is wrong with them."""

    blobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Health:
    """How the service is: the database's dialect, cycles that wait and run, and the last heartbeat of any worker."""

    database: str
    queued: int
    running: int
    last_heartbeat: datetime | None


def audit_entries(
    store: Store, *, model: str | None, after: int | None, limit: int, kind: str | None
) -> Page[AuditEntry]:
    """Entries, oldest first."""
    with store.reading() as tx:
        return tx.audit.entries(model, after, limit, kind)


def audit_entry(store: Store, seq: int) -> AuditEntry:
    """One entry."""
    with store.reading() as tx:
        return tx.audit.entry(seq)


def log_head(store: Store) -> LogHead:
    """The log's size and Merkle root."""
    with store.reading() as tx:
        return tx.audit.head()


def verify_log(store: Store) -> LogHead:
    """Recompute every leaf and the root.

    Raises:
        Fault: naming the first entry that does not hold.
    """
    frontier = Frontier()
    while True:  # a transaction a page: on SQLite a long one would keep every writer waiting
        with store.reading() as tx:
            grown = tx.audit.checked(frontier, _PAGE)
            if grown.size == frontier.size:
                return tx.audit.agreed(frontier)
        frontier = grown


@dataclass(frozen=True, slots=True)
class Inclusion:
    """That an entry is in the log of a size, whose root is what a checkpoint signs. Hashes are 32 bytes each."""

    seq: int
    leaf: str
    size: int
    root: bytes
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Consistency:
    """That the log of one size begins with the log of another."""

    first: int
    second: int
    first_root: bytes
    second_root: bytes
    path: tuple[bytes, ...]


def prove_inclusion(store: Store, seq: int, size: int) -> Inclusion:
    """The inclusion proof of an entry (RFC 9162).

    Raises:
        UnknownEntry: the log has no such entry, or had not at that size.
    """
    with store.reading() as tx:
        _expect_size(tx.audit.head(), size)
        if not 1 <= seq <= size:
            raise UnknownEntry(f"a log of {size} entries has no entry {seq}: they are numbered from 1")
        tree, leaf = tx.audit.tree(), tx.audit.entry(seq).leaf
        return Inclusion(seq, leaf, size, tree.root(size), tuple(tree.inclusion(seq, size)))


def prove_consistency(store: Store, first: int, second: int) -> Consistency:
    """The consistency proof between two sizes of the log (RFC 9162).

    Raises:
        UnknownEntry: the log never had these sizes.
    """
    with store.reading() as tx:
        _expect_size(tx.audit.head(), second)
        if not 0 <= first <= second:
            raise UnknownEntry(f"a log of {second} entries does not continue one of {first}: name the smaller first")
        tree = tx.audit.tree()
        path = tuple(tree.consistency(first, second))
        return Consistency(first, second, tree.root(first), tree.root(second), path)


def tile(store: Store, level: int, index: int, width: int) -> bytes:
    """The hashes of a tile, one after another (C2SP tlog-tiles).

    Raises:
        UnknownEntry: the log is not so long yet.
    """
    with store.reading() as tx:
        there = (tx.audit.head().size >> (HEIGHT * level)) - index * WIDTH
        if width > there:
            raise UnknownEntry(f"tile {index} of level {level} has {max(0, there)} hashes so far, not {width}")
        return b"".join(tx.audit.tree().tile(level, index, width))


def _expect_size(head: LogHead, size: int) -> None:
    if size > head.size:
        raise UnknownEntry(f"the log has {head.size} entries, not {size} yet: leave the size out, or ask again later")


def version_audit(store: Store, name: str, ref: str) -> list[AuditEntry]:
    """Every entry of the cycle that made a version, and of what happened to the version since."""
    with store.reading() as tx:
        version = tx.ledger.version(name, ref)
        return tx.audit.about(name, [("cycle", version.cycle), ("version", version.number)])


def time_line(store: Store, name: str, *, after: int | None, limit: int) -> tuple[Page[VersionSummary], int | None]:
    """Versions, oldest first, with the number of the present champion."""
    with store.reading() as tx:
        page = tx.ledger.time_line(name, after, limit)
        try:
            return page, tx.ledger.alias(name, CHAMPION).version
        except UnknownAlias:
            return page, None


def health(store: Store) -> Health:
    """Whether the database answers, and what waits and runs.

    Raises:
        SchemaMismatch, StoreBusy: the service is not ready, with the remedy.
    """
    store.check_schema()
    with store.reading() as tx:
        queued, running, heartbeat = tx.ledger.activity()
    return Health(store.dialect, queued, running, heartbeat)


def examine(store: Store) -> list[Finding]:
    """The fsck: blobs hash to their names, versions have no gaps, aliases point to whole versions, the log holds."""
    findings: list[Finding] = []
    checked: dict[Digest, str | None] = {}
    for name in model_names(store):
        findings += _examine_model(store, name, checked)
    try:
        verify_log(store)
    except Fault as fault:
        findings.append(Finding("log", "audit log", str(fault)))
    findings += [Finding("key", f"key {name}", why) for name, why in examine_keys(store)]
    findings += [Finding("decisions", f"decisions of {name}", why) for name, why in examine_decisions(store)]
    findings += [Finding("erased", f"blob {digest}", _LEFT) for digest in leftovers(store)]
    findings += [Finding("cache", f"blob {digest}", why) for digest, why in store.blobs.stale()]
    return findings + list(_examine_index(store))


def _examine_index(store: Store) -> Iterator[Finding]:
    """The index of the log is no evidence, so its rows are counted, not proved."""
    through, expected = 0, 0
    for entry in _entries(store):
        through, expected = entry.seq, expected + len(subjects_of(entry.document))
    with store.reading() as tx:
        found = tx.audit.indexed(through)
    if found != expected:
        detail = f"its index has {found} rows for entries 1 to {through} instead of {expected}"
        yield Finding("index", "audit log", f"{detail}: what it says about a version may be incomplete")


def _entries(store: Store) -> Iterator[AuditEntry]:
    after: int | None = None
    while True:  # a transaction a page, as in ``verify_log``
        with store.reading() as tx:
            page = tx.audit.entries(None, after, _PAGE)
        yield from page.items
        if page.next is None:
            return
        after = int(page.next)


def unnamed(store: Store) -> Unnamed:
    """Dense forms, and what was left behind: swept when it is older than the grace period."""
    blobs, taken, stored = 0, 0, store.blobs.stored()
    while some := {blob.digest: blob.size for blob in islice(stored, _PAGE)}:
        with store.reading() as tx:
            left = some.keys() - tx.ledger.references(some)
        blobs, taken = blobs + len(left), taken + sum(some[digest] for digest in left)
    return Unnamed(blobs, taken)


def _examine_model(store: Store, name: str, checked: dict[Digest, str | None]) -> Iterator[Finding]:
    with store.reading() as tx:
        versions = list(_walk(lambda after: tx.ledger.time_line(name, after, _PAGE)))
        megabatches = list(_walk(lambda after: tx.buffer.megabatches(name, after, _PAGE)))
        whole = [version for version in versions if version.swept_at is None]
        blobs = [(f"version {v.number} of {name}", d) for v in whole for d in (v.checkpoint, v.state)]
        blobs += [(f"version {number} of {name}", d) for number, d in tx.custody.files(tx.ledger.model(name))]
        there = [megabatch for megabatch in megabatches if megabatch.status is not MegabatchStatus.ERASED]
        blobs += [(f"megabatch {m.number} of {name}", d) for m in there for d in (m.x, m.y, m.ids)]
        sets = tx.buffer.evaluation_sets(tx.ledger.model(name))
        blobs += [(f"evaluation set {e.revision} of {name}", d) for e in sets for d in (e.x, e.y, e.ids)]
        try:
            champion: int | None = tx.ledger.alias(name, CHAMPION).version
        except UnknownAlias:
            champion = None
    numbers = sorted(version.number for version in versions)
    if numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
        yield Finding("gap", name, f"version numbers are not contiguous: {numbers}")
    if [m.number for m in megabatches] != list(range(1, len(megabatches) + 1)):
        yield Finding("gap", name, f"megabatch numbers are not contiguous: {[m.number for m in megabatches]}")
    if champion is not None and champion not in numbers:
        yield Finding("alias", name, f"champion points to version {champion}, which is not there")
    if champion in {version.number for version in versions if version.swept_at is not None}:
        yield Finding("alias", name, f"champion points to version {champion}, whose bytes were swept")
    for subject, digest in blobs:
        if digest not in checked:
            checked[digest] = _fault_of(store, digest)
        if (why := checked[digest]) is not None:
            yield Finding("blob", subject, why)


def _fault_of(store: Store, digest: Digest) -> str | None:
    try:
        store.blobs.verify(digest)
    except (MissingBlob, CorruptBlob) as error:
        return str(error)
    return None


def model_names(store: Store) -> Iterator[str]:
    """The name of every model, in order."""
    after: str | None = None
    while True:
        with store.reading() as tx:
            page = tx.ledger.models(after, _PAGE)
        yield from (model.name for model in page.items)
        if page.next is None:
            return
        after = page.next


def _walk(page_after: Callable[[int | None], Page[T]]) -> Iterator[T]:
    """Every item of a listing whose keys are numbers, page by page."""
    after: int | None = None
    while True:
        page = page_after(after)
        yield from page.items
        if page.next is None:
            return
        after = int(page.next)
