"""Polling: answers that are asked for again and again, from memory, and waiting for the next one.

Knows: what was last answered at an address, since when that holds, and who waits for it to change (RFC 7240's
``Prefer: wait``). Must never know: how a version is found; the route says that, and says it the same way when memory
needs it again.

Laws:
    * What is remembered is what the route answered: same status, headers and body.
    * Nothing that was changed before the last look of the feed is answered from memory, and nothing at all once that
      look is ``TRUSTED_SECONDS`` old: then the route asks the database, and says 503 when it cannot.
    * A poll from memory touches neither the database nor a thread. One that waits holds a future and a task.
    * At most ``most`` addresses and ``MOST_BYTES`` are remembered; those that nobody asks for give way.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.guard import expect_standing
from app.api.representations import Representation
from app.api.scopes import NEEDS
from app.domain import AuditEntry
from app.domain import Scope as KeyScope
from app.errors import StoreBusy

TRUSTED_SECONDS = 2.0
"""How long after the last look at the database memory may still answer."""

MOST_BYTES = 64 * 1024 * 1024
"""Bytes of bodies that memory holds."""

_WAIT = re.compile(r'(?:^|[,\s])wait\s*=\s*"?([0-9]{1,6})"?\s*(?:$|[,;])', re.IGNORECASE)
_SAFE = ("GET", "HEAD")
_log = logging.getLogger("app.api")


class Looked(Protocol):
    """Whoever keeps memory in step with the database."""

    looked_at: float

    def look(self) -> None:
        """Read what was changed."""


@dataclass(eq=False, slots=True)
class Entry:
    """One address.

    Attributes:
        model: whose changes concern it; a key must be for it.
        needs: the scope that a key must have.
        load: reads it from the database, as its route does.
        follows: whether it can come to mean something else; what cannot is forgotten with any change, not read anew.
        now: what it answers; None when memory lost it.
        asked: since the last time that room was needed.
        waiting: who waits for ``now`` to change.
    """

    model: str
    needs: KeyScope
    load: Callable[[], Representation]
    follows: bool
    now: Representation | None = None
    asked: bool = False
    waiting: set[asyncio.Future[None]] = field(default_factory=set)


class Polls:
    """What one process remembers of the addresses that are polled."""

    def __init__(self, *, most: int, longest_wait: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Remember nothing yet.

        Args:
            most: addresses that are remembered; 0 remembers none, and every poll reads the database.
            longest_wait: seconds that a poll may wait for a change.
            clock: seconds that only grow; the feed's.
        """
        self._most, self._longest_wait, self._clock = most, longest_wait, clock
        self._entries: dict[str, Entry] = {}
        self._bytes = 0
        self._changes = 0
        self._lock = threading.Lock()
        self._feed: Looked | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving = False

    def start(self, feed: Looked) -> None:
        """Begin to answer, in the running event loop, as long as this feed looks."""
        self._feed, self._loop, self._leaving = feed, asyncio.get_running_loop(), False

    def catch_up(self) -> None:
        """Know what another answer of this process says already. While the database cannot be read, nothing is."""
        assert self._feed is not None
        try:
            self._feed.look()
        except StoreBusy as busy:
            _log.warning("polls could not catch up: %s", busy)

    def leave(self) -> None:
        """Answer everybody who waits, and let nobody wait any more. From any thread, and from signal handlers."""
        self._leaving = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake_all)

    # -- asking --------------------------------------------------------------------------------------------------------

    def find(self, scope: Scope) -> Polled | None:
        """What answers this request from memory, if anything does."""
        entry = self._entries.get(scope["path"])
        if entry is None or scope["query_string"] or scope["method"] not in _SAFE:
            return None
        now = self._answer_of(entry)
        return None if now is None else Polled(self, entry, now)

    def at(self, path: str) -> Entry | None:
        """What is answered at this address from memory, if anything is."""
        entry = self._entries.get(path)
        return None if entry is None or self._answer_of(entry) is None else entry

    def _answer_of(self, entry: Entry) -> Representation | None:
        entry.asked = True
        return entry.now if self.trusted else None

    @property
    def trusted(self) -> bool:
        """Whether the last look at the database is young enough."""
        return self._feed is not None and self._clock() - self._feed.looked_at < TRUSTED_SECONDS

    def read(self, request: Request, model: str, load: Callable[[], Representation], *, follows: bool) -> Response:
        """The route's answer: read from the database, and remembered.

        Args:
            request: a GET or HEAD.
            model: whose changes concern the answer.
            load: reads it; called again, from other threads, when the model changes.
            follows: whether the address can come to mean something else.
        """
        changes = self._changes
        now = load()
        needs = request.scope.get(NEEDS)
        if request.scope["query_string"] or not self.trusted or not isinstance(needs, KeyScope):
            return now.answer(request)
        entry = self._remember(request.scope["path"], Entry(model, needs, load, follows), now, changes)
        return now.answer(request) if entry is None else Polled(self, entry, now)

    async def moved(self, entry: Entry, seconds: int, receive: Receive) -> bool:
        """Wait until an address answers something else, the time is over, or the service is left.

        Returns:
            False when the caller went away meanwhile.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        caller = asyncio.ensure_future(_gone(receive, future))
        entry.waiting.add(future)
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            pass
        finally:
            entry.waiting.discard(future)
            left = caller.done()
            caller.cancel()
        return not left

    def present(self, entry: Entry) -> Representation:
        """What an address answers now.

        Raises:
            StoreBusy: the database could not be looked at lately.
        """
        if entry.now is None or not self.trusted:
            raise StoreBusy("the database cannot be looked at: try again")
        return entry.now

    def wait_of(self, prefer: str) -> int:
        """Seconds that a Prefer header asks to wait, as far as is granted; 0: not at all."""
        asked = _WAIT.search(prefer)
        return 0 if asked is None or self._leaving else min(int(asked[1]), self._longest_wait)

    # -- keeping up (a ``Listener`` of the feed) -----------------------------------------------------------------------

    def follow(self, entries: Sequence[AuditEntry]) -> None:
        """Read again what these changes may concern."""
        models = {entry.model for entry in entries}
        with self._lock:
            self._changes += 1
            self._renew([path for path, entry in self._entries.items() if entry.model in models])

    def lose(self) -> None:
        """Read everything again."""
        with self._lock:
            self._changes += 1
            self._renew(list(self._entries))

    def _renew(self, paths: Iterable[str]) -> None:
        for path in paths:
            entry = self._entries[path]
            before = entry.now
            self._put(entry, self._again(path, entry))
            if entry.now is None:
                del self._entries[path]
            if (entry.now and entry.now.etag) != (before and before.etag) and self._loop is not None:
                self._loop.call_soon_threadsafe(_wake, entry)

    def _again(self, path: str, entry: Entry) -> Representation | None:
        if not (entry.follows or entry.waiting):
            return None
        try:
            return entry.load()
        except Exception as error:
            _log.warning("%s is no longer answered from memory: %s", path, error)
            return None

    def _remember(self, path: str, entry: Entry, now: Representation, changes: int) -> Entry | None:
        """Keep an entry, unless something was changed since it was read; the one that is kept and answers the same."""
        with self._lock:
            if changes != self._changes:
                return None
            if (known := self._entries.get(path)) is not None:
                # Another one, read at the same time: which of them is older, the feed's next look shows.
                return known if known.now is not None and known.now.etag == now.etag else None
            while len(self._entries) >= self._most or self._bytes + len(now.body) > MOST_BYTES:
                if not self._make_room():
                    return None
            self._entries[path] = entry
            self._put(entry, now)
            return entry

    def _put(self, entry: Entry, now: Representation | None) -> None:
        self._bytes += len(now.body if now else b"") - len(entry.now.body if entry.now else b"")
        entry.now = now

    def _make_room(self) -> bool:
        """Forget one address that nobody waits at, and nobody asked for since the last time round."""
        for _ in range(2 * len(self._entries)):
            path = next(iter(self._entries))
            entry = self._entries.pop(path)
            if not entry.asked and not entry.waiting:
                self._put(entry, None)
                return True
            entry.asked = False
            self._entries[path] = entry
        return False

    def _wake_all(self) -> None:
        for entry in list(self._entries.values()):
            _wake(entry)


class Polled(Response):
    """An answer from memory: at once, or once there is another one than the caller holds."""

    def __init__(self, polls: Polls, entry: Entry, now: Representation) -> None:
        self._polls, self._entry, self._now = polls, entry, now
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            StoreBusy: the wait is over, and the database could not be looked at meanwhile.
            KeyRequired: the caller's key ended while they waited.
        """
        held = prefer = b""
        for name, value in scope["headers"]:
            if name == b"if-none-match":
                held = held + b", " + value if held else value
            elif name == b"prefer":
                prefer = prefer + b", " + value if prefer else value
        now = self._now
        unchanged = bool(held) and now.is_held(held)
        seconds = self._polls.wait_of(prefer.decode("latin-1")) if prefer else 0
        if seconds and unchanged:
            if not await self._polls.moved(self._entry, seconds, receive):
                return
            expect_standing(scope)
            now = self._polls.present(self._entry)
            unchanged = now.is_held(held)
        headers = [*(now.unchanged if unchanged else now.whole)]
        if seconds:
            headers.append((b"preference-applied", b"wait=%d" % seconds))
        await send({"type": "http.response.start", "status": 304 if unchanged else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if unchanged else now.body})


async def _gone(receive: Receive, future: asyncio.Future[None]) -> None:
    """Wait until the caller hangs up; then nobody needs the answer."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not future.done():
        future.set_result(None)


def _wake(entry: Entry) -> None:
    for future in entry.waiting:
        if not future.done():
            future.set_result(None)
