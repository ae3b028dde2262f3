"""For every test: one torch thread a process, since pytest-xdist already runs one process a core; no settings from
outside; and a database of its own: a SQLite file, and a PostgreSQL database too where ESPALIER_TEST_DATABASE_URL names
a server.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import hypothesis
import pytest
import sqlalchemy as sa

from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import migrate
from tests.s3 import S3
from tests.spares import Spares

KEPT = {"ESPALIER_TEST_DATABASE_URL", "ESPALIER_FAULTS_JSON"}

# Before anything imports torch or starts a process: both read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in [name for name in os.environ if name.startswith("ESPALIER_") and name not in KEPT]:
    del os.environ[name]

# A machine that is busy for a moment is no finding.
hypothesis.settings.register_profile("espalier", deadline=None)
hypothesis.settings.load_profile("espalier")

SERVER = os.environ.get("ESPALIER_TEST_DATABASE_URL")
DATABASES = ["sqlite", "postgresql"] if SERVER else ["sqlite"]


@pytest.fixture(params=DATABASES)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables, gone after the test."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'espalier.db'}"
        return
    with postgresql_database() as url:
        yield url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path, migrated: dict[str, str]) -> Iterator[str]:
    """A database at this version's schema, with nothing in it: a copy of one that was migrated once."""
    if request.param == "sqlite":
        shutil.copyfile(migrated["sqlite"], tmp_path / "espalier.db")
        yield f"sqlite:///{tmp_path / 'espalier.db'}"
        return
    spares: Spares = request.getfixturevalue("spares")
    with spares.lent() as url:
        yield url


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What to copy, by dialect: a file, and the name of a database."""
    file = tmp_path_factory.mktemp("migrated") / "espalier.db"
    migrate(f"sqlite:///{file}")
    if SERVER is None:
        yield {"sqlite": str(file)}
        return
    with postgresql_database() as url:
        migrate(url)
        yield {"sqlite": str(file), "postgresql": str(sa.make_url(url).database)}


@pytest.fixture(scope="session")
def spares(migrated: dict[str, str]) -> Iterator[Spares]:
    spares = Spares(partial(postgresql_database, migrated["postgresql"]))
    yield spares
    spares.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "data")


@pytest.fixture
def store(database_url: str, blobs: Blobs) -> Iterator[Store]:
    store = Store(database_url, blobs)
    yield store
    store.dispose()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An S3 that clients of this process, and of its children, find by their environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@contextmanager
def postgresql_database(template: str | None = None) -> Iterator[str]:
    name = f"espalier_test_{uuid.uuid4().hex}"
    with _server().connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
    try:
        yield sa.make_url(str(SERVER)).set(database=name).render_as_string(hide_password=False)
    finally:
        with _server().connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@cache
def _server() -> sa.Engine:
    return sa.create_engine(str(SERVER), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
