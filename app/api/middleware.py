"""The edge: what every request passes, whatever its path and method.

Knows: request ids, the deployment's key, the access log, and the last resort when something unforeseen is raised. Must
never know: any route; a route that somebody adds is behind the key without asking for it.

Laws:
    * Every answer bears ``X-Request-Id``, and exactly one line of the access log names it.
    * With a key configured, only ``OPEN_PATHS`` and OPTIONS answer without it.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import ACTOR
from app.api.problems import CROSS_ORIGIN, REQUEST_ID, HttpProblem, problem_response
from app.config import Settings
from app.service.access import check_key

OPEN_PATHS = frozenset({"/livez", "/readyz"})

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_access = logging.getLogger("app.api.access")
_log = logging.getLogger("app.api")


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name, admit, pass on, log."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = scope[REQUEST_ID] = _request_id(headers.get("x-request-id", ""))
        began, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            scope[ACTOR] = self._admit(scope, headers)
            await self.app(scope, receive, send_named)
        except Exception as error:
            if (
                status
            ):  # too late for a problem document; the server cuts the connection, so that nobody takes it for whole
                if not isinstance(error, ClientDisconnect):
                    _log.error("request %s failed after its answer had begun", request_id, exc_info=error)
                raise
            await problem_response(error, request_id)(scope, receive, send_named)
        finally:
            path, took = quote(scope["path"]), 1000 * (time.perf_counter() - began)
            _access.info("%s %s %s %.1f ms %s", scope["method"], path, status or "-", took, request_id)

    def _admit(self, scope: Scope, headers: Headers) -> str:
        """The actor's name.

        Raises:
            KeyRequired: a key is configured and the request does not carry it.
            HttpProblem: 403, a web page of another origin tries to change something on an open service.
        """
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN_PATHS or scope["method"] == "OPTIONS":
            return "anonymous"
        scheme, _, presented = headers.get("authorization", "").partition(" ")
        name = check_key(self.settings.api_key, presented.strip() if scheme.lower() == "bearer" else None)
        if self.settings.api_key is None and scope["method"] not in ("GET", "HEAD"):
            _refuse_other_origin(headers)
        return name


def _refuse_other_origin(headers: Headers) -> None:
    """The one way into an open service for strangers is a browser on the same machine: other origins may not write."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise HttpProblem(
            CROSS_ORIGIN,
            "a page of another origin may not change anything on a service without a key: set ESPALIER_API_KEY",
        )


def _request_id(given: str) -> str:
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
