"""What the database itself enforces, whatever the code says."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from app.store.tables import audit_entries, cycles, log_head, metadata
from tests.builders import ACTOR, claim, make_cycle, make_model, make_version


@pytest.fixture
def bare(database_url, store):
    """An engine without the store's guard, as somebody with the password has it."""
    model = make_model(store)
    make_version(store, model)
    for _ in range(2):
        make_cycle(store, model)
    assert claim(store) is not None
    engine = sa.create_engine(database_url)
    yield engine
    engine.dispose()


def _refused(engine, *statements):
    for statement in statements:
        with pytest.raises(sa.exc.DBAPIError), engine.begin() as connection:
            connection.execute(sa.text(statement) if isinstance(statement, str) else statement)


def test_one_cycle_of_a_model_runs(bare):
    _refused(bare, sa.update(cycles).where(cycles.c.state == "queued").values(state="running"))


def test_entries_are_never_changed_or_deleted(bare, store):
    with store.reading() as tx:
        before = tx.audit.entries(None, None, 100)
    again = "SELECT seq, time, 'other', actor, model, document, leaf FROM audit_entries WHERE seq = 1"
    _refused(
        bare,
        sa.update(audit_entries).values(kind="other"),
        sa.update(audit_entries).where(audit_entries.c.seq == 1).values(leaf="0" * 64),
        sa.update(audit_entries).values(kind=audit_entries.c.kind),
        sa.delete(audit_entries),
        sa.delete(audit_entries).where(audit_entries.c.seq == 2),
        f"INSERT INTO audit_entries {again}",
    )
    if bare.dialect.name == "sqlite":
        _refused(bare, f"INSERT OR REPLACE INTO audit_entries {again}")
    else:
        _refused(
            bare,
            "TRUNCATE audit_entries",
            f"INSERT INTO audit_entries {again} ON CONFLICT (seq) DO UPDATE SET kind = 'other'",
        )
    with store.reading() as tx:
        assert tx.audit.entries(None, None, 100) == before
        tx.audit.verify()


def test_the_log_only_grows(bare):
    again = "SELECT id, 0, root, frontier FROM log_head"
    _refused(
        bare,
        sa.delete(log_head),
        sa.update(log_head).values(size=log_head.c.size - 1),
        sa.update(log_head).values(root="0" * 64),
        f"INSERT INTO log_head {again}",
    )
    if bare.dialect.name == "sqlite":
        _refused(bare, f"INSERT OR REPLACE INTO log_head {again}")
    else:
        _refused(bare, "TRUNCATE log_head")


@pytest.mark.parametrize(
    ("table", "column"), [("models", "state"), ("megabatches", "status"), ("cycles", "state"), ("versions", "status")]
)
def test_words_outside_the_glossary_are_refused(bare, store, table, column):
    if table == "megabatches":
        with store.transaction(ACTOR) as tx:
            model = tx.ledger.model("gas")
        row = "'odd', 'd', 'x', 'y', 'i', 1, 1, '[]', '2030-01-01 00:00:00.000000'"
        columns = "status, digest, x, y, ids, examples, bytes, histogram, received_at"
        _refused(bare, f"INSERT INTO megabatches (model_id, number, {columns}) VALUES ({model.id}, 1, {row})")
        return
    _refused(bare, sa.update(metadata.tables[table]).values({column: "odd"}))


def test_every_model_and_version_that_a_row_names_is_there(store):
    with pytest.raises(sa.exc.IntegrityError), store.transaction(ACTOR) as tx:
        tx.ledger._connection.execute(
            sa.insert(cycles).values(
                model_id=77,
                number=1,
                state="queued",
                trigger="manual",
                through=0,
                recipe_revision=1,
                attempt=0,
                failures=0,
                created_at=tx.now,
            )
        )
