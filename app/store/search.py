"""Which entries of the log are looked for.

Knows: which of these questions an index answers. Must never know: what a kind of entry means.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.store.tables import audit_entries


@dataclass(frozen=True, slots=True)
class Sought:
    """Which entries; None, or an empty text: all.

    Attributes:
        model, kind, actor: that is said of it, exactly.
        since, until: made at this time or later, and before this one.
        text: stands in its kind, model, actor, reason or parameters, whatever the case of its letters.
    """

    model: str | None = None
    kind: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str = ""

    @property
    def timed(self) -> bool:
        """Whether a time is given: then the order is that of time."""
        return self.since is not None or self.until is not None

    def parted(self, timed: bool) -> tuple[list[sa.ColumnElement[bool]], bool]:
        """What an index answers, that of time or another; and whether more is asked for, which ``holds`` tells."""
        column = audit_entries.c
        if timed:
            given = [*_given(column.time.__ge__, self.since), *_given(column.time.__lt__, self.until)]
            return given, any((self.model, self.kind, self.actor, self.text))
        if self.model or self.kind:
            given = [*_given(column.model.__eq__, self.model), *_given(column.kind.__eq__, self.kind)]
            return given, any((self.actor, self.text))
        return _given(column.actor.__eq__, self.actor), bool(self.text)

    def holds(self, entry: sa.Row[Any]) -> bool:
        """Whether an entry is of this model, kind and actor, and has the text."""
        exact = ((self.model, entry.model), (self.kind, entry.kind), (self.actor, entry.actor))
        if any(wanted is not None and wanted != found for wanted, found in exact):
            return False
        return not self.text or _has(json.loads(entry.document), self.text.casefold())


def _given(holds: Callable[[Any], sa.ColumnElement[bool]], value: object) -> list[sa.ColumnElement[bool]]:
    return [] if value is None else [holds(value)]


def _has(document: Mapping[str, Any], text: str) -> bool:
    said = (str(document[name] or "") for name in ("kind", "model", "actor", "reason"))
    return any(text in each.casefold() for each in (*said, *_leaves("", document["parameters"])))


def _leaves(name: str, value: object) -> Iterator[str]:
    """Every value with its name before it, as a text: version 7."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(key, each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(name, each)
    else:
        yield f"{name} {value}"
