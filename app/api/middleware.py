"""The edge: what every request passes, whatever its path and method.

Knows: request ids, the deployment's key, the access log, who answers from memory, and the last resort when something
unforeseen is raised. Must never know: any route; a route that somebody adds is behind the key without asking for it.

Laws:
    * Every answer bears ``X-Request-Id``, and exactly one line of the access log names it.
    * With a key configured, only ``OPEN_PATHS`` and OPTIONS answer without it.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import ACTOR
from app.api.polling import Polls
from app.api.problems import CROSS_ORIGIN, REQUEST_ID, HttpProblem, problem_response
from app.config import Settings
from app.service.access import check_key

OPEN_PATHS = frozenset({"/livez", "/readyz"})

_SAFE = frozenset({"GET", "HEAD"})
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_LINE = "%s %s %s %.1f ms %s"
_ids = map("{}{:016x}".format, itertools.repeat(os.urandom(8).hex()), itertools.count())
_access = logging.getLogger("app.api.access")
_log = logging.getLogger("app.api")


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings, polls: Polls) -> None:
        self.app = app
        self.settings = settings
        self.polls = polls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name, admit, pass on, log."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = first_of_each(scope["headers"])
        request_id = scope[REQUEST_ID] = request_id_of(headers)
        began, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            scope[ACTOR] = self._admit(scope, headers)
            await (self.polls.find(scope) or self.app)(scope, receive, send_named)
        except Exception as error:
            if (
                status
            ):  # too late for a problem document; the server cuts the connection, so that nobody takes it for whole
                if not isinstance(error, ClientDisconnect):
                    _log.error("request %s failed after its answer had begun", request_id, exc_info=error)
                raise
            await problem_response(error, request_id)(scope, receive, send_named)
        finally:
            if logs_access():
                log_access(scope["method"], quote(scope["path"]), status, time.perf_counter() - began, request_id)

    def _admit(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str:
        """The actor's name.

        Raises:
            KeyRequired: a key is configured and the request does not carry it.
            HttpProblem: 403, a web page of another origin tries to change something on an open service.
        """
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN_PATHS or scope["method"] == "OPTIONS":
            return "anonymous"
        name = check_key(self.settings.api_key, presented_key(headers))
        if self.settings.api_key is None and scope["method"] not in _SAFE:
            _refuse_other_origin(headers)
        return name


def _refuse_other_origin(headers: Mapping[bytes, bytes]) -> None:
    """The one way into an open service for strangers is a browser on the same machine: other origins may not write."""
    origin = headers.get(b"origin")
    if origin is not None and urlsplit(origin.decode("latin-1")).netloc != headers.get(b"host", b"").decode("latin-1"):
        raise HttpProblem(
            CROSS_ORIGIN,
            "a page of another origin may not change anything on a service without a key: set ESPALIER_API_KEY",
        )


def first_of_each(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name; of several with one name the first counts."""
    return dict(reversed(list(headers)))


def presented_key(headers: Mapping[bytes, bytes]) -> str | None:
    """The key that a request carries."""
    scheme, _, presented = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return presented.strip() if scheme.lower() == "bearer" else None


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
