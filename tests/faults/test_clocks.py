"""Clocks that are wrong, or are set while everything runs: no lease is stolen, no run missed or doubled."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from app.config import Settings
from app.domain import Actor, CycleState, HeldLease
from app.service import cycles, history
from app.service.outcomes import reclaim
from app.service.vigil import Vigil
from app.store.database import Store
from app.worker import steps
from app.worker.runner import Every, Worker
from tests.builders import ACTOR, Clock, claim, make_cycle, make_model
from tests.scenarios.deployment import Deployment, Process, clusters, until
from tests.scenarios.test_worker_faults import RECIPE as LONG
from tests.scenarios.test_worker_faults import in_training
from tests.service.conftest import House
from tests.worker.conftest import Shop

CRON = {"network": {"name": "mlp", "hidden": [4]}, "trigger": {"name": "cron", "expression": "30 * * * *"}}
HOURS = [timedelta(hours=-5), timedelta(minutes=-3), timedelta(minutes=3), timedelta(hours=5), timedelta(days=400)]
LEASE = Settings(lease_seconds=60.0, heartbeat_seconds=20.0)


class Steady:
    """A steady clock that is moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def at(seconds: float) -> HeldLease:
    return HeldLease(1, 1, datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds))


# -- the vigil ---------------------------------------------------------------------------------------------------------


@pytest.mark.sample
def test_a_lease_is_silent_after_a_whole_lease_without_a_heartbeat() -> None:
    steady = Steady()
    vigil = Vigil(LEASE, steady)
    seen = [vigil.silent([at(0)])]
    for _ in range(4):
        steady.now += 19
        seen.append(vigil.silent([at(0)]))
    assert [bool(silent) for silent in seen] == [False, False, False, False, True]


@pytest.mark.sample
def test_a_heartbeat_begins_the_wait_anew_whatever_time_it_bears() -> None:
    steady = Steady()
    vigil = Vigil(LEASE, steady)
    for beat in (0, -18_000, 99_999, -99_999, 5):
        for _ in range(3):
            assert vigil.silent([at(beat)]) == []
            steady.now += 19


@pytest.mark.sample
def test_time_in_which_nobody_looked_does_not_count() -> None:
    steady = Steady()
    vigil = Vigil(LEASE, steady)
    vigil.silent([at(0)])
    steady.now += 3600  # the machine was stopped, and the worker with it
    assert vigil.silent([at(0)]) == []
    steady.now += 19
    assert vigil.silent([at(0)]) == []  # it has had a heartbeat's time to speak up
    steady.now += 19
    assert vigil.silent([at(0)]) == [at(0)]


@pytest.mark.sample
@pytest.mark.parametrize("apart", HOURS, ids=str)
def test_a_machine_with_another_time_steals_no_lease(store: Store, apart: timedelta, tally) -> None:
    make_model(store, "gas")
    make_cycle(store, make_model(store, "wine"))
    here, steady = Clock(), Steady()
    store.clock = here
    held = claim(store, lease_seconds=60)
    vigil = Vigil(LEASE, steady)
    for _ in range(12):  # the holder renews by its own clock, the other looks by its own
        store.clock = here
        with store.transaction(ACTOR) as tx:
            tx.ledger.renew(held, None, 60)
        store.clock = lambda: here.now + apart
        assert reclaim(store, LEASE, ACTOR, vigil.silent) == []
        here.advance(19)
        steady.now += 19
    taken = []
    for _ in range(4):
        steady.now += 19
        taken += reclaim(store, LEASE, ACTOR, vigil.silent)
    assert [cycle.state for cycle in taken] == [CycleState.QUEUED], "a dead one's is taken, whatever its clock said"
    tally.add(injected=1)


@pytest.fixture
def house(store: Store, tmp_path: Path) -> House:
    return House(store, Settings(data_dir=tmp_path / "data", retry_seconds=0.0))


# -- cron --------------------------------------------------------------------------------------------------------------


def ticks(store: Store) -> list[str]:
    page = history.audit_entries(store, model="gas", after=None, limit=500, kind="cycle.requested")
    return [entry.document["parameters"]["due"] for entry in page.items]


@pytest.mark.slow
@pytest.mark.sample
def test_a_clock_that_jumps_neither_misses_nor_doubles_a_run(house: House, tally) -> None:
    """Hourly runs while the clock steps about; each run has something to train on."""
    clock = Clock(datetime(2030, 3, 30, 22, 45, tzinfo=UTC))
    house.store.clock = clock
    house.create(recipe=CRON)
    scheduler = Actor("scheduler")
    wanted: list[str] = []
    for index, step in enumerate([1, 1, 5, -3, 1, 1, 1, -24, 24, 1, 1]):
        clock.advance(3600 * step)
        house.upload(seed=index + 1)
        due = clock.now.replace(minute=30).isoformat()
        if not wanted or due > max(wanted):  # times that a jump forward took up together are not taken up again
            wanted.append(due)
        for _ in range(3):
            cycles.enqueue_due(house.store, scheduler)
        with house.store.transaction(ACTOR) as tx:
            ended = tx.ledger.supersede_cycles(tx.ledger.lock_model("gas"), "room for the next")
            tx.audit.append("cycle.superseded", model="gas", parameters={"cycles": [c.number for c in ended]})
    tally.add(injected=4, doubled=len(ticks(house.store)) - len(set(ticks(house.store))))
    assert ticks(house.store) == wanted


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize(("zone", "day"), [("Europe/Berlin", "2030-03-31"), ("America/New_York", "2030-11-03")])
def test_daylight_saving_changes_nothing(house: House, monkeypatch: pytest.MonkeyPatch, zone: str, day: str) -> None:
    """Times of triggers are UTC: on the day of the change there are 24 hours as on any other."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        clock = Clock(datetime.fromisoformat(f"{day}T00:00:30+00:00") - timedelta(hours=1))
        house.store.clock = clock
        house.create(recipe=CRON)
        house.upload()
        for _ in range(24 * 4):
            clock.advance(900)
            cycles.enqueue_due(house.store, Actor("scheduler"))
            with house.store.transaction(ACTOR) as tx:
                tx.ledger.supersede_cycles(tx.ledger.lock_model("gas"), "room for the next")
                tx.audit.append("cycle.superseded", model="gas", parameters={})
    finally:
        monkeypatch.undo()
        time.tzset()
    begin = datetime.fromisoformat(f"{day}T00:30:00+00:00") - timedelta(hours=1)
    assert ticks(house.store) == [(begin + timedelta(hours=hour)).isoformat() for hour in range(24)]


def test_three_schedulers_take_a_tick_up_once(on_each_database: Deployment, tally) -> None:
    deployment = on_each_database
    client = deployment.client(deployment.serve("--no-worker"))
    recipe = {"network": {"name": "mlp", "hidden": [4]}, "trigger": {"name": "cron", "expression": "* * * * *"}}
    client.create_model("gas", recipe)
    client.upload("gas", *clusters(1, n=60))
    begun = datetime.now(UTC)
    minute = [0]
    ready, done = threading.Barrier(4), threading.Barrier(4)

    def schedule() -> None:
        store = deployment.store()
        for _ in range(30):
            ready.wait(60)
            store.clock = lambda: begun + timedelta(minutes=minute[0])
            cycles.enqueue_due(store, Actor("scheduler"))
            done.wait(60)
        store.dispose()

    threads = [threading.Thread(target=schedule) for _ in range(3)]
    for thread in threads:
        thread.start()
    store = deployment.store()
    for _ in range(30):
        minute[0] += 1
        ready.wait(60)
        done.wait(60)
        with store.transaction(ACTOR) as tx:
            tx.ledger.supersede_cycles(tx.ledger.lock_model("gas"), "room for the next")
            tx.audit.append("cycle.superseded", model="gas", parameters={})
    for thread in threads:
        thread.join(60)
    taken = Counter(ticks(store))
    store.dispose()
    tally.add(injected=30, doubled=sum(times - 1 for times in taken.values()), lost=30 - len(taken))
    assert len(taken) == 30
    assert set(taken.values()) == {1}


# -- a worker's clock is set -------------------------------------------------------------------------------------------


def test_a_step_of_the_clock_is_noticed_and_slewing_is_not() -> None:
    seen: list[float] = []
    wall = [1000.0]
    steady = Steady()
    with steps.watched(seen.append, wall=lambda: wall[0] + steady.now, steady=steady):
        for step in (-7200.0, 7200.0, 0.05):
            time.sleep(0.7)
            wall[0] += step
        time.sleep(0.7)
    assert [step for step in seen if step] == [-7200.0, 7200.0]


def test_jobs_go_on_when_the_clock_is_set_back(tmp_path: Path) -> None:
    shop = Shop(f"sqlite:///{tmp_path / 'espalier.db'}", tmp_path)
    shop.migrate()
    store = shop.store()
    shop.create(store, "gas")
    worker = Worker(shop.store(), shop.settings, where=torch.device("cpu"))
    worker._scheduler.start(paused=True)
    for job in worker._scheduler.get_jobs():
        job.modify(next_run_time=datetime.now(UTC) + timedelta(hours=5))
    worker._look_at_clock(-5 * 3600)
    due = {job.id: job.next_run_time - datetime.now(UTC) for job in worker._scheduler.get_jobs()}
    worker._scheduler.shutdown(wait=False)
    for each in shop.stores:
        each.dispose()
    assert due.pop("sweep") > timedelta(minutes=50), "the age of what was just kept cannot be told after a step"
    assert max(due.values()) < timedelta(seconds=1)


def test_a_scheduler_that_sleeps_for_hours_is_woken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at the clock twice to know how long it may sleep; one that is set between the two tells it nonsense."""
    shop = Shop(f"sqlite:///{tmp_path / 'espalier.db'}", tmp_path)
    shop.migrate()
    worker = Worker(shop.store(), shop.settings, where=torch.device("cpu"))
    process = worker._scheduler._process_jobs
    monkeypatch.setattr(worker._scheduler, "_process_jobs", lambda: process() and 5 * 3600.0)
    worker._scheduler.start()
    try:
        until(worker._wake.is_set, what="the first tick")
        overdue = datetime.now(UTC) + timedelta(seconds=1.2)  # later than what is let pass
        until(
            lambda: datetime.now(UTC) > overdue and worker._scheduler.get_job("tick").next_run_time < overdue,
            what="lateness",
        )
        worker._wake.clear()
        assert not worker._wake.wait(1.0), "it sleeps for hours"
        worker._look_at_clock(0.0)
        assert worker._wake.wait(10), "and is woken"
    finally:
        worker._scheduler.shutdown()
        for each in shop.stores:
            each.dispose()


def test_a_long_sleep_is_not_counted_through() -> None:
    """A trigger that goes from one missed run to the next takes minutes for a night of them."""
    trigger, woken = Every(0.05), datetime(2030, 1, 4, tzinfo=UTC)
    slept = datetime(2030, 1, 1, tzinfo=UTC)
    assert trigger.get_next_fire_time(slept, woken) == woken + timedelta(seconds=0.05)


LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


@pytest.mark.timeout(300)
@pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime (Debian: apt-get install faketime)")
@pytest.mark.parametrize("step", ["+5h", "-5h"])
def test_a_workers_clock_is_set_in_the_middle_of_a_cycle(step: str, on_each_database: Deployment, tally) -> None:
    deployment = on_each_database
    client = deployment.client(deployment.serve("--no-worker"))
    client.create_model("gas", LONG)
    offset = deployment.folder / "faketime"
    set_clock(offset, "+0")
    faked = under_faketime(deployment, offset)
    until(lambda: "is ready on" in faked.text, what="a worker's start")
    other = deployment.work()  # by the true clock, and willing to take over
    cycle = client.upload("gas", *clusters(1, n=1200)).cycle
    assert cycle is not None
    until(lambda: in_training(client, cycle, 0.05), what="the beginning of the cycle")
    set_clock(offset, step)
    until(lambda: "was set by" in faked.text or client.cycle("gas", cycle).version, what="the step's notice")
    assert client.wait_for_cycle("gas", cycle, timeout=90).version == 1
    reclaimed = len(list(client.audit("gas", kind="cycle.reclaimed")))
    tally.add(injected=1)
    assert reclaimed == 0, "a lease was stolen"
    other.ready()
    other.popen.kill()
    other.ended()
    client.upload("gas", *clusters(2), wait=True, timeout=90)  # the one whose clock was set works on
    set_clock(offset, "+0")
    client.upload("gas", *clusters(3), wait=True, timeout=90)
    deployment.is_whole()


def set_clock(offset: Path, to: str) -> None:
    """At once: whoever reads the file finds one or the other."""
    (new := offset.with_suffix(".new")).write_text(f"{to}\n")
    new.rename(offset)


def under_faketime(deployment: Deployment, offset: Path) -> Process:
    log = deployment.folder / "faked.log"
    faked = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }
    with log.open("wb") as file:
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.worker"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=deployment.environment | faked,
            start_new_session=True,
        )
    process = Process(popen, log)
    deployment.processes.append(process)
    return process
