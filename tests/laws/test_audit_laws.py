"""The audit log detects any one-bit change, of any entry or of the head."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain import Actor
from app.errors import Fault
from app.store.blobs import Blobs
from app.store.database import Store
from espalier.formats.proof import Frontier, leaf_hash, merkle_root

ENTRIES = 5
COLUMNS = ("seq", "time", "kind", "actor", "model", "document", "leaf")
HEAD = ("size", "root", "frontier")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory, migrated) -> Path:
    """A SQLite file with a few entries, and without the triggers that would refuse tampering."""
    folder = tmp_path_factory.mktemp("written")
    shutil.copyfile(migrated["sqlite"], folder / "log.db")
    store = Store(f"sqlite:///{folder / 'log.db'}", Blobs(folder))
    for n in range(ENTRIES):
        with store.transaction(Actor("tester", f"request-{n}")) as tx:
            tx.audit.append("mask.pruned", model="gas", parameters={"density": 0.1 * n, "n": n}, reason="because")
    store.dispose()
    database = sqlite3.connect(folder / "log.db")
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {name}")
    database.commit()
    database.close()
    return folder / "log.db"


def _flipped(value: str | int, bit: int) -> str | int | bytes:
    if isinstance(value, int):
        return value ^ (1 << bit % 32)
    data = bytearray(value.encode())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    try:
        return data.decode()
    except UnicodeDecodeError:
        return bytes(data)


def _verify(file: Path):
    store = Store(f"sqlite:///{file}", Blobs(file.parent))
    try:
        with store.reading() as tx:
            return tx.audit.verify()
    finally:
        store.dispose()


def _tamper(file: Path, table: str, key: str, row: int, column: str, bit: int) -> None:
    database = sqlite3.connect(file)
    (value,) = database.execute(f"SELECT {column} FROM {table} WHERE {key} = ?", (row,)).fetchone()
    changed = _flipped(value, bit)
    stored = "CAST(? AS TEXT)" if isinstance(value, str) else "?"
    try:
        database.execute(f"UPDATE {table} SET {column} = {stored} WHERE {key} = ?", (changed, row))
    except sqlite3.IntegrityError:  # another entry has this number: the two change places
        database.execute(f"UPDATE {table} SET {column} = -1 WHERE {key} = ?", (changed,))
        database.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (changed, row))
        database.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = -1", (row,))
    database.commit()
    database.close()


def test_an_untouched_log_holds(written):
    assert _verify(written).size == ENTRIES


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.integers(1, ENTRIES), column=st.sampled_from(COLUMNS), bit=st.integers(0, 10_000))
def test_any_bit_of_any_entry(written, tmp_path, row, column, bit):
    file = tmp_path / "tampered.db"
    shutil.copyfile(written, file)
    _tamper(file, "audit_entries", "seq", row, column, bit)
    with pytest.raises(Fault):
        _verify(file)


@pytest.mark.slow
@pytest.mark.parametrize("column", HEAD)
def test_any_bit_of_the_head(written, tmp_path, column):
    for bit in range(0, 600, 7):
        file = tmp_path / "tampered.db"
        shutil.copyfile(written, file)
        _tamper(file, "log_head", "id", 1, column, bit)
        with pytest.raises(Fault):
            _verify(file)


@pytest.mark.slow
@pytest.mark.parametrize("column", ["time", "leaf", "kind"])
def test_bits_of_the_short_columns(written, tmp_path, column):
    database = sqlite3.connect(written)
    (value,) = database.execute(f"SELECT {column} FROM audit_entries WHERE seq = 3").fetchone()
    database.close()
    for bit in range(0, len(value.encode()) * 8, 1 if column == "kind" else 3):
        file = tmp_path / "tampered.db"
        shutil.copyfile(written, file)
        _tamper(file, "audit_entries", "seq", 3, column, bit)
        with pytest.raises(Fault, match=r"audit entry 3 was changed|after 2 cannot be read"):
            _verify(file)


@pytest.mark.parametrize("gone", [1, 3, ENTRIES])
def test_a_missing_entry_is_named(written, tmp_path, gone):
    file = tmp_path / "tampered.db"
    shutil.copyfile(written, file)
    database = sqlite3.connect(file)
    database.execute("DELETE FROM audit_entries WHERE seq = ?", (gone,))
    database.commit()
    database.close()
    with pytest.raises(Fault, match=f"entry {gone} is missing" if gone < ENTRIES else f"has {gone - 1} entries"):
        _verify(file)


def test_a_rewritten_entry_with_a_fitting_leaf_is_seen_by_the_root(written, tmp_path):
    file = tmp_path / "tampered.db"
    shutil.copyfile(written, file)
    database = sqlite3.connect(file)
    (spelled,) = database.execute("SELECT document FROM audit_entries WHERE seq = 2").fetchone()
    forged = spelled.replace("because", "no cause")
    leaf = leaf_hash(forged.encode()).hex()
    database.execute("UPDATE audit_entries SET document = ?, leaf = ? WHERE seq = 2", (forged, leaf))
    database.commit()
    database.close()
    with pytest.raises(Fault, match="hash to"):
        _verify(file)


def test_a_changed_bit_is_seen_on_every_database(store, database_url):
    """The same on the database under test, where the triggers must be taken off first."""
    with store.transaction(Actor("tester")) as tx:
        for n in range(3):
            tx.audit.append("test", model="gas", parameters={"n": n})
    engine = sa.create_engine(database_url)
    off = {
        "sqlite": ["DROP TRIGGER audit_entries_refuse_update"],
        "postgresql": ["ALTER TABLE audit_entries DISABLE TRIGGER USER"],
    }[engine.dialect.name]
    with engine.begin() as connection:
        for statement in off:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("UPDATE audit_entries SET document = replace(document, '1', '0') WHERE seq = 2")
    engine.dispose()
    with store.reading() as tx, pytest.raises(Fault, match="entry 2 was changed"):
        tx.audit.verify()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parameters=st.lists(st.dictionaries(st.text(max_size=8), json_values, max_size=4), min_size=1, max_size=4))
def test_whatever_is_recorded_reads_back_and_holds(shared_log, parameters):
    with shared_log.reading() as tx:
        before = tx.audit.head().size
    with shared_log.transaction(Actor("tester")) as tx:
        for each in parameters:
            tx.audit.append("test", model=None, parameters=each)
    with shared_log.reading() as tx:
        entries = tx.audit.entries(None, before, 100).items
        head = tx.audit.verify()
    assert head.size == before + len(parameters)
    for entry, each in zip(entries, parameters, strict=True):
        assert json.loads(json.dumps(entry.document["parameters"])) == _exact(each)


@pytest.fixture(scope="module")
def shared_log(tmp_path_factory, migrated):
    folder = tmp_path_factory.mktemp("shared")
    shutil.copyfile(migrated["sqlite"], folder / "log.db")
    store = Store(f"sqlite:///{folder / 'log.db'}", Blobs(folder))
    yield store
    store.dispose()


def _exact(value):
    """What ``espalier.formats.canonical.exact`` promises, said again independently."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return [_exact(item) for item in value]
    return {key: _exact(item) for key, item in value.items()}


@given(st.lists(st.binary(max_size=8), max_size=40), st.integers(0, 40))
def test_a_log_goes_on_from_its_stored_frontier(leaves, cut):
    hashes = [leaf_hash(leaf) for leaf in leaves]
    first = Frontier().extend(hashes[:cut])
    stored = Frontier(first.size, tuple(bytes.fromhex(item.hex()) for item in first.hashes))
    assert stored.extend(hashes[cut:]).root() == merkle_root(hashes)
