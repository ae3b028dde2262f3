"""Guard: which route a request means, and whether its key allows that, before anything of the request is read.

Knows: every route's address and methods, and the table of ``scopes``. Must never know: how a key is checked, or what a
route does.

Laws:
    * A request is judged by the very route that answers it: routes are tried in the application's order, with its own
      matching.
    * A request that no route answers needs a key, but no scope: 404 and 405 are the same for every key.
    * A key for some models passes only where it is shown nothing of any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope as AsgiScope

from app.api.scopes import ANY_KEY, CALLER, FILTERED, SCOPES, Needs, check_table
from app.domain import Caller, Scope
from app.errors import KeyRequired, OtherModel, ScopeMissing
from app.service.access import WHOLE
from app.service.keyring import Keyring


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes.

    Attributes:
        name: of the route; empty: there is none.
        needs: what it asks of a key.
        model: the model in its path, if there is one.
        upload: the upload in its path, if there is one.
    """

    name: str
    needs: Needs
    model: str | None = None
    upload: str | None = None


NOWHERE = Place("", ANY_KEY)


@dataclass(frozen=True, slots=True)
class _Way:
    """A route, and how every path that it answers begins and ends: most routes need not be tried."""

    route: Route
    methods: frozenset[str]
    first: str
    last: str

    @classmethod
    def to(cls, route: Route) -> _Way:
        first, last = route.path.split("{", 1)[0], route.path.rsplit("}", 1)[-1]
        return cls(route, frozenset(route.methods or ()), first, last)


class Guard:
    """Every route of one application."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        """Know these routes, in this order.

        Raises:
            ValueError: one has no row in the table, or the table names one that is not there, or one is of a kind that
                this guard does not understand. The service must not start.
        """
        self._ways = tuple(_Way.to(_understood(route)) for route in flat(routes))
        check_table(way.route.name for way in self._ways)

    def place(self, scope: AsgiScope) -> Place:
        """Where a request goes."""
        path, method = get_route_path(scope), scope["method"]
        stem = path.rstrip("\n")  # a pattern's end is also before a line's end
        for way in self._ways:
            if method not in way.methods or not path.startswith(way.first) or not stem.endswith(way.last):
                continue
            match, found = way.route.matches(scope)
            if match is Match.FULL:
                name, given = way.route.name, found["path_params"]
                return Place(name, SCOPES[name], given.get("model"), given.get("upload"))
        return NOWHERE


def flat(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """Routes, and those of the routers among them, in the order in which they are tried."""
    found: list[BaseRoute] = []
    for route in routes:
        router = getattr(route, "original_router", None)
        found += [route] if router is None else flat(router.routes)
    return found


def _understood(route: BaseRoute) -> Route:
    if not isinstance(route, Route):
        raise ValueError(f"{route!r} is no plain route: the guard cannot tell who may use it")
    return route


def check_scope(place: Place, caller: Caller) -> None:
    """Let a caller go on to a place, if their key has the scope.

    Raises:
        ScopeMissing: it has not.
    """
    needs = place.needs
    if isinstance(needs, Scope) and not caller.may(needs):
        held = ", ".join(sorted(caller.scopes))
        raise ScopeMissing(
            f"this needs the scope {needs.value!r}, and the key {caller.name!r} has {held}: use a key that has it"
        )


def check_model(place: Place, caller: Caller, model: str | None) -> None:
    """Let a caller go on to a place, if their key is for its model.

    Args:
        place: where to.
        caller: who asks.
        model: that of the path, or of the upload in the path; see ``asks_upload``.

    Raises:
        OtherModel: it is for others.
    """
    if caller.models is None or place is NOWHERE or (model is None and place.name in FILTERED):
        return
    if model is None or place.needs in WHOLE or model not in caller.models:
        mine = ", ".join(sorted(caller.models)[:5])
        raise OtherModel(f"the key {caller.name!r} is for {mine} only, and this is about more: use another key")


def asks_upload(place: Place, caller: Caller) -> bool:
    """Whether the upload of the path must be looked up to know if the caller may go on."""
    return place.upload is not None and caller.models is not None


def stands(scope: AsgiScope) -> bool:
    """Whether a request that was let in still would be: for answers that wait or go on."""
    keyring: Keyring = scope["app"].state.keyring
    return keyring.stands(scope[CALLER])


def expect_standing(scope: AsgiScope) -> None:
    """Answer nobody whose key ended while they waited.

    Raises:
        KeyRequired: it did.
    """
    if not stands(scope):
        raise KeyRequired("the key was revoked or has expired: ask whoever administers this service for another")
