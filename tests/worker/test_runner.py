from __future__ import annotations

import logging
import os
import signal
import threading
from datetime import timedelta
from typing import Any

import pytest
import torch

from app.domain import Actor
from app.errors import StoreBusy
from app.service import cycles, history
from app.worker.runner import Worker, _logged

Shop = Any


def test_cycles_are_run_as_they_come(shop: Shop) -> None:
    shop.migrate()
    store = shop.store()
    shop.create(store, "gas")
    with shop.working():
        first = shop.upload(store, "gas", 1)
        shop.until(lambda: shop.published(store, "gas", first))
        second = shop.upload(store, "gas", 2)
        shop.until(lambda: shop.published(store, "gas", second))
    assert [v.number for v in history.time_line(store, "gas", after=None, limit=9)[0].items] == [1, 2]


def test_a_store_in_trouble_does_not_end_the_worker(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "espalier.worker"), shop.working():
        shop.until(lambda: "could not run a cycle" in caplog.text and "reclaim failed" in caplog.text)
        shop.migrate()  # until now there were no tables
        store = shop.store()
        shop.create(store, "gas")
        number = shop.upload(store, "gas")
        shop.until(lambda: shop.published(store, "gas", number))


def test_a_silent_workers_cycle_is_taken_over(shop: Shop) -> None:
    shop.migrate()
    store = shop.store()
    shop.create(store, "gas")
    number = shop.upload(store, "gas")
    with store.transaction(Actor("worker:dead")) as tx:
        claim = tx.ledger.claim_cycle("dead", 0.05)
        assert claim is not None
        tx.audit.append("cycle.started", model="gas", parameters={"cycle": number})
    shop.lease_seconds = 0.5
    with shop.working():
        shop.until(lambda: shop.published(store, "gas", number))
    assert [
        e.kind for e in history.audit_entries(store, model="gas", after=None, limit=50, kind="cycle.reclaimed").items
    ]


def test_cron_triggers_start_cycles(shop: Shop) -> None:
    shop.migrate()
    store = shop.store()
    shop.create(store, "gas", trigger={"name": "cron", "expression": "* * * * *"})
    assert shop.upload(store, "gas") is None
    shop.ahead = timedelta(minutes=2)
    with shop.working():
        shop.until(lambda: any(c.version for c in cycles.list_cycles(store, "gas", after=None, limit=9).items))
    (cycle,) = cycles.list_cycles(store, "gas", after=None, limit=9).items
    assert cycle.trigger == "cron"
    requested = history.audit_entries(store, model="gas", after=None, limit=50, kind="cycle.requested").items
    assert [entry.actor for entry in requested] == ["scheduler"]


def test_stop_is_obeyed_while_idle_and_can_be_asked_twice(shop: Shop) -> None:
    shop.migrate()
    with shop.working() as worker:
        worker.stop()
        worker.stop()
    assert not worker.broken


def test_signals_stop_it(shop: Shop) -> None:
    shop.migrate()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    worker = Worker(shop.store(), shop.settings, where=torch.device("cpu"))
    worker.stop_on_signals()
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        worker.run()  # returns
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_lost_device_ends_the_worker(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.migrate()
    store = shop.store()
    shop.create(store, "gas")
    number = shop.upload(store, "gas")
    worker = Worker(shop.store(), shop.settings, where=torch.device("cuda", 99))
    with caplog.at_level(logging.CRITICAL, "espalier.worker"):
        worker.run()  # returns by itself
    assert worker.broken
    assert "no longer answers" in caplog.text
    assert cycles.get_cycle(store, "gas", number).failures == 1


@pytest.mark.parametrize("error", [StoreBusy("locked"), RuntimeError("anything")])
def test_a_job_that_fails_is_logged(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def job() -> None:
        raise error

    with caplog.at_level(logging.WARNING, "espalier.worker"):
        _logged("sweep", job)()
    assert "sweep" in caplog.text and "again at its next time" in caplog.text


def test_orphans_are_swept(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.migrate()
    store = shop.store()
    orphan = store.blobs.put(b"no row names this")
    worker = Worker(shop.store(), shop.settings, where=torch.device("cpu"))
    worker._sweep()
    assert store.blobs.has(orphan)  # young: a row may name it yet
    shop.ahead = timedelta(days=2)
    with caplog.at_level(logging.INFO, "espalier.worker"):
        worker._sweep()
    assert not store.blobs.has(orphan)
    assert "swept 1 orphaned blobs" in caplog.text
