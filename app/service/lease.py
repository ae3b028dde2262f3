"""Lease: holding a claimed cycle while the device works.

Knows: how a claim is kept alive, how a stop or a lost lease reaches the running cycle, when a snapshot is kept. Must
never know: what the cycle computes, torch, HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from app import crash
from app.config import Settings
from app.domain import Actor, Claim, Digest, Phase, Progress
from app.errors import LeaseLost, StoreBusy, Unavailable
from app.store.database import Store

log = logging.getLogger(__name__)
T = TypeVar("T")

_POINTS = 60
"""Points of the curve of the training loss that a running cycle shows."""

_BUSY_WAITS = (0.1, 0.3, 1.0, 3.0)
"""Seconds between tries when the database is busy with another writer."""


class Stopped(Exception):
    """The worker was asked to stop; the cycle goes back to the queue with its snapshot."""


class Running:
    """What a worker is doing now, shared by the thread that runs cycles and the one that keeps the lease."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.actor = Actor(f"worker:{worker}")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._claim: Claim | None = None
        self._progress: Progress | None = None
        self._written: Progress | None = None
        self._due = 0.0

    @property
    def stopping(self) -> bool:
        """True once ``stop`` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the running cycle to be released at its next step. Safe in a signal handler."""
        self._stop.set()

    def begin(self, claim: Claim) -> None:
        """From now on ``renew`` keeps this claim."""
        with self._lock:
            self._claim, self._progress, self._written, self._due = claim, None, None, 0.0
            self._lost.clear()

    def end(self) -> None:
        """There is no claim to keep any more."""
        with self._lock:
            self._claim = None

    def at(self, progress: Progress) -> None:
        """Note where the cycle is.

        Raises:
            Stopped, LeaseLost: the cycle must not go on.
        """
        self._progress = progress
        if self._lost.is_set():
            raise LeaseLost("the cycle is no longer this worker's: it was superseded, or its lease ran out")
        if self._stop.is_set():
            raise Stopped

    def renew(self, store: Store, settings: Settings) -> None:
        """Show that the worker is alive; extend its lease and show progress. Called often, from another thread."""
        with self._lock:
            claim, progress = self._claim, self._progress
            due = time.monotonic() >= self._due
            if not due and (claim is None or progress == self._written):
                return
            try:
                with store.transaction(self.actor) as tx:
                    if due:
                        tx.ledger.beat(self.worker)
                    if claim is not None:
                        tx.ledger.renew(claim, progress, settings.lease_seconds)
            except LeaseLost as lost:
                log.warning("the lease is lost: %s", lost)
                self._claim = None
                self._lost.set()
                return
            self._written = progress
            if due:
                self._due = time.monotonic() + settings.heartbeat_seconds


@dataclass(slots=True)
class _Curve:
    """The training loss, as means of equal runs of steps: a curve of at most ``_POINTS`` points."""

    means: list[float] = field(default_factory=list)
    _sum: float = 0.0
    _count: int = 0
    _step: int = -1

    def at(self, progress: Progress) -> tuple[float, ...]:
        """The curve, this step included."""
        if progress.loss is not None and progress.step != self._step:
            self._step = progress.step
            self._sum, self._count = self._sum + progress.loss, self._count + 1
            if self._count >= max(1, progress.steps // _POINTS):
                self.means = [*self.means, round(self._sum / self._count, 5)][-_POINTS:]
                self._sum, self._count = 0.0, 0
        return tuple(self.means)


@dataclass(slots=True)
class Watch:
    """Listens to a cycle: shows progress, keeps snapshots, measures phases."""

    store: Store
    settings: Settings
    running: Running
    claim: Claim
    snapshot: Digest | None
    seconds: dict[Phase, float] = field(default_factory=dict)
    _phase: Phase | None = None
    _last: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)
    _curve: _Curve = field(default_factory=_Curve)

    def __call__(self, progress: Progress, snapshot: Callable[[], bytes]) -> None:
        """Take note of a step; stop the cycle where it must not go on.

        Raises:
            Stopped, LeaseLost: see ``Running.at``.
        """
        self._measure(progress.phase)
        try:
            self.running.at(replace(progress, losses=self._curve.at(progress)))
        except Stopped:
            self._try_save(snapshot)
            raise
        if time.monotonic() - self._saved >= self.settings.snapshot_seconds:
            self._try_save(snapshot)

    def finish(self) -> dict[Phase, float]:
        """Seconds by phase."""
        self._measure(self._phase or Phase.JUDGE)
        return self.seconds

    def discard(self) -> None:
        """Remove the last snapshot, once the cycle has ended and nobody will go on from it."""
        if self.snapshot is not None:
            self.store.blobs.discard(self.snapshot)

    def _measure(self, phase: Phase) -> None:
        now = time.monotonic()
        if self._phase is not None:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._last
        self._phase, self._last = phase, now

    def _try_save(self, snapshot: Callable[[], bytes]) -> None:
        """A cycle does not fail for want of a snapshot: should it be killed, it goes on from an earlier one."""
        try:
            self._save(snapshot)
        except Unavailable as trouble:
            log.warning("cycle %d of %s: no snapshot: %s", self.claim.cycle.number, self.claim.model.name, trouble)
        self._saved = time.monotonic()

    def _save(self, snapshot: Callable[[], bytes]) -> None:
        """Blob first, then the lease's pointer, then the blob that it pointed to before goes."""
        before, saved = self.snapshot, self.store.blobs.put(snapshot())

        def attach() -> None:
            with self.store.transaction(self.running.actor) as tx:
                tx.ledger.attach_snapshot(self.claim, saved)

        try:
            retrying(attach)
        except LeaseLost:
            self.store.blobs.discard(saved)  # nobody will go on from it, and what it was trained on may be erased
            raise
        crash.point("cycle.snapshot")
        self.snapshot = saved
        if before is not None and before != saved:
            self.store.blobs.discard(before)


def retrying(action: Callable[[], T]) -> T:
    """Try again while the database is busy with another writer."""
    for wait in _BUSY_WAITS:
        try:
            return action()
        except StoreBusy:
            time.sleep(wait)
    return action()
