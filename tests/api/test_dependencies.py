"""Uploads over a real socket: what a test client cannot do, such as going away, stalling, or asking first."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from app.api import bodies
from app.api.application import create_app
from app.config import Settings
from tests.api.conftest import OCTETS, RECIPE, examples, upload_bytes

HEAD = "POST /v1/models/gas/megabatches HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"


@dataclass
class Served:
    """A service on a port of its own."""

    app: FastAPI
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def staged(self) -> int:
        staging = self.app.state.store.blobs.root / "staging"
        return len(list(staging.iterdir())) if staging.exists() else 0


def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds; fail when it does not within ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(params=["httptools", "h11"])
def served(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Served]:
    app = create_app(settings)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=request.param, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until(lambda: server.started)
    found = Served(app, listening.getsockname()[1])
    httpx.post(f"{found.url}/v1/models", json={"name": "gas", "recipe": RECIPE}).raise_for_status()
    yield found
    server.should_exit = True
    thread.join(10)
    listening.close()
    assert not thread.is_alive()


def test_an_upload_without_a_length_is_streamed(served: Served) -> None:
    data = upload_bytes()
    chunks = (data[start : start + 100] for start in range(0, len(data), 100))
    answer = httpx.post(f"{served.url}/v1/models/gas/megabatches", content=chunks, headers=OCTETS)
    assert answer.status_code == 201, answer.text
    assert served.staged() == 0


def test_a_client_that_asks_first_is_told_to_go_on(served: Served) -> None:
    data = upload_bytes()
    with served.connect() as wire:
        wire.sendall(f"{HEAD}Content-Length: {len(data)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n".encode())
        assert wire.recv(1000).startswith(b"HTTP/1.1 100 ")
        wire.sendall(data)
        assert b"HTTP/1.1 201 " in _all(wire)


def test_a_client_that_asks_first_is_refused_before_it_sends(served: Served) -> None:
    with served.connect() as wire:
        wire.sendall(f"{HEAD}Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n".encode())
        assert wire.recv(1000).startswith(b"HTTP/1.1 413 ")
    with served.connect() as wire:
        unknown = HEAD.replace("gas", "other")
        wire.sendall(f"{unknown}Content-Length: 9\r\nExpect: 100-continue\r\n\r\n".encode())
        assert wire.recv(1000).startswith(b"HTTP/1.1 404 ")


def test_a_client_that_goes_away_leaves_nothing(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        with served.connect() as wire:
            wire.sendall(f"{HEAD}Content-Length: 200000\r\n\r\n".encode() + bytes(100_000))
            until(lambda: served.staged() == 1)
        until(lambda: served.staged() == 0)
    assert not caplog.records, "a client that goes away is no fault of the service"
    assert httpx.get(f"{served.url}/v1/models/gas/megabatches").json()["items"] == []


def test_an_upload_that_stalls_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "STALL_SECONDS", 0.2)
    with served.connect() as wire:
        wire.sendall(f"{HEAD}Content-Length: 200000\r\n\r\n".encode() + bytes(1000))
        assert wire.recv(4000).startswith(b"HTTP/1.1 408 ")
        until(lambda: served.staged() == 0)


def test_too_long_an_upload_without_a_length_is_cut_off(served: Served) -> None:
    chunk = b"2000\r\n" + bytes(0x2000) + b"\r\n"
    with served.connect() as wire:
        wire.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(40):
            wire.sendall(chunk)
        assert wire.recv(1000).startswith(b"HTTP/1.1 413 ")
        until(lambda: served.staged() == 0)


def test_polls_are_answered_during_an_upload(served: Served) -> None:
    with served.connect() as wire:
        wire.sendall(f"{HEAD}Content-Length: 200000\r\n\r\n".encode() + bytes(1000))
        until(lambda: served.staged() == 1)
        assert httpx.get(f"{served.url}/v1/models/gas").status_code == 200
        assert httpx.post(f"{served.url}/v1/models/gas/megabatches", content=upload_bytes(), headers=OCTETS).is_success


def test_the_service_goes_on_after_every_refusal(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        for headers in ({"Content-Type": "application/json"}, {**OCTETS, "Content-Encoding": "gzip"}):
            answer = client.post("/v1/models/gas/megabatches", content=bytes(200_000), headers=headers)
            assert answer.status_code == 415
        assert client.get("/livez").status_code == 200
        assert examples()[0].shape == (24, 4)


def _all(wire: socket.socket) -> bytes:
    found = b""
    while chunk := wire.recv(65536):
        found += chunk
    return found
