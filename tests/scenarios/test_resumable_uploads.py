"""Uploads by a public tus client and by our own, while the API is killed in between: no acknowledged byte is lost, and
the megabatch is there once.
"""

from __future__ import annotations

import hashlib
import io
import signal
import socket
import threading
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from tusclient.client import TusClient

from app.config import Settings
from app.service.uploads import RECORD_BYTES, sweep_uploads
from espalier import Client
from espalier.formats.megabatch import arrays_digest
from tests.scenarios.deployment import Deployment, Process, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RECIPE = {"network": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 1, "minibatch": 64}}
PIECE = 1 << 20
TUS = {"Tus-Resumable": "1.0.0"}


def arrays(megabytes: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(3).normal(size=(megabytes << 12, 64)).astype(np.float32)
    return x, np.arange(len(x)) % 3


def packed(x: np.ndarray, y: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, x=x, y=y)
    return file.getvalue()


def restarted(deployment: Deployment, killed: Process) -> Process:
    """The same service at the same address, after a kill."""
    port = urlsplit(killed.url()).port
    killed.send(signal.SIGKILL)
    killed.ended()
    again = deployment.start("serve", "--port", str(port), "--no-worker")
    again.url()
    return again


def accepted_once(deployment: Deployment, client: Client, x: np.ndarray, y: np.ndarray) -> None:
    (megabatch,) = client.megabatches("gas")
    assert megabatch.digest == arrays_digest(x, y)
    assert len(list(client.audit("gas", kind="megabatch.accepted"))) == 1
    assert client.verify_log() == client.audit_head().size
    deployment.is_whole()


def half_a_part(url: str, path: str, body: bytes, offset: int, count: int) -> socket.socket:
    """A connection that sends only some bytes of a part, and goes on holding."""
    address = urlsplit(url)
    connection = socket.create_connection((str(address.hostname), int(address.port or 80)))
    head = (
        f"PATCH {path} HTTP/1.1\r\nHost: {address.netloc}\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\n"
        f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(body) - offset}\r\n\r\n"
    )
    connection.sendall(head.encode() + body[offset : offset + count])
    return connection


def test_tuspy_goes_on_after_every_kill(deployment: Deployment) -> None:
    service = deployment.serve("--no-worker")
    client = deployment.client(service)
    client.create_model("gas", RECIPE)
    x, y = arrays(8)
    data = packed(x, y)
    tus = TusClient(f"{service.url()}/v1/models/gas/uploads")
    told = {"filename": "monday.npz", "sha256": hashlib.sha256(data).hexdigest()}
    uploader = tus.uploader(file_stream=io.BytesIO(data), chunk_size=PIECE, metadata=told, retries=0)
    for pieces in (2, 3):
        uploader.upload(stop_at=uploader.offset + pieces * PIECE)
        service = restarted(deployment, service)
        acknowledged = uploader.offset
        uploader = tus.uploader(file_stream=io.BytesIO(data), url=uploader.url, chunk_size=PIECE, upload_checksum=True)
        assert uploader.offset == acknowledged
    uploader.upload()
    view = httpx.get(uploader.url).json()
    assert (view["state"], view["megabatch"], view["digest"]) == ("accepted", 1, f"sha256:{told['sha256']}")
    accepted_once(deployment, client, x, y)


def test_a_kill_within_a_long_part_keeps_what_was_recorded(deployment: Deployment) -> None:
    service = deployment.serve("--no-worker")
    client = deployment.client(service)
    client.create_model("gas", RECIPE)
    x, y = arrays(48)
    data = packed(x, y)
    begun = httpx.post(f"{service.url()}/v1/models/gas/uploads", headers={**TUS, "Upload-Length": str(len(data))})
    path = begun.headers["Location"]
    with half_a_part(service.url(), path, data, 0, RECORD_BYTES + 5 * PIECE):
        recorded = until(lambda: httpx.get(service.url() + path).json()["offset"], what="a recorded offset")
        service = restarted(deployment, service)
    assert recorded >= RECORD_BYTES
    head = httpx.head(service.url() + path, headers=TUS)
    assert int(head.headers["Upload-Offset"]) >= recorded
    offset = int(head.headers["Upload-Offset"])
    file = deployment.data / "blobs" / "uploads" / path.rpartition("/")[2]
    assert file.stat().st_size >= offset
    assert file.read_bytes()[:offset] == data[:offset]
    headers = {**TUS, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
    last = httpx.patch(service.url() + path, content=data[offset:], headers=headers, timeout=60)
    assert (last.status_code, last.headers["Espalier-Megabatch"]) == (204, "1")
    accepted_once(deployment, client, x, y)


def test_two_parts_at_once_and_one_that_breaks_off(deployment: Deployment) -> None:
    service = deployment.serve("--no-worker")
    client = deployment.client(service)
    client.create_model("gas", RECIPE)
    x, y = arrays(4)
    data = packed(x, y)
    begun = httpx.post(f"{service.url()}/v1/models/gas/uploads", headers={**TUS, "Upload-Length": str(len(data))})
    path = begun.headers["Location"]
    file = deployment.data / "blobs" / "uploads" / path.rpartition("/")[2]
    headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    with half_a_part(service.url(), path, data, 0, 2 * PIECE + 17):
        until(lambda: file.stat().st_size >= PIECE, what="the first bytes on disk")
        second = httpx.patch(service.url() + path, content=data, headers=headers)
        assert (second.status_code, second.headers["Retry-After"]) == (423, "1")

    def offset() -> int:
        return int(httpx.head(service.url() + path, headers=TUS).headers["Upload-Offset"])

    until(lambda: offset() == 2 * PIECE + 17, what="what the broken part brought")
    assert httpx.patch(service.url() + path, content=data, headers=headers).status_code == 409
    rest = data[offset() :]
    last = httpx.patch(service.url() + path, content=rest, headers={**headers, "Upload-Offset": str(offset())})
    assert last.headers["Espalier-Megabatch"] == "1"
    accepted_once(deployment, client, x, y)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ESPALIER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_our_client_outlives_a_kill_of_the_service(deployment: Deployment, cache: Path) -> None:
    service = deployment.serve("--no-worker")
    client = deployment.client(service)
    client.create_model("gas", RECIPE)
    x, y = arrays(64)
    (deployment.folder / "x.npz").write_bytes(packed(x, y))
    sent: list[int] = []
    going, killed = threading.Event(), threading.Event()

    def progress(done: int, total: int | None) -> None:
        sent.append(done)
        if done > 40 * PIECE and not killed.is_set():
            going.set()
            assert killed.wait(60)

    found: list[int] = []

    def push() -> None:
        found.append(client.upload("gas", deployment.folder / "x.npz", progress=progress).number)

    pushing = threading.Thread(target=push)
    pushing.start()
    assert going.wait(60)
    [part] = (deployment.data / "blobs" / "uploads").iterdir()
    until(lambda: httpx.get(f"{service.url()}/v1/uploads/{part.name}").json()["offset"] >= RECORD_BYTES)
    restarted(deployment, service)
    killed.set()
    pushing.join(120)
    assert found == [1]
    resumed = [after for before, after in zip(sent, sent[1:], strict=False) if after < before]
    assert resumed and min(resumed) >= RECORD_BYTES
    accepted_once(deployment, client, x, y)
    assert not any((cache / "uploads").iterdir())


def test_what_is_abandoned_is_swept(deployment: Deployment) -> None:
    service = deployment.serve("--no-worker")
    deployment.client(service).create_model("gas", RECIPE)
    begun = httpx.post(f"{service.url()}/v1/models/gas/uploads", headers={**TUS, "Upload-Length": "1000"})
    path = begun.headers["Location"]
    headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    httpx.patch(service.url() + path, content=bytes(500), headers=headers)
    folder = deployment.data / "blobs" / "uploads"
    (folder / ("0" * 32)).write_bytes(b"no row names this")
    now = deployment.store()
    assert sweep_uploads(now, Settings()) == 0
    now.dispose()
    later = deployment.store(ahead=timedelta(days=2))
    assert sweep_uploads(later, Settings()) == 2
    later.dispose()
    assert list(folder.iterdir()) == []
    assert httpx.get(service.url() + path).status_code == 404
