"""The store: one database, one folder of blobs, and the rule that no change goes unrecorded.

Knows: engines, pragmas, transactions, the schema check, what a database's errors mean. Must never know: what a row
means.

Laws:
    * A change is committed on leaving ``Store.transaction()``, or not at all.
    * A transaction that changed an audited table without an audit entry raises ``UnauditedChange`` and changes nothing.
      The guard stands on the engine: bulk and Core statements pass it as well as any other.
    * The last entry of a transaction states the digest of every audited row that it changed (``witness``).
    * Text and driver-level SQL is refused, and so is any change outside a transaction, or of the log by others than the
      log. Migrations alone, which have their own engine, are free.
    * Busy, unreachable, full and failing databases are ``StoreBusy``, ``StorageFull`` and ``StorageFailed``: nothing
      was changed, try again.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from json import dumps
from typing import Any, cast
from weakref import WeakSet

import psycopg
import sqlalchemy as sa
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import Insert, UpdateBase

from app import crash
from app.domain import Actor
from app.errors import (
    EspalierError,
    Fault,
    RefusedSql,
    SchemaMismatch,
    StorageFailed,
    StorageFull,
    StoreBusy,
    UnauditedChange,
)
from app.store.approvals import Approvals
from app.store.audit import Audit
from app.store.blobs import Blobs
from app.store.buffer import Buffer
from app.store.custody import Custody
from app.store.decisions import Decisions
from app.store.keys import Keys
from app.store.ledger import Ledger
from app.store.migrate import newest_revision
from app.store.overviews import Overviews
from app.store.replays import Replays
from app.store.staging import Partials
from app.store.tables import AUDITED, EXEMPT, LOG, TRIGGERS
from app.store.uploads import Uploads
from app.store.webhooks import Webhooks
from app.store.witness import Touched, Witness, note_after, note_before

_READER = Actor("reader")
_GUARD = "espalier_guard"
_POOL = 16

_POSTGRESQL_OPTIONS = (
    "-c timezone=UTC -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 "
    "-c tcp_user_timeout=30000"
)
_KEEPALIVE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30000,
}
"""Either side notices within half a minute that the other's machine, or the net between them, is gone."""

_alembic_version = sa.table("alembic_version", sa.column("version_num", sa.String))
_sqlite_master = sa.table("sqlite_master", sa.column("type", sa.String), sa.column("name", sa.String))
_pg_trigger = sa.table("pg_trigger", sa.column("tgname", sa.String), *map(sa.column, ("tgrelid", "tgenabled")))
_THERE = {
    "sqlite": sa.select(_sqlite_master.c.name).where(_sqlite_master.c.type == "trigger"),
    "postgresql": sa.select(_pg_trigger.c.tgname).where(
        sa.func.pg_table_is_visible(_pg_trigger.c.tgrelid), _pg_trigger.c.tgenabled.in_(["O", "A"])
    ),
}
"""The names of the triggers that are in force, by dialect."""


def utcnow() -> datetime:
    """The present time, aware, in UTC."""
    return datetime.now(UTC)


def journal_mode(version: tuple[int, int, int]) -> str:
    """The journal that is safe with this SQLite.

    Two connections could corrupt a write-ahead log that is reset (fixed in 3.51.3, and in 3.50.7 and 3.44.6 of their
    series); a rollback journal never had that fault.
    """
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)
    return "WAL" if fixed else "TRUNCATE"


class Transaction:
    """The store, as one transaction sees it.

    Attributes:
        buffer: megabatches.
        ledger: models, cycles, versions, aliases.
        approvals: protected aliases, and moves that wait for approval.
        audit: the log.
        uploads: resumable uploads.
        replays: answers kept under idempotency keys.
        custody: which versions a megabatch went into.
        decisions: what clients decided with which version.
        overviews: what a page shows of many models or versions at once.
        keys: keys, and the browsers that are signed in with one.
        witness: digests of rows, which the log states.
        webhooks: addresses that are told of entries, and what they were told.
        last: what is done when all else is written and nobody else can commit: the log is locked by then. An error
            there undoes the transaction.
        actor: who asks for the change.
        now: the time of everything that this transaction does.
    """

    def __init__(self, connection: sa.Connection, actor: Actor, now: datetime) -> None:
        self.actor = actor
        self.now = now
        self.buffer = Buffer(connection, now)
        self.ledger = Ledger(connection, actor, now)
        self.approvals = Approvals(connection, now)
        self.audit = Audit(connection, actor, now)
        self.uploads = Uploads(connection, now)
        self.replays = Replays(connection, now)
        self.keys = Keys(connection, now)
        self.webhooks = Webhooks(connection, now)
        self.custody = Custody(connection)
        self.decisions = Decisions(connection, actor, now)
        self.witness = Witness(connection)
        self.overviews = Overviews(connection)
        self.last: list[Callable[[], None]] = []


class Store:
    """Everything that the service remembers.

    Attributes:
        blobs: the bytes that rows name.
        partials: bytes of resumable uploads.
        clock: gives the time of each transaction.
        dialect: ``sqlite`` or ``postgresql``.
    """

    def __init__(
        self, url: str, blobs: Blobs, clock: Callable[[], datetime] = utcnow, *, busy_seconds: float = 15.0
    ) -> None:
        """Open a store.

        Args:
            url: SQLAlchemy URL; SQLite needs a file.
            blobs: the bytes that its rows name.
            clock: aware UTC time.
            busy_seconds: how long to wait for another writer before ``StoreBusy``.
        """
        self.blobs = blobs
        self.partials = Partials(blobs.root)
        self.clock = clock
        self._busy_seconds = busy_seconds
        self._engine = _engine(sa.make_url(url), busy_seconds)
        self.dialect = self._engine.dialect.name
        # SQLite has one writer: threads of this process queue here, in order, instead of polling for its lock.
        self._turn = threading.Lock() if self.dialect == "sqlite" else None
        self._on_commit: list[Callable[[], None]] = []

    @contextmanager
    def transaction(self, actor: Actor) -> Iterator[Transaction]:
        """Change something. Commits on leaving, with the audit entries that were appended.

        Raises:
            UnauditedChange: audited rows were changed, and nothing was appended to the log.
            StoreBusy, StorageFull: nothing was changed; try again later.
        """
        guard = _Guard(may_write=True)
        with _translated(), self._in_turn(), self._connected(guard) as connection:
            tx = Transaction(connection, actor, self.clock())
            crash.point("transaction.begin")
            yield tx
            if guard.changed and not tx.audit.pending:
                changed = ", ".join(sorted(guard.changed))
                raise UnauditedChange(
                    f"{changed} changed without an audit entry: call tx.audit.append in the transaction"
                )
            logged = tx.audit.pending
            with guard.writing_log():
                tx.audit.write(tx.witness.stated(guard.touched))
            for check in tx.last if logged else ():
                check()
            crash.point("transaction.logged")
        crash.point("transaction.committed")
        for told in self._on_commit if logged else ():
            told()

    def on_commit(self, told: Callable[[], None]) -> None:
        """Call ``told`` after every commit of this store that wrote to the log, in the thread that committed.

        The change is made by then and every lock is released; what ``told`` raises would only hide that.
        """
        self._on_commit.append(told)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Look at one consistent state. Changes are refused.

        Raises:
            StoreBusy: try again later.
        """
        with _translated(), self._connected(_Guard(may_write=False)) as connection:
            yield Transaction(connection, _READER, self.clock())

    def check_schema(self) -> None:
        """Compare the database with this version's schema.

        Raises:
            SchemaMismatch: with the remedy.
        """
        needed = newest_revision()
        with _translated(), self._connected(_Guard(may_write=False)) as connection:
            found = connection.execute(sa.select(_alembic_version.c.version_num)).scalars().all()
        if list(found) != [needed]:
            at = f"at revision {', '.join(found)}" if found else "empty"
            raise SchemaMismatch(f"the database is {at}, but this version needs {needed}: run `espalier migrate`")

    def missing_triggers(self) -> frozenset[str]:
        """Those of ``TRIGGERS`` that are gone from the database, or disabled in it."""
        with _translated(), self._connected(_Guard(may_write=False)) as connection:
            return TRIGGERS[self.dialect] - set(connection.execute(_THERE[self.dialect]).scalars())

    def dispose(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=self._busy_seconds):
            raise StoreBusy("the database is busy with another writer: try again")
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _connected(self, guard: _Guard) -> Iterator[sa.Connection]:
        with self._engine.connect() as connection:
            connection.execution_options(**{_GUARD: guard})
            if self.dialect == "postgresql" and not guard.may_write:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection


# -- the guard ---------------------------------------------------------------------------------------------------------


@dataclass
class _Guard:
    """What one transaction may change, and what it has changed."""

    may_write: bool
    changed: set[str] = field(default_factory=set)
    touched: Touched = field(default_factory=dict)
    log_is_open: bool = False

    @contextmanager
    def writing_log(self) -> Iterator[None]:
        self.log_is_open = True
        try:
            yield
        finally:
            self.log_is_open = False

    def note(self, table: str) -> None:
        """Let a change of this table through, or not."""
        if not self.may_write:
            raise RefusedSql(f"a change of {table} in a transaction that only reads: use Store.transaction()")
        if table in LOG:
            if not self.log_is_open:
                raise RefusedSql(f"{table} is written by tx.audit alone, and entries are never changed")
        elif table in AUDITED:
            self.changed.add(table)
        elif table not in EXEMPT:
            raise RefusedSql(f"{table} is no table of this store")


def _refuse_unknown_statements(connection: sa.Connection, statement: Any, many: Any, once: Any, _options: Any) -> None:
    """Statements that can be looked into are looked into; all others are refused."""
    guard: _Guard | None = connection.get_execution_options().get(_GUARD)
    if isinstance(statement, UpdateBase):
        if guard is None:
            raise RefusedSql("a change outside Store.transaction()")
        table = statement.table
        guard.note(table.name if isinstance(table, sa.Table) else str(table))
        note_before(connection, statement, many or [once], guard.touched)
    elif not isinstance(statement, sa.Select):
        raise RefusedSql(f"{type(statement).__name__} SQL is refused: build statements from app.store.tables")


def _note_what_was_added(
    connection: sa.Connection, statement: Any, _multiparams: Any, _params: Any, _options: Any, result: Any
) -> None:
    guard: _Guard | None = connection.get_execution_options().get(_GUARD)
    if isinstance(statement, Insert) and guard is not None:
        note_after(statement, result.context.compiled_parameters, guard.touched)


_LOOKED_INTO: WeakSet[Any] = WeakSet()
"""Compiled statements that hide nothing: the engine keeps and reuses them, so each is looked into once."""


def _refuse_hidden_statements(
    _connection: sa.Connection, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool
) -> None:
    """Driver-level SQL has not been compiled from anything; a SELECT can hide text, or a change in a CTE."""
    compiled = context.compiled
    if compiled is None:
        raise RefusedSql(f"driver-level SQL is refused: {statement[:60]!r}")
    if compiled in _LOOKED_INTO:
        return
    for part in visitors.iterate(compiled.statement):
        if isinstance(part, sa.TextClause):
            raise RefusedSql(f"text SQL is refused: {part.text[:60]!r}")
        if isinstance(part, UpdateBase) and part is not compiled.statement:
            raise RefusedSql("a change inside another statement is refused: execute it by itself")
    _LOOKED_INTO.add(compiled)


# -- engines -----------------------------------------------------------------------------------------------------------


def _engine(url: sa.URL, busy_seconds: float) -> sa.Engine:
    options: dict[str, Any] = {
        "json_serializer": partial(dumps, allow_nan=False, separators=(",", ":")),
        "pool_timeout": busy_seconds,
        "pool_size": _POOL,
    }
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise Fault("a store needs a database file: every connection to :memory: would see another one")
        # No isolation level: the driver starts no transactions of its own, the begin event below does.
        connect_args: dict[str, Any] = {"timeout": busy_seconds, "isolation_level": None}
        engine = sa.create_engine(url, connect_args=connect_args, **options)
        sa.event.listen(engine, "connect", _set_pragmas)
        sa.event.listen(engine, "begin", _begin)
    else:
        connect_args = {"options": f"-c lock_timeout={round(busy_seconds * 1000)} {_POSTGRESQL_OPTIONS}", **_KEEPALIVE}
        engine = sa.create_engine(url, connect_args=connect_args, pool_pre_ping=True, **options)
        sa.event.listen(engine, "begin", partial(_limit_idling, round(2 * busy_seconds * 1000)))
    sa.event.listen(engine, "before_execute", _refuse_unknown_statements)
    sa.event.listen(engine, "after_execute", _note_what_was_added)
    sa.event.listen(engine, "before_cursor_execute", _refuse_hidden_statements)
    return engine


def _limit_idling(milliseconds: int, connection: sa.Connection) -> None:
    """Whoever stops in the middle of a change, frozen or cut off, must not hold its locks for ever: all others wait."""
    guard: _Guard | None = connection.get_execution_options().get(_GUARD)
    if guard is not None and guard.may_write:
        driver = cast(psycopg.Connection, connection.connection.dbapi_connection)
        driver.execute(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}".encode())


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    wanted = journal_mode(sqlite3.sqlite_version_info)
    if connection.execute("PRAGMA journal_mode").fetchone()[0].upper() != wanted:
        connection.execute(f"PRAGMA journal_mode={wanted}")
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    """Writers take the lock at once: one that begins by reading could only fail when it comes to write."""
    guard: _Guard | None = connection.get_execution_options().get(_GUARD)
    driver = cast(sqlite3.Connection, connection.connection.dbapi_connection)
    driver.execute("BEGIN IMMEDIATE" if guard is not None and guard.may_write else "BEGIN")


# -- errors ------------------------------------------------------------------------------------------------------------

_FAILED = "the disk of the database reports errors: look at it and at the machine's log, then try again"

_SQLITE_ERRORS: dict[int, tuple[type[EspalierError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreBusy, "the database is busy with another writer: try again"),
    sqlite3.SQLITE_LOCKED: (StoreBusy, "the database is busy with another writer: try again"),
    sqlite3.SQLITE_CANTOPEN: (StoreBusy, "the database file cannot be opened: is its folder there and writable?"),
    sqlite3.SQLITE_IOERR: (StorageFailed, _FAILED),
    sqlite3.SQLITE_FULL: (StorageFull, "the disk of the database is full: free space, then try again"),
}

_POSTGRESQL_ERRORS: dict[str, tuple[type[EspalierError], str]] = {
    "40001": (StoreBusy, "the database is busy with another writer: try again"),  # serialization failure
    "40P01": (StoreBusy, "the database is busy with another writer: try again"),  # deadlock
    "55P03": (StoreBusy, "the database is busy with another writer: try again"),  # lock timeout
    "25P03": (StoreBusy, "the database waited too long for this process: try again"),  # idle in a transaction
    "57014": (StoreBusy, "the database took too long: try again"),  # statement timeout
    "53300": (StoreBusy, "the database has no connection to spare: try again"),
    "53100": (StorageFull, "the disk of the database is full: free space, then try again"),
    "58030": (StorageFailed, _FAILED),  # I/O error
    "42P01": (SchemaMismatch, "the database lacks a table: run `espalier migrate`"),
    "42703": (SchemaMismatch, "the database lacks a column: run `espalier migrate`"),
    "P0001": (RefusedSql, "the database refuses to change the audit log"),  # raised by our triggers
}


@contextmanager
def _translated() -> Iterator[None]:
    """Say what an error of the database means here; one that means nothing here goes through as it is."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, sqlite3.Error, psycopg.Error) as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(error: sa.exc.SQLAlchemyError | sqlite3.Error | psycopg.Error) -> Exception | None:
    """A driver's own error is one of a statement with which a transaction begins: those go past SQLAlchemy."""
    if isinstance(error, sa.exc.StatementError) and isinstance(error.orig, ValueError):
        return error.orig  # a value that no column can hold, such as NaN: the statement never left
    if isinstance(error, sa.exc.TimeoutError):
        return StoreBusy("every connection to the database is in use: try again")
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _sqlite_meaning(cause)
    if isinstance(cause, psycopg.Error):
        return _postgresql_meaning(cause, isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated)
    return None


def _sqlite_meaning(cause: sqlite3.Error) -> EspalierError | None:
    if str(cause).startswith(("no such table", "no such column")):
        return SchemaMismatch(f"the database does not fit ({cause}): run `espalier migrate`")
    code = getattr(cause, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER:
        return RefusedSql(str(cause))
    known = _SQLITE_ERRORS.get(code & 0xFF)
    return None if known is None else known[0](known[1])


def _postgresql_meaning(cause: psycopg.Error, lost: bool) -> EspalierError | None:
    state = cause.sqlstate or ""
    known = _POSTGRESQL_ERRORS.get(state)
    if known is not None:
        return known[0](known[1])
    if lost or state.startswith(("08", "57P")) or (not state and isinstance(cause, psycopg.OperationalError)):
        return StoreBusy("the database cannot be reached: try again")
    return None
