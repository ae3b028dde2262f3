"""Broadcast: every audit entry, as a server-sent event, to whoever listens.

Knows: how an entry looks in an event stream, and who listens from which entry on. Must never know: what an entry means,
or how it is found.

Laws:
    * A stream holds every entry that it asked for once, in the log's order, from where it began until it ends.
    * A stream that does not keep up is ended; its caller comes back with ``Last-Event-ID`` and misses nothing.
    * A stream that waits holds a task, not a thread, and no database connection.
    * A stream whose key is revoked or expires is told nothing more, and is ended.
    * All are ended when the service is left.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.guard import stands
from app.domain import AuditEntry
from app.service.events import data_of
from app.service.keyring import REVOKED

HEARTBEAT_SECONDS = 15.0
"""A stream that is silent for this long says so, for proxies that cut what is silent."""

MOST_WAITING = 1000
"""Events that a stream may be behind before it is ended."""

RETRY_MILLISECONDS = 2000
_BEAT = b":\n\n"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries a stream is about: of one model or all, of some kinds or all, and of what the caller may see."""

    model: str | None = None
    kinds: frozenset[str] = frozenset()
    seen: frozenset[str] | None = None

    def __contains__(self, entry: AuditEntry) -> bool:
        if self.seen is not None and entry.model not in self.seen:
            return False
        return self.model in (None, entry.model) and (not self.kinds or entry.kind in self.kinds)


class Stream:
    """One caller's place in the broadcast.

    Attributes:
        after: number of the last entry that it was told, or has no use for.
        stands: whether its caller may still see it.
    """

    def __init__(self, wanted: Wanted, after: int, stands: Callable[[], bool]) -> None:
        self.wanted, self.after, self.stands = wanted, after, stands
        self.ended = False
        self._waiting: deque[bytes] = deque()
        self._ready = asyncio.Event()

    def put(self, chunk: bytes) -> None:
        """Give it something to send; one that is too far behind is ended instead."""
        if len(self._waiting) >= MOST_WAITING or not self.stands():
            self.end()
        elif not self.ended:
            self._waiting.append(chunk)
            self._ready.set()

    def beat(self) -> None:
        """Give it a heartbeat, if it has nothing else to send."""
        if not self._waiting:
            self.put(_BEAT)

    def end(self) -> None:
        """End it; what it had not sent yet is forgotten."""
        self.ended = True
        self._waiting.clear()
        self._ready.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What there is to send, as it comes, until the stream is ended."""
        while not self.ended:
            while self._waiting:
                yield self._waiting.popleft()
            self._ready.clear()
            if not self.ended:
                await self._ready.wait()


class Broadcast:
    """Every stream of one process: a ``Listener`` of the feed."""

    def __init__(self) -> None:
        self._streams: set[Stream] = set()
        self._seen = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._leaving = False

    def start(self, seen: int) -> None:
        """Begin, in the running event loop, after this entry of the log."""
        self._loop, self._seen, self._leaving = asyncio.get_running_loop(), seen, False
        self._beat = self._loop.call_later(HEARTBEAT_SECONDS, self._beat_all)

    def leave(self) -> None:
        """End every stream, and begin no other. From any thread, and from signal handlers."""
        self._leaving = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end_all)

    def follow(self, entries: Sequence[AuditEntry]) -> None:
        """Tell these entries to the streams that want them."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._publish, entries)

    def lose(self) -> None:
        """The log is another one: every stream begins again."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end_all)

    @contextmanager
    def listening(self, wanted: Wanted, after: int, stands: Callable[[], bool]) -> Iterator[tuple[Stream, int]]:
        """A stream of what comes, and the number of the last entry that came before it."""
        stream = Stream(wanted, after, stands)
        if self._leaving:
            stream.end()
        self._streams.add(stream)
        try:
            yield stream, self._seen
        finally:
            self._streams.discard(stream)

    def _publish(self, entries: Sequence[AuditEntry]) -> None:
        for entry in entries:
            self._seen = entry.seq
            if entry.kind == REVOKED:
                self._end_revoked()
            streams = [stream for stream in self._streams if entry in stream.wanted and entry.seq > stream.after]
            if streams:
                event = spelled(entry)
                for stream in streams:
                    stream.put(event)

    def _end_revoked(self) -> None:
        for stream in self._streams:
            if not stream.stands():
                stream.end()

    def _beat_all(self) -> None:
        self._end_revoked()
        for stream in self._streams:
            stream.beat()
        if self._loop is not None and not self._leaving:
            self._beat = self._loop.call_later(HEARTBEAT_SECONDS, self._beat_all)

    def _end_all(self) -> None:
        if self._leaving and self._beat is not None:
            self._beat.cancel()
        for stream in self._streams:
            stream.end()


class EventStream(Response):
    """An event stream: what was missed, page by page from the log, then what comes."""

    def __init__(
        self, broadcast: Broadcast, wanted: Wanted, after: int, page: Callable[[int], Sequence[AuditEntry]]
    ) -> None:
        """An answer that goes on.

        Args:
            broadcast: where entries come from.
            wanted: which of them.
            after: number of the last entry that the caller knows.
            page: entries of the log after a number, in order; none at its end.
        """
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(media_type="text/event-stream; charset=utf-8", headers=headers)
        del self.headers["content-length"]
        self._broadcast, self._wanted, self._after, self._page = broadcast, wanted, after, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until the caller goes away, falls behind, or the service is left."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            still = partial(stands, scope)
            with self._broadcast.listening(self._wanted, self._after, still) as (stream, seen):
                caller = asyncio.ensure_future(_gone(receive, stream))
                try:
                    # An event without data is no event, but what it says of its number counts.
                    await _send(send, b"retry: %d\nid: %d\n\n" % (RETRY_MILLISECONDS, self._after))
                    await self._catch_up(send, stream, seen)
                    async for chunk in stream.chunks():
                        await _send(send, chunk)
                finally:
                    caller.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _catch_up(self, send: Send, stream: Stream, seen: int) -> None:
        after = stream.after
        while after < seen and not stream.ended:
            entries = await run_in_threadpool(self._page, after)
            for entry in entries:
                if after < entry.seq <= seen and entry in stream.wanted and not stream.ended:
                    await _send(send, spelled(entry))
            after = entries[-1].seq if entries else seen


def spelled(entry: AuditEntry) -> bytes:
    """An entry as an event: its number, its kind, and what is short of its parameters."""
    text = json.dumps(data_of(entry), ensure_ascii=False, separators=(",", ":"))
    return f"id: {entry.seq}\nevent: {entry.kind}\ndata: {text}\n\n".encode()


async def _send(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _gone(receive: Receive, stream: Stream) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.end()
