"""Post: one HTTP request to an address that somebody else named. The only one that the service makes of its own accord.

Knows: DNS, TCP, TLS and HTTP/1.1. Must never know: what is sent, or what follows from the answer.

Laws:
    * A name is resolved once, and the connection goes to an address that was judged then; certificate and Host are the
      name's. No proxy of the environment is used, and no redirect is followed.
    * All of it ends within a deadline, however slowly the receiver does what.
    * Of an answer 64 KiB are read at most, and of its head 16 KiB. The status counts from when it is there: a body that
      never ends is cut off, and makes no difference.
    * Nothing that a receiver does raises anything here: it becomes an ``Answer``.
"""

from __future__ import annotations

import math
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import h11

from app import __version__
from app.config import Network
from app.errors import InvalidWebhook
from app.service.addresses import Target, check_target, permitted, refusal, target_of
from app.service.deliveries import Answer

DEADLINE_SECONDS = 10.0
MOST_READ = 64 * 1024
_CHUNK = 16 * 1024
_HEAD = 16 * 1024
_EXCERPT = 500

Resolver = Callable[[str, int], Sequence[str]]
"""IP addresses of a host, in the order in which they are to be tried."""


def resolved(host: str, port: int) -> list[str]:
    """Addresses by this machine's resolver.

    Raises:
        OSError: there are none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    allowed: Sequence[Network] = (),
    resolve: Resolver = resolved,
    context: ssl.SSLContext | None = None,
    seconds: float = DEADLINE_SECONDS,
) -> Answer:
    """Send something, once.

    Args:
        url: where to.
        body: what.
        headers: besides those that HTTP needs.
        allowed: networks that it may go to besides public addresses.
        resolve: how a name is resolved.
        context: which certificates are believed; None: those that this machine believes.
        seconds: within which all of it ends.
    """
    began = time.monotonic()
    try:
        target = target_of(url)
        check_target(target, allowed)
        connection = _Connection(began + seconds)
        try:
            connection.open(target, _addresses(target, allowed, resolve), context)
            return connection.exchange(target, body, headers, began)
        finally:
            connection.close()
    except InvalidWebhook as error:
        return _failed(str(error), began)
    except TimeoutError:
        return _failed(f"there was no answer within {seconds:g} s", began)
    except ssl.SSLCertVerificationError as error:
        return _failed(f"the receiver's certificate is not believed: {error.verify_message}", began)
    except ssl.SSLError as error:
        return _failed(f"TLS failed: {error.reason or error}", began)
    except OSError as error:
        return _failed(f"the connection failed: {error.strerror or error}", began)
    except h11.ProtocolError as error:
        return _failed(f"the receiver does not speak HTTP/1.1: {error}", began)


def _failed(error: str, began: float) -> Answer:
    return Answer(None, error, time.monotonic() - began)


def _addresses(target: Target, allowed: Sequence[Network], resolve: Resolver) -> list[str]:
    """What a host resolves to, of which only what is permitted is tried.

    Raises:
        InvalidWebhook: it resolves to nothing, or to nothing that is permitted.
    """
    try:
        found = list(resolve(target.host, target.port))
    except (OSError, UnicodeError) as error:
        raise InvalidWebhook(f"{target.host} cannot be resolved ({error}): compare its spelling") from error
    if not found:
        raise InvalidWebhook(f"{target.host} has no address: compare its spelling")
    usable = [address for address in found if permitted(address, allowed)]
    if not usable:
        raise InvalidWebhook(refusal(target.host, found))
    return usable


class _Connection:
    """One connection, whose every step takes what is left until its deadline."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._socket: socket.socket | None = None
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD)

    def open(self, target: Target, addresses: Sequence[str], context: ssl.SSLContext | None) -> None:
        """Connect to the first address that takes a connection.

        Raises:
            OSError: none does.
        """
        for number, address in enumerate(addresses):
            share = self._left() / (len(addresses) - number)
            try:
                self._socket = socket.create_connection((address, target.port), share)
                break
            except OSError:
                if number == len(addresses) - 1:
                    raise
        if target.secure and self._socket is not None:
            self._timed()
            trusted = context or ssl.create_default_context()
            self._socket = trusted.wrap_socket(self._socket, server_hostname=target.host.rstrip("."))

    def exchange(self, target: Target, body: bytes, headers: Mapping[str, str], began: float) -> Answer:
        """Send a request, and read the answer to it.

        Raises:
            OSError, h11.ProtocolError: there is none.
        """
        head = {
            "Host": target.authority,
            "User-Agent": f"espalier/{__version__}",
            "Accept": "*/*",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **headers,
        }
        self._send(h11.Request(method="POST", target=target.path, headers=list(head.items())))
        self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        response = self._response()
        text = self._body()
        status = response.status_code
        error = None
        if 300 <= status < 400:
            error = f"the receiver answered {status}, and redirects are not followed: name the address that it leads to"
        return Answer(status, error, time.monotonic() - began, _pause(response), text)

    def close(self) -> None:
        """Close it, whatever the other side is doing."""
        if self._socket is not None:
            self._socket.close()

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _timed(self) -> socket.socket:
        assert self._socket is not None
        self._socket.settimeout(self._left())
        return self._socket

    def _send(self, event: h11.Event) -> None:
        data = memoryview(self._http.send(event) or b"")
        while data:
            data = data[self._timed().send(data) :]

    def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(self._timed().recv(_CHUNK))
        return event

    def _response(self) -> h11.Response:
        while True:
            event = self._next()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the connection ended before an answer")

    def _body(self) -> str:
        """The beginning of the body; what cannot be read of it is left."""
        read, kept = 0, b""
        try:
            while read < MOST_READ and isinstance(event := self._next(), h11.Data):
                read += len(event.data)
                kept = (kept + bytes(event.data))[: 4 * _EXCERPT]
        except (OSError, h11.ProtocolError):
            pass
        return re.sub(r"[\x00-\x1f\x7f-\x9f\ufffd]+", " ", kept.decode(errors="replace")).strip()[:_EXCERPT]


def _pause(response: h11.Response) -> float | None:
    """Seconds of a Retry-After, which is a number of them or a date; None where it is neither."""
    for name, value in response.headers:
        if name == b"retry-after":
            return retry_after(value.decode("latin-1"), datetime.now(UTC))
    return None


def retry_after(text: str, now: datetime) -> float | None:
    """Seconds from now that a Retry-After means."""
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    seconds = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
