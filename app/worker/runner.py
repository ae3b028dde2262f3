"""Worker: when things happen. APScheduler in the background is the clock, the main thread runs cycles.

Knows: intervals and signals. Must never know: what a cycle does, SQL, HTTP.

Laws:
    * A job that fails is logged and runs again at its next time; no error of the store ends the worker.
    * The scheduler keeps nothing: due times are computed from the database, so any number of workers agree, and a job
      that was late (a laptop asleep, a stopped process) runs once, at once.
    * No clock that is set, on this machine or another, takes a lease from a worker that is alive, or stops a job.
    * ``stop`` is obeyed at the next optimizer step: the running cycle is released with its snapshot.
    * A GPU that has failed for the rest of the process ends the process, before it fails the next model's cycles too.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import FrameType

import torch
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from app.config import Settings
from app.domain import Actor
from app.errors import StoreBusy
from app.service.cycles import enqueue_due
from app.service.lease import Running
from app.service.notary import Notary
from app.service.outcomes import reclaim, sweep
from app.service.removal import sweep_erased
from app.service.retention import retain
from app.service.training import run_next_cycle
from app.service.uploads import sweep_uploads
from app.service.vigil import Vigil
from app.service.webhooks import forget_deliveries
from app.store.database import Store
from app.worker import device, steps
from app.worker.courier import Courier

log = logging.getLogger("espalier.worker")

SCHEDULER = Actor("scheduler")
"""Who asks for the cycles of cron triggers."""

_RENEW_SECONDS = 0.25  # how soon progress is seen; the lease itself is written once in a heartbeat
_POST_SECONDS = 0.5  # how soon a webhook is told
_CRON_SECONDS = 5.0  # cron's grain is a minute
_SWEEP_SECONDS = 3600.0
_SWEEP_FIRST_SECONDS = 60.0  # a worker that has just started has cycles to run first
_SLACK = timedelta(seconds=1)
_LONGEST_WAIT = 1.0  # between two looks at the stop flag while idle
_MOST_TROUBLE_SECONDS = 30.0


class Worker:
    """One worker process: claims cycles one at a time until it is told to stop."""

    def __init__(self, store: Store, settings: Settings, *, where: torch.device) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._running = Running(self.name)
        self._store = store
        self._settings = settings
        self._device = where
        self._wake = threading.Event()
        # A plain flag: a signal handler that sets an Event which the main thread is just waiting for can deadlock.
        self._stopping = False
        self._vigil = Vigil(settings)
        self._courier = Courier(store, settings, self.name)
        self._scheduler = self._clock()
        self.broken = False
        """Whether it stopped because its device no longer answers."""

    def run(self) -> None:
        """Run cycles until ``stop``. Must be called in the main thread."""
        self._scheduler.start()
        try:
            with steps.watched(self._look_at_clock):
                while not self._stopping:
                    if self._wake.wait(_LONGEST_WAIT):
                        self._wake.clear()
                        self._run_queued()
        finally:
            # Reclaims, sweeps and deliveries can be cut anywhere; leaving does not wait for them.
            self._courier.close()
            self._scheduler.shutdown(wait=False)

    def stop(self) -> None:
        """Stop as soon as the running cycle has been released. Safe in signal handlers and from any thread."""
        if not self._stopping:
            self._stopping = True
            self._running.stop()

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT stop the worker; asked twice, it still leaves in order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop()

    # -- cycles: the main thread ---------------------------------------------------------------------------------------

    def _run_queued(self) -> None:
        """Cycle after cycle, until none waits. A store that is in trouble is left alone for longer and longer."""
        trouble = 0.0
        while not self._stopping:
            try:
                if not self._run_one():
                    return
                trouble = 0.0
            except StoreBusy as busy:
                log.warning("the database is busy; trying again: %s", busy)
                return  # the next tick is soon enough
            except Exception:
                trouble = min(2 * trouble + 1, _MOST_TROUBLE_SECONDS)
                log.exception("could not run a cycle; trying again in %.0f s", trouble)
                self._rest(trouble)

    def _run_one(self) -> bool:
        cycle = run_next_cycle(self._store, self._settings, running=self._running, device=self._device)
        if cycle is None:
            return False
        outcome = f", version {cycle.version}" if cycle.version is not None else ""
        reason = f": {cycle.reason}" if cycle.reason else ""
        log.info("cycle %d of %s: %s%s%s", cycle.number, cycle.model, cycle.state, outcome, reason)
        if cycle.version is None and not device.answers(self._device):
            log.critical("%s no longer answers: this process leaves, a fresh one may find it well again", self._device)
            self.broken = True
            self.stop()
        return True

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            time.sleep(min(_LONGEST_WAIT, seconds))

    # -- the clock: a background thread --------------------------------------------------------------------------------

    def _clock(self) -> BackgroundScheduler:
        scheduler = BackgroundScheduler(
            timezone=UTC,
            # None: a job that is late by any time still runs, once. Each looks at the database for what is due.
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        settings = self._settings
        jobs: list[tuple[str, Callable[[], None], float, float]] = [
            ("tick", self._wake.set, settings.tick_seconds, 0.0),
            ("heartbeat", self._heartbeat, min(_RENEW_SECONDS, settings.heartbeat_seconds), 0.0),
            ("reclaim", self._reclaim, settings.heartbeat_seconds, 0.0),
            ("webhooks", self._courier.look, _POST_SECONDS, 0.0),
            ("cron", self._enqueue_due, _CRON_SECONDS, 0.0),
            ("sweep", self._sweep, _SWEEP_SECONDS, _SWEEP_FIRST_SECONDS),
        ]
        for name, job, every, first in jobs:
            start = datetime.now(UTC) + timedelta(seconds=first)
            scheduler.add_job(_logged(name, job), Every(every), id=name, next_run_time=start)
        return scheduler

    def _look_at_clock(self, seconds: float) -> None:
        """Bring jobs back whose next time lies too far ahead: a clock that was set back would hold them up until then.

        And wake the scheduler where one is late: how long it sleeps is told by two looks at the clock, which may have
        been set between them.

        A sweep waits for its whole interval after a step, since the age of what was just kept cannot be told any more.

        Args:
            seconds: that the clock was set by since the last look.
        """
        now = datetime.now(UTC)
        if seconds:
            log.warning("the clock of this machine was set by %+.1f s", seconds)
            self._scheduler.modify_job("sweep", next_run_time=now + timedelta(seconds=_SWEEP_SECONDS))
        jobs = self._scheduler.get_jobs()
        for job in jobs:
            if job.next_run_time > now + job.trigger.interval + _SLACK:
                job.modify(next_run_time=now)
        if any(job.next_run_time < now - _SLACK for job in jobs):
            self._scheduler.wakeup()

    def _heartbeat(self) -> None:
        self._running.renew(self._store, self._settings)

    def _reclaim(self) -> None:
        for cycle in reclaim(self._store, self._settings, self._running.actor, self._vigil.silent):
            log.warning("cycle %d of %s had no heartbeat; it is queued again", cycle.number, cycle.model)
            self._wake.set()

    def _enqueue_due(self) -> None:
        for cycle in enqueue_due(self._store, SCHEDULER):
            log.info("cycle %d of %s is due by its cron trigger", cycle.number, cycle.model)
            self._wake.set()

    def _sweep(self) -> None:
        Notary(self._store, self._settings).tidy()
        given_up_uploads = sweep_uploads(self._store, self._settings)
        if given_up_uploads:
            log.info("gave up or forgot %d uploads", given_up_uploads)
        erased = sweep_erased(self._store, self._running.actor)
        if erased:
            log.info("removed %d blobs of erased values that an erasure had left behind", erased)
        given_up = retain(self._store, self._settings, self._running.actor)
        if given_up:
            log.info("retention gave up the bytes of %d versions", given_up)
        forgotten = forget_deliveries(self._store, self._running.actor)
        if forgotten:
            log.info("forgot %d old deliveries of webhooks", forgotten)
        swept = sweep(self._store, self._settings, self._running.actor)
        if swept:
            log.info("swept %d orphaned blobs", swept)


class Every(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """So many seconds after each run.

    APScheduler's own intervals are counted from the run before, one by one: after a night's sleep of a laptop, or a
    step of its clock, that is minutes of counting in which no job runs, the heartbeat of a lease included.
    """

    def __init__(self, seconds: float) -> None:
        self.interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """The interval after now, whenever the run before was."""
        return now + self.interval


def _logged(name: str, job: Callable[[], None]) -> Callable[[], None]:
    """A job whose errors are logged: its next time is its retry."""

    def run() -> None:
        try:
            job()
        except StoreBusy as busy:
            log.warning("%s: the database is busy; trying again at its next time: %s", name, busy)
        except Exception:
            log.exception("%s failed; trying again at its next time", name)

    return run
