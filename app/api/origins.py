"""Origins: which names a service without keys answers to, and which pages may change something.

Knows: Host, Origin and Sec-Fetch-Site. Must never know: keys, or routes.

Laws:
    * A service that is open answers to loopback names alone. A page elsewhere whose own name was made to point to this
      machine (DNS rebinding) asks for another name, and is refused.
    * A browser brings cookies along by itself. What they allow to be changed, only a page of this very origin may.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from app.api.problems import CROSS_ORIGIN, MISDIRECTED, HttpProblem

_MOST_NAMES = 100


class Hosts:
    """The names that a service without keys answers to."""

    def __init__(self, configured: str) -> None:
        """Loopback names and addresses, and the one that is listened on."""
        self._configured = configured.lower()
        self._known: set[bytes] = set()

    def fit(self, host: bytes | None) -> bool:
        """Whether a Host header names this machine. Without one it is no browser, which always sends it."""
        if host is None or host in self._known:
            return True
        if not self._is_here(host.decode("latin-1")):
            return False
        if len(self._known) < _MOST_NAMES:
            self._known.add(host)
        return True

    def expect(self, host: bytes | None) -> None:
        """Refuse any other name.

        Raises:
            HttpProblem: 421.
        """
        if not self.fit(host):
            raise HttpProblem(
                MISDIRECTED,
                "this service has no keys, so it answers to localhost and 127.0.0.1 alone: use one of these, or make "
                "a key with `espalier admin-key`",
            )

    def _is_here(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in ("localhost", self._configured):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def refuse_other_origin(headers: Mapping[bytes, bytes]) -> None:
    """Let no page of another origin change anything; what is no page says no origin.

    Raises:
        HttpProblem: 403.
    """
    origin = headers.get(b"origin")
    if origin is not None and not _is_own(origin, headers):
        raise HttpProblem(CROSS_ORIGIN, "a page of another origin may not change anything here: use a key instead")


def expect_own_origin(headers: Mapping[bytes, bytes]) -> None:
    """Let only a page of this origin change anything; a browser says of which it is.

    Raises:
        HttpProblem: 403.
    """
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    own = (origin is None or _is_own(origin, headers)) and (site is None or site == b"same-origin")
    if not own or (origin is None and site is None):
        raise HttpProblem(
            CROSS_ORIGIN, "a session may change something from a page of this service alone: elsewhere, send the key"
        )


def _is_own(origin: bytes, headers: Mapping[bytes, bytes]) -> bool:
    try:
        return urlsplit(origin.decode("latin-1")).netloc == headers.get(b"host", b"").decode("latin-1")
    except ValueError:
        return False
