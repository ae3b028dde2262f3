"""A real service in processes of its own, and faults on the way to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from espalier.client import Client

RECIPE = {
    "network": {"name": "mlp", "hidden": [24]},
    "training": {"epochs": 4, "minibatch": 16, "learning_rate": 0.05},
    "schedule": {"name": "app", "stages": 4},
    "guardrails": [],
    "validation_share": 0.2,
}


def examples(seed: int, count: int = 120, features: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, far apart."""
    random = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = random.normal(size=(count, features)).astype(np.float32) + 3 * np.eye(3, features, dtype=np.float32)[y]
    return x, y


@dataclass
class Service:
    """A running service."""

    url: str
    process: subprocess.Popen[str]
    data_dir: Path

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def serving(data_dir: Path, *options: str, **environment: str) -> Iterator[Service]:
    """`espalier serve` as another process, on a free port."""
    command = [sys.executable, "-m", "espalier", "serve", "--port", "0", "--data-dir", str(data_dir), *options]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ESPALIER_")}
    settings = {"OMP_NUM_THREADS": "1", "ESPALIER_TICK_SECONDS": "0.25", **environment}
    with (data_dir.parent / "service.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=clean | settings)
    assert process.stdout is not None
    try:
        for said in process.stdout:
            if found := re.search(r"service\s+(http://\S+)", said):
                yield Service(found[1], process, data_dir)
                return
        raise AssertionError((data_dir.parent / "service.log").read_text())
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service with a worker for all tests here; each test takes a model of its own."""
    with serving(tmp_path_factory.mktemp("service") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without a worker: what is queued there stays queued."""
    with serving(tmp_path_factory.mktemp("idle") / "data", "--no-worker") as running:
        yield running


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("ESPALIER_") and name != "ESPALIER_TEST_DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("ESPALIER_PINS", str(tmp_path / "pins"))  # nothing is remembered from one test to the next


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as connected:
        yield connected


@pytest.fixture
def trained(client: Client, request: pytest.FixtureRequest) -> str:
    """A model with two versions, named after the test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:63].rstrip("-")
    client.create_model(name, RECIPE)
    for seed in (1, 2):
        client.upload(name, *examples(seed), wait=True, timeout=90)
    return name


Fault = Callable[[httpx.Request, httpx.BaseTransport], httpx.Response]


class Faulty(httpx.BaseTransport):
    """The network, but the first requests meet these faults; None lets one through."""

    def __init__(self, *faults: Fault | None, times: int = 1) -> None:
        self.faults = [fault for fault in faults for _ in range(times)]
        self.requests: list[httpx.Request] = []
        self.inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        fault = self.faults.pop(0) if self.faults else None
        return self.inner.handle_request(request) if fault is None else fault(request, self.inner)

    def close(self) -> None:
        self.inner.close()


def refused(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
    """Nobody listens."""
    raise httpx.ConnectError("Connection refused", request=request)


def answering(status: int, **headers: str) -> Fault:
    """A proxy answers in the service's place."""

    def answer(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        return httpx.Response(status, headers=headers, text="<html>proxy</html>", request=request)

    return answer


class _Cut(httpx.SyncByteStream):
    def __init__(self, response: httpx.Response, after: int, flip: bool) -> None:
        self.response, self.left, self.flip = response, after, flip

    def __iter__(self) -> Iterator[bytes]:
        for block in self.response.iter_raw(512):
            part = block[: self.left]
            self.left -= len(part)
            yield bytes([part[0] ^ 1]) + part[1:] if self.flip and part else part
            if self.left <= 0:
                raise httpx.ReadError("connection reset by peer")

    def close(self) -> None:
        self.response.close()


def cut(after: int, flip: bool = False) -> Fault:
    """The connection is lost after so many bytes of the body; `flip` changes a bit of each block."""

    def answer(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        response = inner.handle_request(request)
        return httpx.Response(response.status_code, headers=response.headers, stream=_Cut(response, after, flip))

    return answer


def tampered(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
    """Every byte arrives, but not every bit."""
    return cut(10**9, flip=True)(request, inner)
