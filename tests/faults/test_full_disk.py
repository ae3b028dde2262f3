"""A disk that is full: uploads are refused with a remedy, reads go on, and all recovers without a restart."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app.domain import Actor
from app.errors import StorageFull
from app.service import history
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import migrate
from app.store.staging import SPARE_BYTES
from espalier.formats import megabatch
from tests.builders import make_megabatch, make_model, make_version
from tests.scenarios.deployment import Deployment, clusters, until
from tests.scenarios.test_worker_faults import RECIPE as LONG
from tests.scenarios.test_worker_faults import in_training

pytestmark = pytest.mark.timeout(300)
ACTOR = Actor("tester")
MEBIBYTE = 1 << 20


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes; only root can make one."""
    place.mkdir(parents=True)
    options = f"size={size},mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


class Ballast:
    """A file that takes all the space that is left."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"

    def fill(self) -> None:
        for size in (MEBIBYTE, 1):
            with suppress(OSError), self._path.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(size * 4096 if size == 1 else size))

    def empty(self) -> None:
        self._path.unlink()


@pytest.fixture
def on_small_disk(tmp_path: Path) -> Iterator[tuple[Deployment, Ballast]]:
    """A deployment whose data, database and blobs, lie on a disk with 24 MiB beyond what uploads always leave free."""
    with small_disk(tmp_path / "data", SPARE_BYTES + 24 * MEBIBYTE), Deployment(tmp_path) as deployment:
        yield deployment, Ballast(deployment.data)


def send(http: httpx.Client, seed: int, n: int = 240) -> httpx.Response:
    body = megabatch.encode(*clusters(seed, n=n))
    headers = {"Content-Type": "application/octet-stream"}
    return http.post("/v1/models/gas/megabatches", content=body, headers=headers)


def expect_full(answer: httpx.Response) -> None:
    assert answer.status_code == 507, answer.text
    document = answer.json()
    assert document["type"] == "urn:espalier:problem:storage-full" and "free space" in document["detail"], document


def test_uploads_are_refused_and_reads_go_on(
    on_small_disk: tuple[Deployment, Ballast], tmp_path: Path, tally: Any
) -> None:
    deployment, ballast = on_small_disk
    service = deployment.serve()
    client = deployment.client(service)
    client.create_model("gas", {"network": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 1}})
    acknowledged = [client.upload("gas", *clusters(seed), wait=True, timeout=60).number for seed in (1, 2)]
    with httpx.Client(base_url=service.url(), trust_env=False, timeout=60) as http:
        signed = http.get("/v1/audit/checkpoint")
        assert signed.status_code == 200
        for round in range(3):
            ballast.fill()
            for seed in range(10, 14):
                expect_full(send(http, seed, n=2400))
            assert [v["number"] for v in http.get("/v1/models/gas/versions").json()["items"]][-2:] == [2, 1]
            served = http.get("/v1/models/gas/versions/champion/checkpoint")
            assert served.status_code == 200 and len(served.content) == int(served.headers["Content-Length"])
            assert http.get("/v1/audit").json()["items"]
            assert http.get("/v1/audit/checkpoint").status_code == 200
            assert http.get("/readyz").status_code == 200
            ballast.empty()
            taken = send(http, 20 + round)
            assert taken.status_code == 201, taken.text
            acknowledged.append(taken.json()["number"])
            tally.add(injected=4)
        there = {m["number"] for m in http.get("/v1/models/gas/megabatches").json()["items"]}
    until(lambda: len(list(client.versions("gas"))) == len(acknowledged), what="a version of each megabatch")
    tally.add(lost=len(set(acknowledged) - there), doubled=len(acknowledged) - len(set(acknowledged)))
    assert sorted(there) == sorted(acknowledged)
    assert service.popen.poll() is None
    deployment.is_whole()


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_cycle_whose_disk_is_full_waits(on_small_disk: tuple[Deployment, Ballast], share: float, tally: Any) -> None:
    deployment, ballast = on_small_disk
    service = deployment.serve("--no-worker")
    worker = deployment.work(retry_seconds=0.5).ready()
    client = deployment.client(service)
    client.create_model("gas", LONG)
    cycle = client.upload("gas", *clusters(1, n=1200)).cycle
    assert cycle is not None
    until(lambda: in_training(client, cycle, share), what=f"{share} of the cycle")
    ballast.fill()
    until(lambda: "full" in worker.text, seconds=120, what="the worker's complaint")
    assert list(client.versions("gas")) == []
    ballast.empty()
    client.wait_for_cycle("gas", cycle, timeout=120)
    tally.add(injected=1, lost=int([v.number for v in client.versions("gas")] != [1]))
    assert [v.number for v in client.versions("gas")] == [1]
    assert client.model("gas").state == "active"
    assert worker.popen.poll() is None and service.popen.poll() is None
    deployment.is_whole()


def append(store: Store, entries: int) -> None:
    with store.transaction(ACTOR) as tx:
        for number in range(entries):
            tx.audit.append("test", model="gas", parameters={"noise": "x" * 4000, "number": number})


@pytest.mark.sample
def test_a_transaction_that_meets_the_end_of_the_disk(tmp_path: Path, tally: Any) -> None:
    """Whichever page is the one too many: nothing of the transaction is there, and the next one succeeds."""
    url = f"sqlite:///{tmp_path / 'espalier.db'}"
    migrate(url)
    store = Store(url, Blobs(tmp_path / "blobs"))
    model = make_model(store)
    make_megabatch(store, model)
    make_version(store, model)
    limit = {"pages": 0}

    @sa.event.listens_for(store._engine, "begin")
    def fix_size(connection: sa.Connection) -> None:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        present = driver.execute("PRAGMA page_count").fetchone()[0]
        driver.execute(f"PRAGMA max_page_count={present + limit['pages']}")

    refused = 0
    for pages in range(40):
        limit["pages"] = pages
        size = history.log_head(store).size
        fits = True
        try:
            append(store, 20)
        except StorageFull:
            fits = False
            refused += 1
        assert history.log_head(store).size == size + 20 * fits
        limit["pages"] = 1 << 20
        assert make_megabatch(store, model).number == pages + 2
    tally.add(injected=refused)
    assert refused > 10
    assert history.examine(store) == []
    store.dispose()


@pytest.mark.sample
def test_blobs_that_meet_the_end_of_the_disk(tmp_path: Path, tally: Any) -> None:
    with small_disk(tmp_path / "small", MEBIBYTE) as place:
        blobs, ballast = Blobs(place / "blobs"), Ballast(place)
        kept = blobs.put(b"there before")
        for size in (1, 4096, 100_000):
            ballast.fill()
            with pytest.raises(StorageFull, match="free space"):
                blobs.put(os.urandom(size))
            assert blobs.read(kept) == b"there before"
            assert list((place / "blobs" / "staging").iterdir()) == []
            ballast.empty()
            tally.add(injected=1)
            blobs.put(os.urandom(size))
