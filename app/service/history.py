"""History: what was done, whether it still holds, and how it is now.

Knows: the audit log, the time line, the fsck. Must never know: HTTP, torch. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import TypeVar

from app.domain import CHAMPION, AuditEntry, Digest, LogHead, Page, VersionSummary
from app.errors import CorruptBlob, Fault, MissingBlob, SchemaMismatch, Unavailable, UnknownAlias, UnknownEntry
from app.service.access import examine_keys
from app.service.agreement import CHANGED, RESTORE, examine_rows
from app.service.decisions import examine_decisions
from app.service.notary import Notary
from app.service.removal import leftovers
from app.store.database import Store
from app.store.merkle import HEIGHT, WIDTH
from app.store.search import Sought
from app.store.subjects import Indexed
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


def find_entries(
    store: Store, sought: Sought, *, start: int | None, limit: int, newest: bool = False
) -> Page[AuditEntry]:
    """Entries that are looked for, oldest first or newest first; a page may be short, or empty, and not the last."""
    with store.reading() as tx:
        return tx.audit.find(sought, start, limit, newest=newest)


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
        tree, (tile, place) = tx.audit.tree(), divmod(seq - 1, WIDTH)
        tree.fetch(seq - 1, size)
        leaf = tree.tile(0, tile, place + 1)[place].hex()
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
        tree.fetch(max(0, first - 1), second)
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


def examine(store: Store, notary: Notary | None = None) -> list[Finding]:
    """The fsck: blobs hash to their names, rows are what the log says of them, versions and megabatches have no gaps,
    aliases point to whole versions, the log holds.

    Args:
        notary: looks at what was signed, too.

    Raises:
        StoreBusy, SchemaMismatch: the database cannot be looked at.
    """
    checked: dict[Digest, str | None] = {}
    findings = [
        *_safely("log", "audit log", partial(_examine_log, store)),
        *_safely("guard", "audit log", partial(_examine_guards, store)),
        *_safely("model", "models", partial(_examine_models, store, checked)),
        *_safely("row", "rows", lambda: _of_kind("row", examine_rows(store))),
        *_safely("key", "keys", lambda: (Finding("key", f"key {name}", why) for name, why in examine_keys(store))),
        *_safely("decisions", "decisions", lambda: _of_kind("decisions", examine_decisions(store))),
        *_safely("erased", "blobs", lambda: (Finding("erased", f"blob {d}", _LEFT) for d in leftovers(store))),
        *_safely("cache", "blobs", lambda: (Finding("cache", f"blob {d}", why) for d, why in store.blobs.stale())),
        *_safely("index", "audit log", partial(_examine_index, store)),
    ]
    if notary is not None:
        findings += _safely("signed", "audit log", lambda: _of_kind("signed", notary.examine()))
    return findings


def _of_kind(kind: str, found: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    return (Finding(kind, subject, why) for subject, why in found)


def _safely(kind: str, subject: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a look finds; rows that it cannot even read are a finding, and the other looks go on."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except (Unavailable, SchemaMismatch):
        raise
    except Exception as error:  # whatever a changed row can lead to
        why = f"it cannot be read ({type(error).__name__}: {error}): restore it from a backup"
        found.append(Finding(kind, subject, why))
    return found


def _examine_log(store: Store) -> Iterator[Finding]:
    try:
        verify_log(store)
    except Fault as fault:
        yield Finding("log", "audit log", f"{fault}: {CHANGED}")


def _examine_guards(store: Store) -> Iterator[Finding]:
    for trigger in sorted(store.missing_triggers()):
        detail = f"its trigger {trigger} is gone or disabled, so that what is written could be changed: {RESTORE}"
        yield Finding("guard", "audit log", detail)


def _examine_models(store: Store, checked: dict[Digest, str | None]) -> Iterator[Finding]:
    for name in model_names(store):
        yield from _safely("model", f"rows of {name}", partial(_examine_model, store, name))
        yield from _safely("blob", f"rows of {name}", partial(_examine_blobs, store, name, checked))


def _examine_index(store: Store) -> Iterator[Finding]:
    """The index of the log is no evidence; it is built from the entries, and must be what they give."""
    through, expected = 0, Indexed()
    for entry in _entries(store):
        through, expected = entry.seq, expected.with_entry(entry)
    with store.reading() as tx:
        found = tx.audit.indexed(through)
    if found.rows != expected.rows:
        detail = f"its index has {found.rows} rows for entries 1 to {through} instead of {expected.rows}"
        yield Finding("index", "audit log", f"{detail}: what it says about a version may be incomplete: {RESTORE}")
    elif found != expected:
        detail = f"its index for entries 1 to {through} is not what they give"
        yield Finding("index", "audit log", f"{detail}: what it says about a version may be wrong: {RESTORE}")


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


def _examine_model(store: Store, name: str) -> Iterator[Finding]:
    with store.reading() as tx:
        versions = list(_walk(lambda after: tx.ledger.time_line(name, after, _PAGE)))
        megabatches = [m.number for m in _walk(lambda after: tx.buffer.megabatches(name, after, _PAGE))]
        try:
            champion: int | None = tx.ledger.alias(name, CHAMPION).version
        except UnknownAlias:
            champion = None
    numbers = sorted(version.number for version in versions)
    if numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
        yield Finding("gap", name, f"version numbers are not contiguous: {numbers}: {RESTORE}")
    if megabatches != list(range(1, len(megabatches) + 1)):
        yield Finding("gap", name, f"megabatch numbers are not contiguous: {megabatches}: {RESTORE}")
    if champion is not None and champion not in numbers:
        yield Finding("alias", name, f"champion points to version {champion}, which is not there: {RESTORE}")
    if champion in {version.number for version in versions if version.swept_at is not None}:
        why = f"champion points to version {champion}, whose bytes were swept"
        yield Finding("alias", name, f"{why}: roll back to another")


def _examine_blobs(store: Store, name: str, checked: dict[Digest, str | None]) -> Iterator[Finding]:
    """Every blob that a row names, and dense forms where there are any."""
    with store.reading() as tx:
        model = tx.ledger.model(name)
        named = list(tx.ledger.blobs_of(model))
        dense = [(f"dense form of version {number} of {name}", d) for number, d in tx.ledger.dense_forms(model)]
    for subject, digest in [*named, *((subject, d) for subject, d in dense if store.blobs.has(d))]:
        if digest not in checked:
            checked[digest] = _fault_of(store, digest)
        if (why := checked[digest]) is not None and _names(store, name, digest):
            yield Finding("blob", subject, why)


def _names(store: Store, name: str, digest: Digest) -> bool:
    """Whether a row names a blob still: retention, an erasure or the end of a cycle may have given it up meanwhile."""
    with store.reading() as tx:
        model = tx.ledger.model(name)
        return digest in {d for _, d in (*tx.ledger.blobs_of(model), *tx.ledger.dense_forms(model))}


def _fault_of(store: Store, digest: Digest) -> str | None:
    try:
        store.blobs.verify(digest)
    except (MissingBlob, CorruptBlob) as error:
        return str(error)
    except OSError as error:  # it is there, and cannot be opened
        return f"blob {digest} cannot be read ({error}): restore it from a backup"
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
