"""Backup and restore: one state, every byte, back again; also while the service works."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import zstandard

from app.config import Settings
from app.domain import CHAMPION
from app.errors import Conflict, Fault
from app.service import backup, history, outcomes, release, retention
from app.service.backup import Snapshot
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import downgrade, migrate
from tests.builders import ACTOR, claim, make_cycle, make_evaluation, make_megabatch, make_model, make_version
from tests.service.conftest import House


def silent(done: int, of: int) -> None:
    assert 0 < done <= of


def settings_of(store_url: str, folder: Path) -> Settings:
    return Settings(data_dir=folder, database_url=store_url)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return settings_of(database_url, tmp_path / "data")


@pytest.fixture
def grown(store: Store) -> Store:
    model = make_model(store)
    make_model(store, "steel")
    for _ in range(3):
        make_megabatch(store, model)
        make_version(store, model)
    make_evaluation(store, model)
    return store


def back_up(store: Store, settings: Settings, folder: Path, keep: int = 0) -> Snapshot:
    return backup.back_up(store, settings, folder, keep=keep, progress=silent)


def target_of(tmp_path: Path, name: str = "restored") -> tuple[Store, Settings]:
    url = f"sqlite:///{tmp_path / name / 'espalier.db'}"
    settings = settings_of(url, tmp_path / name)
    return Store(url, Blobs(tmp_path / name / "blobs")), settings


def rows(store: Store) -> list[str]:
    """Everything that a copy of the database holds; what is left out belongs to running processes."""
    with backup.snapshot(str(store._engine.url.render_as_string(hide_password=False)), _scratch(store)) as connection:
        return list(backup.lines(connection))


def _scratch(store: Store) -> Path:
    folder = store.blobs.root / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "snapshot.db").unlink(missing_ok=True)
    return folder


def test_a_restored_deployment_is_the_same(grown: Store, settings: Settings, tmp_path: Path) -> None:
    taken = back_up(grown, settings, tmp_path / "backup")
    assert taken.missing == () and taken.head.size == history.log_head(grown).size
    store, there = target_of(tmp_path)
    assert backup.restore(store, there, taken, progress=silent) == []
    assert rows(store) == rows(grown)
    assert history.verify_log(store) == history.log_head(grown)
    with store.transaction(ACTOR) as tx:  # and it goes on
        tx.audit.append("test", model=None)
    assert make_version(store, _model(store)).number == 4
    store.dispose()


@pytest.mark.slow
def test_from_a_file_into_a_server(grown: Store, settings: Settings, tmp_path: Path, empty_database_url: str) -> None:
    if empty_database_url == settings.database_url:
        empty_database_url = f"sqlite:///{tmp_path / 'other.db'}"
    taken = back_up(grown, settings, tmp_path / "backup")
    there = settings_of(empty_database_url, tmp_path / "other")
    store = Store(empty_database_url, Blobs(tmp_path / "other" / "blobs"))
    assert backup.restore(store, there, taken, progress=silent) == []
    assert rows(store) == rows(grown)
    assert make_version(store, _model(store)).number == 4
    make_model(store, "another")
    store.dispose()


def _model(store: Store):
    with store.reading() as tx:
        return tx.ledger.model("gas")


def test_what_is_there_already_is_not_copied_again(grown: Store, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    first = back_up(grown, settings, folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "blobs").rglob("*") if path.is_file()}
    make_version(grown, _model(grown))
    second = back_up(grown, settings, folder)
    after = {path: path.stat().st_mtime_ns for path in (folder / "blobs").rglob("*") if path.is_file()}
    assert before.items() <= after.items() and len(after) == len(second.blobs) > len(first.blobs) == len(before)
    assert [one.path for one in backup.snapshots_in(folder)] == [first.path, second.path]
    assert backup.newest(folder) == second
    assert backup.check(first, progress=silent) == backup.check(second, progress=silent) == []
    assert sorted(path.name for path in folder.iterdir()) == ["blobs", "snapshots"], "nothing unfinished is left"


def test_only_the_newest_are_kept(grown: Store, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    for _ in range(2):
        back_up(grown, settings, folder)
    with grown.transaction(ACTOR) as tx:  # the bytes of version 1 are named no more
        tx.ledger.sweep_version(tx.ledger.lock_model("gas"), 1, "test")
        tx.audit.append("data.swept", model="gas", parameters={"version": 1})
    last = back_up(grown, settings, folder, keep=1)
    assert backup.snapshots_in(folder) == [last]
    left = {f"sha256:{path.name}" for path in (folder / "blobs").rglob("*") if path.is_file()}
    assert left == set(last.blobs)
    assert backup.check(last, progress=silent) == []


def test_a_database_that_holds_anything_is_left_alone(grown: Store, settings: Settings, tmp_path: Path) -> None:
    taken = back_up(grown, settings, tmp_path / "backup")
    before = rows(grown)
    with pytest.raises(Conflict, match="not empty"):
        backup.restore(grown, settings, taken, progress=silent)
    assert rows(grown) == before


@pytest.mark.parametrize("name", ["database.jsonl.zst", "blobs.txt", "manifest.json"])
def test_a_damaged_snapshot_is_named_and_never_restored(
    grown: Store, settings: Settings, tmp_path: Path, name: str
) -> None:
    taken = back_up(grown, settings, tmp_path / "backup")
    path = taken.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(bytes(data))
    with pytest.raises(Fault, match=f"{name} is damaged"):
        backup.newest(tmp_path / "backup")


def test_a_damaged_or_lost_blob_is_named_and_leaves_the_database_empty(
    grown: Store, settings: Settings, tmp_path: Path
) -> None:
    taken = back_up(grown, settings, tmp_path / "backup")
    paths = [path for path in (tmp_path / "backup" / "blobs").rglob("*") if path.is_file()]
    paths[0].write_bytes(b"something else")
    paths[1].unlink()
    faults = backup.check(taken, progress=silent)
    assert sorted(faults) == sorted([f"{paths[0]} is damaged", f"{paths[1]} is missing"])
    store, there = target_of(tmp_path)
    with pytest.raises(Fault, match="is damaged|is missing"):
        backup.restore(store, there, taken, progress=silent)
    assert not (tmp_path / "restored" / "espalier.db").exists()
    store.dispose()


def test_a_cut_copy_of_the_rows_fills_nothing(grown: Store, settings: Settings, tmp_path: Path) -> None:
    """However the file came to be cut: not even its manifest is trusted alone."""
    taken = back_up(grown, settings, tmp_path / "backup")
    path, manifest = taken.path / "database.jsonl.zst", taken.path / "manifest.json"
    whole = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).decode()
    kept = whole.splitlines()
    orphaned = [line for line in kept if not line.startswith('{"table": "models"') and '"gas"' not in line[:12]]
    for lines in (kept[: len(kept) // 2], [], orphaned[1:]):
        path.write_bytes(zstandard.compress("".join(f"{line}\n" for line in lines)[:-3].encode()))
        document = json.loads(manifest.read_text())
        document["files"]["database.jsonl.zst"] = backup._digest_of(path)
        manifest.write_text(json.dumps(document))
        store, there = target_of(tmp_path, f"cut-{len(lines)}")
        with pytest.raises(Fault):
            backup.restore(store, there, backup.newest(tmp_path / "backup"), progress=silent)
        migrate(there.resolved_database_url)
        assert history.log_head(store).size == 0
        store.dispose()


def test_a_deployment_that_is_damaged_itself_is_copied_as_far_as_it_goes(
    grown: Store, settings: Settings, tmp_path: Path
) -> None:
    lost = release.get_version(grown, "gas", "1").version.checkpoint
    grown.blobs.discard(lost)
    taken = back_up(grown, settings, tmp_path / "backup")
    assert len(taken.missing) == 1 and lost in taken.missing[0]
    store, there = target_of(tmp_path)
    assert [finding.kind for finding in backup.restore(store, there, taken, progress=silent)] == ["blob"]
    store.dispose()


def test_a_copy_of_an_older_schema_is_brought_up(grown: Store, settings: Settings, tmp_path: Path) -> None:
    with backup.snapshot(settings.resolved_database_url, _scratch(grown)) as connection:
        newest = list(backup.lines(connection))
    schema = json.loads(newest[0])["schema"]
    store, there = target_of(tmp_path)
    backup.load(there.resolved_database_url, newest)
    assert rows(store) == newest and schema
    assert downgrade(there.resolved_database_url, "0003")
    store.dispose()


@pytest.mark.slow
def test_while_the_service_works(house: House, tmp_path: Path) -> None:
    """Cycles, retention and sweeps go on beside a backup; each snapshot is whole, and restores to something sound."""
    house.create()
    house.grow(1)
    busy = house.settings.model_copy(update={"keep_versions": 1, "orphan_grace_seconds": 60.0})
    url = house.store._engine.url.render_as_string(hide_password=False)
    settings = settings_of(url, house.settings.data_dir)
    done = threading.Event()

    def work() -> None:
        for number in range(2, 9):
            house.upload(seed=number)
            house.cycle()
            retention.retain(house.store, busy, ACTOR)
            outcomes.sweep(house.store, busy, ACTOR)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    taken = [back_up(house.store, settings, tmp_path / "backup")]
    while not done.is_set():
        taken.append(back_up(house.store, settings, tmp_path / "backup"))
    thread.join()
    assert house.champion().number == 8
    for number, one in enumerate(taken):
        assert one.missing == ()
        store, there = target_of(tmp_path, f"restored-{number}")
        assert backup.restore(store, there, one, progress=silent) == []
        assert release.get_alias(store, "gas", CHAMPION).version >= 1
        store.dispose()


def test_a_cycle_under_way_is_copied_without_its_snapshot(grown: Store, settings: Settings, tmp_path: Path) -> None:
    """Its worker takes that away at any moment: no copy may need it."""
    make_cycle(grown, _model(grown))
    claimed = claim(grown)
    assert claimed is not None
    with grown.transaction(ACTOR) as tx:
        claimed = tx.ledger.attach_snapshot(claimed, grown.blobs.put(b"half way"))
    assert claimed.snapshot is not None
    grown.blobs.discard(claimed.snapshot)
    taken = back_up(grown, settings, tmp_path / "backup")
    assert taken.missing == () and claimed.snapshot not in taken.blobs
    store, there = target_of(tmp_path)
    assert backup.restore(store, there, taken, progress=silent) == []
    with store.reading() as tx:
        assert tx.ledger.snapshots(_model(store)) == []
    store.dispose()
