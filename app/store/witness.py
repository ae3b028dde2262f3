"""``tx.witness``: what the log says of rows, and what the rows say.

Knows: the key of each table, and the digest of a row. Must never know: what a row means, or what is to be thought of a
digest that differs.

Laws:
    * The last entry of a transaction states the digest of every row that it changed, and says of every row that it
      removed that it is gone (``rows``); so the newest statement about a row is what the row has to be.
    * Nobody has to think of it: the engine sees each statement before it is executed.
    * Of an index, where many rows say one thing, the rows of one key are stated together.
    * A digest is over the columns that hold something. A column that is added later is null in older rows, so what was
      stated of them stays true.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import Delete, Insert, Update, UpdateBase

from app.errors import RefusedSql
from app.store.tables import (
    AUDITED,
    alias_moves,
    aliases,
    cycles,
    decisions,
    evaluation_sets,
    keys,
    megabatches,
    metadata,
    models,
    proposals,
    protections,
    recipes,
    uses,
    versions,
    webhooks,
)
from espalier.formats.canonical import canonical_json, exact

Key = tuple[str | int, ...]
"""The values of a row's key; where it is told apart from those of other tables, the table comes first."""

Touched = dict[str, set[Key]]
"""Keys, by table, of rows that a transaction has written or removed."""

KEYS: Mapping[str, tuple[str, ...]] = {
    models.name: ("name",),
    recipes.name: ("model_id", "revision"),
    megabatches.name: ("model_id", "number"),
    evaluation_sets.name: ("model_id", "revision"),
    cycles.name: ("model_id", "number"),
    versions.name: ("model_id", "number"),
    aliases.name: ("model_id", "name"),
    alias_moves.name: ("model_id", "alias", "revision"),
    protections.name: ("model_id", "alias"),
    proposals.name: ("model_id", "number"),
    keys.name: ("id",),
    webhooks.name: ("id",),
    uses.name: ("model_id", "version"),
}
"""The tables whose rows the log states, and by what it names them."""

OTHERWISE = frozenset({decisions.name})
"""Audited tables whose rows an entry states in another way: a batch of decisions has a digest of its own."""

assert KEYS.keys() | OTHERWISE == AUDITED, "every audited row is stated, one way or the other"

UNSTATED: Mapping[str, frozenset[str]] = {
    megabatches.name: frozenset({"evaluation_overlap"}),
}
"""Columns that are in no digest. How much of a megabatch is in the evaluation set is counted anew for every megabatch
whenever that set changes, and can be counted again by anybody from the ids.
"""

SILENT = "espalier_silent"
"""Execution option of a statement that changes no other columns than those."""

_CHUNK = 200
_UNNAMED: Key = ()


def note_before(
    connection: sa.Connection, statement: UpdateBase, given: Sequence[Mapping[str, Any]], touched: Touched
) -> None:
    """Note the rows that a statement is going to change or remove.

    Args:
        given: the parameters that it is executed with, one set for each time.
    """
    name = getattr(statement.table, "name", "")
    if name not in KEYS or statement.get_execution_options().get(SILENT) or not isinstance(statement, Update | Delete):
        return
    wanted = sa.select(*_key_columns(name)).with_for_update()
    if statement.whereclause is not None:
        wanted = wanted.where(statement.whereclause)
    for parameters in given or [{}]:
        touched.setdefault(name, set()).update(tuple(row) for row in connection.execute(wanted, parameters))


def note_after(statement: Insert, written: Iterable[Mapping[str, Any]], touched: Touched) -> None:
    """Note the rows that a statement has added.

    Args:
        written: the values of each.
    """
    name = getattr(statement.table, "name", "")
    if name in KEYS:
        touched.setdefault(name, set()).update(_key_in(name, row) for row in written)


def _key_in(name: str, row: Mapping[str, Any]) -> Key:
    return tuple(row[column] for column in KEYS[name]) if row.keys() >= set(KEYS[name]) else _UNNAMED


class Witness:
    """The digests of rows, as one transaction sees them."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def stated(self, touched: Touched) -> list[list[str | int | None]]:
        """What an entry says of rows: table, key and digest of each; None: it is gone.

        Raises:
            RefusedSql: a statement has added rows without naming their keys.
        """
        if unnamed := sorted(name for name, among in touched.items() if _UNNAMED in among):
            raise RefusedSql(f"rows of {', '.join(unnamed)} were added by a statement that does not give their keys")
        return [
            [name, *key, digest]
            for name, among in sorted(touched.items())
            for key, digest in self._digests(name, sorted(among))
        ]

    def digest(self, key: Key) -> str | None:
        """The digest of a row; None where there is none.

        Raises:
            ValueError: it cannot be read.
        """
        name, *values = key
        ((_, digest),) = self._digests(str(name), [tuple(values)])
        return digest

    def keys(self, name: str, after: Key | None, limit: int) -> list[Key]:
        """Keys of a table's rows, in order.

        Args:
            after: go on after this key.
            limit: at most this many.
        """
        columns = _key_columns(name)
        wanted = sa.select(*columns).distinct().order_by(*columns).limit(limit)
        if after is not None:
            wanted = wanted.where(sa.tuple_(*columns) > sa.tuple_(*after))
        return [tuple(row) for row in self._connection.execute(wanted)]

    def digests(self, name: str, among: Sequence[Key]) -> dict[Key, str | None]:
        """Digests of rows by their keys; None where there is no such row.

        Raises:
            ValueError: one of them cannot be read.
        """
        return dict(self._digests(name, among))

    def _digests(self, name: str, among: Sequence[Key]) -> Iterator[tuple[Key, str | None]]:
        table, columns = metadata.tables[name], _key_columns(name)
        for start in range(0, len(among), _CHUNK):
            chunk = among[start : start + _CHUNK]
            wanted = sa.select(table).where(sa.tuple_(*columns).in_(chunk)).order_by(*table.primary_key)
            found: dict[Key, list[Mapping[Any, Any]]] = {}
            try:
                for row in self._connection.execute(wanted).mappings():
                    found.setdefault(tuple(row[column] for column in KEYS[name]), []).append(row)
            except (sa.exc.DBAPIError, TypeError) as error:
                if isinstance(error, sa.exc.DBAPIError) and _of_the_database(error):
                    raise
                raise ValueError(str(error)) from error
            yield from ((key, digest_of(name, found[key]) if key in found else None) for key in chunk)


def _of_the_database(error: sa.exc.DBAPIError) -> bool:
    """Whether the database said so, or did not answer; and not the driver, of a value that it could not make out."""
    code = getattr(error.orig, "sqlite_errorcode", None) or getattr(error.orig, "sqlstate", None)
    return code is not None or error.connection_invalidated


def digest_of(name: str, rows: Iterable[Mapping[Any, Any]]) -> str:
    """The digest of the rows of a key: SHA-256, in hexadecimal, over the canonical JSON of what their columns hold.

    Raises:
        ValueError: they hold something that no such row can hold.
    """
    unstated = UNSTATED.get(name, frozenset())
    held = [
        {column: _spelled(value) for column, value in row.items() if value is not None and column not in unstated}
        for row in rows
    ]
    return hashlib.sha256(canonical_json(exact(held))).hexdigest()


def _spelled(value: Any) -> Any:
    return value.astimezone(UTC).isoformat(timespec="microseconds") if isinstance(value, datetime) else value


def _key_columns(name: str) -> list[sa.Column[Any]]:
    return [metadata.tables[name].c[column] for column in KEYS[name]]
