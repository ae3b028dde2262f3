"""The notary: what it signs, what it never signs, its keys and epochs."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.config import Settings
from app.domain import Actor
from app.errors import Conflict, Fault, LogBehind
from app.service.notary import Notary
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import migrate
from espalier.errors import ProofRejected
from espalier.formats.note import LogCheckpoint, SignerKey, VerifierKey, opened, sign, split
from tests.builders import ACTOR

ANA = Actor("ana")


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=database_url, log_name="example.com/espalier")


def notary(store: Store, settings: Settings) -> Notary:
    return Notary(store, settings)


def grow(store: Store, entries: int = 1) -> None:
    for _ in range(entries):
        with store.transaction(ACTOR) as tx:
            tx.audit.append("test", model=None)


def kinds(store: Store) -> list[str]:
    with store.reading() as tx:
        return [entry.kind for entry in tx.audit.entries(None, None, 1000).items]


def test_a_checkpoint_says_the_head_and_opens_with_the_public_key_alone(store: Store, settings: Settings) -> None:
    grow(store, 3)
    signer = notary(store, settings)
    keys = [VerifierKey.parse(key.text) for key in signer.verifier_keys()]
    found = opened(signer.checkpoint(), keys)
    with store.reading() as tx:
        head = tx.audit.head()
        (kept,) = tx.audit.checkpoints((0, 0), 10)
    assert (found.origin, found.size, found.root.hex()) == ("example.com/espalier", head.size, head.root)
    assert kinds(store) == ["test"] * 3 + ["log.key-created"], "making the key is in the log, too"
    assert (settings.data_dir / "log" / "checkpoint").read_text() == kept.note == signer.checkpoint()
    assert (settings.data_dir / "keys" / "log.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ProofRejected, match="the keys that are trusted"):
        opened(kept.note, [SignerKey.generate("example.com/espalier").verifier])


def test_while_nothing_is_appended_nothing_is_written(store: Store, settings: Settings) -> None:
    first = notary(store, settings)
    note = first.checkpoint()
    state = (settings.data_dir / "log" / "checkpoint").stat()
    assert notary(store, settings).checkpoint() == note == first.checkpoint()
    assert (settings.data_dir / "log" / "checkpoint").stat().st_mtime_ns == state.st_mtime_ns
    grow(store)
    assert first.checkpoint() != note
    with store.reading() as tx:
        assert len(tx.audit.checkpoints((0, 0), 10)) == 2
        assert len(tx.audit.checkpoints((1, 1), 10)) == 1


def test_what_a_killed_process_was_writing_is_removed(store: Store, settings: Settings) -> None:
    signer = notary(store, settings)
    signer.checkpoint()
    keys, log = settings.data_dir / "keys", settings.data_dir / "log"
    unfinished = [keys / ".log.key.00112233445566ff", log / ".checkpoint.0011223344556677"]
    others = [keys / ".log.key.backup", log / "lock", log / "checkpoint", keys / "log.key"]
    for path in (*unfinished, others[0]):
        path.write_text("half a li")
    signer.tidy()
    assert not any(path.exists() for path in unfinished) and all(path.exists() for path in others)


def test_a_lost_key_ends_an_epoch(store: Store, settings: Settings) -> None:
    grow(store, 3)
    old = notary(store, settings)
    before, keys = opened(old.checkpoint(), old.verifier_keys()), old.verifier_keys()
    with pytest.raises(Conflict, match="rotate it"):
        old.begin_epoch("by mistake", ANA, new_key=True)
    (settings.data_dir / "keys" / "log.key").unlink()
    for refused in (lambda: notary(store, settings).checkpoint(), lambda: old.begin_epoch("no", ANA)):
        with pytest.raises(Fault, match="new-epoch --new-key"):
            refused()
    head = notary(store, settings).begin_epoch("the disk with the key burnt", ANA, new_key=True)
    (key,) = notary(store, settings).verifier_keys()
    after = opened(notary(store, settings).checkpoint(), [key])
    assert (key.name, head.epoch) == (keys[0].name, 2)
    assert key not in keys
    assert (after.origin, after.size, after.root.hex()) == (f"{before.origin}/epoch-2", head.size, head.root)
    assert kinds(store)[-2:] == ["log.epoch-began", "log.key-created"]
    with store.reading() as tx:
        told = tx.audit.entry(head.size - 1).document["parameters"]
    assert told["given_up"] == {"origin": before.origin, "size": before.size, "root": before.root.hex()}
    grow(store)
    assert opened(notary(store, settings).checkpoint(), [key]).size == head.size + 1


def test_a_lost_key_of_a_log_that_nothing_signed_needs_no_epoch(store: Store, settings: Settings) -> None:
    with pytest.raises(Conflict, match="nothing was signed yet"):
        notary(store, settings).begin_epoch("too early", ANA, new_key=True)
    assert kinds(store) == []


def test_an_older_database_is_not_signed_until_an_epoch_is_begun(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'data' / 'espalier.db'}"
    settings = Settings(data_dir=tmp_path / "data", database_url=url)
    migrate(url)
    store = Store(url, Blobs(tmp_path / "data" / "blobs"))
    grow(store, 2)
    first = notary(store, settings)
    first.checkpoint()
    store.dispose()
    shutil.copy(tmp_path / "data" / "espalier.db", tmp_path / "older.db")
    grow(store, 2)
    signed = opened(first.checkpoint(), first.verifier_keys())
    store.dispose()
    shutil.copy(tmp_path / "older.db", tmp_path / "data" / "espalier.db")
    with pytest.raises(LogBehind, match=r"holds a signed checkpoint of 5 .*an older database was put back"):
        notary(store, settings).checkpoint()
    grow(store, 4)  # it went on, and is longer than what was signed
    with pytest.raises(LogBehind, match="the first 5 entries"):
        notary(store, settings).checkpoint()
    head = notary(store, settings).begin_epoch("the newest backup was older", ANA)
    after = opened(notary(store, settings).checkpoint(), first.verifier_keys())
    assert (head.epoch, after.origin, after.size) == (2, f"{signed.origin}/epoch-2", 8)
    with store.reading() as tx:
        entry = tx.audit.entry(8).document
    assert entry["actor"] == "ana" and entry["reason"] == "the newest backup was older"
    assert entry["parameters"]["given_up"] == {"origin": signed.origin, "size": 5, "root": signed.root.hex()}
    store.dispose()


def test_a_log_that_was_rewritten_is_not_signed(store: Store, settings: Settings, database_url: str) -> None:
    """Whoever edits an entry, and everything above it, still contradicts what was signed."""
    grow(store, 3)
    note = notary(store, settings).checkpoint()
    forged = LogCheckpoint("example.com/espalier", 4, bytes(32))
    keys = (settings.data_dir / "keys" / "log.key").read_text()
    (settings.data_dir / "log" / "checkpoint").write_text(sign(forged.body(), [SignerKey.parse(keys)]))
    grow(store)
    with pytest.raises(LogBehind, match="was rewritten"):
        notary(store, settings).checkpoint()
    (settings.data_dir / "log" / "checkpoint").unlink()  # the database remembers, too
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        for name in ("log_checkpoints_refuse_update", "log_checkpoints_refuse_change"):
            on = "" if engine.dialect.name == "sqlite" else " ON log_checkpoints"
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}{on}")
        connection.exec_driver_sql(f"UPDATE log_checkpoints SET root = '{'00' * 32}'")
    engine.dispose()
    with pytest.raises(LogBehind, match="the database holds a signed checkpoint that says 0000"):
        notary(store, settings).checkpoint()
    assert note


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_text("PRIVATE+KEY+x+00000000+AAAA\n"), "cannot be used"),
        (lambda path: path.write_text("\n"), "is empty"),
        (lambda path: path.chmod(0o644), "can be read by others"),
        (lambda path: path.unlink(), "its key is not at"),
    ],
)
def test_a_key_file_that_cannot_be_used_says_what_to_do(store: Store, settings: Settings, spoil, why: str) -> None:
    grow(store)
    notary(store, settings).checkpoint()
    spoil(settings.data_dir / "keys" / "log.key")
    grow(store)
    with pytest.raises(Fault, match=why):
        notary(store, settings).checkpoint()


def test_a_last_checkpoint_that_was_changed_is_a_fault(store: Store, settings: Settings) -> None:
    grow(store)
    path = settings.data_dir / "log" / "checkpoint"
    note = notary(store, settings).checkpoint()
    path.write_text(note.replace("\n2\n", "\n3\n"))
    with pytest.raises(Fault, match="the last signed checkpoint of this machine does not hold"):
        notary(store, settings).checkpoint()


def test_keys_are_rotated_and_retired_without_a_gap(store: Store, settings: Settings) -> None:
    signer = notary(store, settings)
    (old,) = signer.verifier_keys()
    with pytest.raises(Conflict, match="rotate it first"):
        signer.retire("no", ANA)
    new = signer.rotate("a year is over", ANA)
    note = notary(store, settings).checkpoint()
    assert opened(note, [old]) == opened(note, [new]), "readers of either key go on"
    assert [name for name, _, _ in split(note)[1]] == [new.name, old.name]
    assert signer.retire("everybody has the new one", ANA) == [old]
    note = signer.checkpoint()
    assert opened(note, [new])
    with pytest.raises(ProofRejected):
        opened(note, [old])
    assert [kind for kind in kinds(store) if kind.startswith("log.")] == [
        "log.key-created", "log.key-rotated", "log.key-retired",
    ]  # fmt: skip


def test_many_threads_sign_one_line_of_checkpoints(store: Store, settings: Settings) -> None:
    grow(store)
    signers = [notary(store, settings) for _ in range(4)]
    notes: list[str] = []

    def work(signer: Notary) -> None:
        for _ in range(5):
            grow(store)
            notes.append(signer.checkpoint())

    threads = [threading.Thread(target=work, args=(signer,)) for signer in signers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = signers[0].verifier_keys()
    assert len(keys) == 1 and kinds(store).count("log.key-created") == 1
    seen = {found.size: found.root for found in (opened(note, keys) for note in notes)}
    with store.reading() as tx:
        tree = tx.audit.tree()
        assert all(tree.root(size) == root for size, root in seen.items())


def test_a_full_disk_serves_the_last_checkpoint(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(store)
    signer = notary(store, settings)
    note = signer.checkpoint()
    grow(store)
    monkeypatch.setattr("app.store.signing.os.fsync", _full)
    assert signer.checkpoint() == note
    monkeypatch.undo()
    assert signer.checkpoint() != note


def _full(handle: int) -> None:
    raise OSError(28, "No space left on device")
