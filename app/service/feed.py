"""Feed: what was changed, told to whoever listens in this process, by whichever process it was changed.

Knows: the audit log as a sequence that only grows, and when this process last looked at it. Must never know: HTTP, or
what a listener does with an entry.

Laws:
    * One thread a process looks; listeners are told every entry once, in the log's order, by one thread at a time.
    * What this process itself commits has been told before ``Store.transaction()`` is left.
    * While nothing is changed, a look is one read of one row. Nothing is ever written.
    * A look that fails moves nothing: the next one goes on from the same entry.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from app.domain import AuditEntry, LogHead
from app.store.database import Store

_PAGE = 500
_log = logging.getLogger("app.service.feed")


class Listener(Protocol):
    """Something that keeps up with the log."""

    def follow(self, entries: Sequence[AuditEntry]) -> None:
        """Take in the next entries. Must not raise."""

    def lose(self) -> None:
        """The log is another one than was followed, as after a restored backup: nothing that was seen holds."""


class Feed:
    """Follows the log of one store.

    Attributes:
        looked_at: when the last look that succeeded began, by ``clock``.
    """

    def __init__(
        self, store: Store, listeners: Sequence[Listener], *, every: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin at the present end of the log.

        Args:
            store: whose log.
            listeners: told in this order.
            every: seconds between two looks.
            clock: seconds that only grow.

        Raises:
            StoreBusy: the log cannot be read.
        """
        self._store, self._listeners, self._every, self._clock = store, tuple(listeners), every, clock
        self._turn = threading.Lock()
        self._leaving = threading.Event()
        self._failing = False
        self.looked_at = clock()
        self._head = self._present_head()
        store.on_commit(self._committed)

    @property
    def seen(self) -> int:
        """Number of the last entry that listeners were told."""
        return self._head.size

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look again and again, from a thread of its own."""
        thread = threading.Thread(target=self._run, name="feed", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._leaving.set()
            thread.join(2 * self._every + 1)

    def look(self) -> None:
        """Tell listeners what was changed since the last look.

        Raises:
            StoreBusy: the log cannot be read; nothing was told.
        """
        with self._turn:
            began = self._clock()
            head = self._present_head()
            if head.size < self._head.size or (head.size == self._head.size and head.root != self._head.root):
                self._head = head
                for listener in self._listeners:
                    listener.lose()
            while self._head.size < head.size:
                self._head = self._tell(head)
            self.looked_at = began

    def _tell(self, head: LogHead) -> LogHead:
        """Tell one page of entries; where that leaves off."""
        with self._store.reading() as tx:
            entries = tx.audit.entries(None, self._head.size, min(_PAGE, head.size - self._head.size)).items
        for listener in self._listeners:
            listener.follow(entries)
        # Within a burst the root is not known before its end, and is not looked at.
        return head if not entries or entries[-1].seq >= head.size else LogHead(entries[-1].seq, "")

    def _present_head(self) -> LogHead:
        with self._store.reading() as tx:
            return tx.audit.head()

    def _committed(self) -> None:
        """After a commit of this process. The change is made: whatever goes wrong here must not undo the answer."""
        try:
            self.look()
        except Exception as error:
            self.looked_at = -float("inf")  # nothing is answered from memory until a look succeeds
            _log.warning("the change was committed, but could not be read back: %s", error)

    def _run(self) -> None:
        while not self._leaving.wait(self._every):
            try:
                self.look()
            except Exception as error:  # the thread must outlive every state of the database
                if not self._failing:
                    _log.warning("cannot follow the log: %s; trying on", error)
                self._failing = True
            else:
                self._failing = False
