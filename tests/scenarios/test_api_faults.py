"""An API process that is killed in the middle of an upload: nothing half is visible, and nothing is lost."""

from __future__ import annotations

import signal
import socket
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.config import Settings
from app.domain import Actor
from app.service.outcomes import sweep
from espalier.formats import megabatch
from tests.scenarios.deployment import Deployment, clusters, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RECIPE = {"network": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 1, "minibatch": 64}}


def staged(deployment: Deployment) -> list[Path]:
    return [path for path in (deployment.data / "blobs" / "staging").rglob("*") if path.is_file()]


def half_upload(url: str, body: bytes) -> socket.socket:
    """A connection that has sent half of an upload, and goes on holding."""
    address = urlsplit(url)
    assert address.hostname is not None and address.port is not None
    connection = socket.create_connection((address.hostname, address.port))
    head = (
        "POST /v1/models/gas/megabatches HTTP/1.1\r\n"
        f"Host: {address.netloc}\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body[: len(body) // 2])
    return connection


def test_a_kill_in_the_middle_of_an_upload(deployment: Deployment) -> None:
    service = deployment.serve("--no-worker")
    client = deployment.client(service)
    client.create_model("gas", RECIPE)
    client.upload("gas", *clusters(1))
    x, y = clusters(2, n=200_000)
    body = megabatch.encode(x, y)
    with half_upload(service.url(), body):
        until(lambda: any(path.stat().st_size for path in staged(deployment)), what="the first bytes on disk")
        service.send(signal.SIGKILL)
        service.ended()

    again = deployment.client(deployment.serve("--no-worker"))
    assert [m.number for m in again.megabatches("gas")] == [1]
    accepted = len(list(again.audit("gas", kind="megabatch.accepted")))
    assert accepted == 1

    later = deployment.store(ahead=timedelta(days=2))
    sweep(later, Settings(), Actor("tester"))
    later.dispose()
    assert staged(deployment) == []

    whole = again.upload("gas", x, y)
    assert (whole.number, whole.examples, whole.replayed) == (2, len(y), False)
    assert again.upload("gas", x, y).replayed
    assert again.verify_log() == again.audit_head().size
    deployment.is_whole()


def test_a_stop_lets_requests_finish(deployment: Deployment) -> None:
    service = deployment.serve("--no-worker")
    client = deployment.client(service)
    client.create_model("gas", RECIPE)
    body = megabatch.encode(*clusters(1, n=200_000))
    with half_upload(service.url(), body) as connection:
        until(lambda: any(path.stat().st_size for path in staged(deployment)), what="the first bytes on disk")
        service.send(signal.SIGTERM)
        connection.sendall(body[len(body) // 2 :])
        connection.settimeout(15)
        assert connection.recv(12) == b"HTTP/1.1 201"
    assert service.ended() == 0
