"""Courier: sends to webhooks, from threads of its own.

Knows: which webhooks have something waiting, and how long others have held their turns. Must never know: what follows
from an answer, or SQL.

Laws:
    * A receiver that hangs holds up one thread until the deadline of its request, and neither a cycle nor a job nor
      another webhook.
    * A turn whose holder is silent for longer than any request takes is taken over; silence is what this process has
      seen itself, by a clock that nobody sets.
    * While nothing happens, a look is three reads. Nothing is written.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Protocol

from app.config import Settings
from app.errors import StoreBusy
from app.service import deliveries
from app.service.deliveries import Answer, Errand
from app.store.database import Store
from app.store.webhooks import Turn
from app.worker.post import DEADLINE_SECONDS, post

log = logging.getLogger("espalier.worker")

THREADS = 16
SILENT_SECONDS = 3 * DEADLINE_SECONDS
_MOST_IN_A_TURN = 50
_SETTLE_TRIES = 5


class Send(Protocol):
    """How something is sent."""

    def __call__(self, url: str, body: bytes, headers: Mapping[str, str], /) -> Answer:
        """Send it, once, within ``DEADLINE_SECONDS``."""


class Courier:
    """Sends what is waiting, whenever ``look`` is called."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        name: str,
        *,
        send: Send | None = None,
        silent: float = SILENT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Have seen nothing yet.

        Args:
            store: whose webhooks.
            settings: which networks they may lead to.
            name: of this worker.
            send: how something is sent; None: over the network.
            silent: seconds after which a turn is taken from whoever holds it.
            clock: seconds that only grow.
        """
        allowed = settings.webhook_networks
        self._store, self._name, self._silent, self._clock = store, name, silent, clock
        self._send: Send = send or (lambda url, body, headers: post(url, body, headers, allowed=allowed))
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="courier")
        self._guard = threading.Lock()
        self._busy: set[int] = set()
        self._news: set[int] = set()
        self._seen: dict[tuple[int, datetime], int] = {}
        self._held: dict[int, tuple[int, float]] = {}
        self._leaving = threading.Event()

    def look(self) -> None:
        """Begin to send what is waiting.

        Raises:
            StoreBusy: the database cannot be read; the next look finds it.
        """
        turns, head = deliveries.waiting(self._store)
        self._look_for_news(turns, head)
        for turn in turns:
            if self._is_free(turn) and self._has_work(turn):
                self._begin(turn)

    def close(self) -> None:
        """Begin nothing more. What is being sent is not waited for."""
        self._leaving.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _look_for_news(self, turns: list[Turn], head: int) -> None:
        """Find out for whom something came since the last look; a webhook that was changed is looked at once more."""
        enabled = {turn.webhook.id: turn.webhook for turn in turns if turn.webhook.enabled}
        before = {id: self._seen.get((id, webhook.changed_at), -1) for id, webhook in enabled.items()}
        for start in {seen for seen in before.values() if 0 <= seen < head}:
            asked = [enabled[id] for id, seen in before.items() if seen == start]
            self._tell(deliveries.news(self._store, start, head, asked))
        # What was not looked at before may be behind by any number of entries; so may a log that became shorter.
        self._tell({id for id, seen in before.items() if seen < 0 or seen > head})
        self._seen = {(id, webhook.changed_at): head for id, webhook in enabled.items()}

    def _tell(self, ids: set[int]) -> None:
        with self._guard:
            self._news |= ids

    def _is_free(self, turn: Turn) -> bool:
        """Whether nobody sends to a webhook, as far as this process has seen."""
        id = turn.webhook.id
        if turn.holder is None:
            self._held.pop(id, None)
        elif self._held.get(id, (-1, 0.0))[0] != turn.token:
            self._held[id] = turn.token, self._clock()
        with self._guard:
            if id in self._busy:
                return False
        return turn.holder is None or self._clock() - self._held[id][1] >= self._silent

    def _has_work(self, turn: Turn) -> bool:
        with self._guard:
            return turn.due or turn.holder is not None or (turn.webhook.enabled and turn.webhook.id in self._news)

    def _begin(self, turn: Turn) -> None:
        with self._guard:
            self._busy.add(turn.webhook.id)
            self._news.discard(turn.webhook.id)
        self._pool.submit(self._run, turn)

    def _run(self, turn: Turn) -> None:
        id = turn.webhook.id
        try:
            self._serve(turn)
        except StoreBusy as busy:
            log.warning("webhook %d: the database is busy; trying again: %s", id, busy)
            self._tell({id})
        except Exception:
            log.exception("webhook %d: sending failed; trying again", id)
            self._tell({id})
        finally:
            with self._guard:
                self._busy.discard(id)

    def _serve(self, turn: Turn) -> None:
        """Send one thing after another, until there is nothing more or others have waited long enough."""
        asked = self._clock()
        errand = deliveries.begin(self._store, turn, self._name)
        for left in range(_MOST_IN_A_TURN - 1, -1, -1):
            if errand is None:
                return
            if self._clock() - asked > self._silent / 2:
                return  # this process was stopped meanwhile: somebody else may be sending it by now
            answer = self._send(errand.webhook.url, errand.body, errand.headers)
            if answer.error is not None:
                log.info("webhook %d: %s", errand.webhook.id, answer.error)
            asked = self._clock()
            errand = self._settle(errand, answer, left > 0 and not self._leaving.is_set())
        self._tell({turn.webhook.id})

    def _settle(self, errand: Errand, answer: Answer, go_on: bool) -> Errand | None:
        """Write down how it went, trying for as long as the turn is surely still this worker's."""
        for _ in range(_SETTLE_TRIES - 1):
            try:
                return deliveries.settle(self._store, errand, answer, self._name, roll=random.random(), go_on=go_on)
            except StoreBusy as busy:
                log.warning("webhook %d: the database is busy; trying again: %s", errand.webhook.id, busy)
                if self._leaving.wait(0.2):
                    break
        return deliveries.settle(self._store, errand, answer, self._name, roll=random.random(), go_on=go_on)
