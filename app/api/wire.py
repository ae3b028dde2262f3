"""The wire: polls answered where their bytes come in, before there is a request.

Knows: uvicorn's connection (httptools), and which requests are nothing but a poll. Must never know: what is polled.

Laws:
    * What is answered here is what the application would have answered: same status, headers and body, behind the same
      key, with its request id, and in the access log.
    * What is more than a plain GET of an address that memory knows goes to the application: other methods, queries,
      bodies, preferences, refused keys, closing connections, HTTP/1.0.
    * A caller that takes nothing of its answer any more does not hold up a service that is asked to stop.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.headers import ALWAYS, POLICY, STRICT_TRANSPORT, forwarded_https
from app.api.middleware import first_of_each, log_access, logs_access, presented_key, request_id_of
from app.api.origins import Hosts
from app.api.polling import Entry, Polls
from app.service.keyring import Keyring

SHORTCUT = "espalier.shortcut"
"""Where the application leaves its ``Shortcut`` in the state of its lifespan."""

_HARDENED = b"".join(b"%s: %s\r\n" % header for header in (*ALWAYS, POLICY))
_STRICT = b"%s: %s\r\n" % STRICT_TRANSPORT
_STUCK_SECONDS = 1.0
_MORE_THAN_A_POLL = (b"prefer", b"content-length", b"transfer-encoding", b"expect", b"upgrade")


@dataclass(frozen=True, slots=True)
class Shortcut:
    """What a connection needs to answer polls by itself."""

    polls: Polls
    keyring: Keyring
    hosts: Hosts

    def answer(self, path: str, headers: list[tuple[bytes, bytes]], date: bytes) -> bytes | None:
        """The bytes of the answer to a GET; None when the application should give it.

        Args:
            path: as it was sent.
            headers: of the request, names in lower case.
            date: header lines that the server adds to every answer.
        """
        entry = self.polls.at(path)
        if entry is None or (now := entry.now) is None:
            return None
        began = time.perf_counter()
        given = first_of_each(headers)
        # Several headers of one name, which only If-None-Match may have, are put together by the application.
        if len(given) < len(headers) or any(name in given for name in _MORE_THAN_A_POLL):
            return None
        if not self._admits(given, entry):
            return None
        request_id = request_id_of(given)
        held = given.get(b"if-none-match")
        unchanged = held is not None and now.is_held(held)
        lines, body = (now.unchanged_lines, b"") if unchanged else (now.whole_lines, now.body)
        status_line, _, rest = lines.partition(b"\r\n")
        if logs_access():
            log_access("GET", path, 304 if unchanged else 200, time.perf_counter() - began, request_id)
        strict = _STRICT if forwarded_https(given) else b""
        named = (b"x-request-id: ", request_id.encode(), b"\r\n\r\n")
        return b"".join((status_line, b"\r\n", date, rest, _HARDENED, strict, *named, body))

    def _admits(self, given: dict[bytes, bytes], entry: Entry) -> bool:
        """Whether it is beyond doubt that the caller may have this; the application sees to every other case."""
        if self.keyring.open and not self.hosts.fit(given.get(b"host")):
            return False
        caller = self.keyring.quick(presented_key(given))
        return caller is not None and caller.may(entry.needs) and caller.sees(entry.model)


class Wire(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Find out whether this application takes shortcuts."""
        super().connection_made(transport)
        plain = not self.root_path and self.limit_concurrency is None
        self._shortcut: Shortcut | None = self.app_state.get(SHORTCUT) if plain else None
        self._answered = False

    def on_headers_complete(self) -> None:
        """Answer a poll at once, or begin a request."""
        answer = self._polled()
        if answer is None:
            super().on_headers_complete()
        else:
            self._answered = True
            self.transport.write(answer)

    def on_message_complete(self) -> None:
        """End what was begun."""
        if self._answered:
            self._answered = False
            self.on_response_complete()
        else:
            super().on_message_complete()

    def _polled(self) -> bytes | None:
        if self._shortcut is None or self.parser.get_method() != b"GET" or self.flow.write_paused:
            return None
        # None before the first request, whatever its type says.
        if self.cycle is not None and not self.cycle.response_complete:  # type: ignore[redundant-expr]
            return None  # answers go out in the order of requests
        if self.parser.get_http_version() != "1.1" or not self.parser.should_keep_alive():
            return None
        date = b"".join(b"%s: %s\r\n" % header for header in self.server_state.default_headers)
        return self._shortcut.answer(self.url.decode("latin-1"), self.headers, date)

    # -- leaving -------------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Let what is under way finish, as long as its caller goes on taking it."""
        super().shutdown()
        self.loop.call_later(_STUCK_SECONDS, self._cut_if_stuck, self._unsent())

    def _cut_if_stuck(self, before: int) -> None:
        """Cut the connection if nothing of what waits to be sent has gone out since the last look."""
        if self not in self.connections:
            return
        unsent = self._unsent()
        if unsent and unsent == before:
            self.transport.abort()
        else:
            self.loop.call_later(_STUCK_SECONDS, self._cut_if_stuck, unsent)

    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size()
