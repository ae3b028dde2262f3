"""The application: routes, edge and store, put together for one deployment.

Knows: which rooms an API process needs. Must never know: torch, the worker, or what a use case decides.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from app import __version__
from app.api.broadcast import Broadcast
from app.api.declared import Application
from app.api.guard import Guard
from app.api.idempotency import Idempotency
from app.api.leaving import on_leaving
from app.api.middleware import Edge
from app.api.origins import Hosts
from app.api.polling import Polls
from app.api.routes import (
    aliases,
    audit,
    auditing,
    custody,
    cycles,
    decisions,
    erasures,
    evaluation,
    events,
    health,
    hooking,
    keying,
    keys,
    megabatch_pages,
    megabatches,
    models,
    moves,
    pages,
    promotion,
    recipe_pages,
    recipes,
    sessions,
    uploads,
    versions,
    visits,
    webhooks,
)
from app.api.settling import Settling
from app.api.web.failures import on_failure
from app.api.wire import SHORTCUT, Shortcut
from app.config import Settings
from app.errors import EspalierError
from app.intake import sandbox
from app.service.access import keys_exist
from app.service.feed import Feed
from app.service.keyring import Keyring
from app.service.notary import Notary
from app.service.opening import open_store
from app.store.database import Store

_TAGS = [
    {"name": "models", "description": "Registered learning problems."},
    {"name": "megabatches", "description": "Labelled examples as they come, and the evaluation set beside them."},
    {"name": "cycles", "description": "Attempts to prune, retrain and judge."},
    {"name": "versions", "description": "Results: look at, download, promote, roll back."},
    {"name": "aliases", "description": "Movable names of versions."},
    {"name": "custody", "description": "Which data went into which version, and which answers differ between two."},
    {"name": "decisions", "description": "What clients decided with which version."},
    {"name": "audit", "description": "What was done, by whom, and whether the log still holds."},
    {"name": "keys", "description": "Who may do what; signing in with a browser."},
    {"name": "events", "description": "What happens, as it happens."},
    {"name": "webhooks", "description": "Addresses that are told what happens, and what they were told."},
    {"name": "health", "description": "For whoever runs the service."},
]


_NOUNS = (
    *(models, recipes, megabatches, erasures, uploads, evaluation, cycles, versions, promotion, aliases, audit),
    *(events, custody, decisions, keys, webhooks, sessions, health, pages, recipe_pages, megabatch_pages),
    *(moves, visits, auditing, keying, hooking),
)
_ROUTERS = [noun.router for noun in _NOUNS]
_ROUTES = [route for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def _heads() -> APIRouter:
    """A HEAD for every GET that has none (RFC 9110, 9.1); servers leave out the body."""
    heads = APIRouter()
    headed = {route.path for route in _ROUTES if "HEAD" in (route.methods or ())}
    for route in _ROUTES:
        if "GET" in (route.methods or ()) and route.path not in headed:
            heads.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                include_in_schema=False,
                response_model=route.response_model,
                response_class=route.response_class,
                name=route.name,
                route_class_override=type(route),
            )
    return heads


_HEADS = _heads()


def create_app(settings: Settings) -> FastAPI:
    """The HTTP API of one deployment.

    Raises:
        ValueError: an address that other machines reach, without a key; or a route without a scope.
    """
    if settings.api_key is None and not settings.loopback and not keys_exist(settings):
        raise ValueError(
            f"refusing to listen on {settings.host} without a key: make one with `espalier admin-key`, "
            "set ESPALIER_API_KEY, or listen on 127.0.0.1 (ESPALIER_HOST)"
        )
    app = Application(
        title="Espalier",
        summary="Trains a network and prunes it at the same time.",
        version=__version__,
        openapi_tags=_TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        generate_unique_id_function=_operation_id,
        exception_handlers=dict.fromkeys(
            (StarletteHTTPException, RequestValidationError, EspalierError, ClientDisconnect), on_failure
        ),
    )
    app.state.settings = settings
    app.state.polls = Polls(most=settings.polled_addresses, longest_wait=settings.longest_wait_seconds)
    app.state.broadcast = Broadcast()
    app.state.keyring = Keyring(settings)
    for router in (*_ROUTERS, _HEADS):
        app.include_router(router)
    app.add_middleware(Idempotency)
    guard = Guard(app.routes)
    app.add_middleware(Edge, settings=settings, polls=app.state.polls, keyring=app.state.keyring, guard=guard)
    app.add_exception_handler(405, _method_not_allowed(_ROUTES))
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
    settings: Settings = app.state.settings
    store = open_store(settings)
    try:
        store.check_schema()
        app.state.store = store
        app.state.notary = Notary(store, settings)
        app.state.decoding = anyio.CapacityLimiter(max(2, os.cpu_count() or 1))
        app.state.settling = Settling(store, settings, app.state.decoding)
        with sandbox.spare(), _keeping_up(app, store, settings):
            yield {SHORTCUT: Shortcut(app.state.polls, app.state.keyring, Hosts(settings.host))}
            await app.state.settling.close()
    finally:
        store.dispose()


@contextmanager
def _keeping_up(app: FastAPI, store: Store, settings: Settings) -> Iterator[None]:
    """Follow the log; when the process is asked to stop, nothing may wait for it any more."""
    keyring: Keyring = app.state.keyring
    polls: Polls = app.state.polls
    broadcast: Broadcast = app.state.broadcast
    # Whose key was revoked must be known before anybody is told anything.
    feed = Feed(store, (keyring, polls, broadcast), every=settings.refresh_seconds)
    keyring.start(store, feed)
    polls.start(feed)
    broadcast.start(feed.seen)
    with feed.running(), keyring.running(), on_leaving(polls.leave, broadcast.leave):
        yield


def _operation_id(route: APIRoute) -> str:
    return route.name


def _method_not_allowed(routes: Sequence[APIRoute]) -> Callable[[Request, Exception], Awaitable[Response]]:
    """The answer to a method that an address does not know, with every one that it does know in Allow."""

    async def answer(request: Request, error: Exception) -> Response:
        here = [route for route in routes if route.path_regex.match(request.scope["path"])]
        known = {method for route in here for method in route.methods or ()}
        response = await on_failure(request, error)
        response.headers["Allow"] = ", ".join(sorted(known | ({"HEAD"} if "GET" in known else set())))
        return response

    return answer
