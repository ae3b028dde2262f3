"""An S3 of this process, without a network: moto behind a door that counts requests and can be told to fail some.

moto enforces conditional writes and keeps times by the second, as S3 does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import FakeKey, s3_backends
from werkzeug.serving import make_server

Fault = Callable[[int, str, str], tuple[int, str] | None]
"""From the number of a request (1 is the first), its method and its path to a status and S3's code, or None."""

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}

_CHUNK = 64 * 1024


class _Quiet(MotoRequestHandler):
    def log(self, *_arguments: Any) -> None:
        """Nothing."""


class S3:
    """The server. ``url`` is its address."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._door, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._numbers = count(1)
        self._fault: Fault | None = None
        self._names = count(1)
        self.requests: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self._server.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a client finds it."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}

    def new_bucket(self) -> str:
        """The name of an empty bucket."""
        name = f"bucket-{next(self._names)}"
        self._backend.create_bucket(name, "us-east-1")
        return name

    def keys(self, bucket: str) -> dict[str, FakeKey]:
        """The objects of a bucket by key."""
        return dict(self._backend.buckets[bucket].keys.items())

    def copy(self, bucket: str) -> str:
        """The name of a new bucket with the same objects, as old as they are."""
        name = self.new_bucket()
        for key, found in self.keys(bucket).items():
            made = self._backend.put_object(name, key, found.value)
            made.last_modified = found.last_modified
        return name

    def age(self, bucket: str, part: str, seconds: float) -> None:
        """Make every object whose key holds ``part`` older."""
        for name, key in self.keys(bucket).items():
            if part in name:
                key.last_modified -= timedelta(seconds=seconds)

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[list[tuple[str, str]]]:
        """Fail some of the requests that come meanwhile. Yields the requests, as they come."""
        self._numbers, self._fault, self.requests = count(1), fault, []
        try:
            yield self.requests
        finally:
            self._fault, self.requests = None, []

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for name in list(self._backend.buckets):
            for key in self.keys(name).values():
                key.dispose()

    @property
    def _backend(self) -> Any:
        return s3_backends["123456789012"]["aws"]

    def _door(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        answer = self._fault(next(self._numbers), method, path) if self._fault else None
        if answer is None:
            found: Iterable[bytes] = self._moto(environ, start_response)
            return found
        left = int(environ.get("CONTENT_LENGTH") or 0)
        while left > 0:
            left -= len(environ["wsgi.input"].read(min(left, _CHUNK))) or left
        body = f"<Error><Code>{answer[1]}</Code><Message>as the test wants</Message></Error>".encode()
        start_response(f"{answer[0]} {answer[1]}", [("Content-Length", str(len(body))), ("Content-Type", "text/xml")])
        return [body]
