"""PostgreSQL databases that one test after the other uses, emptied in between: to make one takes ten times as long.

Law: a test cannot tell whether its database was used before. One whose schema, triggers or statistics were changed, or
that somebody is still connected to, is not used again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import sqlalchemy as sa

from app.store.tables import metadata

_SCHEMA = """
    SELECT md5(string_agg(part, '|' ORDER BY part)) FROM (
        SELECT (c.relname, c.relkind, a.attname, a.atttypid, a.attnotnull)::text AS part
            FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
            WHERE c.relnamespace = 'public'::regnamespace
        UNION ALL SELECT (tgname, tgrelid, tgenabled, tgtype)::text FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT (conname, conrelid)::text FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT (proname, prosrc)::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT (schemaname, tablename, attname)::text FROM pg_stats WHERE schemaname = 'public'
        UNION ALL SELECT version_num FROM alembic_version
    ) AS parts
"""
_OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_TABLES = {table.name: table for table in metadata.sorted_tables}
_FILLED = "SELECT " + ", ".join(f"EXISTS (SELECT 1 FROM {name})" for name in _TABLES)
_GUARDED = "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal"
_PATIENCE_SECONDS = 0.2


class Spares:
    """Databases at this version's schema.

    Args:
        made: makes one, which is gone when the context ends; gives its URL.
    """

    def __init__(self, made: Callable[[], AbstractContextManager[str]]) -> None:
        self._made = made
        self._stack = ExitStack()
        self._free: list[str] = []
        with made() as url, _connected(url) as connection:
            self._schema = connection.exec_driver_sql(_SCHEMA).scalar()
            rows = {name: connection.execute(sa.select(table)).mappings().all() for name, table in _TABLES.items()}
        self._rows = {name: [dict(row) for row in found] for name, found in rows.items() if found}

    @contextmanager
    def lent(self) -> Iterator[str]:
        """A database without anything in it, for as long as the context lasts."""
        url = self._free.pop() if self._free else self._stack.enter_context(self._made())
        yield url
        if self._emptied(url):
            self._free.append(url)

    def close(self) -> None:
        """Drop them all."""
        self._stack.close()

    def _emptied(self, url: str) -> bool:
        """Whether it is now as it was made."""
        with _connected(url) as connection:
            if _is_shared(connection) or connection.exec_driver_sql(_SCHEMA).scalar() != self._schema:
                return False
            holding = connection.exec_driver_sql(_FILLED).one()
            filled = [name for name, some in zip(_TABLES, holding, strict=True) if some]
            guarded = connection.exec_driver_sql(_GUARDED).scalars().all()
            for name in guarded:
                connection.exec_driver_sql(f"ALTER TABLE {name} DISABLE TRIGGER USER")
            connection.exec_driver_sql(f"TRUNCATE {', '.join(filled)} CASCADE")
            connection.exec_driver_sql("SELECT setval(oid, 1, false) FROM pg_class WHERE relkind = 'S'")
            for name, rows in self._rows.items():
                connection.execute(_TABLES[name].insert(), rows)
            for name in guarded:
                connection.exec_driver_sql(f"ALTER TABLE {name} ENABLE TRIGGER USER")
        return True


@contextmanager
def _connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        yield connection


def _is_shared(connection: sa.Connection) -> bool:
    """Whether others stay connected; those that have just gone are seen for some milliseconds more."""
    late = time.monotonic() + _PATIENCE_SECONDS
    while shared := connection.exec_driver_sql(_OTHERS).scalar():
        if time.monotonic() > late:
            break
        time.sleep(0.005)
    return bool(shared)
