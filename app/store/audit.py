"""``tx.audit``: the append-only, tamper-evident log.

Knows: how an entry is spelled and hashed, and how the log grows. Must never know: what a kind of entry means.

Laws:
    * Entry ``seq`` (from 1) is leaf ``seq - 1`` of an RFC 6962 Merkle tree over canonical JSON; the head holds its
      root.
    * Entries are written last in their transaction, under the lock of the one head row and after every other lock, so
      the log's order is the order of commits, and nothing can deadlock on it.
    * What stands beside a document (seq, time, kind, actor, model, leaf) says the same as the document.
    * ``audit_subjects`` is an index of the log, written with it: which entries are about which cycle, version or
      megabatch. It proves nothing, and whoever doubts it can build it again from the entries.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from app import __version__
from app.domain import Actor, AuditEntry, Digest, LogHead, Page, SignedHead
from app.errors import Fault, UnknownEntry
from app.store.merkle import Tree, completed, nodes_of
from app.store.search import Sought
from app.store.subjects import Indexed, Subject, subjects_of
from app.store.tables import audit_entries, audit_subjects, log_checkpoints, log_head, log_nodes
from espalier.formats.canonical import canonical_json, exact
from espalier.formats.proof import Frontier, leaf_hash

_CODE = {"espalier": __version__}
_VERIFY_ROWS = 1000
_LARGEST_SEQ = 2**53 - 1

LOOKED = 2000
"""Entries that are looked through at a time for what no index answers."""


_STORED = (
    *(column for column in audit_entries.c if column.name != "time"),
    # Text on SQLite, so that not even its punctuation can change unseen.
    sa.type_coerce(audit_entries.c.time, sa.String).label("stored_time"),
)


class Audit:
    """The log, as one transaction sees it."""

    def __init__(self, connection: sa.Connection, actor: Actor, now: datetime) -> None:
        self._connection = connection
        self._actor = actor
        self._now = now
        self._pending: list[dict[str, Any]] = []
        self._begun = 0

    # -- writing -------------------------------------------------------------------------------------------------------

    def append(
        self,
        kind: str,
        *,
        model: str | None,
        parameters: Mapping[str, Any] | None = None,
        inputs: Sequence[Digest] = (),
        outputs: Sequence[Digest] = (),
        reason: str | None = None,
    ) -> None:
        """Add an entry to the end of the log when the transaction commits, in the order of calls.

        Args:
            kind: such as ``version.published``.
            parameters: what was done, in numbers and names. Floats are recorded exactly.
            inputs, outputs: digests of what went in, and of what came of it.

        Raises:
            ValueError: the entry holds NaN, infinity, or something that JSON has no word for.
        """
        document: dict[str, Any] = exact(
            {
                "time": _spelled(self._now),
                "kind": kind,
                "actor": self._actor.name,
                "request_id": self._actor.request_id,
                "model": model,
                "inputs": list(inputs),
                "parameters": dict(parameters or {}),
                "outputs": list(outputs),
                "reason": reason,
                "code": _CODE,
            }
        )
        canonical_json(document)  # what cannot be recorded fails here, where the caller stands
        self._pending.append(document)

    def begin_epoch(self, epoch: int, *, parameters: Mapping[str, Any], reason: str) -> None:
        """Say that what was signed before is no longer continued; checkpoints bear another origin from here on."""
        self.append("log.epoch-began", model=None, parameters=parameters, reason=reason)
        self._begun = epoch

    @property
    def pending(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._pending)

    def write(self, stated: Sequence[Sequence[str | int | None]] = ()) -> None:
        """Write what was appended. The store calls this once, right before it commits.

        Args:
            stated: what the last entry says of the rows that were changed.
        """
        if not self._pending:
            return
        if stated:
            self._pending[-1]["rows"] = [list(row) for row in stated]
        head = self._connection.execute(sa.select(log_head).with_for_update()).one()
        frontier = _frontier(head)
        documents = [{"seq": seq, **pending} for seq, pending in enumerate(self._pending, frontier.size + 1)]
        rows = [self._row(document) for document in documents]
        nodes: list[dict[str, Any]] = []
        for row in rows:
            leaf = bytes.fromhex(row["leaf"])
            nodes += completed(frontier.size + 1, frontier.carries(leaf))
            frontier = frontier.append(leaf)
        self._connection.execute(sa.insert(audit_entries), rows)
        if nodes:
            self._connection.execute(sa.insert(log_nodes), nodes)
        if about := [row for document in documents for row in _subjects(document)]:
            self._connection.execute(sa.insert(audit_subjects), about)
        self._connection.execute(
            sa.update(log_head).values(
                size=frontier.size,
                root=frontier.root().hex(),
                frontier=[item.hex() for item in frontier.hashes],
                epoch=max(head.epoch, self._begun),
            )
        )
        self._pending.clear()
        self._begun = 0

    def _row(self, document: dict[str, Any]) -> dict[str, Any]:
        spelled = canonical_json(document)
        return {
            "seq": document["seq"],
            "time": self._now,
            "kind": document["kind"],
            "actor": document["actor"],
            "model": document["model"],
            "document": spelled.decode(),
            "leaf": leaf_hash(spelled).hex(),
        }

    # -- reading -------------------------------------------------------------------------------------------------------

    def entries(self, model: str | None, after: int | None, limit: int, kind: str | None = None) -> Page[AuditEntry]:
        """Entries, oldest first.

        Args:
            model: of this model only; None for all.
            after: go on after this sequence number.
            limit: at most this many.
            kind: of this kind only.
        """
        return self.find(Sought(model, kind), after, limit)

    def find(self, sought: Sought, start: int | None, limit: int, *, newest: bool = False) -> Page[AuditEntry]:
        """Entries that are looked for, oldest first or newest first; between two times they are in order of time.

        What no index answers is looked for among ``LOOKED`` entries at a time: a page may hold few of them, or none,
        and still be followed by others.

        Args:
            sought: which entries.
            start: go on after this sequence number or, from the newest on, before it.
            limit: at most this many.
            newest: the newest first.
        """
        place: Sequence[Any] = ()
        timed = sought.timed
        if start is not None:
            sought, place = self._begun_at(sought, min(start, _LARGEST_SEQ), newest)
        answered, rest = sought.parted(timed)
        key = [audit_entries.c.time, audit_entries.c.seq] if timed else [audit_entries.c.seq]
        wanted = sa.select(audit_entries).where(*answered).limit(LOOKED if rest else limit + 1)
        if place:
            here, there = sa.tuple_(*key), sa.tuple_(*map(sa.literal, place, (column.type for column in key)))
            wanted = wanted.where(here < there if newest else here > there)
        ordered = wanted.order_by(*(column.desc() if newest else column.asc() for column in key))
        found: list[AuditEntry] = []
        looked, last = 0, 0
        for row in self._connection.execute(ordered):
            holds = not rest or sought.holds(row)
            if holds and len(found) == limit:
                return Page(tuple(found), str(found[-1].seq))
            found += [_entry(row)] if holds else []
            looked, last = looked + 1, row.seq
        return Page(tuple(found), str(last) if rest and looked == LOOKED else None)

    def _begun_at(self, sought: Sought, seq: int, newest: bool) -> tuple[Sought, Sequence[Any]]:
        """What is still looked for beyond an entry, and the key to begin at; only the narrower of two bounds is kept,
        because SQLite's index begins at the first that it is given.
        """
        if not sought.timed:
            return sought, (seq,)
        beside = audit_entries.c.seq >= seq if newest else audit_entries.c.seq <= seq
        order = audit_entries.c.seq.asc() if newest else audit_entries.c.seq.desc()
        wanted = sa.select(audit_entries.c.time, audit_entries.c.seq).where(beside).order_by(order).limit(1)
        row = self._connection.execute(wanted).one_or_none()
        bound = sought.until if newest else sought.since
        if row is None or (bound is not None and (row.time >= bound if newest else row.time < bound)):
            return sought, ()
        return replace(sought, until=None) if newest else replace(sought, since=None), (row.time, row.seq)

    def next(
        self, after: int, through: int, kinds: Collection[str] | None, models: Collection[str] | None
    ) -> AuditEntry | None:
        """The first entry of some kinds and models between two numbers, if there is one.

        Args:
            after: beyond this number.
            through: up to this one.
            kinds, models: any of these; None: all, and what is about no model.
        """
        wanted = sa.select(audit_entries).where(audit_entries.c.seq > after, audit_entries.c.seq <= through)
        if kinds is not None:
            wanted = wanted.where(audit_entries.c.kind.in_(sorted(kinds)))
        if models is not None:
            wanted = wanted.where(audit_entries.c.model.in_(sorted(models)))
        row = self._connection.execute(wanted.order_by(audit_entries.c.seq).limit(1)).one_or_none()
        return None if row is None else _entry(row)

    def count(self, kind: str) -> int:
        """How many entries of a kind there are."""
        wanted = sa.select(sa.func.count()).select_from(audit_entries).where(audit_entries.c.kind == kind)
        return self._connection.execute(wanted).scalar_one()

    def about(self, model: str, subjects: Collection[tuple[Subject, int]]) -> list[AuditEntry]:
        """Every entry that is about any of these, oldest first, by the index of the log.

        Args:
            model: whose they are.
            subjects: such as ``("version", 7)``.
        """
        found = [
            sa.select(audit_subjects.c.seq).where(
                audit_subjects.c.model == model, audit_subjects.c.subject == subject, audit_subjects.c.number == number
            )
            for subject, number in subjects
        ]
        if not found:
            return []
        wanted = sa.select(audit_entries).where(audit_entries.c.seq.in_(sa.union(*found)))
        return [_entry(row) for row in self._connection.execute(wanted.order_by(audit_entries.c.seq))]

    def numbers_about(self, model: str, subject: Subject, numbers: Sequence[int]) -> set[int]:
        """Numbers of every entry that is about any of these, by the index of the log.

        Args:
            model: whose they are.
            subject: what the numbers count.
            numbers: any number of them.
        """
        found: set[int] = set()
        here = audit_subjects.c.model == model, audit_subjects.c.subject == subject
        for start in range(0, len(numbers), _VERIFY_ROWS):
            among = audit_subjects.c.number.in_(numbers[start : start + _VERIFY_ROWS])
            found.update(self._connection.execute(sa.select(audit_subjects.c.seq).where(*here, among)).scalars())
        return found

    def numbers_of(self, model: str, kinds: Collection[str]) -> set[int]:
        """Numbers of a model's entries of these kinds."""
        wanted = sa.select(audit_entries.c.seq).where(audit_entries.c.model == model, audit_entries.c.kind.in_(kinds))
        return set(self._connection.execute(wanted).scalars())

    def spelled(self, numbers: Collection[int]) -> list[tuple[int, bytes, bytes]]:
        """Entries by number, in order: the number, the bytes that were hashed, and their leaf hash.

        Raises:
            Fault: one of them does not hold.
        """
        wanted = sa.select(*_STORED).where(audit_entries.c.seq.in_(numbers)).order_by(audit_entries.c.seq)
        return [
            (row.seq, str(row.document).encode(), _checked_leaf(row, row.seq))
            for row in self._connection.execute(wanted)
        ]

    def indexed(self, through: int) -> Indexed:
        """What the index of the log has up to this entry and beyond the log's end, by looking at all of it."""
        columns = audit_subjects.c.model, audit_subjects.c.subject, audit_subjects.c.number, audit_subjects.c.seq
        here = sa.or_(audit_subjects.c.seq <= through, audit_subjects.c.seq > self.head().size)
        wanted = sa.select(*columns).where(here).execution_options(yield_per=_VERIFY_ROWS)
        found = Indexed()
        for row in self._connection.execute(wanted):
            found = found.with_row(*row)
        return found

    def entry(self, seq: int) -> AuditEntry:
        """One entry.

        Raises:
            UnknownEntry: the log has no entry of this number.
        """
        row = None
        if 0 < seq <= _LARGEST_SEQ:
            row = self._connection.execute(sa.select(audit_entries).where(audit_entries.c.seq == seq)).one_or_none()
        if row is None:
            raise UnknownEntry(f"the audit log has no entry {seq}")
        return _entry(row)

    def head(self) -> LogHead:
        """How many entries there are, and the root over them."""
        row = self._connection.execute(sa.select(log_head.c.size, log_head.c.root, log_head.c.epoch)).one()
        return LogHead(row.size, row.root, row.epoch)

    def tree(self) -> Tree:
        """The Merkle tree over the entries."""
        return Tree(self._connection)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def keep_checkpoint(self, head: LogHead, note: str) -> None:
        """Write down a checkpoint that was signed; the same one again changes nothing."""
        here = log_checkpoints.c.epoch == head.epoch, log_checkpoints.c.size == head.size
        if self._connection.execute(sa.select(log_checkpoints.c.size).where(*here)).one_or_none() is None:
            values = {"epoch": head.epoch, "size": head.size, "root": head.root, "note": note}
            self._connection.execute(sa.insert(log_checkpoints).values(signed_at=self._now, **values))

    def last_checkpoint(self) -> SignedHead | None:
        """The newest checkpoint that was signed."""
        newest = log_checkpoints.c.epoch.desc(), log_checkpoints.c.size.desc()
        row = self._connection.execute(sa.select(log_checkpoints).order_by(*newest).limit(1)).one_or_none()
        return None if row is None else _signed(row)

    def checkpoints(self, after: tuple[int, int], limit: int) -> list[SignedHead]:
        """Checkpoints that were signed, the oldest first.

        Args:
            after: (epoch, size) to go on from; (0, 0) for the first.
            limit: at most this many.
        """
        key = sa.tuple_(log_checkpoints.c.epoch, log_checkpoints.c.size)
        wanted = sa.select(log_checkpoints).where(key > sa.tuple_(*after)).limit(limit)
        ordered = wanted.order_by(log_checkpoints.c.epoch, log_checkpoints.c.size)
        return [_signed(row) for row in self._connection.execute(ordered)]

    def verify(self) -> LogHead:
        """Recompute every leaf and the root, in constant memory.

        Raises:
            Fault: naming the first entry that does not hold, or what is wrong with the head.
        """
        frontier = Frontier()
        while (grown := self.checked(frontier, _VERIFY_ROWS)).size > frontier.size:
            frontier = grown
        return self.agreed(frontier)

    def checked(self, frontier: Frontier, limit: int) -> Frontier:
        """A frontier, grown by the entries that follow it, ``limit`` at most; each is checked.

        Raises:
            Fault: naming the first entry that does not hold.
        """
        nodes: list[dict[str, Any]] = []
        for row in self._rows(frontier.size, limit):
            leaf = _checked_leaf(row, frontier.size + 1)
            nodes += completed(frontier.size + 1, frontier.carries(leaf))
            frontier = frontier.append(leaf)
        for node in nodes:
            self._check_node(node)
        return frontier

    def _check_node(self, node: Mapping[str, Any]) -> None:
        here = log_nodes.c.level == node["level"], log_nodes.c.index == node["index"]
        found = self._connection.execute(sa.select(log_nodes.c.hash).where(*here)).scalar_one_or_none()
        if found != node["hash"]:
            raise Fault(
                f"the audit log's node {node['index']} of level {node['level']} is {found or 'missing'}, but the "
                f"entries below it hash to {node['hash']}: proofs that use it would be refused"
            )

    def agreed(self, frontier: Frontier) -> LogHead:
        """The stored head, once it is that of a frontier over every entry.

        Raises:
            Fault: it says something else.
        """
        head = self._stored_head()
        if frontier.size != head.size:
            raise Fault(f"the audit log has {frontier.size} entries, but its head says {head.size}")
        if frontier.root().hex() != head.root:
            raise Fault(f"the audit log's entries hash to {frontier.root().hex()}, but its head says {head.root}")
        if [item.hex() for item in frontier.hashes] != head.frontier:
            raise Fault("the audit log's frontier is not the one of its entries")
        stored = self._connection.execute(sa.select(sa.func.count()).select_from(log_nodes)).scalar_one()
        if stored != nodes_of(head.size):
            raise Fault(f"the audit log has {stored} nodes instead of {nodes_of(head.size)}")
        return LogHead(head.size, head.root, head.epoch)

    def _stored_head(self) -> sa.Row[Any]:
        if self._connection.execute(sa.select(log_head.c.id)).one_or_none() is None:
            raise Fault("the audit log has no head: restore the database from a backup")
        try:
            return self._connection.execute(sa.select(log_head)).one()
        except (sa.exc.DBAPIError, ValueError) as error:
            raise Fault(f"the audit log's head cannot be read ({error.__cause__ or error})") from error

    def _rows(self, after: int, limit: int) -> Sequence[sa.Row[Any]]:
        """Entries as they are stored, in order. One that the database cannot even read is named."""
        # From the beginning, whatever lies before entry 1 comes too, so that it is found.
        wanted = sa.select(*_STORED).order_by(audit_entries.c.seq).where(audit_entries.c.seq > (after or -1))
        try:
            return self._connection.execute(wanted.limit(limit)).all()
        except (sa.exc.DBAPIError, ValueError) as error:
            if limit == 1:
                raise Fault(f"an audit entry after {after} cannot be read ({error.__cause__ or error})") from error
            return self._rows(after, 1)


def _subjects(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    place = {"model": document["model"], "seq": document["seq"]}
    return [{"subject": subject, "number": number, **place} for subject, number in sorted(subjects_of(document))]


def _spelled(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _signed(row: sa.Row[Any]) -> SignedHead:
    return SignedHead(LogHead(row.size, row.root, row.epoch), row.note, row.signed_at)


def _entry(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry(row.seq, row.time, row.kind, row.actor, row.model, json.loads(row.document), row.leaf)


def _frontier(head: sa.Row[Any]) -> Frontier:
    try:
        return Frontier(head.size, tuple(bytes.fromhex(item) for item in head.frontier))
    except ValueError as error:
        raise Fault(f"the audit log's head is damaged ({error}): run `espalier doctor`") from error


def _checked_leaf(row: sa.Row[Any], seq: int) -> bytes:
    """The leaf hash of a stored entry, once everything about it agrees."""
    if row.seq != seq:
        raise Fault(f"audit entry {seq} is missing: entry {row.seq} stands in its place")
    spelled = str(row.document).encode()
    leaf = leaf_hash(spelled)
    if leaf.hex() != row.leaf:
        raise Fault(f"audit entry {seq} was changed: its document hashes to {leaf.hex()}, but its leaf says {row.leaf}")
    try:
        document = json.loads(spelled)
        time = datetime.fromisoformat(document["time"])
    except (ValueError, KeyError, TypeError) as error:
        raise Fault(f"audit entry {seq} was changed: its document cannot be read ({error})") from error
    stored = time.strftime("%Y-%m-%d %H:%M:%S.%f") if isinstance(row.stored_time, str) else time
    for name in ("seq", "kind", "actor", "model", "stored_time"):
        if getattr(row, name) != {**document, "stored_time": stored}.get(name):
            raise Fault(f"audit entry {seq} was changed: its {name.removeprefix('stored_')} is not its document's")
    return leaf
