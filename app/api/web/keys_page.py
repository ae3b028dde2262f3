"""The page of keys: which are valid, and which are over.

Knows: in which state a key is at a time. Must never know: HTTP, or the text of a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.domain import Key, Scope


@dataclass(frozen=True, slots=True)
class Row:
    """A key in the list: its state, the state's tone, and its scopes in the order in which they are always told."""

    key: Key
    state: str
    tone: str
    scopes: Sequence[Scope]


def rows_of(keys: Sequence[Key], now: datetime) -> list[Row]:
    """Keys as rows."""
    return [Row(key, *_state(key, now), [scope for scope in Scope if scope in key.scopes]) for key in keys]


def _state(key: Key, now: datetime) -> tuple[str, str]:
    if key.revoked_at is not None:
        return "revoked", "bad"
    return ("expired", "warn") if key.expires_at is not None and key.expires_at <= now else ("valid", "good")
