"""Bring a database to this version's schema.

Knows: where the migrations lie, how to run them alone. Must never know: what the tables are for.

Laws:
    * All or nothing: an upgrade is one transaction, on SQLite too; a kill midway leaves the old schema.
    * Any number of processes may migrate at once: the first one does the work, the others find it done.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import app

_LOCK_KEY = 0x65737061_6C696572  # "espalier"
_WAIT_SECONDS = 120.0

_PACKAGE = Path(app.__file__).parent
_PLACES = (_PACKAGE / "migrations", _PACKAGE.parent / "migrations")  # an installed wheel; a checkout


def migrate(url: str, target: str = "head") -> list[str]:
    """Upgrade the database to the newest schema, waiting for any other process that does the same.

    Args:
        url: SQLAlchemy URL. A SQLite file and its folder are made where they are missing.
        target: an Alembic revision; anything but ``head`` is for tests.

    Returns:
        The revisions that were applied, in order; empty when there was nothing to do.
    """

    def upgrade(config: Config, before: str | None) -> list[str]:
        scripts = ScriptDirectory.from_config(config)
        applied = [script.revision for script in scripts.iterate_revisions(target, before or "base")]
        command.upgrade(config, target)
        return applied[::-1]

    return _alone(url, upgrade)


def downgrade(url: str, target: str = "base") -> list[str]:
    """Take revisions back, down to ``target``. Rows of tables that go are lost: make a copy first.

    Returns:
        The revisions that were taken back, in order.
    """

    def take_back(config: Config, before: str | None) -> list[str]:
        scripts = ScriptDirectory.from_config(config)
        removed = [script.revision for script in scripts.iterate_revisions(before or "base", target)]
        command.downgrade(config, target)
        return removed

    return _alone(url, take_back)


@cache
def newest_revision() -> str:
    """The revision of this version's schema."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "there is always a first migration"
    return head


def _alone(url: str, work: Callable[[Config, str | None], list[str]]) -> list[str]:
    with _exclusive(url) as connection:
        config = _config()
        config.attributes["connection"] = connection
        return work(config, MigrationContext.configure(connection).get_current_revision())


def _config() -> Config:
    config = Config()
    place = next(place for place in _PLACES if (place / "env.py").is_file())
    config.set_main_option("script_location", str(place).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _exclusive(url: str) -> Iterator[sa.Connection]:
    """One transaction that no other migration runs beside."""
    if sa.make_url(url).get_backend_name() == "sqlite":
        engine = _sqlite(url)
    else:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))
            yield connection
    finally:
        engine.dispose()


def _sqlite(url: str) -> sa.Engine:
    database = sa.make_url(url).database
    if database:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url, poolclass=sa.NullPool, connect_args={"timeout": _WAIT_SECONDS, "isolation_level": None}
    )

    @sa.event.listens_for(engine, "connect")
    def pragmas(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=OFF")  # tables are rebuilt; rows are checked by the tests

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")

    return engine
