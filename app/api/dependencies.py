"""Dependencies: what a route asks for by type.

Knows: how a request carries its actor, its cursor and its preconditions (``bodies`` knows raw bodies). Must never know:
what a use case does with them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request

from app.api.broadcast import Broadcast
from app.api.polling import Polls
from app.api.problems import MALFORMED_HEADER, REQUEST_ID, HttpProblem
from app.api.scopes import CALLER
from app.config import Settings
from app.domain import Actor, Caller
from app.errors import InvalidCursor, PreconditionMissing
from app.service.keyring import Keyring
from app.service.models import ModelSummary, describe_model
from app.service.notary import Notary
from app.store.database import Store

ACTOR = "espalier.actor"
"""Where the edge leaves the actor's name in an ASGI scope."""

MAX_NUMBER = 2**31 - 1

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"

ModelName = Annotated[
    str, Path(alias="model", pattern=NAME_PATTERN, description="Name of a model.", examples=["gas-sensors"])
]
Number = Annotated[
    int, Path(alias="number", ge=0, le=MAX_NUMBER, description="Number, counted per model.", examples=[1])
]
VersionRef = Annotated[
    str,
    Path(
        alias="ref",
        pattern=r"^([0-9]{1,9}|[a-z][a-z0-9-]{0,62})$",
        description="Number of a version, or an alias: `champion`, `latest`.",
        examples=["champion"],
    ),
]
AliasName = Annotated[
    str, Path(alias="alias", pattern=NAME_PATTERN, description="Name of an alias.", examples=["champion"])
]
Limit = Annotated[int, Query(ge=1, le=1000, description="Items on one page.", examples=[50])]
CursorText = Annotated[
    str | None,
    Query(alias="cursor", max_length=400, description="`next_cursor` of the page before; absent for the first page."),
]


def get_store(request: Request) -> Store:
    """The service's memory, opened with the application."""
    store: Store = request.app.state.store
    return store


def get_settings(request: Request) -> Settings:
    """The deployment's settings, as ``create_app`` got them."""
    settings: Settings = request.app.state.settings
    return settings


def get_actor(request: Request) -> Actor:
    """Who asks: the name that the edge checked, and the request's id."""
    return Actor(request.scope[ACTOR], request.scope[REQUEST_ID])


def get_caller(request: Request) -> Caller:
    """Who asks, and what their key allows, as the edge checked it."""
    caller: Caller = request.scope[CALLER]
    return caller


def get_keyring(request: Request) -> Keyring:
    """The keys, as this process knows them."""
    keyring: Keyring = request.app.state.keyring
    return keyring


def get_polls(request: Request) -> Polls:
    """What this process answers from memory."""
    polls: Polls = request.app.state.polls
    return polls


def get_broadcast(request: Request) -> Broadcast:
    """The event streams of this process."""
    broadcast: Broadcast = request.app.state.broadcast
    return broadcast


def get_notary(request: Request) -> Notary:
    """Who signs the log in this process."""
    notary: Notary = request.app.state.notary
    return notary


async def until_sent() -> AsyncIterator[ExitStack]:
    """What is entered here ends when the answer was sent, or could not be."""
    with ExitStack() as stack:  # no thread for it: almost always there is nothing to end
        yield stack


StoreDep = Annotated[Store, Depends(get_store)]
PollsDep = Annotated[Polls, Depends(get_polls)]
BroadcastDep = Annotated[Broadcast, Depends(get_broadcast)]
NotaryDep = Annotated[Notary, Depends(get_notary)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
ActorDep = Annotated[Actor, Depends(get_actor)]
CallerDep = Annotated[Caller, Depends(get_caller)]
KeyringDep = Annotated[Keyring, Depends(get_keyring)]
UntilSent = Annotated[ExitStack, Depends(until_sent)]


def told(polls: PollsDep) -> Iterator[None]:
    """What this answer says, every poll of this process says from then on, too: a client that was told of the end of a
    cycle finds the version that it made.
    """
    yield
    polls.catch_up()


TOLD = Depends(told, scope="function")


def known_model(name: ModelName, store: StoreDep) -> ModelSummary:
    """The model of the path.

    Raises:
        UnknownModel: before anything else of the request is looked at.
    """
    return describe_model(store, name)


ModelDep = Annotated[ModelSummary, Depends(known_model)]


# -- conditions --------------------------------------------------------------------------------------------------------


def alias_revision(
    if_match: Annotated[
        str | None,
        Header(
            description="The alias's revision as it was seen: the ETag of `GET .../aliases/champion`.", examples=['"3"']
        ),
    ] = None,
) -> int:
    """The revision that a move of the champion compares.

    Raises:
        PreconditionMissing: no If-Match.
        HttpProblem: 400, anything but one strong entity tag with a number in it.
    """
    remedy = 'send the ETag of GET .../aliases/champion, such as If-Match: "3" ("0" while there is no champion)'
    if if_match is None:
        raise PreconditionMissing(f"a move of the champion must say which state of it was seen: {remedy}")
    found = re.fullmatch(r'\s*"([0-9]{1,9})"\s*', if_match)
    if found is None:
        raise HttpProblem(MALFORMED_HEADER, f"If-Match must be one revision of the alias, in double quotes: {remedy}")
    return int(found[1])


AliasRevision = Annotated[int, Depends(alias_revision)]


# -- cursors -----------------------------------------------------------------------------------------------------------


def encode_cursor(listing: str, key: object) -> str:
    """An opaque cursor: the key to go on from, and the listing that it belongs to."""
    return base64.urlsafe_b64encode(f"{listing}:{key}".encode()).decode().rstrip("=")


def decode_cursor(listing: str, cursor: str | None) -> str | None:
    """The key of a cursor.

    Raises:
        InvalidCursor: not made by this listing.
    """
    if cursor is None:
        return None
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        kind, colon, key = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii").partition(":")
    except (ValueError, binascii.Error):
        kind, colon, key = "", "", ""
    if kind != listing or not colon or not re.fullmatch(r"[a-z0-9-]{1,63}", key):
        raise InvalidCursor("the cursor was not made by this listing: leave it out to begin with the first page")
    return key


def decode_number(listing: str, cursor: str | None) -> int | None:
    """The key of a cursor whose listing goes by numbers.

    Raises:
        InvalidCursor: not made by this listing.
    """
    key = decode_cursor(listing, cursor)
    if key is not None and not (key.isdecimal() and int(key) <= MAX_NUMBER):
        raise InvalidCursor("the cursor was not made by this listing: leave it out to begin with the first page")
    return None if key is None else int(key)
