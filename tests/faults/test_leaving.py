"""SIGTERM: every process leaves within seconds, in order, whatever is under way and whoever has stopped listening."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from app.domain import Actor
from espalier.formats import megabatch
from tests.scenarios.deployment import Deployment, Process, clusters, until
from tests.scenarios.test_api_faults import half_upload, staged
from tests.scenarios.test_worker_faults import RECIPE as LONG
from tests.scenarios.test_worker_faults import in_training

pytestmark = pytest.mark.timeout(300)
RECIPE = {"network": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 1, "minibatch": 64}}
ENTRIES = 20_000  # some 8 MB of events: more than any buffer between two sockets holds


def asked(url: str, request: str, *, buffer: int | None = None) -> socket.socket:
    """A connection that has sent a request."""
    address = urlsplit(url)
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    connection.connect((address.hostname, address.port))
    connection.sendall(f"{request}\r\nHost: {address.netloc}\r\n\r\n".encode())
    return connection


def seconds_to_leave(process: Process) -> float:
    began = time.monotonic()
    process.send(signal.SIGTERM)
    assert process.ended(30) == 0, process.text
    return time.monotonic() - began


def fill_log(deployment: Deployment) -> None:
    store = deployment.store()
    with store.transaction(Actor("tester")) as tx:
        for number in range(ENTRIES):
            tx.audit.append("test.noise", model=None, parameters={"number": number, "noise": "x" * 190})
    store.dispose()


def test_a_service_with_readers_that_wait_leaves_at_once(deployment: Deployment, tally) -> None:
    service = deployment.serve("--no-worker")
    client = deployment.client(service)
    client.create_model("gas", RECIPE)
    with ExitStack() as stack:
        events = stack.enter_context(asked(service.url(), "GET /v1/events HTTP/1.1"))
        assert events.recv(12) == b"HTTP/1.1 200"
        poll = asked(service.url(), "GET /v1/models/gas/versions/champion HTTP/1.1\r\nPrefer: wait=60")
        stack.enter_context(poll)
        assert seconds_to_leave(service) < 8
    tally.add(injected=1)
    deployment.is_whole()


def test_a_reader_that_has_stopped_reading_holds_nobody_up(deployment: Deployment, tally) -> None:
    fill_log(deployment)
    service = deployment.serve("--no-worker")
    request = "GET /v1/events HTTP/1.1\r\nLast-Event-ID: 0"
    with asked(service.url(), request, buffer=4096) as stuck:
        assert stuck.recv(12) == b"HTTP/1.1 200"  # and never again

        def blocked() -> bool:
            """Whether the service has bytes for it that nobody takes."""
            stuck.settimeout(0.2)
            return bool(stuck.recv(1, socket.MSG_PEEK))

        until(blocked)
        assert seconds_to_leave(service) < 8, service.text
    tally.add(injected=1)


def test_a_caller_in_the_middle_of_an_upload_has_ten_seconds(deployment: Deployment, tally) -> None:
    service = deployment.serve("--no-worker")
    client = deployment.client(service)
    client.create_model("gas", RECIPE)
    body = megabatch.encode(*clusters(1, n=200_000))
    with half_upload(service.url(), body):
        until(lambda: any(path.stat().st_size for path in staged(deployment)), what="the first bytes on disk")
        assert seconds_to_leave(service) < 25
    assert staged(deployment) == []
    again = deployment.client(deployment.serve("--no-worker"))
    assert list(again.megabatches("gas")) == []
    tally.add(injected=1)
    deployment.is_whole()


def test_a_service_hands_its_workers_cycle_back(on_each_database: Deployment, tally) -> None:
    deployment = on_each_database
    service = deployment.serve(lease_seconds=3600, snapshot_seconds=3600)
    client = deployment.client(service)
    client.create_model("gas", LONG)
    cycle = client.upload("gas", *clusters(1, n=1200)).cycle
    assert cycle is not None
    until(lambda: in_training(client, cycle, 0.1), what="a tenth of the cycle")
    assert seconds_to_leave(service) < 20
    client = deployment.client(deployment.serve("--no-worker"))
    assert client.cycle("gas", cycle).state == "queued"
    assert len(list(client.audit("gas", kind="cycle.released"))) == 1
    tally.add(injected=1)
    deployment.is_whole()
