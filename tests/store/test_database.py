"""The guard, the transaction, and what a database's errors mean."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from app.domain import OPEN_CYCLES, DecisionDraft, InputSpec, Scope, WebhookSecret
from app.errors import Fault, RefusedSql, SchemaMismatch, StorageFull, StoreBusy, UnauditedChange
from app.store import database
from app.store.blobs import Blobs
from app.store.database import Store, journal_mode
from app.store.tables import AUDITED, EXEMPT, LOG, idempotency_keys, log_checkpoints, metadata, models, uploads, uses
from tests.builders import ACTOR, claim, make_cycle, make_evaluation, make_megabatch, make_model, make_version

AUDITED_TABLES = sorted(AUDITED)


def _connection(tx):
    return tx.ledger._connection


def _execute(store, statement, *, audited=False):
    with store.transaction(ACTOR) as tx:
        if audited:
            tx.audit.append("test", model=None)
        return _connection(tx).execute(statement)


def _read(store, statement):
    with store.reading() as tx:
        return _connection(tx).execute(statement)


def _drive(store, sql):
    with store.transaction(ACTOR) as tx:
        _connection(tx).exec_driver_sql(sql)


@pytest.fixture
def filled(store):
    """A row in every table."""
    model = make_model(store)
    make_megabatch(store, model)
    make_evaluation(store, model)
    make_version(store, model)
    make_cycle(store, model)
    assert claim(store) is not None
    with store.transaction(ACTOR) as tx:
        tx.ledger.tick(model, tx.now)
        tx.ledger.beat("worker-1")
        soon = {"created_at": tx.now, "expires_at": tx.now}
        upload = {"id": "u", "model_id": model.id, "state": "open", "actor": "tester", "offset": 0}
        _connection(tx).execute(sa.insert(uploads).values(**upload, **soon))
        _connection(tx).execute(sa.insert(idempotency_keys).values(actor="tester", key="k", **soon))
        tx.audit.append("test", model="gas", parameters={"cycle": 1})
    _fill_access(store, model)
    return store


def _fill_access(store, model):
    """Keys and sessions, what stands between an alias and its moves, what was decided with a version, a signed head."""
    with store.transaction(ACTOR) as tx:
        rights = {"scopes": [Scope.READ], "models": None, "requests_per_minute": None, "expires_at": None}
        tx.keys.create("k1", "line-3", hash="0" * 64, created_by="tester", **rights)
        tx.keys.used("k1", tx.now)
        tx.keys.begin_session("1" * 64, "k1", tx.now + timedelta(hours=1))
        version = tx.ledger.version(model.name, 1)
        tx.approvals.protect(model, "champion", approvals=1, automatic=True)
        asked = {"revision": 1, "override": False, "reason": "better", "actor": "tester", "seconds": 60.0}
        tx.approvals.propose(model, "champion", version, **asked)
        tx.decisions.record(model, [DecisionDraft(1, version.checkpoint, None, "ok", 0.9, tx.now)])
        use = {"model_id": model.id, "megabatch": 1, "version": 1, "use": 1}
        _connection(tx).execute(sa.insert(uses).values(**use))
        told = {"description": "", "kinds": None, "models": None, "created_by": "tester", "sent_through": 0}
        webhook = tx.webhooks.create(1, "https://example.com", secret=WebhookSecret("whsec_"), **told)
        tx.webhooks.add(webhook, "1-0", seq=1, kind="model.created", model="gas")
        tx.audit.append("test", model="gas")
    with store.transaction(ACTOR) as tx:
        tx.audit.keep_checkpoint(tx.audit.head(), "a note")


# -- the guard ---------------------------------------------------------------------------------------------------------


def test_every_table_is_audited_exempt_or_the_log():
    learning = {"models", "recipes", "megabatches", "evaluation_sets", "cycles", "versions", "uses"}
    released = {"aliases", "alias_moves", "protections", "proposals", "decisions"}
    assert learning | released | {"keys", "webhooks"} == AUDITED
    passing = {"leases", "ticks", "workers", "uploads", "idempotency_keys", "key_uses", "sessions"}
    assert passing | {"log_checkpoints", "webhook_turns", "deliveries"} == EXEMPT
    assert {"audit_entries", "audit_subjects", "log_head", "log_nodes"} == LOG
    assert set(metadata.tables) == AUDITED | EXEMPT | LOG


def _same_again(table):
    """An update of every row of a table that changes no value."""
    column = list(table.c)[-1]
    return sa.update(table).values({column: column})


@pytest.mark.parametrize("name", AUDITED_TABLES)
@pytest.mark.parametrize("kind", ["insert", "update", "delete", "many", "returning"])
def test_an_unaudited_change_of_any_table_is_undone(filled, name, kind):
    table = metadata.tables[name]
    with filled.reading() as tx:
        before = _connection(tx).execute(sa.select(table)).all()
    assert before
    row = dict(before[0]._mapping)

    def change():
        with filled.transaction(ACTOR) as tx:
            connection = _connection(tx)
            if kind == "insert":
                connection.execute(sa.insert(table).from_select(list(table.c), sa.select(table).where(sa.false())))
            elif kind == "update":
                connection.execute(_same_again(table))
            elif kind == "delete":
                connection.execute(sa.delete(table).where(sa.false()))
            elif kind == "many":
                key = next(iter(table.primary_key.columns))
                by_key = sa.update(table).where(key == sa.bindparam("key")).values({key: key})
                connection.execute(by_key, [{"key": row[key.name]}] * 2)
            else:
                connection.execute(_same_again(table).returning(table)).all()

    with pytest.raises(UnauditedChange, match=name):
        change()
    with filled.reading() as tx:
        assert _connection(tx).execute(sa.select(table)).all() == before


def test_an_unaudited_change_is_rolled_back_whole(store):
    def change():
        with store.transaction(ACTOR) as tx:
            model = tx.ledger.create_model("gas", {}, "sha256:0", InputSpec())
            tx.ledger.tick(model, tx.now)

    with pytest.raises(UnauditedChange, match="models, recipes"):
        change()
    with store.reading() as tx:
        assert tx.ledger.models(None, 10).items == ()


def test_what_the_clock_moves_needs_no_entry(filled):
    with filled.transaction(ACTOR) as tx:
        for name in EXEMPT - {log_checkpoints.name}:
            assert _connection(tx).execute(_same_again(metadata.tables[name])).rowcount == 1


def test_a_signed_checkpoint_stays_as_it_was_signed(filled):
    for change in (_same_again(log_checkpoints), sa.delete(log_checkpoints)):
        with pytest.raises(Fault, match="never changed or deleted|refuses to change the audit log"):
            _execute(filled, change)


@pytest.mark.parametrize("name", sorted(LOG))
def test_the_log_is_written_by_the_log_alone(filled, name):
    table = metadata.tables[name]
    for statement in (_same_again(table), sa.delete(table), sa.insert(table)):
        with pytest.raises(RefusedSql, match=name):
            _execute(filled, statement, audited=True)


@pytest.mark.parametrize("name", sorted(metadata.tables))
def test_reading_changes_nothing(filled, name):
    with pytest.raises(RefusedSql):
        _read(filled, _same_again(metadata.tables[name]))


@pytest.mark.parametrize(
    "statement",
    [
        sa.text("UPDATE models SET generation = 9"),
        sa.text("SELECT 1"),
        sa.text("SELECT id FROM models").columns(models.c.id),
        sa.select(sa.text("1")),
        sa.select(models.c.id).where(sa.text("1 = 1")),
        sa.schema.DDL("DROP TABLE models"),
        sa.schema.CreateTable(models),
        sa.insert(sa.table("elsewhere", sa.column("a"))).values(a=1),
        sa.select(sa.update(models).values(generation=9).returning(models.c.id).cte("changed").c.id),
    ],
    ids=lambda statement: type(statement).__name__,
)
def test_statements_that_cannot_be_looked_into_are_refused(store, statement):
    make_model(store)
    for _ in range(2):  # the second time it comes from the cache of compiled statements
        with pytest.raises((RefusedSql, sa.exc.CompileError)):
            _execute(store, statement, audited=True)
    with store.reading() as tx:
        assert tx.ledger.model("gas").generation == 1


def test_driver_level_sql_is_refused(store):
    make_model(store)
    with pytest.raises(RefusedSql):
        _drive(store, "UPDATE models SET generation = 9")
    with store.reading() as tx:
        assert tx.ledger.model("gas").generation == 1


def test_changes_outside_a_transaction_are_refused(store):
    with store._engine.connect() as connection, pytest.raises(RefusedSql, match="outside"):
        connection.execute(sa.delete(models))


# -- transactions ------------------------------------------------------------------------------------------------------


def test_an_error_undoes_everything(store):
    def fail():
        with store.transaction(ACTOR) as tx:
            tx.ledger.create_model("gas", {}, "sha256:0", InputSpec())
            tx.audit.append("model.created", model="gas")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with store.reading() as tx:
        assert tx.ledger.models(None, 10).items == ()
        assert tx.audit.head().size == 0


def test_a_reader_sees_one_state(store):
    make_model(store)
    done = threading.Event()

    def write():
        make_model(store, "other")
        done.set()

    with store.reading() as tx:
        assert len(tx.ledger.models(None, 10).items) == 1
        writer = threading.Thread(target=write)
        writer.start()
        if store.dialect == "postgresql":  # a rollback journal lets no writer commit while somebody reads
            assert done.wait(10)
        assert len(tx.ledger.models(None, 10).items) == 1
    writer.join(10)
    with store.reading() as tx:
        assert len(tx.ledger.models(None, 10).items) == 2


def test_a_held_lock_is_busy_not_an_error(database_url, blobs, store):
    make_model(store)
    impatient = Store(database_url, blobs, busy_seconds=0.2)
    with store.transaction(ACTOR) as tx:
        tx.ledger.lock_model("gas")
        with pytest.raises(StoreBusy), impatient.transaction(ACTOR) as other:
            other.ledger.lock_model("gas")
        with impatient.reading() as other:
            assert other.ledger.model("gas").generation == 1
    with impatient.transaction(ACTOR) as other:
        other.ledger.lock_model("gas")
    impatient.dispose()


def test_threads_of_one_store_queue_for_their_turn(database_url, blobs):
    store = Store(database_url, blobs, busy_seconds=0.2)
    make_model(store)

    def lock():
        with store.transaction(ACTOR) as tx:
            tx.ledger.lock_model("gas")

    with store.transaction(ACTOR) as tx:
        tx.ledger.lock_model("gas")
        with pytest.raises(StoreBusy):
            lock()
    lock()
    store.dispose()


def test_every_connection_in_use_is_busy(database_url, blobs, monkeypatch):
    monkeypatch.setattr(database, "_POOL", 1)
    store = Store(database_url, blobs, busy_seconds=0.1)
    open_readers = [store.reading() for _ in range(11)]  # one in the pool, ten that overflow it
    for reader in open_readers:
        reader.__enter__()
    with pytest.raises(StoreBusy), store.reading():
        pytest.fail("there was one more connection")
    for reader in open_readers:
        reader.__exit__(None, None, None)
    store.dispose()


def test_a_server_that_is_not_there_is_busy(blobs):
    store = Store("postgresql+psycopg://nobody@127.0.0.1:1/none", blobs)
    with pytest.raises(StoreBusy, match="cannot be reached"):
        store.check_schema()


def test_a_connection_that_breaks_as_a_change_begins_is_busy(store):
    if store.dialect == "sqlite":
        pytest.skip("a file breaks no connection")

    def cut(driver, *_):
        wire = socket.socket(fileno=os.dup(driver.fileno()))
        wire.shutdown(socket.SHUT_RDWR)
        wire.close()

    make_model(store)
    sa.event.listen(store._engine, "checkout", cut)  # after the pool looked whether it still stands
    with pytest.raises(StoreBusy, match="cannot be reached"), store.transaction(ACTOR):
        pytest.fail("it has begun")
    sa.event.remove(store._engine, "checkout", cut)
    with store.transaction(ACTOR) as tx:
        assert tx.ledger.model("gas").name == "gas"


def test_times_are_aware_and_in_utc(store):
    model = make_model(store)
    assert model.created_at.tzinfo is UTC
    assert abs((datetime.now(UTC) - model.created_at).total_seconds()) < 60
    with pytest.raises(ValueError, match="no time zone"), store.transaction(ACTOR) as tx:
        tx.ledger.tick(model, datetime(2030, 1, 1))  # noqa: DTZ001


# -- schema ------------------------------------------------------------------------------------------------------------


def test_the_schema_fits(store):
    store.check_schema()


def test_an_empty_database_says_the_remedy(empty_database_url, blobs):
    store = Store(empty_database_url, blobs)
    with pytest.raises(SchemaMismatch, match="espalier migrate"):
        store.check_schema()
    with pytest.raises(SchemaMismatch, match="espalier migrate"), store.reading() as tx:
        tx.ledger.models(None, 1)
    store.dispose()


def test_another_schema_says_the_remedy(store, database_url):
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(SchemaMismatch, match="9999"):
        store.check_schema()


def test_memory_is_no_place_for_a_store(blobs):
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(Fault, match="file"):
            Store(url, blobs)


# -- sqlite ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ((3, 40, 1), "TRUNCATE"),
        ((3, 44, 5), "TRUNCATE"),
        ((3, 44, 6), "WAL"),
        ((3, 45, 0), "TRUNCATE"),
        ((3, 50, 6), "TRUNCATE"),
        ((3, 50, 7), "WAL"),
        ((3, 51, 0), "TRUNCATE"),
        ((3, 51, 2), "TRUNCATE"),
        ((3, 51, 3), "WAL"),
        ((3, 52, 0), "WAL"),
        ((4, 0, 0), "WAL"),
    ],
)
def test_the_journal_is_a_safe_one(version, mode):
    assert journal_mode(version) == mode


@pytest.mark.parametrize("mode", ["WAL", "TRUNCATE"])
def test_sqlite_is_set_up_for_durability(tmp_path, monkeypatch, mode, migrated):
    monkeypatch.setattr(database, "journal_mode", lambda _version: mode)
    file = shutil.copyfile(migrated["sqlite"], tmp_path / "x.db")
    store = Store(f"sqlite:///{file}", Blobs(tmp_path))
    make_model(store)
    with store._engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [driver.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    assert values == [mode.lower(), 2, 1, 15000]
    store.dispose()


def test_a_full_database_is_storage_full(tmp_path, migrated):
    file = shutil.copyfile(migrated["sqlite"], tmp_path / "x.db")
    store = Store(f"sqlite:///{file}", Blobs(tmp_path))
    make_model(store)
    sa.event.listen(store._engine, "begin", _no_more_pages)
    with pytest.raises(StorageFull), store.transaction(ACTOR) as tx:
        tx.audit.append("test", model=None, reason="x" * 100_000)
    sa.event.remove(store._engine, "begin", _no_more_pages)
    store.dispose()
    store = Store(f"sqlite:///{file}", Blobs(tmp_path))
    with store.reading() as tx:
        assert tx.audit.verify().size == 1
    make_model(store, "other")
    store.dispose()


def _no_more_pages(connection):
    connection.connection.dbapi_connection.execute("PRAGMA max_page_count=1")


def test_partial_indexes_serve_the_queue(tmp_path, migrated):
    """A planner that misses them reads every cycle there ever was."""
    file = shutil.copyfile(migrated["sqlite"], tmp_path / "x.db")
    store = Store(f"sqlite:///{file}", Blobs(tmp_path))
    model = make_model(store)
    seen: list[tuple[str, tuple]] = []
    sa.event.listen(store._engine, "before_cursor_execute", lambda *a: seen.append((a[2], a[3])))
    with store.transaction(ACTOR) as tx:
        assert tx.ledger.claim_cycle("w", 60) is None
        assert tx.ledger.open_cycles(model) == []
    store.dispose()
    plans = sqlite3.connect(file)
    for sql, parameters in seen:
        plan = " | ".join(row[3] for row in plans.execute(f"EXPLAIN QUERY PLAN {sql}", parameters))
        assert "ix_cycles_waiting" in plan or "uq_cycles_one_running" in plan, plan
        assert "SCAN cycles USING" in plan or "SCAN cycles" not in plan, plan
    plans.close()


def test_open_cycles_are_the_two_that_have_an_index():
    assert {state.value for state in OPEN_CYCLES} == {"queued", "running"}
