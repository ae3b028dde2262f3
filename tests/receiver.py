"""A receiver of webhooks: a real HTTP server on loopback, which answers as it is told."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from espalier.formats.webhook import Event, verify_webhook


@dataclass(frozen=True)
class Got:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    def event(self, *secrets: str) -> Event:
        return verify_webhook(self.headers, self.body, list(secrets))


Answering = Callable[["_Handler", Got], None]


def status(code: int, text: bytes = b"", **headers: str) -> Answering:
    """An ordinary answer."""

    def answer(handler: _Handler, got: Got) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(text)))
        handler.server.receiver.answered(handler)  # type: ignore[attr-defined]
        handler.end_headers()
        handler.wfile.write(text)

    return answer


def hanging(seconds: float) -> Answering:
    """Nothing is said for so long."""

    def answer(handler: _Handler, got: Got) -> None:
        handler.server.leaving.wait(seconds)  # type: ignore[attr-defined]

    return answer


def trickling(head: bytes, seconds: float) -> Answering:
    """A byte now and then, without an end."""

    def answer(handler: _Handler, got: Got) -> None:
        end = time.monotonic() + seconds
        handler.wfile.write(head)
        while time.monotonic() < end and not handler.server.leaving.wait(0.05):  # type: ignore[attr-defined]
            try:
                handler.wfile.write(b"x")
            except OSError:
                return

    return answer


@dataclass
class Receiver:
    """What came, and how it is answered.

    Attributes:
        script: answers to the first requests; then ``otherwise``.
    """

    port: int = 0
    host: str = "127.0.0.1"
    got: list[Got] = field(default_factory=list)
    script: list[Answering] = field(default_factory=list)
    otherwise: Answering = field(default_factory=lambda: status(204))
    most_at_once: int = 0
    _now: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [one.headers["webhook-id"] for one in self.got]

    def take(self, handler: _Handler, got: Got) -> None:
        with self._guard:
            self.got.append(got)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            answer = self.script.pop(0) if self.script else self.otherwise
        try:
            answer(handler, got)
        except OSError:
            pass  # the sender went away
        finally:
            self.answered(handler)

    def answered(self, handler: _Handler) -> None:
        """Before the last of the answer leaves: whoever has it may send the next at once."""
        with self._guard:
            self._now -= not handler.is_answered
            handler.is_answered = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    is_answered = False  # one request a connection: each is closed

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.close_connection = True
        self.server.receiver.take(self, Got(self.path, headers, body, time.monotonic()))  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a connection that was cut, or no TLS: what the tests are about


@contextmanager
def receiving(port: int = 0, *, context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver that listens until the end."""
    server = _Server(("127.0.0.1", port), _Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(server.server_address[1])
    server.receiver, server.leaving = receiver, threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.leaving.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()
        server.server_close()
