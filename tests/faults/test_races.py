"""Races that have one right end: rollbacks against one another and against training, the sweep against everybody."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.config import Settings
from app.service import history, outcomes
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import migrate
from espalier.formats import megabatch
from tests.scenarios.deployment import Deployment, clusters, until
from tests.scenarios.test_worker_faults import RECIPE as LONG
from tests.scenarios.test_worker_faults import in_training
from tests.service.conftest import ACTOR, House

pytestmark = pytest.mark.timeout(300)
SMALL = {"network": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 1, "minibatch": 64}, "guardrails": []}
DAYS = 2 * 24 * 3600


def test_of_two_rollbacks_at_once_one_is_let(on_each_database: Deployment, tally) -> None:
    deployment = on_each_database
    service = deployment.serve("--no-worker")
    client = deployment.client(service)
    client.create_model("gas", SMALL)
    deployment.work()
    for seed in (1, 2, 3):
        client.upload("gas", *clusters(seed, n=60), wait=True, timeout=60)
    with httpx.Client(base_url=client.url, trust_env=False, timeout=60) as http, ThreadPoolExecutor(2) as pool:
        for _ in range(15):
            seen = http.get("/v1/models/gas/aliases/champion")
            barrier = threading.Barrier(2)

            def roll_back(to: str, etag: str = seen.headers["etag"], barrier: threading.Barrier = barrier) -> int:
                barrier.wait(30)
                body = {"to": to, "reason": "at once"}
                return http.post("/v1/models/gas/rollback", json=body, headers={"If-Match": etag}).status_code

            both = sorted(pool.map(roll_back, ("1", "2")))
            tally.add(injected=1, doubled=int(both == [200, 200]), lost=int(both == [412, 412]))
            assert both == [200, 412]
            present = http.get("/v1/models/gas/aliases/champion")
            body = {"reason": "for the next round"}
            back = http.post(
                "/v1/models/gas/versions/3/promote", json=body, headers={"If-Match": present.headers["etag"]}
            )
            assert back.status_code == 200, back.text
    moves = sorted(client.alias_history("gas"), key=lambda move: move.revision)
    assert [move.revision for move in moves] == list(range(1, len(moves) + 1))
    assert [move.previous for move in moves[1:]] == [move.version for move in moves[:-1]]
    rolled = list(client.audit("gas", kind="model.rolled_back"))
    tally.add(unaudited=15 - len(rolled))
    assert len(rolled) == 15
    deployment.is_whole()


def test_a_rollback_during_training_supersedes_the_cycle(on_each_database: Deployment, tally) -> None:
    deployment = on_each_database
    client = deployment.client(deployment.serve("--no-worker"))
    client.create_model("gas", {**LONG, "guardrails": []})
    worker = deployment.work().ready()
    for seed in (1, 2):
        client.upload("gas", *clusters(seed, n=60), wait=True, timeout=90)
    cycle = client.upload("gas", *clusters(3, n=1200)).cycle
    assert cycle is not None
    until(lambda: in_training(client, cycle, 0.1), what="a tenth of the cycle")
    done = client.rollback("gas", 1, reason="line 3 was out of order")
    tally.add(injected=1)
    assert done.version.number == 1
    assert client.cycle("gas", cycle).state == "superseded"
    assert done.queued_cycle is not None
    client.wait_for_cycle("gas", done.queued_cycle, timeout=120)
    assert [(v.number, v.parent) for v in client.versions("gas")] == [(3, 1), (2, 1), (1, None)]
    assert worker.popen.poll() is None
    assert "no longer" in worker.text
    deployment.is_whole()


@pytest.mark.slow
@pytest.mark.sample
def test_the_sweep_takes_nothing_that_somebody_relies_on(store: Store, tmp_path: Path, tally) -> None:
    """Uploads and cycles whose bytes lie there already, old and named by no row, while sweeps run without a pause."""
    house = House(store, Settings(data_dir=tmp_path, retry_seconds=0.0))
    house.create(recipe=SMALL)
    others_url = f"sqlite:///{tmp_path / 'others.db'}"
    migrate(others_url)
    others = Store(others_url, Blobs(store.blobs.root))  # its rows are unknown here
    seeds = range(1, 13)
    elsewhere = House(others, house.settings)
    elsewhere.create(recipe=SMALL)
    for seed in seeds:
        elsewhere.upload(x=clusters(seed, n=40)[0], y=clusters(seed, n=40)[1])
    others.dispose()
    for number in range(40):
        store.blobs.put(b"nobody will name me" + bytes([number]))
    old = time.time() - DAYS
    for path in store.blobs.root.glob("sha256/??/*"):
        os.utime(path, (old, old))

    done = threading.Event()
    swept: list[int] = []

    def sweep() -> None:
        while not done.is_set():
            swept.append(outcomes.sweep(store, house.settings, ACTOR))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda seed: house.upload_bytes(megabatch.encode(*clusters(seed, n=40))), seeds))
        for _ in range(3):
            house.cycle()
    finally:
        done.set()
        sweeper.join(60)
    assert sum(swept) >= 40
    findings = history.examine(store)
    tally.add(injected=len(swept), lost=len(findings))
    assert findings == []
    with store.reading() as tx:
        assert len(tx.buffer.megabatches("gas", None, 100).items) == len(seeds)
    assert np.isfinite(house.champion().density)
