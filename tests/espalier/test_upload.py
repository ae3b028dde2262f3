"""Large uploads: resumed after whatever happens on the way, by this process or the next one, in little memory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from espalier import upload
from espalier.client import Client
from espalier.errors import ApiProblem, EspalierClientError, ServiceUnreachable
from tests.espalier.conftest import RECIPE, Fault, Faulty, Service, answering, examples, refused


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every upload is a large one here, tries follow at once, and nothing is remembered beyond a test."""
    monkeypatch.setattr(upload, "RESUMABLE_BYTES", 1000)
    monkeypatch.setattr(upload, "BLOCK", 1024)
    monkeypatch.setattr(upload, "backoff", lambda attempt, base: 0.0)
    monkeypatch.setenv("ESPALIER_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def name(idle: Service, request: pytest.FixtureRequest) -> str:
    made = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:63].rstrip("-")
    with Client(idle.url) as client:
        client.create_model(made, RECIPE)
    return made


def through(service: Service, *faults: Fault | None, times: int = 1) -> tuple[Client, Faulty]:
    network = Faulty(*faults, times=times)
    return Client(service.url, transport=network), network


def methods(network: Faulty) -> list[str]:
    return [request.method for request in network.requests]


def breaking(after: int) -> Fault:
    """The service keeps so many bytes of the body; all that the client sees is a lost connection."""

    def answer(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        part = b"".join(request.stream)[:after]  # type: ignore[arg-type]
        headers = {**request.headers, "content-length": str(after), "upload-complete": "?0"}
        short = httpx.Request(request.method, request.url, headers=headers, content=part)
        assert inner.handle_request(short).read() == b""
        raise httpx.WriteError("connection reset by peer", request=request)

    return answer


def lost(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
    """The service does what it is asked to, but its answer is lost."""
    inner.handle_request(request).read()
    raise httpx.ReadError("connection reset by peer", request=request)


def remembered() -> list[Path]:
    folder = upload.cache_folder() / "uploads"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_large_upload_is_begun_looked_at_and_sent(idle: Service, name: str) -> None:
    client, network = through(idle)
    seen: list[tuple[int, int | None]] = []
    with client:
        megabatch = client.upload(name, *examples(1), progress=lambda sent, total: seen.append((sent, total)))
    assert methods(network) == ["POST", "GET", "PATCH"]
    assert (megabatch.number, megabatch.replayed, megabatch.cycle) == (1, False, 1)
    assert seen[0] == (0, seen[-1][0]) and seen[-1][0] == seen[-1][1]
    assert remembered() == []


def test_it_goes_on_where_the_connection_was_lost(idle: Service, name: str) -> None:
    client, network = through(idle, None, None, breaking(3000), None, breaking(2000))
    seen: list[int] = []
    with client:
        megabatch = client.upload(name, *examples(1), progress=lambda sent, total: seen.append(sent))
    assert (megabatch.number, megabatch.replayed) == (1, False)
    offsets = [int(r.headers["upload-offset"]) for r in network.requests if r.method == "PATCH"]
    assert offsets == [0, 3000, 5000]
    assert methods(network) == ["POST", *["GET", "PATCH"] * 3]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [refused, answering(503), lost], ids=["refused", "503", "lost"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_no_request_may_be_lost_for_good(idle: Service, name: str, at: int, fault: Fault) -> None:
    client, _ = through(idle, *[None] * at, fault)
    with client:
        assert (client.upload(name, *examples(1)).number, len(list(client.megabatches(name)))) == (1, 1)
        assert len(list(client.audit(name, kind="megabatch.accepted"))) == 1
        assert client.audit_head().size == client.verify_log()
    assert remembered() == []


def test_an_upload_that_gets_nowhere_ends_and_the_next_process_goes_on(idle: Service, name: str) -> None:
    client, network = through(idle, None, None, breaking(4000), *[None, answering(502)] * 20)
    with client, pytest.raises(ServiceUnreachable, match="the same upload goes on from it"):
        client.upload(name, *examples(1))
    assert upload.MOST_FAILURES < methods(network).count("PATCH") <= upload.MOST_FAILURES + 3
    assert len(remembered()) == 1
    again, network = through(idle)
    seen: list[int] = []
    with again:
        assert again.upload(name, *examples(1), progress=lambda sent, total: seen.append(sent)).number == 1
    assert methods(network) == ["GET", "PATCH"]
    assert seen[0] == 4000
    assert remembered() == []


@pytest.mark.slow
def test_what_the_service_has_forgotten_is_begun_anew(idle: Service, name: str) -> None:
    client, _ = through(idle, None, None, breaking(4000), *[refused] * 200)
    with client, pytest.raises(ServiceUnreachable):
        client.upload(name, *examples(1))
    (state,) = remembered()
    httpx.delete(f"{idle.url}/v1/uploads/{json.loads(state.read_text())['upload']}").raise_for_status()
    again, network = through(idle)
    with again:
        assert again.upload(name, *examples(1)).number == 1
    assert methods(network) == ["GET", "POST", "GET", "PATCH"]


def test_a_refusal_is_no_reason_to_try_again(idle: Service, name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(b"PK\x03\x04" + os.urandom(5000))
    client, network = through(idle)
    with client, pytest.raises(ApiProblem) as raised:
        client.upload(name, path)
    assert (raised.value.status, raised.value.type) == (422, "urn:espalier:problem:invalid-megabatch")
    assert methods(network) == ["POST", "GET", "PATCH"]
    lossy, network = through(idle, None, None, lost)
    with lossy, pytest.raises(ApiProblem) as raised:
        lossy.upload(name, path)
    assert raised.value.status == 422
    assert raised.value.extensions["reason"]
    assert remembered() == []


def test_a_file_that_changes_is_no_longer_the_same_upload(idle: Service, name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    x, y = examples(1)
    np.savez(path, x=x, y=y)

    def shrink(sent: int, total: int | None) -> None:
        if sent > 2000:
            os.truncate(path, 1500)

    with Client(idle.url) as client, pytest.raises(EspalierClientError, match="changed while it was uploaded"):
        client.upload(name, path, progress=shrink)


def test_a_place_that_cannot_be_written_is_no_fault(
    idle: Service, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ESPALIER_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with Client(idle.url) as client:
        assert client.upload(name, *examples(1)).number == 1


def test_where_unfinished_uploads_are_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert upload.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ESPALIER_CACHE_DIR")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert upload.cache_folder() == tmp_path / "espalier"


_PUSH = """
import resource, sys
from espalier.client import Client
url, name, path = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Client(url) as client:
    client.upload(name, path)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_no_matter_of_size(idle: Service, name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(100_000, 128)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(len(x)) % 3)
    done = subprocess.run(
        [sys.executable, "-c", _PUSH, idle.url, name, str(tmp_path / "x.npz")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "x.npz").stat().st_size > 50_000_000
    assert int(done.stdout) < 16 * 1024, "kilobytes more than before"


@pytest.mark.slow
def test_a_push_that_was_interrupted_goes_on(idle: Service, name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(200_000, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(len(x)) % 3)
    command = [sys.executable, "-m", "espalier", "--url", idle.url, "batch", "push", name, str(tmp_path / "x.npz")]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder, deadline = idle.data_dir / "blobs" / "uploads", time.monotonic() + 30
    while not any(path.stat().st_size > 4_000_000 for path in folder.glob("*")):
        assert first.poll() is None and time.monotonic() < deadline
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)
    assert len(remembered()) == 1
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"accepted as megabatch 1 \(200,000 examples, 3 classes\)", done.stdout)
    assert remembered() == []
