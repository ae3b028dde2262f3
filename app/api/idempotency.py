"""Idempotency keys: a POST that is repeated under one key gets the first answer again (draft-ietf-httpapi-
idempotency-key-header).

Knows: what makes two requests the same, and what of an answer is kept. Must never know: any route; a POST that somebody
adds is covered without asking for it.

Laws:
    * The same actor, key and content: the first answer, with ``Idempotency-Replayed: true``. Other content: 422. The
      first one still runs: 409.
    * Only successes are kept. A refusal changed nothing, so the same key may be sent again with better content.
    * An answer that holds a secret is not kept: its route says so by ``TOLD_ONCE`` in the scope.
    * A body of any size passes through as a stream; it is held only if it is JSON, which is small.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.bodies import CONTENT, parse_digest
from app.api.dependencies import ACTOR
from app.api.problems import MALFORMED_HEADER, REQUEST_ID, HttpProblem
from app.api.strict_json import MAX_BYTES
from app.config import Settings
from app.domain import Actor, Digest
from app.errors import EspalierError
from app.service import replays
from app.store.database import Store
from app.store.replays import Replay

TOLD_ONCE = "espalier.told-once"
"""Where a route says, in an ASGI scope, that its answer must be told once and kept nowhere."""

_log = logging.getLogger("app.api")
_LONGEST = 255
_KEPT_HEADERS = frozenset({"content-type", "location", "etag", "espalier-megabatch", "upload-offset"})
_MEANT = ("if-match", "prefer", "upload-length", "upload-metadata", "upload-complete", "upload-defer-length")
"""Headers that change what a request does."""


class Idempotency:
    """ASGI middleware inside the edge: it knows the actor."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what has no key; otherwise run it once."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        key = _key(Headers(scope=scope))
        if key is None:
            await self.app(scope, receive, send)
            return
        await self._once(key, scope, receive, send)

    async def _once(self, key: str, scope: Scope, receive: Receive, send: Send) -> None:
        store: Store = scope["app"].state.store
        actor = Actor(scope[ACTOR], scope[REQUEST_ID])
        body = await _small_body(scope, receive)
        found = await run_in_threadpool(partial(replays.claim, store, key, actor=actor))
        if found is not None:
            replays.check(found, _fingerprint(scope, await _content(scope, receive, body)))
            await _again(found)(scope, receive, send)
            return
        recorded = _Recorded(send)
        renewing = asyncio.create_task(_renew(store, key, actor))
        kept = False
        try:
            await self.app(scope, receive if body is None else _resent(body, receive), recorded)
            if recorded.answer is not None and not scope.get(TOLD_ONCE):
                await self._keep(store, key, scope, recorded.answer, body, actor)
                kept = True
        finally:
            renewing.cancel()
            if not kept:
                await asyncio.shield(_give_back(store, key, actor))
        await recorded.flush()

    async def _keep(
        self, store: Store, key: str, scope: Scope, answer: Mapping[str, Any], body: bytes | None, actor: Actor
    ) -> None:
        settings: Settings = scope["app"].state.settings
        digest = _digest(body) if body is not None else scope.get(CONTENT, _digest(b""))
        keep = partial(
            replays.keep,
            store,
            key,
            fingerprint=_fingerprint(scope, digest),
            status=answer["status"],
            answer=answer,
            seconds=settings.idempotency_seconds,
            actor=actor,
        )
        await run_in_threadpool(keep)


class _Recorded:
    """Holds a success back until it is kept; lets anything else through."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self.answer: dict[str, Any] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not 200 <= message["status"] < 300 and not self._held:
            await self._send(message)
        elif message["type"] == "http.response.start" or self._held:
            self._held.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.answer = self._document()
        else:
            await self._send(message)

    async def flush(self) -> None:
        """Send what was held back."""
        for message in self._held:
            await self._send(message)

    def _document(self) -> dict[str, Any]:
        start = self._held[0]
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
        body = b"".join(message.get("body", b"") for message in self._held[1:])
        return {
            "status": start["status"],
            "headers": {name: value for name, value in headers.items() if name in _KEPT_HEADERS},
            "body": base64.b64encode(body).decode(),
        }


def _again(found: Replay) -> Response:
    answer = found.answer or {}
    headers = {**answer["headers"], "Idempotency-Replayed": "true"}
    return Response(base64.b64decode(answer["body"]), answer["status"], headers)


def _key(headers: Headers) -> str | None:
    """The key: a structured-field string, or bare.

    Raises:
        HttpProblem: 400, empty, too long, or no printable ASCII.
    """
    given = headers.get("idempotency-key")
    if given is None:
        return None
    key = given.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or len(key) > _LONGEST or not (key.isascii() and key.isprintable()):
        detail = f"Idempotency-Key must be 1 to {_LONGEST} printable ASCII characters, such as a UUID in double quotes"
        raise HttpProblem(MALFORMED_HEADER, detail)
    return key


def _fingerprint(scope: Scope, content: Digest) -> Digest:
    """Of everything that says what a request does."""
    headers = Headers(scope=scope)
    parts = [scope["method"], scope["path"], scope["query_string"].decode("latin-1"), content]
    return _digest(json.dumps([*parts, *(headers.get(name) for name in _MEANT)]).encode())


def _digest(data: bytes) -> Digest:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def _small_body(scope: Scope, receive: Receive) -> bytes | None:
    """A JSON body, whole; None for one that is streamed. One that is too large is left to be refused."""
    if "json" not in Headers(scope=scope).get("content-type", ""):
        return None
    body = bytearray()
    while len(body) <= MAX_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)


async def _content(scope: Scope, receive: Receive, body: bytes | None) -> Digest:
    """What a repeated request carries: by its Content-Digest, else by reading it."""
    if body is not None:
        return _digest(body)
    declared = parse_digest("Content-Digest", Headers(scope=scope).get("content-digest"))
    if declared is not None:
        return declared
    state = hashlib.sha256()
    async for block in Request(scope, receive).stream():
        state.update(block)
    return f"sha256:{state.hexdigest()}"


def _resent(body: bytes, receive: Receive) -> Receive:
    """The body again, for the application."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _give_back(store: Store, key: str, actor: Actor) -> None:
    """Free a key. The answer may have gone out already, and nothing that happens now may cut its connection: a key
    that cannot be freed, as when the database is away, is free when its claim has run out.
    """
    try:
        await run_in_threadpool(partial(replays.release, store, key, actor=actor))
    except EspalierError as error:
        _log.warning("an idempotency key is in use for another %.0f s: %s", replays.CLAIM_SECONDS, error)


async def _renew(store: Store, key: str, actor: Actor) -> None:
    while True:
        await asyncio.sleep(replays.CLAIM_SECONDS / 3)
        with suppress(EspalierError):  # a busy database: the claim lasts long enough to try again
            await run_in_threadpool(partial(replays.renew, store, key, actor=actor))
