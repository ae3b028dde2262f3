"""A database as JSON lines that fit either kind of database, and back again.

Knows: one consistent state of every table, and how to fill an empty database with it. Must never know: blobs, or when a
copy is wanted. Like migrations it has engines of its own, since it goes past the guard.

Laws:
    * What is written is one state: SQLite is copied as a whole first, PostgreSQL is read in one transaction.
    * Only an empty database is filled, and in one transaction: all of it, or nothing.
    * An audit entry comes back as the same bytes, so that the log verifies as before.
    * A copy of an older schema is loaded at that schema, then migrated.

Format ``espalier-database-1``: the first line names the format and the schema; then for each table one object with its
columns and their kinds, and one array for each row.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.errors import Conflict, Fault
from app.store.migrate import migrate
from app.store.tables import UtcDateTime, leases, log_head, metadata, sessions, uploads, workers

FORMAT = "espalier-database-1"

LEFT_OUT = frozenset({sessions.name, uploads.name, workers.name})
"""What belongs to processes that run now: sign-ins, bytes that are still on their way, heartbeats."""

EMPTIED = frozenset({leases.c.snapshot})
"""Columns that are null in a copy: a cycle that ran then begins again where it is restored. Its snapshot is the
worker's, which takes it away while it is copied.
"""

_ROWS = 500
_alembic_version = sa.table("alembic_version", sa.column("version_num", sa.String))


@contextmanager
def snapshot(url: str, scratch: Path) -> Iterator[sa.Connection]:
    """A connection that sees one state of the database, however long it is used, and keeps no writer waiting for it.

    Args:
        url: SQLAlchemy URL.
        scratch: a folder for the copy of a SQLite file.
    """
    address = sa.make_url(url)
    if address.get_backend_name() == "sqlite":
        url = f"sqlite:///{_copied(Path(address.database or ''), scratch / 'snapshot.db')}"
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection
    finally:
        engine.dispose()


def _copied(source: Path, target: Path) -> Path:
    with closing(sqlite3.connect(source, timeout=60)) as here, closing(sqlite3.connect(target)) as there:
        here.backup(there)
    return target


def lines(connection: sa.Connection) -> Iterator[str]:
    """Every row of every table, as JSON, without line ends."""
    schema = connection.execute(sa.select(_alembic_version.c.version_num)).scalar_one()
    yield json.dumps({"format": FORMAT, "schema": schema})
    for table in metadata.sorted_tables:
        if table.name in LEFT_OUT:
            continue
        kinds = {column.name: _kind(column) for column in table.columns}
        yield json.dumps({"table": table.name, "columns": kinds})
        for row in _rows(connection, table):
            yield json.dumps([_spelled(value) for value in row], ensure_ascii=False, allow_nan=False)


def _rows(connection: sa.Connection, table: sa.Table) -> Iterator[sa.Row[Any]]:
    columns = (sa.null().label(column.name) if column in EMPTIED else column for column in table.columns)
    ordered = sa.select(*columns).order_by(*table.primary_key.columns)
    yield from connection.execution_options(yield_per=_ROWS).execute(ordered)


def _kind(column: sa.Column[Any]) -> str:
    if isinstance(column.type, UtcDateTime):
        return "time"
    return "json" if isinstance(column.type, sa.JSON) else "plain"


def _spelled(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


@dataclass(frozen=True, slots=True)
class _Table:
    """One table's columns, as a copy names them."""

    name: str
    columns: dict[str, str]

    def row(self, values: Sequence[Any]) -> dict[str, Any]:
        if len(values) != len(self.columns):
            raise Fault(f"the copy is damaged: a row of {self.name} has {len(values)} values")
        pairs = zip(self.columns.items(), values, strict=True)
        return {name: _read(value, kind) for (name, kind), value in pairs}

    @property
    def clause(self) -> sa.TableClause:
        return sa.table(self.name, *(sa.column(name, _TYPES[kind]) for name, kind in self.columns.items()))


_TYPES: dict[str, Any] = {"time": UtcDateTime(), "json": sa.JSON(none_as_null=True), "plain": None}


def _read(value: Any, kind: str) -> Any:
    return datetime.fromisoformat(value) if kind == "time" and value is not None else value


def load(url: str, copied: Iterable[str]) -> None:
    """Fill an empty database with a copy, and bring it to this version's schema.

    Args:
        url: SQLAlchemy URL of a database without a schema, or one that was only migrated.
        copied: what ``lines`` gave.

    Raises:
        Conflict: the database is not empty; nothing was changed.
        Fault: the copy is not whole, or of another format; the database is as empty as before.
    """
    given = iter(copied)
    schema = _schema(next(given, ""))
    migrate(url, schema)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.begin() as connection:
            _expect_empty(connection, schema)
            _fill(connection, given)
    finally:
        engine.dispose()
    migrate(url)


def _schema(first: str) -> str:
    try:
        document = json.loads(first)
        if document["format"] != FORMAT:
            raise Fault(f"the copy has the format {document['format']!r}, which this version cannot read")
        return str(document["schema"])
    except (ValueError, LookupError, TypeError) as error:
        raise Fault("the copy of the database cannot be read: it is damaged, or no copy of a database") from error


def _expect_empty(connection: sa.Connection, schema: str) -> None:
    found = connection.execute(sa.select(_alembic_version.c.version_num)).scalar_one()
    if found != schema or connection.execute(sa.select(log_head.c.size)).scalar_one():
        raise Conflict("the database is not empty: restore into a new one (ESPALIER_DATA_DIR, ESPALIER_DATABASE_URL)")


def _fill(connection: sa.Connection, given: Iterator[str]) -> None:
    table: _Table | None = None
    while chunk := list(islice(given, _ROWS)):
        rows: list[dict[str, Any]] = []
        for item in map(_parsed, chunk):
            if isinstance(item, dict):
                _insert(connection, table, rows)
                table, rows = _Table(item["table"], item["columns"]), []
            elif table is None:
                raise Fault("the copy is damaged: rows without a table")
            else:
                rows.append(table.row(item))
        _insert(connection, table, rows)
    _expect_sound(connection)


def _parsed(line: str) -> dict[str, Any] | list[Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise Fault("the copy is damaged: a line is no JSON") from error
    if not isinstance(found, dict | list):
        raise Fault("the copy is damaged: a line is neither a table nor a row")
    return found


def _insert(connection: sa.Connection, table: _Table | None, rows: list[dict[str, Any]]) -> None:
    if table is None or not rows:
        return
    if table.name == log_head.name:  # its one row is there from the start, and may only grow
        (head,) = rows
        if head["size"]:
            connection.execute(sa.update(table.clause).values(head))
        return
    connection.execute(sa.insert(table.clause), rows)


def _expect_sound(connection: sa.Connection) -> None:
    """What the databases would see to by themselves, had the rows been made one after another."""
    if connection.dialect.name == "sqlite":
        if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
            raise Fault("the copy is damaged: a row names another that is not there")
        return
    for table in metadata.sorted_tables:
        key = table.autoincrement_column
        if key is not None:
            newest = sa.select(sa.func.coalesce(sa.func.max(key), 0)).scalar_subquery()
            sequence = sa.func.pg_get_serial_sequence(table.name, key.name)
            connection.execute(sa.select(sa.func.setval(sequence, newest + 1, False)))
