"""A database that a test used is as good as new, or is not used again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from app.store.blobs import Blobs
from app.store.database import Store
from app.store.tables import metadata
from tests.conftest import SERVER
from tests.lineages import Lineage
from tests.spares import Spares

pytestmark = pytest.mark.skipif(SERVER is None, reason="ESPALIER_TEST_DATABASE_URL names no PostgreSQL")


@pytest.fixture
def alone(spares: Spares) -> Iterator[Spares]:
    """Spares of which none was used yet."""
    alone = Spares(spares._made)
    yield alone
    alone.close()


def rows_of(url: str) -> dict[str, list[tuple[object, ...]]]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return {name: [tuple(row) for row in connection.execute(sa.select(t))] for name, t in metadata.tables.items()}


def test_what_a_test_left_is_gone(alone: Spares, blobs: Blobs) -> None:
    seen = []
    for _ in range(2):
        with alone.lent() as url:
            before = rows_of(url)
            store = Store(url, blobs)
            line = Lineage(store)
            line.publish()
            with store.reading() as tx:
                seen.append((url, before, tx.audit.head().size, line.model.id))
            store.dispose()
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_refuse_change",
        "DROP TRIGGER log_nodes_refuse_change ON log_nodes",
        "ALTER TABLE models ADD COLUMN colour text",
        "CREATE INDEX another ON models (name)",
        "UPDATE alembic_version SET version_num = 'another'",
        "ANALYZE log_head",
    ],
)
def test_what_a_test_changed_is_not_used_again(alone: Spares, change: str) -> None:
    with alone.lent() as first:
        engine = sa.create_engine(first, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql(change)
    with alone.lent() as second:
        assert second != first


def test_what_somebody_is_connected_to_is_not_used_again(alone: Spares) -> None:
    with alone.lent() as first:
        connection = sa.create_engine(first, poolclass=sa.NullPool).connect()
    with alone.lent() as second:
        assert second != first
    connection.close()
