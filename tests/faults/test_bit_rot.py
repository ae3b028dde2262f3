"""Rows, entries, signatures and files changed behind the service's back: each is named, and none is served."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.config import Settings
from app.domain import Actor, DecisionDraft, Digest, Scope
from app.errors import LogBehind
from app.service import decisions, history, megabatches, promotion, webhooks
from app.service.access import Wanted, create_key, revoke_key
from app.service.keyring import LOCAL
from app.service.notary import Notary
from app.store.database import Store
from app.store.merkle import completed
from app.store.migrate import migrate
from app.store.tables import AUDITED, EXEMPT, LOG, TRIGGERS, UtcDateTime, metadata
from app.store.witness import KEYS, UNSTATED
from espalier.formats.canonical import canonical_json
from espalier.formats.note import SignerKey
from espalier.formats.proof import Frontier, leaf_hash
from tests.api.conftest import House, opened, problem
from tests.builders import make_evaluation, make_model
from tests.conftest import DATABASES, postgresql_database
from tests.custody import FRESH, OLD, make_recorded
from tests.service.conftest import House as Trainer

pytestmark = pytest.mark.timeout(600)
ACTOR = Actor("tester")
KEY = "a-long-key-of-the-settings"
INPUT = {"shape": [4], "dtype": "float32", "classes": ["a", "b", "c"]}

UNNOTICED = {
    ("megabatches", "evaluation_overlap"): "counted anew whenever the evaluation set changes; nothing depends on it",
    ("log_head", "id"): "the database itself takes no other value",
    ("log_checkpoints", "signed_at"): "no signature covers it; the entries around the size that was signed have times",
}
"""Columns of tables that the log vouches for, whose change goes unnoticed, and why that may be."""

WORDS = {
    "state": {"active": "paused", "published": "failed", "queued": "superseded", "open": "rejected"},
    "status": {"accepted": "quarantined", "quarantined": "accepted", "published": "withheld"},
    "subject": {"cycle": "megabatch", "version": "megabatch", "megabatch": "version"},
}
"""Another word that the column takes."""


# -- a deployment with something in every table ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=DATABASES)
def furnished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("rot")
    with ExitStack() as stack:
        url = "" if request.param == "sqlite" else stack.enter_context(postgresql_database())
        made = Settings(data_dir=folder / "data", database_url=url, api_key=KEY)
        made.data_dir.mkdir()
        migrate(made.resolved_database_url)
        house = stack.enter_context(opened(made))
        house.http.headers["Authorization"] = f"Bearer {KEY}"
        furnish(house)
        yield house


@pytest.fixture
def editor(furnished: House) -> Iterator[Editor]:
    editor = Editor(furnished.settings.resolved_database_url)
    yield editor
    editor.engine.dispose()


@pytest.fixture
def house(furnished: House, editor: Editor, tmp_path: Path) -> Iterator[House]:
    """The same for every test: what it changes is put back."""
    saved = {table.name: editor.rows(table.name) for table in metadata.sorted_tables}
    shutil.copytree(furnished.settings.data_dir, tmp_path / "data", ignore=shutil.ignore_patterns("*.db*"))
    yield furnished
    with editor.engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(sa.delete(table))
        for table in metadata.sorted_tables:
            if saved[table.name]:
                connection.execute(sa.insert(table), saved[table.name])
    for path in (path for path in (tmp_path / "data").rglob("*") if path.is_file()):
        there = furnished.settings.data_dir / path.relative_to(tmp_path / "data")
        there.unlink(missing_ok=True)
        shutil.copy2(path, there)


def furnish(house: House) -> None:
    store = house.store
    for name in ("gas", "steel"):
        house.create(name, input=INPUT).raise_for_status()
        for seed in (1, 2):
            house.publish(seed, name)
    wood = make_model(store, "wood")
    for _ in range(2):  # before anything waits: the next cycle is claimed, whosever it is
        make_recorded(store, wood, {1: {5: FRESH, 6: FRESH}, 2: {7: OLD}}, validation={5: (0, 0, 0.5)})
    house._take_in(3, "gas")
    megabatches.pin_megabatch(store, "gas", 3, pinned=True, reason="rare", actor=ACTOR)
    rolled = {"to": "1", "reason": "line 3", "quarantine": [2]}
    house.http.post("/v1/models/gas/rollback", json=rolled, headers=house.revision()).raise_for_status()
    promotion.protect(store, "gas", "champion", approvals=1, automatic=False, reason="two people", actor=ACTOR)
    promotion.promote(store, "gas", 2, reason="again", expected_revision=3, actor=ACTOR)
    for example in ("e-1", "e-2"):
        made = DecisionDraft(1, checkpoint_of(store, 1), example, "a", 0.5, now(store))
        decisions.record_decisions(store, "gas", [made], actor=ACTOR)
    with store.transaction(ACTOR) as tx:
        for _ in range(300):  # more than a tile
            tx.audit.append("test.noise", model=None)
    Notary(store, house.settings).checkpoint()
    for content in ("first", "second"):
        make_evaluation(store, wood, content)
    for name in ("line-3", "line-4"):
        models = frozenset({"gas"}) if name == "line-3" else None
        wanted = Wanted(name, frozenset({Scope.READ}), models, 60, now(store) + timedelta(days=1))
        create_key(store, wanted, caller=LOCAL, actor=ACTOR)
    revoke_key(store, "line-4", reason="lost", actor=ACTOR)
    for name in ("line-3", "line-4"):
        hook = webhooks.Wanted(f"https://{name}.example.org/hook", name, frozenset({"alias.moved"}), frozenset({"gas"}))
        webhooks.create_webhook(store, house.settings, hook, actor=ACTOR)
    Notary(store, house.settings).checkpoint()


def now(store: Store) -> datetime:
    return store.clock()


def checkpoint_of(store: Store, number: int) -> Digest:
    with store.reading() as tx:
        return tx.ledger.version("gas", number).checkpoint


REMEDY = re.compile("restore|revoke it|put (it|the|its)|chmod 600|roll back|start a worker|espalier audit new-epoch")


def doctor(house: House) -> list[history.Finding]:
    """What is found, triggers apart, which the editor has taken away; each says what to do."""
    findings = history.examine(house.store, Notary(house.store, house.settings))
    findings = [finding for finding in findings if finding.kind != "guard"]
    assert [finding for finding in findings if not REMEDY.search(finding.detail.lower())] == []
    return findings


# -- edits behind its back ---------------------------------------------------------------------------------------------


class Editor:
    """Somebody with the database's own password, who has taken triggers and foreign keys away."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url, poolclass=sa.NullPool)
        with self.engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars()
                for name in names.all():
                    connection.exec_driver_sql(f"DROP TRIGGER {name}")
                return
            for table in metadata.sorted_tables:
                connection.exec_driver_sql(f"ALTER TABLE {table.name} DISABLE TRIGGER USER")
                for key in table.foreign_key_constraints:
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} DROP CONSTRAINT IF EXISTS {key.name}")

    def rows(self, name: str) -> list[dict[str, Any]]:
        table = metadata.tables[name]
        with self.engine.begin() as connection:
            found = connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()
            return [dict(row) for row in found]

    def change(self, name: str, row: Mapping[str, Any], /, **values: object) -> None:
        """Change a row that is found by what it holds now."""
        self._execute(sa.update(metadata.tables[name]).where(*_is(name, row)).values(**values))

    def remove(self, name: str, row: Mapping[str, Any]) -> None:
        self._execute(sa.delete(metadata.tables[name]).where(*_is(name, row)))

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        self._execute(sa.insert(metadata.tables[name]).values(**row))

    def _execute(self, statement: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement)


def _is(name: str, row: Mapping[str, Any]) -> list[Any]:
    return [column == row[column.name] for column in metadata.tables[name].primary_key]


def another(column: sa.Column[Any], value: Any) -> Any:
    """A value that differs as little as may be."""
    if value is None:
        return _something(column)
    if column.name in WORDS and value in WORDS[column.name]:
        return WORDS[column.name][value]
    match value:
        case bool():
            return not value
        case int():
            return value + 1000  # past every key that is taken
        case float():
            return math.nextafter(value, math.inf)
        case str():
            return value[:-1] + chr(ord(value[-1]) ^ 1) if value else "x"
        case datetime():
            return value + timedelta(microseconds=1)
        case list():
            return [*value, 1]
        case dict():
            return {**value, "more": 1}
    raise AssertionError(f"no other value for {column}: {value!r}")


def _something(column: sa.Column[Any]) -> Any:
    if isinstance(column.type, sa.JSON):
        return {"more": 1}
    if isinstance(column.type, UtcDateTime):
        return datetime(2030, 1, 1, tzinfo=UTC)
    found = {bool: True, int: 7, float: 0.5, str: "sha256:" + "0" * 64}[column.type.python_type]
    return found[: column.type.length] if isinstance(found, str) else found


def checked_columns(name: str) -> list[sa.Column[Any]]:
    return [column for column in metadata.tables[name].columns if (name, column.name) not in UNNOTICED]


def expect_named(house: House, about: str, words: str) -> None:
    findings = doctor(house)
    assert any(words in f"{finding.subject} {finding.detail}" for finding in findings), (about, findings)


VOUCHED = sorted(AUDITED | LOG | {"log_checkpoints"})


def test_what_is_left_out_is_listed() -> None:
    assert {(name, column) for name, columns in UNSTATED.items() for column in columns} <= UNNOTICED.keys()
    assert {*KEYS, "decisions"} == AUDITED
    assert set(metadata.tables) - set(VOUCHED) == EXEMPT - {"log_checkpoints"}, "heartbeats, leases, uploads, sign-ins"


@pytest.mark.parametrize("name", VOUCHED)
def test_every_column_of_every_row(house: House, editor: Editor, name: str, tally: Any) -> None:
    """One value of one row differs by one step: it is found, and nothing is once it is put back."""
    rows = editor.rows(name)
    assert rows, f"{name} is empty: furnish it"
    for number, column in enumerate(checked_columns(name)):
        row = rows[number % len(rows)]
        changed = another(column, row[column.name])
        editor.change(name, row, **{column.name: changed})
        expect_named(house, f"{name}.{column.name}", _words(name, row))
        editor.change(name, {**row, column.name: changed}, **{column.name: row[column.name]})
        tally.add(injected=1)
    assert doctor(house) == []


def _words(name: str, row: Mapping[str, Any]) -> str:
    """What a finding about a row must say."""
    if name in KEYS:
        return f"row of {name} ("
    if name == "audit_entries":
        return f"audit entry {row['seq']}"
    return {"decisions": "decisions", "audit_subjects": "index", "log_head": "audit log", "log_nodes": "node"}.get(
        name, "signed checkpoint of"
    )


@pytest.mark.parametrize("name", VOUCHED)
def test_rows_that_are_gone_or_added(house: House, editor: Editor, name: str, tally: Any) -> None:
    """The first, the last and one in the middle; and a copy of one under another key."""
    rows = editor.rows(name)
    for row in {0: rows[0], len(rows) // 2: rows[len(rows) // 2], len(rows) - 1: rows[-1]}.values():
        if name == "log_checkpoints" and row is not rows[-1]:
            continue  # nothing counts them; the newest stands in the file beside the blobs, too
        editor.remove(name, row)
        assert doctor(house) != [], (name, row)
        editor.add(name, row)
        tally.add(injected=1)
    assert doctor(house) == []
    if name not in ("log_head", "log_checkpoints"):
        editor.add(name, _copy(name, rows))
        assert doctor(house) != [], name
        tally.add(injected=1)


def _copy(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A new row, like the last one, with a key that comes after it."""
    row = dict(rows[-1])
    for column in ("id", "number", "revision", "seq", "megabatch", "index", "cycle"):
        if isinstance(row.get(column), int):
            row[column] += 1000
    for column in ("name", "alias"):
        if isinstance(row.get(column), str):
            row[column] += "-copy"
    if name in ("keys", "megabatches"):
        column = "id" if name == "keys" else "digest"
        row[column] = row[column][:-2] + "zz"
    return row


def test_entries_that_changed_places(house: House, editor: Editor, tally: Any) -> None:
    rows = editor.rows("audit_entries")
    first, second = rows[2], rows[3]
    told = ("time", "kind", "actor", "model", "document", "leaf")
    for row, other in ((first, second), (second, first)):
        editor.change("audit_entries", row, **{name: other[name] for name in told})
    assert "audit entry 3" in doctor(house)[0].detail
    tally.add(injected=1)


def test_versions_that_changed_places(house: House, editor: Editor, tally: Any) -> None:
    one, two = [row for row in editor.rows("versions") if row["model_id"] == 1][:2]
    for row, other in ((one, two), (two, one)):
        editor.change("versions", row, checkpoint=other["checkpoint"], state=other["state"])
    named = {finding.subject for finding in doctor(house)}
    assert {f"row of versions (model_id 1, number {row['number']})" for row in (one, two)} <= named
    tally.add(injected=1)


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize("column", ["version", "revision"])
def test_an_alias_that_was_moved_by_hand(house: House, editor: Editor, column: str, tally: Any) -> None:
    (alias,) = [row for row in editor.rows("aliases") if row["model_id"] == 1]
    editor.change("aliases", alias, **{column: 2 if column == "version" else 9})
    assert [(finding.kind, finding.subject) for finding in doctor(house)] == [
        ("row", "row of aliases (model_id 1, name 'champion')")
    ]
    tally.add(injected=1)


# -- a log that was rewritten ------------------------------------------------------------------------------------------


def hash_anew(editor: Editor) -> None:
    """Head and nodes to match the entries, as somebody careful would leave them."""
    frontier, nodes = Frontier(), []
    for row in editor.rows("audit_entries"):
        leaf = bytes.fromhex(row["leaf"])
        nodes += completed(frontier.size + 1, frontier.carries(leaf))
        frontier = frontier.append(leaf)
    (head,) = editor.rows("log_head")
    hashes = [item.hex() for item in frontier.hashes]
    editor.change("log_head", head, size=frontier.size, root=frontier.root().hex(), frontier=hashes)
    for row in editor.rows("log_nodes"):
        editor.remove("log_nodes", row)
    for row in nodes:
        editor.add("log_nodes", row)


def cut_back(editor: Editor, size: int) -> None:
    """Make the log one of its first entries."""
    for name in ("audit_entries", "audit_subjects"):
        for row in editor.rows(name):
            if row["seq"] > size:
                editor.remove(name, row)
    hash_anew(editor)


def rewrite(editor: Editor, seq: int, **values: object) -> None:
    """Change an entry, with everything that stands beside it."""
    row = editor.rows("audit_entries")[seq - 1]
    spelled = canonical_json({**json.loads(row["document"]), **values})
    copies = {name: values[name] for name in ("kind", "actor", "model") if name in values}
    editor.change("audit_entries", row, document=spelled.decode(), leaf=leaf_hash(spelled).hex(), **copies)
    hash_anew(editor)


@pytest.mark.sample
def test_a_log_that_was_cut_and_closed_again(house: House, editor: Editor, tally: Any) -> None:
    """Nothing in the log itself shows it; what was signed does, and so do the rows that its entries told of."""
    size = history.log_head(house.store).size
    cut_back(editor, size - 1)
    assert history.verify_log(house.store).size == size - 1
    kinds = {finding.kind for finding in doctor(house)}
    assert {"signed", "row"} <= kinds
    with pytest.raises(LogBehind, match="an older database was put back"):
        Notary(house.store, house.settings).checkpoint()
    problem(house.http.get("/v1/audit/checkpoint"), 503, "log-behind")
    tally.add(injected=1)


def test_a_log_that_was_rewritten_and_hashed_anew(house: House, editor: Editor, tally: Any) -> None:
    rewrite(editor, 3, actor="somebody-else")
    history.verify_log(house.store)
    named = [finding for finding in doctor(house) if finding.kind == "signed"]
    assert named and all("rewritten" in finding.detail for finding in named), named
    with pytest.raises(LogBehind, match="rewritten"):
        Notary(house.store, house.settings).checkpoint()
    tally.add(injected=1)


@pytest.mark.parametrize("name", ["checkpoint", "key"])
def test_the_files_of_the_notary(house: House, name: str, tally: Any) -> None:
    path = house.settings.data_dir / "log" / "checkpoint" if name == "checkpoint" else house.settings.log_keys
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        assert [f for f in doctor(house) if f.kind == "signed"], (at, bytes(flipped))
        tally.add(injected=1)
    path.write_bytes(whole)
    assert doctor(house) == []


def test_a_key_that_is_gone_or_another(house: House, tally: Any) -> None:
    """Without the log's own key nothing is signed, and with another one nobody could verify what is."""
    path = house.settings.log_keys
    whole = path.read_bytes()
    path.unlink()
    assert ["put its copy there" in finding.detail for finding in doctor(house)] == [True]
    elsewhere = Settings(data_dir=house.settings.data_dir / "elsewhere")
    others = history.examine(house.store, Notary(house.store, elsewhere))
    assert [f for f in others if f.kind == "signed"] == [], "a machine that never signed needs no key"
    strange = SignerKey.generate("espalier-test")
    path.write_text(f"{strange.text}\n")
    path.chmod(0o600)
    assert ["no audit entry names the key" in finding.detail for finding in doctor(house)] == [True]
    path.write_bytes(whole)
    tally.add(injected=2)
    assert doctor(house) == []


def test_triggers_that_were_taken_away(house: House, editor: Editor, tally: Any) -> None:
    """They come with the schema, or an entry could be changed by whoever has the database's password."""
    named = " ".join(f.detail for f in history.examine(house.store) if f.kind == "guard" and REMEDY.search(f.detail))
    assert all(trigger in named for trigger in TRIGGERS[house.store.dialect])
    tally.add(injected=len(TRIGGERS[house.store.dialect]))


# -- blobs -------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], None]] = {"flipped": flip, "cut": cut, "deleted": Path.unlink}


@pytest.mark.parametrize("how", DAMAGE)
def test_every_blob(house: House, how: str, tally: Any) -> None:
    """Whatever row names it: arrays, checkpoint, state, samples, answers."""
    with house.store.reading() as tx:
        named = {
            d: subject for name in ("gas", "steel", "wood") for subject, d in tx.ledger.blobs_of(tx.ledger.model(name))
        }
    for digest, subject in named.items():
        path = house.store.blobs.path(digest)
        whole = path.read_bytes()
        path.chmod(0o644)
        DAMAGE[how](path)
        found = [finding for finding in doctor(house) if finding.kind == "blob"]
        assert any(finding.subject == subject and digest[7:] in finding.detail for finding in found), (subject, found)
        path.write_bytes(whole)
        tally.add(injected=1)
    assert doctor(house) == []


@pytest.mark.sample
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_damaged_bytes_are_never_served(house: House, how: str, form: str, tally: Any) -> None:
    url = f"/v1/models/gas/versions/1/checkpoint?format={form}"
    served = house.http.get(url)
    assert served.status_code == 200
    digest = checkpoint_of(house.store, 1) if form == "sparse" else _dense_of(house.store)
    path = house.store.blobs.path(digest)
    path.chmod(0o644)
    DAMAGE[how](path)
    again = house.http.get(url)
    if form == "dense":
        assert again.content == served.content, "it is made anew from the sparse form"
    else:
        problem(again, 500, "missing-blob" if how == "deleted" else "corrupt-blob")
    tally.add(injected=1)


def _dense_of(store: Store) -> Digest:
    with store.reading() as tx:
        return tx.ledger.version("gas", 1).dense


@pytest.mark.parametrize("part", ["x", "y", "ids", "checkpoint", "state"])
def test_damaged_bytes_are_never_trained_on(store: Store, tmp_path: Path, part: str, tally: Any) -> None:
    """The cycle fails and waits; once the bytes are back, it is made as if nothing had happened."""
    trainer = Trainer(store, Settings(data_dir=tmp_path / "data", retry_seconds=0.0))
    trainer.create()
    trainer.grow(1)
    new = trainer.upload(seed=2).megabatch
    of = trainer.champion() if part in ("checkpoint", "state") else new
    path = store.blobs.path(getattr(of, part))
    whole = path.read_bytes()
    path.chmod(0o644)
    flip(path)
    ended = trainer.cycle()
    assert ended is not None and ended.version is None and "CorruptBlob" in str(ended.reason), ended
    assert "blob" in {finding.kind for finding in history.examine(store)}
    path.write_bytes(whole)
    ended = trainer.cycle()
    assert ended is not None and ended.version == 2, ended
    assert history.examine(store) == []
    tally.add(injected=1)
