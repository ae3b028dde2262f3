"""Migrations: up, down, drift, at once, killed midway, and from wherever they are installed."""

from __future__ import annotations

import multiprocessing
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.domain import Verdict
from app.store import migrate as module
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import downgrade, migrate, newest_revision
from app.store.tables import TRIGGERS, metadata
from tests.builders import (
    ACTOR,
    claim,
    make_cycle,
    make_evaluation,
    make_megabatch,
    make_model,
    make_pin,
    make_version,
    version_draft,
)


def _tables(url):
    engine = sa.create_engine(url)
    names = set(sa.inspect(engine).get_table_names()) - {"alembic_version"}
    engine.dispose()
    return names


def _triggers(url):
    engine = sa.create_engine(url)
    query = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
    }[engine.dialect.name]
    with engine.connect() as connection:
        names = set(connection.exec_driver_sql(query).scalars())
    engine.dispose()
    return names


def test_the_history_is_one_line():
    scripts = ScriptDirectory.from_config(_config())
    assert len(scripts.get_heads()) == len(scripts.get_bases()) == 1
    assert all(isinstance(s.down_revision, str | None) for s in scripts.walk_revisions())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "migrations")
    config.set_main_option("path_separator", "os")
    return config


def test_up_down_up(empty_database_url):
    url = empty_database_url
    applied = migrate(url)
    assert applied[-1] == newest_revision()
    assert _tables(url) == set(metadata.tables)
    triggers = _triggers(url)
    assert triggers == TRIGGERS[sa.make_url(url).get_backend_name()]
    assert migrate(url) == []
    assert downgrade(url) == applied[::-1]
    assert _tables(url) == set()
    assert _triggers(url) == set()
    assert downgrade(url) == []
    assert migrate(url) == applied
    assert (_tables(url), _triggers(url)) == (set(metadata.tables), triggers)


def test_no_drift(empty_database_url):
    migrate(empty_database_url)
    engine = sa.create_engine(empty_database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_drift_would_be_seen(empty_database_url):
    """The test above can fail."""
    migrate(empty_database_url)
    engine = sa.create_engine(empty_database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_cycles_waiting")
        connection.exec_driver_sql("ALTER TABLE models ADD COLUMN stray INTEGER")
    with engine.connect() as connection:
        assert len(compare_metadata(MigrationContext.configure(connection), metadata)) == 2
    engine.dispose()


def test_the_checks_are_those_of_the_tables(empty_database_url):
    """Alembic does not compare check constraints, so they are compared here, as words."""
    migrate(empty_database_url)
    engine = sa.create_engine(empty_database_url)
    inspector = sa.inspect(engine)
    for table in metadata.sorted_tables:
        wanted = {str(c.name) for c in table.constraints if isinstance(c, sa.CheckConstraint)}
        found = {c["name"]: c["sqltext"] for c in inspector.get_check_constraints(table.name)}
        assert set(found) == wanted
        for constraint in table.constraints:
            if isinstance(constraint, sa.CheckConstraint):
                words = re.findall(r"'([a-z-]+)'", str(constraint.sqltext))
                assert re.findall(r"'([a-z-]+)'", found[str(constraint.name)]) == words
    engine.dispose()


def test_a_migrated_database_keeps_its_rows(empty_database_url, tmp_path):
    migrate(empty_database_url)
    store = Store(empty_database_url, Blobs(tmp_path / "data"))
    model = make_model(store)
    make_megabatch(store, model)
    version = make_version(store, model)
    assert migrate(empty_database_url) == []
    store.check_schema()
    with store.reading() as tx:
        assert tx.ledger.version("gas", "champion") == version
        assert tx.audit.verify().size == 6
    store.dispose()


def test_the_second_revision_keeps_what_the_first_one_held_and_goes_back(empty_database_url, tmp_path):
    """Rows that 0001 wrote are read by this version; what only 0002 knows is lost on the way back, the rest is not."""
    assert migrate(empty_database_url, "0001") == ["0001"]
    engine = sa.create_engine(empty_database_url)
    old = {
        "megabatches": {"pinned", "evaluation_overlap", "erasures", "erased_at"},
        "cycles": {"evaluation_revision"},
        "leases": {"inputs"},
    }
    digest, now = "sha256:" + "0" * 64, datetime(2030, 1, 1, tzinfo=UTC)
    blank = {"normalisation": None, "shape": [4], "dtype": "float32", "classes": ["a", "b"]}
    rows = {
        "models": {"id": 1, "name": "gas", "state": "active", "recipe_revision": 1, "recipe_digest": digest,
                   "input": blank, "generation": 1, "created_at": now},
        "recipes": {"model_id": 1, "revision": 1, "digest": digest, "document": {}, "created_at": now},
        "megabatches": {"id": 1, "model_id": 1, "number": 1, "status": "accepted", "digest": digest, "x": digest,
                        "y": digest, "ids": digest, "examples": 2, "bytes": 8, "histogram": [1, 1],
                        "received_at": now},
        "cycles": {"id": 1, "model_id": 1, "number": 1, "state": "queued", "trigger": "manual", "through": 1,
                   "recipe_revision": 1, "attempt": 0, "failures": 0, "created_at": now},
        "leases": {"cycle_id": 1, "token": 3, "generation": 1, "snapshot": digest, "advanced": True},
    }  # fmt: skip
    with engine.begin() as connection:
        for name, values in rows.items():
            table = metadata.tables[name]
            columns = [sa.column(c.name, c.type) for c in table.c if c.name not in old.get(name, ())]
            connection.execute(sa.insert(sa.table(name, *columns)).values(values))
    assert migrate(empty_database_url) == ["0002", "0003", "0004", "0005", "0006"]
    store = Store(empty_database_url, Blobs(tmp_path / "data"))
    with store.reading() as tx:
        (megabatch,) = tx.buffer.megabatches("gas", None, 5).items
        model = tx.ledger.model("gas")
        assert (megabatch.pinned, megabatch.evaluation_overlap, model.input.unseen_classes) == (False, None, "reject")
        assert tx.ledger.cycle("gas", 1).evaluation_revision is None
        assert tx.buffer.evaluation(model) is None
    claimed = claim(store)
    assert claimed is not None and claimed.token == 4
    assert claimed.snapshot is None, "it says nothing of what the cycle had pinned"
    make_evaluation(store, model)
    make_pin(store, model, 1)
    store.dispose()
    assert downgrade(empty_database_url, "0001") == ["0006", "0005", "0004", "0003", "0002"]
    inspector = sa.inspect(engine)
    assert "evaluation_sets" not in inspector.get_table_names()
    for name, columns in old.items():
        assert not columns & {column["name"] for column in inspector.get_columns(name)}
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT number FROM megabatches").scalars().all() == [1]
    engine.dispose()
    assert migrate(empty_database_url) == ["0002", "0003", "0004", "0005", "0006"]


def test_the_third_revision_finds_out_what_older_rows_say(empty_database_url, tmp_path):
    """Which withheld versions hold pruning, and which entries are about what, stood in documents alone before."""
    migrate(empty_database_url)
    store = Store(empty_database_url, Blobs(tmp_path / "data"))
    model = make_model(store)
    first = make_version(store, model)
    held = withhold(store, model, Verdict(False, ("fell",), "hold"))
    restored = withhold(store, model, Verdict(False, ("fell",), "restore", first.number))
    withhold(store, model, Verdict(False, ("fell",), "withhold"))
    with store.transaction(ACTOR) as tx:
        for about in ({"cycle": 2, "version": 2}, {"from": 2, "to": 1}, {"megabatch": 7, "version": None}, {}):
            tx.audit.append("test", model="gas", parameters=about)
        tx.audit.append("test", model=None, parameters={"version": 2})
    before = _index(empty_database_url), _holding(empty_database_url)
    assert len(before[0]) == 5
    assert before[1] == [(held.number, first.number), (restored.number, first.number)]
    store.dispose()

    assert downgrade(empty_database_url, "0002") == ["0006", "0005", "0004", "0003"]
    assert migrate(empty_database_url) == ["0003", "0004", "0005", "0006"]
    assert (_index(empty_database_url), _holding(empty_database_url)) == before
    store = Store(empty_database_url, Blobs(tmp_path / "data"))
    with store.reading() as tx:
        assert tx.ledger.held_since(model, first.number).number == restored.number
        assert [entry.seq for entry in tx.audit.about("gas", [("version", 2)])] == [entry[3] for entry in before[0][3:]]
        assert tx.audit.verify() == tx.audit.head()
    store.dispose()


def withhold(store, model, verdict):
    make_cycle(store, model)
    claimed = claim(store)
    draft = replace(version_draft(store, str(claimed.next_version), passed=False), verdict=verdict)
    with store.transaction(ACTOR) as tx:
        tx.audit.append("version.withheld", model=model.name)
        return tx.ledger.publish_version(claimed, draft)


def _index(url):
    return _rows(url, "SELECT subject, number, model, seq FROM audit_subjects ORDER BY subject, number, seq")


def _holding(url):
    return _rows(url, "SELECT number, held_on FROM versions WHERE holds ORDER BY number")


def _rows(url, query):
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.exec_driver_sql(query)]
    engine.dispose()
    return rows


def _migrate_in_process(url, start, results):
    start.wait()
    results.put(migrate(url))


@pytest.mark.slow
def test_two_processes_at_once(empty_database_url):
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Event(), spawn.Queue()
    processes = [spawn.Process(target=_migrate_in_process, args=(empty_database_url, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    applied = sorted(results.get(timeout=90) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert applied[0] == []
    assert applied[1][-1] == newest_revision()


def test_threads_at_once(empty_database_url):
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(migrate, [empty_database_url] * 4))
    assert sorted(applied)[:3] == [[], [], []]
    assert _tables(empty_database_url) == set(metadata.tables)


def test_a_migration_that_ends_midway_leaves_nothing(empty_database_url, monkeypatch):
    """The transaction is never committed: the same as a kill before its end."""

    def killed(config, target):
        command_upgrade(config, target)
        raise KeyboardInterrupt

    command_upgrade = module.command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(module.command, "upgrade", killed)
        with pytest.raises(KeyboardInterrupt):
            migrate(empty_database_url)
    assert _tables(empty_database_url) == set()
    assert migrate(empty_database_url)[-1] == newest_revision()


def test_folders_are_made(tmp_path):
    file = tmp_path / "a" / "b c" / "x%20.db"
    assert migrate(sa.URL.create("sqlite", database=str(file)).render_as_string())
    assert file.is_file()


def test_migrations_are_found_in_a_wheel(tmp_path, monkeypatch):
    """A wheel holds them as app/migrations, a checkout beside app; the first place that has them is taken."""
    installed = tmp_path / "100%" / "app" / "migrations"
    (installed / "versions").mkdir(parents=True)
    here = module._PLACES[1]
    for name in ("env.py", "script.py.mako", *(f"versions/{p.name}" for p in (here / "versions").glob("*.py"))):
        (installed / name).write_bytes((here / name).read_bytes())
    monkeypatch.setattr(module, "_PLACES", (installed, tmp_path / "nowhere"))
    assert migrate(f"sqlite:///{tmp_path / 'x.db'}")[-1] == newest_revision()
