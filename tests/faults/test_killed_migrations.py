"""A migration killed at every statement it executes: a rerun succeeds, and what was there is what would have been."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import downgrade, migrate, newest_revision
from app.store.tables import metadata
from tests.builders import make_cycle, make_megabatch, make_model, make_version
from tests.conftest import postgresql_database

OLDEST = "0001"


def populate(url: str, folder: Path) -> None:
    """A database at the oldest schema with rows that its migrations have something to do with."""
    migrate(url)
    store = Store(url, Blobs(folder / "blobs"))
    models = [make_model(store, name) for name in ("gas", "wine")]
    for model in models:
        for _ in range(3):
            make_megabatch(store, model)
            make_version(store, model)
    for model in models:
        make_cycle(store, model)
    store.dispose()
    downgrade(url, OLDEST)


def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        found = {
            name: sorted(map(tuple, connection.execute(sa.select(table))), key=repr)
            for name, table in metadata.tables.items()
        }
        found["revision"] = [tuple(connection.exec_driver_sql("SELECT version_num FROM alembic_version").one())]
    engine.dispose()
    return found


def migrate_and_die(url: str, nth: int) -> None:
    """Runs in a process of its own."""
    left = [nth]

    @sa.event.listens_for(sa.Engine, "before_cursor_execute")
    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    @sa.event.listens_for(sa.Engine, "commit")
    def commit(_: object) -> None:
        count()

    migrate(url)
    os._exit(0)


def killed(url: str, nth: int) -> bool:
    """Whether a migration lived long enough to be killed at its nth statement."""
    child = multiprocessing.get_context("fork").Process(target=migrate_and_die, args=(url, nth))
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


@contextmanager
def copied(url: str, folder: Path) -> Iterator[str]:
    made = sa.make_url(url)
    if made.get_backend_name() == "sqlite":
        copy = folder / "copy.db"
        for file in folder.glob("copy.db*"):
            file.unlink()
        shutil.copyfile(str(made.database), copy)
        yield f"sqlite:///{copy}"
        return
    with postgresql_database(made.database) as found:
        yield found


@pytest.mark.timeout(600)
def test_a_migration_killed_at_any_statement_is_run_again(empty_database_url: str, tmp_path: Path, tally) -> None:
    populate(empty_database_url, tmp_path)
    with copied(empty_database_url, tmp_path) as copy:
        assert migrate(copy)[-1] == newest_revision()
        expected = rows(copy)
    assert len(expected["versions"]) == 6
    for nth in itertools.count(1):
        with copied(empty_database_url, tmp_path) as copy:
            died = killed(copy, nth)
            if died:
                tally.add(injected=1, kills=1)
            migrate(copy)
            found = rows(copy)
            tally.add(lost=int(found != expected))
            assert found == expected, f"killed at statement {nth}"
        if not died:
            break
    assert nth > 20
