"""Old rows beside young signatures, old blobs beside young rows; backups and restores while all goes on, or killed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.config import Settings
from app.domain import Actor
from app.errors import LogBehind
from app.service import backup, history
from app.service.notary import Notary
from app.store.database import Store
from espalier import Client
from espalier.errors import ApiProblem, ProofRejected
from tests.builders import make_megabatch, make_model, make_version
from tests.conftest import postgresql_database
from tests.scenarios.deployment import Deployment, clusters, until

pytestmark = pytest.mark.timeout(600)
ACTOR = Actor("tester")
SMALL = {"network": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 1, "minibatch": 64}, "guardrails": []}


def silent(_done: int, _of: int) -> None:
    """Nobody watches."""


def grow(store: Store, versions: int, name: str = "gas") -> None:
    with store.reading() as tx:
        model = tx.ledger.model(name)
    for _ in range(versions):
        make_megabatch(store, model)
        make_version(store, model)


@pytest.mark.sample
def test_an_older_database_signs_nothing_until_it_says_so(
    store: Store, database_url: str, tmp_path: Path, tally: Any
) -> None:
    settings = Settings(data_dir=tmp_path / "here", database_url=database_url)
    make_model(store)
    grow(store, 1)
    Notary(store, settings).checkpoint()
    taken = backup.back_up(store, settings, tmp_path / "backup", progress=silent)
    grow(store, 1)
    younger = Notary(store, settings).checkpoint()

    older_url = f"sqlite:///{tmp_path / 'older.db'}"
    older = Store(older_url, store.blobs)
    restored = settings.model_copy(update={"database_url": older_url})
    assert backup.restore(older, restored, taken, progress=silent) == []
    notary = Notary(older, restored)
    assert (restored.data_dir / "log" / "checkpoint").read_text() == younger, "what was signed last is not forgotten"
    with pytest.raises(LogBehind, match="an older database was put back"):
        notary.checkpoint()
    assert {finding.kind for finding in history.examine(older, notary)} == {"signed"}

    grow(older, 2)  # longer than what was signed by now, but another log
    with pytest.raises(LogBehind, match="rewritten, or an older database went on"):
        notary.checkpoint()
    assert {finding.kind for finding in history.examine(older, notary)} == {"signed"}

    assert notary.begin_epoch("the disk was lost", ACTOR).epoch == 2
    assert "/epoch-2\n" in notary.checkpoint()
    assert history.examine(older, notary) == []
    tally.add(injected=2)
    older.dispose()


@pytest.mark.sample
def test_an_older_folder_of_blobs_is_named_blob_by_blob(store: Store, tmp_path: Path, tally: Any) -> None:
    make_model(store)
    grow(store, 1)
    shutil.copytree(store.blobs.root, tmp_path / "older")
    grow(store, 2)
    with store.reading() as tx:
        named = list(tx.ledger.blobs_of(tx.ledger.model("gas")))
    shutil.rmtree(store.blobs.root)
    shutil.copytree(tmp_path / "older", store.blobs.root)
    missing = {(subject, digest) for subject, digest in named if not store.blobs.has(digest)}
    findings = history.examine(store)
    assert len(missing) == len(findings) == 10, "three arrays, a checkpoint and a state, twice"
    for subject, digest in missing:
        assert any(f.kind == "blob" and f.subject == subject and digest[7:] in f.detail for f in findings), subject
    tally.add(injected=len(missing))


def test_a_reader_sees_that_an_older_database_was_put_back(deployment: Deployment, tmp_path: Path, tally: Any) -> None:
    service = deployment.serve("--no-worker")
    url, pins = service.url(), tmp_path / "pins"
    with Client(url, pins=pins) as client:
        client.create_model("gas", SMALL)
        client.log_checkpoint()
    stop(service)
    database = deployment.data / "espalier.db"
    shutil.copyfile(database, tmp_path / "older.db")
    service = serve_at(deployment, url)
    with Client(url, pins=pins) as client:
        client.create_model("steel", SMALL)
        younger = client.log_checkpoint().size
    stop(service)
    for left in deployment.data.glob("espalier.db*"):
        left.unlink()
    shutil.copyfile(tmp_path / "older.db", database)

    service = serve_at(deployment, url)
    with Client(url, pins=pins) as client:
        with pytest.raises(ApiProblem, match="older database was put back"):
            client.log_checkpoint()
        assert [model.name for model in client.models()] == ["gas"], "all else is served"
        stop(service)
        said = deployment.run("audit", "new-epoch", "--reason", "the younger one was lost")
        assert "epoch 2 began" in said
        service = serve_at(deployment, url)
        with pytest.raises(ProofRejected) as seen:
            client.log_checkpoint()
    assert str(younger) in str(seen.value) or "epoch" in str(seen.value), seen.value
    with Client(url, pins=tmp_path / "fresh") as newcomer:
        assert newcomer.log_checkpoint().size > 0
    tally.add(injected=1)


def serve_at(deployment: Deployment, url: str) -> Any:
    service = deployment.start("serve", "--port", str(urlsplit(url).port), "--no-worker")
    assert service.url() == url
    return service


def stop(process: Any) -> None:
    process.send(signal.SIGTERM)
    assert process.ended(30) == 0, process.text


# -- while all goes on -------------------------------------------------------------------------------------------------


@contextmanager
def empty_place(like: Deployment, folder: Path) -> Iterator[Deployment]:
    """An empty deployment on the same kind of database."""
    folder.mkdir()
    if not like.database_url:
        place = Deployment(folder)
        try:
            yield place
        finally:
            place.end()
        return
    with postgresql_database() as url:
        place = Deployment(folder, url)
        try:
            yield place
        finally:
            place.end()


def test_backups_while_uploads_and_cycles_go_on(on_each_database: Deployment, tmp_path: Path, tally: Any) -> None:
    deployment = on_each_database
    service = deployment.serve()
    client = deployment.client(service)
    client.create_model("gas", SMALL)
    httpx.get(f"{service.url()}/v1/audit/checkpoint", trust_env=False).raise_for_status()
    done = threading.Event()
    told: list[int] = []

    def upload() -> None:
        with Client(service.url()) as own:
            for seed in range(1, 200):
                if done.is_set():
                    return
                told.append(own.upload("gas", *clusters(seed, n=60)).number)

    uploads = threading.Thread(target=upload)
    uploads.start()
    before = []
    try:
        until(lambda: list(client.versions("gas")), what="the first version")
        for _ in range(3):
            before.append(len(told))
            deployment.run("backup", str(tmp_path / "backup"))
    finally:
        done.set()
        uploads.join(60)
    for number, taken in enumerate(backup.snapshots_in(tmp_path / "backup")):
        with empty_place(deployment, tmp_path / f"restored-{number}") as place:
            place.run("restore", str(tmp_path / "backup"), "--snapshot", taken.path.name)
            shutil.copytree(deployment.data / "keys", place.data / "keys")  # no backup holds it
            place.run("audit", "new-epoch", "--reason", "restored")
            assert "all is well" in place.run("doctor")
            again = place.client(place.serve())
            kept = {megabatch.number for megabatch in again.megabatches("gas")}
            tally.add(injected=1, lost=len(set(told[: before[number]]) - kept))
            assert set(told[: before[number]]) <= kept
            size = again.audit_head().size
            assert size > taken.head.size
            again.upload("gas", *clusters(1000 + number, n=60), wait=True, timeout=90)
            numbers = [version.number for version in again.versions("gas")]
            assert numbers == list(range(len(numbers), 0, -1))
            place.is_whole()


def test_a_backup_that_was_killed_is_done_again(on_each_database: Deployment, tmp_path: Path, tally: Any) -> None:
    deployment = on_each_database
    furnish(deployment)
    folder = tmp_path / "backup"
    killed = 0
    for tenths in range(5, 40, 5):
        process = deployment.start("backup", str(folder), "--quiet")
        killed += _kill_after(process, tenths / 10)
        whole = backup.snapshots_in(folder)
        assert all(backup.check(taken, progress=silent) == [] for taken in whole), "what is called whole is whole"
    deployment.run("backup", str(folder))
    newest = backup.newest(folder)
    assert backup.check(newest, progress=silent) == [] and newest.missing == ()
    with empty_place(deployment, tmp_path / "restored") as place:
        place.run("restore", str(folder))
        place.is_whole()
    tally.add(injected=killed, kills=killed)


def test_a_restore_that_was_killed_is_done_again(on_each_database: Deployment, tmp_path: Path, tally: Any) -> None:
    deployment = on_each_database
    furnish(deployment)
    folder = tmp_path / "backup"
    deployment.run("backup", str(folder))
    killed = 0
    for tenths in range(5, 40, 5):
        with empty_place(deployment, tmp_path / f"restored-{tenths}") as place:
            was_killed = _kill_after(place.start("restore", str(folder), "--quiet"), tenths / 10)
            killed += was_killed
            again = place.start("restore", str(folder))
            status = again.ended(90)
            assert status == 0 or "not empty" in again.text, again.text
            place.run("migrate")
            place.is_whole()
            store = place.store()
            assert history.log_head(store).size == backup.newest(folder).head.size
            store.dispose()
    tally.add(injected=killed, kills=killed)


def furnish(deployment: Deployment) -> None:
    """Rows and blobs enough that a copy takes a moment."""
    store = deployment.store()
    make_model(store)
    grow(store, 20)
    with store.transaction(ACTOR) as tx:
        for number in range(3000):
            tx.audit.append("test.noise", model=None, parameters={"number": number, "noise": "x" * 500})
    store.dispose()


def _kill_after(process: Any, seconds: float) -> int:
    try:
        process.popen.wait(seconds)
    except subprocess.TimeoutExpired:  # it runs still
        process.send(signal.SIGKILL)
        process.popen.wait(10)
        return 1
    return 0
