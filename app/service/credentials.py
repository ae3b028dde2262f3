"""Credentials: how keys and sessions look, how they are hashed, and how they are kept out of what is written.

Knows: the text of a key, its parts and its hash. Must never know: which keys there are, or what one allows.

Laws:
    * Every secret here is 256 random bits. Because there is nothing to guess, SHA-256 is the right hash: a slow one
      (argon2, bcrypt) makes guessing dear where people choose passwords, and here would only make every request dear.
    * What is stored is the hash. The text is returned once, by whoever made it.
    * Hashes are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import SecretStr

SETTINGS_KEY = "settings"
"""Id of the key of the settings, which is no row; ids of rows are hexadecimal."""

PREFIX = "esp_"
HIDDEN = "[hidden]"

_KEY = re.compile(r"esp_[0-9A-Za-z]{1,32}_[A-Za-z0-9_-]{6,}")
_SHORTEST = 8  # a shorter key of the settings stands in ordinary words, too


@dataclass(frozen=True, slots=True, repr=False)
class Fresh:
    """A new key: the only time that its text is known."""

    id: str
    text: str
    hash: str


def fresh_key() -> Fresh:
    """``esp_<id>_<secret>``: 64 bits to find it by, 256 that nobody can guess."""
    key = secrets.token_hex(8)
    text = f"{PREFIX}{key}_{secrets.token_urlsafe(32)}"
    return Fresh(key, text, hashed(text))


def id_of(text: str) -> str:
    """The id that a presented key claims to have; empty if it has not the form of one."""
    return text[4:20] if text.startswith(PREFIX) and text[20:21] == "_" else ""


def hashed(text: str) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two hashes are equal, in the time that it takes to say no."""
    return hmac.compare_digest(one, other)


def fresh_session(bound_to: str = "") -> tuple[str, str]:
    """A session's text, which its browser keeps, and its hash."""
    text = secrets.token_urlsafe(32)
    return text, session_hash(text, bound_to)


def session_hash(text: str, bound_to: str = "") -> str:
    """The hash of a session; one that is bound to a hash of the key of the settings ends when that key is changed."""
    return hashed(f"{text}.{bound_to}")


# -- keeping them out of what is written -------------------------------------------------------------------------------


def spellings(key: SecretStr | None) -> tuple[str, ...]:
    """How the key of the settings could come to stand in a line of the log."""
    text = "" if key is None else key.get_secret_value()
    return tuple(dict.fromkeys((text, quote(text)))) if len(text) >= _SHORTEST else ()


def redacted(line: str, secret: Iterable[str] = ()) -> str:
    """A line without keys.

    Args:
        line: anything.
        secret: what must not stand in it either.
    """
    for text in secret:
        if text in line:
            line = line.replace(text, HIDDEN)
    return _KEY.sub(PREFIX + HIDDEN, line) if PREFIX in line else line
