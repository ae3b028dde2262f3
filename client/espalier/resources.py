"""Resources: records got, made and listed over a transport.

Knows: how an answer becomes a record, and how pages follow one another. Must never know: which resources there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from espalier.records import Page, Record
from espalier.transport import Transport, json_of

PAGE = 500
"""Items asked for at once, where all are wanted."""

R = TypeVar("R", bound=Record)


def one(http: Transport, kind: type[R], path: str, /, **params: Any) -> R:
    """The record at an address."""
    return kind.from_json(json_of(http.request("GET", path, params=params)))


def made(http: Transport, kind: type[R], path: str, body: Mapping[str, Any]) -> R:
    """The record that a POST answers with."""
    return kind.from_json(json_of(http.request("POST", path, json=dict(body))))


def page(http: Transport, kind: type[R], path: str, /, **params: Any) -> Page[R]:
    """One page of a listing."""
    document = json_of(http.request("GET", path, params=params))
    return Page(tuple(kind.from_json(item) for item in document["items"]), document.get("next_cursor"))


def every(http: Transport, kind: type[R], path: str, /, limit: int | None = None, **params: Any) -> Iterator[R]:
    """A listing's items, page after page as they are asked for; ``limit`` of them, or all."""
    cursor, left = None, limit
    while left is None or left > 0:
        found = page(http, kind, path, **params, limit=PAGE if left is None else min(left, PAGE), cursor=cursor)
        yield from found.items
        if found.next_cursor is None:
            return
        cursor, left = found.next_cursor, None if left is None else left - len(found.items)
