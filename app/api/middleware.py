"""The edge: what every request passes, whatever its path and method.

Knows: request ids, what a request shows of who sent it, the access log, who answers from memory, and the last resort
when something unforeseen is raised. Must never know: any route; ``guard`` does, and lets nobody on to one that its
table does not name.

Laws:
    * Every answer bears ``X-Request-Id`` and the headers of ``headers``, and exactly one line of the access log names
      it. No line holds a key.
    * Who asks is settled before a byte of the body is read: 401 without a key that stands, 403 without the right one.
    * Of a header that says one thing there is one: who puts a proxy in front must not see another one than we do.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import ACTOR
from app.api.guard import Guard, Place, asks_upload, check_model, check_scope
from app.api.headers import hardened, is_https
from app.api.origins import Hosts, expect_own_origin, refuse_other_origin
from app.api.polling import Polls
from app.api.problems import MALFORMED_HEADER, REQUEST_ID, HttpProblem
from app.api.scopes import CALLER, NEEDS
from app.api.web.failures import answer_failure
from app.config import Settings
from app.domain import Caller
from app.service.access import session_of
from app.service.credentials import redacted, spellings
from app.service.keyring import Keyring
from app.service.uploads import get_upload
from app.store.database import Store

COOKIE = "espalier-session"
ANONYMOUS = Caller("anonymous", frozenset())

_SAFE = frozenset({"GET", "HEAD"})
_SAID_ONCE = frozenset(
    {
        *(b"authorization", b"content-length", b"content-type", b"host", b"if-range", b"last-event-id", b"range"),
        *(b"idempotency-key", b"origin", b"x-http-method-override", b"tus-resumable", b"upload-checksum"),
        *(b"upload-complete", b"upload-defer-length", b"upload-length", b"upload-metadata", b"upload-offset"),
    }
)
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_LINE = "%s %s %s %.1f ms %s"
_ids = map("{}{:016x}".format, itertools.repeat(os.urandom(8).hex()), itertools.count())
_access = logging.getLogger("app.api.access")
_log = logging.getLogger("app.api")


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings, polls: Polls, keyring: Keyring, guard: Guard) -> None:
        self.app = app
        self.polls = polls
        self.keyring = keyring
        self.guard = guard
        self.hosts = Hosts(settings.host)
        self.secret = spellings(settings.api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name, admit, pass on, log."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no routes of any other kind, and none may come past the keys
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = first_of_each(scope["headers"])
        request_id = scope[REQUEST_ID] = request_id_of(headers)
        began, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                kept = hardened(message.get("headers", ()), is_https(scope, headers))
                message["headers"] = [*kept, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if len(headers) < len(scope["headers"]):
                expect_once(scope["headers"])
            caller = scope[CALLER] = await self._admit(scope, headers)
            scope[ACTOR] = caller.name
            await (self.polls.find(scope) or self.app)(scope, receive, send_named)
        except Exception as error:
            if (
                status
            ):  # too late for a problem document; the server cuts the connection, so that nobody takes it for whole
                if not isinstance(error, ClientDisconnect):
                    _log.error("request %s failed after its answer had begun", request_id, exc_info=error)
                raise
            await answer_failure(scope, error)(scope, receive, send_named)
        finally:
            if logs_access():
                path = redacted(quote(scope["path"]), self.secret)
                log_access(scope["method"], path, status, time.perf_counter() - began, request_id)

    async def _admit(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Caller:
        """Who asks, once it is clear that they may.

        Raises:
            KeyRequired, ScopeMissing, OtherModel, TooManyRequests: they may not.
            StoreBusy: nobody can tell now.
            HttpProblem: 403 or 421, a page of another origin, or under another name, tries to use what is open here.
        """
        place = self.guard.place(scope)
        scope[NEEDS] = place.needs
        changes = scope["method"] not in _SAFE
        if place.needs is None:
            if changes:
                refuse_other_origin(headers)
            return ANONYMOUS
        presented = presented_key(headers)
        if not self.keyring.ready(presented, address_of(scope)):
            await run_in_threadpool(self.keyring.refresh)
        if self.keyring.open:
            self.hosts.expect(headers.get(b"host"))
            if changes:
                refuse_other_origin(headers)
        caller = await self._caller(scope, headers, presented, changes)
        check_scope(place, caller)
        check_model(place, caller, await self._model_of(scope, place) if asks_upload(place, caller) else place.model)
        return caller

    async def _caller(
        self, scope: Scope, headers: Mapping[bytes, bytes], presented: str | None, changes: bool
    ) -> Caller:
        session = None if presented is not None or self.keyring.open else presented_session(headers)
        if session is None:
            return self.keyring.admit(presented, address_of(scope))
        store: Store = scope["app"].state.store
        caller = await run_in_threadpool(session_of, store, self.keyring, session)
        if changes:
            expect_own_origin(headers)
        return caller

    async def _model_of(self, scope: Scope, place: Place) -> str:
        store: Store = scope["app"].state.store
        found = await run_in_threadpool(get_upload, store, place.upload or "")
        return found.model


def first_of_each(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name; of several with one name the first counts."""
    return dict(reversed(list(headers)))


def expect_once(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse several of a header that says one thing (RFC 9110, section 5.3).

    Raises:
        HttpProblem: 400.
    """
    names = Counter(name for name, _ in headers)
    if repeated := sorted(name.decode("latin-1") for name in names if names[name] > 1 and name in _SAID_ONCE):
        told = ", ".join(repeated)
        raise HttpProblem(MALFORMED_HEADER, f"the request has several headers of one name: send {told} once")


def presented_key(headers: Mapping[bytes, bytes]) -> str | None:
    """The key that a request carries."""
    scheme, _, presented = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return presented.strip() if scheme.lower() == "bearer" else None


def presented_session(headers: Mapping[bytes, bytes]) -> str | None:
    """The session that a browser brings along."""
    cookies = headers.get(b"cookie")
    return None if cookies is None else cookie_parser(cookies.decode("latin-1")).get(COOKIE)


def address_of(scope: Scope) -> str:
    """The address that a request comes from; of a proxy's clients, where the server trusts the proxy."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The request's own id, if it is a sane one, or a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _SANE_ID.fullmatch(text := given.decode("latin-1")):
        return text
    return next(_ids)


def logs_access() -> bool:
    """Whether anybody reads the access log."""
    return _access.isEnabledFor(logging.INFO)


def log_access(method: str, path: str, status: int, seconds: float, request_id: str) -> None:
    """Write one line of the access log."""
    values = (method, path, status or "-", 1000 * seconds, request_id)
    # A record made by hand: where in the code it was made is known, and looking for it costs more than the rest.
    _access.handle(_access.makeRecord(_access.name, logging.INFO, __file__, 0, _LINE, values, None))
