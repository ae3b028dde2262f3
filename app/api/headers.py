"""Headers that every answer bears, so that a browser makes nothing of it that was not meant.

Knows: which headers, and which of them an answer may set otherwise. Must never know: what is answered.

Laws:
    * Every answer has them, problem documents and polls from memory too.
    * Nothing is cached that does not say for how long: an answer to one key is not for whoever comes next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.types import Scope

Header = tuple[bytes, bytes]

ALWAYS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
POLICY: Header = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
NO_STORE: Header = (b"cache-control", b"no-store")
STRICT_TRANSPORT: Header = (b"strict-transport-security", b"max-age=31536000")


def hardened(headers: Iterable[Header], https: bool) -> list[Header]:
    """An answer's headers, with those that it lacks."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    added = [header for header in (*ALWAYS, POLICY, NO_STORE) if header[0] not in names]
    return [*given, *added, STRICT_TRANSPORT] if https else [*given, *added]


def is_https(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Whether the caller speaks TLS, to this server or to the proxy in front of it."""
    return scope.get("scheme") == "https" or forwarded_https(headers)


def forwarded_https(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a proxy in front says so. Whoever lies about it only keeps themselves to TLS."""
    return headers.get(b"x-forwarded-proto", b"").lower() == b"https"
