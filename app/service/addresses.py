"""Addresses: where the service may send something that somebody else named.

Knows: what the address of a webhook may look like, and which IP addresses are in nobody's private network. Must never
know: how a name is resolved, or how anything is sent.

Laws:
    * An IP address is refused unless it is a public one, or in a network that the deployment allows. What is not known
      to be public is not: loopback, private, link-local and multicast ones, metadata services, and every form in which
      IPv6 wraps an IPv4 address.
    * Names are judged by what they resolve to when something is sent, and the connection goes to the address that was
      judged. Whoever changes a name afterwards changes nothing.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from app.config import Network
from app.errors import InvalidWebhook

Address = IPv4Address | IPv6Address

LONGEST_URL = 2000

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
_PLAIN = re.compile(r"[\x21-\x7e]+")

_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            "168.63.129.16/32",  # a metadata service on what looks like a public address
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        ),
    )
)
"""By the registries of special addresses (RFC 6890), written out: what Python's own judgement holds differs between its
versions.
"""

_PUBLIC_IPV6 = IPv6Network("2000::/3")
"""The only part of IPv6 that is given out to anybody; embedded IPv4 addresses lie elsewhere, or in the list above."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes.

    Attributes:
        host: a name, or an IP address without brackets.
        authority: as the Host header has it.
        path: with the query.
    """

    secure: bool
    host: str
    port: int
    authority: str
    path: str

    @property
    def origin(self) -> str:
        """The address without its path, which may hold a secret."""
        return f"{'https' if self.secure else 'http'}://{self.authority}"


def target_of(url: str) -> Target:
    """Take a URL apart.

    Raises:
        InvalidWebhook: nothing can be sent there, with the remedy.
    """
    if not _PLAIN.fullmatch(url) or "\\" in url or len(url) > LONGEST_URL:
        raise InvalidWebhook(
            f"a webhook's address is a URL of at most {LONGEST_URL} ASCII characters without spaces or backslashes: "
            "write other characters as %XX, and names in their xn-- form"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidWebhook(f"the address cannot be read ({error}): write https://host/path") from error
    if parts.scheme not in ("http", "https"):
        raise InvalidWebhook("a webhook's address begins with https:// or http://")
    if "@" in parts.netloc:
        raise InvalidWebhook("the address holds a user name or password: leave it out; deliveries are signed instead")
    if parts.fragment or url.endswith("#"):
        raise InvalidWebhook("the address has a fragment, which is never sent: leave out # and what follows")
    literal = _ip(host)
    if port == 0 or not (literal or _NAME.fullmatch(host)):
        raise InvalidWebhook("the address names no host, or no port from 1 to 65535: write https://host:port/path")
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(secure, host, port or (443 if secure else 80), parts.netloc.lower(), path)


def check_target(target: Target, allowed: Sequence[Network]) -> None:
    """Refuse an address that can be judged without asking anybody: one of numbers, or a name for this machine.

    Raises:
        InvalidWebhook: with the remedy.
    """
    name = target.host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        found: Sequence[str] = ("127.0.0.1", "::1")
    else:
        found = _numeric(target.host)
    if found and not any(permitted(address, allowed) for address in found):
        raise InvalidWebhook(refusal(target.host, found))


def permitted(address: str, allowed: Sequence[Network]) -> bool:
    """Whether something may be sent to an IP address.

    Args:
        address: as a resolver gives it.
        allowed: networks that are no public ones, and are allowed all the same.
    """
    parsed = _ip(address)
    if parsed is None:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if any(parsed in network for network in allowed):
        return True
    if isinstance(parsed, IPv6Address) and parsed not in _PUBLIC_IPV6:
        return False
    return not any(parsed in network for network in _NOT_PUBLIC)


def refusal(host: str, addresses: Sequence[str]) -> str:
    """Why nothing is sent to a host, and what to do."""
    told = addresses[0] if addresses[0] == host else f"{host}, which is {' and '.join(addresses[:3])}"
    return (
        f"nothing is sent to {told}: that is no public address; to allow it, name its network in "
        "ESPALIER_WEBHOOK_PRIVATE_ADDRESSES"
    )


def _ip(host: str) -> Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _numeric(host: str) -> list[str]:
    """The address that a host is without being a name, in every form that resolvers take: 127.1, 0x7f000001."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [str(item[4][0]) for item in found]
